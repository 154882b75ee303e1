"""The ingest step: read a landing day, judge its rows, and publish items, users, quarantine and, last, events."""

import datetime as dt
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from feature_jobs.ingest.landing import LANDED_TABLES, Landing, LandingFile
from feature_jobs.ingest.publish import append_once, replace_events, replace_rejected
from feature_jobs.ingest.rules import add_unknown_items, judge_events, judge_items, judge_users
from feature_jobs.ingest.sources import input_columns, read_source, unreadable_files_named
from feature_jobs.session import table_failures_named
from schemas.errors import GateFailed
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.suppression import Suppression, suppressed_users
from schemas.tables import EVENTS, ITEMS, USERS, Table

KEPT, DUPLICATE, REJECTED, FORGOTTEN = "kept", "duplicate", "rejected", "forgotten"


@dataclass
class Judged:
    """A landing table's rows with ``_fate`` (kept, duplicate, rejected, forgotten), and how many of each, once counted."""

    table: Table
    rows: DataFrame
    fates: dict[str, int] = field(default_factory=dict)
    days: set[dt.date] = field(default_factory=set)

    @property
    def counts(self) -> TableCounts:
        """Row accounting, if everything kept is published."""
        kept, rejected = self.fates.get(KEPT, 0), self.fates.get(REJECTED, 0)
        dropped = {fate: self.fates[fate] for fate in (DUPLICATE, FORGOTTEN) if self.fates.get(fate)}
        return TableCounts(kept + rejected + sum(dropped.values()), kept, rejected, dropped)


def run(spark: SparkSession, lake: Lake, landing: Landing, date: dt.date) -> StepRun:
    """Ingest one landing day; see ``docs/landing-zone.md``.

    Running it again gives the same tables (but for ``ingested_at``). Raises BadInput for a file that cannot be read or a
    required column that is missing, GateFailed if a table's quarantined share is above ``ingest.quarantine_limit``; then
    events, items and users are as before, and quarantine shows the rejected rows.
    """
    files = {table.name: landing.files(table, date) for table in LANDED_TABLES}
    every_file = [file for some in files.values() for file in some]
    with step_run(lake, "ingest", date) as step, ExitStack() as caches:
        caches.enter_context(table_failures_named())
        caches.enter_context(unreadable_files_named(landing, every_file))
        pinned = {table.name: step.reads(lake, table) for table in LANDED_TABLES}
        judged, unknown = _judge(spark, lake, landing, date, files, pinned)
        for part in judged:
            part.rows = caches.enter_context(_cached(part.rows))
        _count(judged)
        rejected_rows = _rejected_rows(judged, date)
        any_rejected = any(part.counts.rows_quarantined for part in judged)
        reasons = _reasons_counted(rejected_rows) if any_rejected else {}
        step.extra = {"unknown_columns": unknown, "quarantine_reasons": reasons}
        refusal = _refusal(landing, judged, date, lake.config.ingest.quarantine_limit)
        if refusal:
            replace_rejected(lake, date, LANDED_TABLES, rejected_rows, any_rows=any_rejected)
            for part in judged:
                step.table(part.table, _unpublished(part.counts))
            raise GateFailed(refusal)
        items, users, events = judged
        for part in (items, users):
            if part.counts.rows_out:
                append_once(lake, part.table, pinned[part.table.name], part.rows.filter(F.col("_fate") == KEPT))
            step.table(part.table, part.counts)
        replace_rejected(lake, date, LANDED_TABLES, rejected_rows, any_rows=any_rejected)
        _publish_events(spark, lake, step, events, date, pinned[EVENTS.name], caches)
    return step


def _judge(
    spark: SparkSession,
    lake: Lake,
    landing: Landing,
    date: dt.date,
    files: dict[str, list[LandingFile]],
    pinned: dict[str, int],
) -> tuple[list[Judged], dict[str, list[str]]]:
    """Items, users and events with their fates (lazily), and the unknown columns by file."""
    sources = {table.name: read_source(spark, landing, table, files[table.name]) for table in LANDED_TABLES}
    unknown = {file: names for source in sources.values() for file, names in source.unknown.items()}

    def published(table: Table) -> DataFrame:
        return read_version(spark, lake, table, pinned[table.name])

    items = judge_items(sources[ITEMS.name].frame, date, lake.config, landing.uri)
    items = _without_published(with_fates(items, ITEMS, ITEMS.key), published(ITEMS), ITEMS.key)
    users = judge_users(sources[USERS.name].frame, date)
    users = _without_published(with_fates(users, USERS, USERS.key), published(USERS), USERS.key)
    landed_items = items.filter(F.col("_fate") == KEPT).select("item_id")
    known = published(ITEMS).select("item_id").union(landed_items).distinct()
    events = add_unknown_items(judge_events(sources[EVENTS.name].frame, date, lake.config), known)
    events = with_fates(events, EVENTS, ("impression_id",))
    suppression = suppressed_users(lake)
    users, events = (without_forgotten(spark, rows, suppression) for rows in (users, events))
    return [Judged(ITEMS, items), Judged(USERS, users), Judged(EVENTS, events)], unknown


