"""The ingest step: read a landing day, judge its rows, and publish items, users, quarantine and, last, events."""

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_jobs.bucket_files import bucket_files, live_files
from feature_jobs.ingest.bucket import BucketTask, publish_bucket, publish_rejected
from feature_jobs.ingest.catalogue import DUPLICATE, FORGOTTEN, KEPT, append_once, judged_frame, with_fates
from feature_jobs.ingest.catalogue import REJECTED as REJECTED_FATE
from feature_jobs.ingest.landed_keys import LandedKeys
from feature_jobs.ingest.landing import LANDED_TABLES, Landing
from feature_jobs.ingest.orphans import STEP, orphaned, orphans_told
from feature_jobs.ingest.redelivery import dates_gone, what_became_stale
from feature_jobs.ingest.rules import Bounds
from feature_jobs.ingest.shuffle import Dealing, KnownItems, dealt, work_on_groups
from feature_jobs.ingest.sources import Source, look_at
from feature_jobs.item_versions import item_versions
from feature_jobs.partition_files import FileReport, commit_files, discard_files
from feature_jobs.run_folders import run_folder
from feature_jobs.samples_drops import OVER_THE_CAP
from feature_jobs.session import table_failures_named
from feature_jobs.stale import clear_stale, mark_stale
from schemas.errors import GateFailed
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.suppression import Suppression, suppressed_users
from schemas.tables import EVENTS, ITEMS, QUARANTINE, USERS, Table


@dataclass
class Landed:
    """What became of a landing table's rows: ``read`` counts them as they were read, ``fates`` what became of them;
    ``rejected`` are the files of its quarantined ones.

    Of items and users ``rows`` has those to append (``_fate`` kept). Of events ``files`` are written and not committed,
    ``rewritten`` are the paths of the files that they replace besides the landing's own, ``dates`` the days of all good rows,
    also of those that were dropped because an earlier landing has them: whether it has is what another run may change.
    ``changed`` are the dates of which somebody may have taken in other rows of this landing; ``orphaned`` are rows that it no
    longer brings and later landings (YYYY-MM-DD) had left to it; ``held`` are the dates of the files that it had before.
    """

    table: Table
    read: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    rejected: list[FileReport] = field(default_factory=list)
    rows: DataFrame | None = None
    files: list[FileReport] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    dates: set[dt.date] = field(default_factory=set)
    changed: set[dt.date] = field(default_factory=set)
    orphaned: Counter[str] = field(default_factory=Counter)
    held: set[dt.date] = field(default_factory=set)
    displaced: int = 0

    def add(self, fate: str, number: int) -> None:
        """Count rows."""
        self.fates[fate] = self.fates.get(fate, 0) + number

    @property
    def counts(self) -> TableCounts:
        """Row accounting, if everything kept is published."""
        kept, rejected = self.fates.get(KEPT, 0), self.fates.get(REJECTED_FATE, 0)
        dropped = {fate: self.fates[fate] for fate in (DUPLICATE, FORGOTTEN, OVER_THE_CAP) if self.fates.get(fate)}
        return TableCounts(self.read, kept, rejected, dropped)