def read_version(spark: SparkSession, lake: Lake, table: Table, version: int) -> DataFrame:
    """A table as of a version."""
    return spark.read.format("delta").option("versionAsOf", version).load(lake.table_uri(table))


def with_fates(rows: DataFrame, table: Table, key: tuple[str, ...]) -> DataFrame:
    """Add ``_fate``: rejected with a reason; of the others, the first of each key is kept and the rest are duplicates.

    First is by the key, then by time, then by all columns in the table's order (nulls first), so that rows that tie are
    equal and the order of the files doesn't matter. ``_row`` stays only where quarantine needs it.
    """
    good = F.size("_reasons") == 0
    # a rejected row has no key to be grouped by: its own text spreads it over the partitions
    group = [F.when(good, F.col(name)) for name in key] + [F.when(~good, F.xxhash64("_row"))]
    order = [_orderable(column) for column in _total_order(table)]
    place = F.row_number().over(Window.partitionBy(*group).orderBy(*order))
    fate = F.when(~good, REJECTED).when(place == 1, KEPT).otherwise(DUPLICATE)
    return rows.withColumn("_fate", fate).withColumn("_row", F.when(~good, F.col("_row")))


def without_forgotten(spark: SparkSession, rows: DataFrame, suppression: Suppression) -> DataFrame:
    """People who were forgotten (``onerec forget``): their rows are neither published nor quarantined, whatever is wrong."""
    if not suppression.hashes:
        return rows
    listed = spark.createDataFrame([(value,) for value in sorted(suppression.hashes)], "_hash string")
    hashed = rows.withColumn("_hash", F.sha2(F.concat(F.lit(suppression.salt), "user_id"), 256))
    found = hashed.join(F.broadcast(listed.withColumn("_forgotten", F.lit(True))), "_hash", "left")
    fate = F.when(F.col("_forgotten"), FORGOTTEN).otherwise(F.col("_fate"))
    return found.withColumn("_fate", fate).drop("_hash", "_forgotten")


def _total_order(table: Table) -> list[str]:
    """Input columns, times first for events."""
    names = [column.name for column in input_columns(table)]
    times = ["request_ts", "ts", "observed_ts"] if table is EVENTS else []
    return times + [name for name in names if name not in times]


def _orderable(name: str) -> Column:
    return F.col(name).asc_nulls_first()


def _without_published(rows: DataFrame, published: DataFrame, key: tuple[str, ...]) -> DataFrame:
    """Rows whose key the table already has are duplicates: versions and snapshots never change once published."""
    there = published.select(*key).withColumn("_there", F.lit(True))
    repeated = F.col("_there").isNotNull() & (F.col("_fate") == KEPT)
    fate = F.when(repeated, DUPLICATE).otherwise(F.col("_fate"))
    return rows.join(there, list(key), "left").withColumn("_fate", fate).drop("_there")


@contextmanager
def _cached(rows: DataFrame) -> Iterator[DataFrame]:
    cached = rows.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        yield cached
    finally:
        cached.unpersist()


def _count(judged: list[Judged]) -> None:
    """Fill in fates and days, by one action over all tables."""
    parts = []
    for number, part in enumerate(judged):
        day = F.col("date") if part.table is EVENTS else F.lit(None).cast("date")
        columns = [F.lit(number).alias("part"), F.col("_fate").alias("fate"), F.when(F.col("_fate") == KEPT, day).alias("day")]
        parts.append(part.rows.select(*columns).groupBy("part", "fate", "day").count())
    every = parts[0]
    for other in parts[1:]:
        every = every.union(other)
    for row in every.collect():
        part = judged[row["part"]]
        part.fates[row["fate"]] = part.fates.get(row["fate"], 0) + row["count"]
        if row["day"] is not None:
            part.days.add(row["day"])


def _rejected_rows(judged: list[Judged], date: dt.date) -> DataFrame:
    """Rows of quarantine."""
    parts = [
        part.rows.filter(F.col("_fate") == REJECTED).select(
            F.lit(part.table.name).alias("table_name"),
            F.lit(date).alias("date"),
            F.col("_row").alias("row_json"),
            F.col("_reasons").alias("reasons"),
            F.col("_file").alias("source_file"),
        )
        for part in judged
    ]
    every = parts[0]
    for other in parts[1:]:
        every = every.unionByName(other)
    return every