def run(spark: SparkSession, lake: Lake, landing: Landing, date: dt.date) -> StepRun:
    """Ingest one landing day; see ``docs/landing-zone.md``.

    Running it again gives the same tables (but for ``ingested_at``). Raises BadInput for a file that cannot be read or a
    required column that is missing, GateFailed if a table's quarantined share is above ``ingest.quarantine_limit``; then
    events, items and users are as before, and quarantine shows the rejected rows.
    """
    files = {table.name: landing.files(table, date) for table in LANDED_TABLES}
    with step_run(lake, STEP, date) as step, ExitStack() as caches:
        caches.enter_context(table_failures_named())
        pinned = {table.name: step.reads(lake, table) for table in LANDED_TABLES}
        cores = spark.sparkContext.defaultParallelism
        sources = {table.name: look_at(landing, table, files[table.name], cores) for table in LANDED_TABLES}
        catalogue = _Catalogue(spark, lake, landing, date, caches)
        items, users = (catalogue.landed(sources[table.name], pinned[table.name]) for table in (ITEMS, USERS))
        keys = _keys(items, caches.enter_context(run_folder(lake, "ingest")))
        events = _events(spark, lake, landing, date, sources[EVENTS.name], pinned, keys)
        landed = [items, users, events]
        for part in landed:
            part.counts.check(part.table.name)
        step.extra = {
            "unknown_columns": {file: names for source in sources.values() for file, names in source.unknown.items()},
            "quarantine_reasons": {part.table.name: _most_frequent_first(part.reasons) for part in landed if part.reasons},
        }
        refusal = _refusal(landing, landed, date, lake.config.ingest.quarantine_limit)
        if refusal:
            discard_files(lake, EVENTS, events.files)
            _quarantine(lake, date, landed)
            for part in landed:
                step.table(part.table, _unpublished(part.counts))
            raise GateFailed(refusal)
        redelivered = what_became_stale(lake, date, events.changed)
        if redelivered:
            mark_stale(lake, redelivered["stale"])  # first: once the new rows are there, nobody can tell any more
            step.extra["redelivered"] = redelivered
        orphans = orphans_told(date, events.orphaned)
        if orphans:
            mark_stale(lake, orphans[0])
            step.extra["orphaned"] = {"rows": dict(sorted(events.orphaned.items())), "warning": orphans[1]}
        _publish(lake, date, landed, pinned)
        clear_stale(lake, date, STEP)
        redelivered = what_became_stale(lake, date, events.changed)
        if redelivered:  # once more: who took the old rows in meanwhile has no mark, or took it away
            mark_stale(lake, redelivered["stale"])
            step.extra["redelivered"] = redelivered
        for part in landed:
            step.table(part.table, part.counts)
        step.extra |= {
            "dates": [day.isoformat() for day in sorted(events.dates)],
            "later_duplicates_removed": events.displaced,
        }
    return step


@dataclass(frozen=True)
class _Catalogue:
    """Items and users of a landing, on their way into their tables."""

    spark: SparkSession
    lake: Lake
    landing: Landing
    date: dt.date
    caches: ExitStack

    def landed(self, source: Source, pinned: int) -> Landed:
        """Judge a table's rows and count their fates; its rejected rows are written beside ``quarantine``."""
        landed = Landed(source.table)
        if not source.tasks:
            return landed
        published = self.spark.read.format("delta").option("versionAsOf", pinned).load(self.lake.table_uri(source.table))
        judged = judged_frame(self.spark, self.landing, source, self.date, self.lake.config, suppressed_users(self.lake))
        rows = with_fates(judged, published, source.table)
        rows = rows.persist(StorageLevel.MEMORY_AND_DISK)
        self.caches.callback(rows.unpersist)
        for fate, number, read in rows.groupBy("_fate").agg(F.count("*"), F.sum("_read")).collect():
            landed.add(fate, number)
            landed.read += read
        if landed.fates.get(REJECTED_FATE):
            self._write_rejected(rows, landed)
        landed.rows = rows.filter(F.col("_fate") == KEPT)
        return landed

    def _write_rejected(self, rows: DataFrame, landed: Landed) -> None:
        """Spark's partitions as they are: a file each."""
        lake, table, date, nobody = self.lake, landed.table, self.date, Suppression("", frozenset())
        owner = F.col("user_id") if table is USERS else F.lit(None).cast("string").alias("user_id")
        rejected = rows.filter(F.col("_fate") == REJECTED_FATE).select(
            F.col("_row").alias("row_json"), F.col("_reasons").alias("reasons"), F.col("_file").alias("source_file"), owner
        )

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            parts = (pa.Table.from_batches([batch]) for batch in batches)
            yield pa.RecordBatch.from_pydict({"report": [publish_rejected(lake, table, date, nobody, parts)]})

        for row in rejected.mapInArrow(write, "report string").collect():
            _add_rejected(landed, json.loads(row["report"]))


def _add_rejected(landed: Landed, report: dict[str, Any]) -> None:
    landed.rejected += report["files"]
    for reason, number in report["reasons"].items():
        landed.reasons[reason] = landed.reasons.get(reason, 0) + number


def _keys(items: Landed, folder: str) -> LandedKeys:
    """``stable_key`` of the landing's own items, as Spark computes it, in a file in the folder."""
    keys = np.empty(0, np.int64)
    if items.rows is not None:
        keys = items.rows.select(F.xxhash64("item_id").alias("key")).distinct().toArrow()["key"].to_numpy()
    return LandedKeys.write(f"{folder}/landed_keys.npy", keys)


def _events(
    spark: SparkSession,
    lake: Lake,
    landing: Landing,
    date: dt.date,
    source: Source,
    pinned: dict[str, int],
    keys: LandedKeys,
) -> Landed:
    """Judge the events, deal them to their buckets, and write each bucket's, not yet committed."""
    suppression = suppressed_users(lake)
    buckets = lake.config.lake.user_buckets
    known = KnownItems(item_versions(lake, pinned[ITEMS.name]), keys)
    dealing = Dealing(landing, source, known, Bounds.of(date, lake.config), buckets, lake.config.samples.user_day_cap)
    days = [date - dt.timedelta(days=offset) for offset in range(lake.config.ingest.max_late_days + 1)]
    others = bucket_files(lake, EVENTS, pinned[EVENTS.name], pads.field("date").isin(days) & (pads.field("landing_date") != date))
    before = bucket_files(lake, EVENTS, pinned[EVENTS.name], pads.field("landing_date") == date)
    task = BucketTask(lake, date, dt.datetime.now(dt.UTC), others, suppression, before)
    reported = set()

    def work(group: int, blocks: Iterator[pa.Table]) -> str:
        if group < buckets:
            return publish_bucket(task, group, blocks)
        if group == dealing.tally:
            whole = pa.concat_tables(blocks)
            return json.dumps({name: pc.sum(whole[name]).as_py() for name in whole.column_names})
        return publish_rejected(lake, EVENTS, date, suppression, blocks)

    landed = Landed(EVENTS, held={partition["date"] for partition in before.partitions.values()})
    for report in map(json.loads, work_on_groups(dealt(spark, dealing), work)):
        if "read" in report:
            landed.read += report["read"]
            landed.add(OVER_THE_CAP, report[OVER_THE_CAP])
            continue
        if "bucket" not in report:
            _add_rejected(landed, report)
            landed.add(REJECTED_FATE, report["rejected"])
            landed.add(FORGOTTEN, report["forgotten"])
            continue
        landed.add(KEPT, report["kept"])
        for fate, number in report["dropped"].items():
            landed.add(fate, number)
        landed.files += report["files"]
        landed.rewritten += report["rewritten"]
        landed.dates |= {dt.date.fromisoformat(day) for day in report["dates"]}
        landed.changed |= {dt.date.fromisoformat(day) for day in report["changed"]}
        landed.orphaned.update(report["orphaned"])
        landed.displaced += report["displaced"]
        reported.add(report["bucket"])
    for bucket in before.paths.keys() - reported:  # nothing is left of the landing there
        landed.orphaned.update(orphaned(before, others, bucket, date, {}))
    if before.paths:
        landed.changed |= dates_gone(lake, date, pinned[EVENTS.name], reported)
    return landed


def _publish(lake: Lake, date: dt.date, landed: list[Landed], pinned: dict[str, int]) -> None:
    """Commit everything, events last."""
    for part in landed:
        if part.rows is not None and part.counts.rows_out:
            append_once(lake, part.table, pinned[part.table.name], part.rows)
    _quarantine(lake, date, landed)
    events = landed[-1]
    paths = {unquote(path): path for path in live_files(lake.open_table(EVENTS, pinned[EVENTS.name]), EVENTS)["path"].to_pylist()}
    dates = pa.array(sorted(events.dates | events.held), pa.date32())
    others = (pads.field("landing_date") != date) & pads.field("date").isin(dates)
    rewritten = pa.array([paths[path] for path in events.rewritten], pa.string())
    replaced = (pads.field("landing_date") == date) | pads.field("path").isin(rewritten)
    commit_files(lake, EVENTS, events.files, replaced, read=(pinned[EVENTS.name], others))


def _quarantine(lake: Lake, date: dt.date, landed: list[Landed]) -> None:
    """Make the rejected rows the landing's quarantined ones of its three tables."""
    names = [part.table.name for part in landed]
    replaced = (pads.field("date") == date) & pads.field("table_name").isin(names)
    commit_files(lake, QUARANTINE, [file for part in landed for file in part.rejected], replaced)


def _most_frequent_first(reasons: dict[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))


def _refusal(landing: Landing, landed: list[Landed], date: dt.date, limit: float) -> str | None:
    """Why nothing may be published, or None."""
    for part in landed:
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