def _reasons_counted(rejected_rows: DataFrame) -> dict[str, dict[str, int]]:
    """How often each reason occurs (without what was found), by table; the most frequent first."""
    reasons = rejected_rows.select("table_name", F.explode("reasons").alias("reason"))
    bare = F.regexp_replace("reason", r"(?s) \(found .*", "").alias("reason")
    counted = reasons.select("table_name", bare).groupBy("table_name", "reason").count().collect()
    result: dict[str, dict[str, int]] = {}
    for row in sorted(counted, key=lambda row: (row["table_name"], -row["count"], row["reason"])):
        result.setdefault(row["table_name"], {})[row["reason"]] = row["count"]
    return result


def _refusal(landing: Landing, judged: list[Judged], date: dt.date, limit: float) -> str | None:
    """Why nothing may be published, or None."""
    for part in judged:
        counts = part.counts
        if counts.rows_quarantined > limit * counts.rows_in:
            share = counts.rows_quarantined / counts.rows_in
            return (
                f"{part.table.name} of {landing.given}, landing day {date}: {counts.rows_quarantined} of {counts.rows_in} rows "
                f"({share:.1%}) are bad, more than ingest.quarantine_limit ({limit:.1%}); nothing was published; the reasons "
                "are in the table quarantine"
            )
    return None


def _unpublished(counts: TableCounts) -> TableCounts:
    held_back = counts.rows_out
    return TableCounts(counts.rows_in, 0, counts.rows_quarantined, {**counts.rows_dropped, "held back by the gate": held_back})


def _publish_events(
    spark: SparkSession, lake: Lake, step: StepRun, events: Judged, date: dt.date, version: int, caches: ExitStack
) -> None:
    """Publish the landing's events; of an impression that several landings bring, the earliest landing's row stays."""
    kept = events.rows.filter(F.col("_fate") == KEPT).drop("_fate", "_reasons", "_row", "_file", "_dated")
    bucket = F.pmod(F.xxhash64("user_id"), F.lit(lake.config.lake.user_buckets)).cast("int")
    rows = kept.withColumns({"ingested_at": F.lit(dt.datetime.now(dt.UTC)), "landing_date": F.lit(date), "user_bucket": bucket})
    repeated, displaced, rewritten = 0, 0, set[dt.date]()
    if _other_landings(lake, version, date, events.days):
        published = read_version(spark, lake, EVENTS, version).filter(F.col("date").isin(sorted(events.days)))
        others = published.filter(F.col("landing_date") != F.lit(date))
        claims = others.select("impression_id", "date", "landing_date").join(kept.select("impression_id"), "impression_id")
        claims = caches.enter_context(_cached(claims))
        earlier = F.col("landing_date") < F.lit(date)
        found = claims.agg(
            F.count_distinct(F.when(earlier, F.col("impression_id"))).alias("repeated"),
            F.count(F.when(~earlier, F.lit(1))).alias("displaced"),
            F.collect_set(F.when(~earlier, F.col("date"))).alias("rewritten"),
        ).collect()[0]
        repeated, displaced, rewritten = found["repeated"], found["displaced"], set(found["rewritten"])
        rows = rows.join(claims.filter(earlier).select("impression_id"), "impression_id", "left_anti")
        if rewritten:
            later = published.filter((F.col("landing_date") > F.lit(date)) & F.col("date").isin(sorted(rewritten)))
            rows = rows.unionByName(later.join(claims.filter(~earlier), ["impression_id", "date", "landing_date"], "left_anti"))
    counts = events.counts
    dropped = counts.rows_dropped | ({DUPLICATE: counts.rows_dropped.get(DUPLICATE, 0) + repeated} if repeated else {})
    replace_events(lake, date, rows, rewritten)
    step.table(
        EVENTS,
        TableCounts(counts.rows_in, counts.rows_out - repeated, counts.rows_quarantined, dropped),
    )
    step.extra |= {"dates": [day.isoformat() for day in sorted(events.days)], "later_duplicates_removed": displaced}


def _other_landings(lake: Lake, version: int, date: dt.date, days: set[dt.date]) -> bool:
    """True if another landing has events on these days (looks at partition values only)."""
    touched = {day.isoformat() for day in days}
    partitions = lake.open_table(EVENTS, version).partitions()
    return any(part["date"] in touched and part["landing_date"] != date.isoformat() for part in partitions)
