"""``onerec samples``: a day's deduplicated, labelled impressions, behind quality gates, published in one commit."""

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import BucketFiles
from feature_jobs.gates import COLUMNS, LABELS, DayFigures, Trailing, check_gate_names, check_gates, trailing_figures
from feature_jobs.samples_inputs import (
    PreviousState,
    event_partitions,
    events_to_label,
    previous_state,
    read_table,
    sample_landings,
    samples_note,
)
from feature_jobs.samples_labels import LABELLED_COLUMNS, STATE_COLUMNS, check_positive, label_samples
from feature_jobs.stale import clear_stale
from feature_jobs.user_state import STATE
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import DAILY_SAMPLES, EVENTS, ITEMS, USER_STATE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STEP = "samples"


def run_samples(spark: "SparkSession", lake: Lake, date: dt.date, *, every_landing: bool = False) -> dict[str, Any]:
    """Publish ``daily_samples`` of a date and return the step's report; ``every_landing`` takes late landings too.

    Raises BadInput for a configuration that names unknown columns, a date without events or a lake without yesterday's
    state; GateFailed (and publishes nothing) when a figure leaves its range.
    """
    from feature_jobs.session import table_failures_named

    with step_run(lake, STEP, date) as run, table_failures_named():
        _samples(spark, lake, date, every_landing, run)
    return run.to_json()


def _samples(spark: "SparkSession", lake: Lake, date: dt.date, every_landing: bool, run: StepRun) -> None:
    from pyspark import StorageLevel

    settings = lake.config.samples
    check_positive(settings.positive)
    check_gate_names(settings.gates)
    before = previous_state(lake, date, run.reads(lake, USER_STATE))
    version = run.reads(lake, EVENTS)
    present = {landing for day, landing in event_partitions(lake, version) if day == date}
    landings = sample_landings(date, present, before.seen, every=every_landing)
    if not landings and settings.gates.min_rows > 0:
        raise BadInput(
            f"{lake.table_uri(EVENTS)}: no events of {date}; run `onerec ingest --date {date}` first "
            "(a day that is empty by right: --set samples.gates.min_rows=0)"
        )
    events = day_events(read_table(spark, lake, EVENTS, version), date, landings)
    items = read_table(spark, lake, ITEMS, run.reads(lake, ITEMS))
    labelled = labelled_by_bucket(events_to_label(events, items), before, lake.config).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        figures, dropped, missing = _figures(
            labelled, trailing_figures(lake, date, settings.gates.volume_days, lake.table_version(DAILY_SAMPLES))
        )
        run.extra |= {
            "landings": [landing.isoformat() for landing in landings],
            "items_without_a_version": missing,
            "labels": dict(figures.labels),
        }
        check_gates(figures, settings.gates, date)
        samples = with_day_quantile(labelled.where("dropped IS NULL"))
        publish(samples, lake, date, samples_note(date, landings))
    finally:
        labelled.unpersist()
    clear_stale(lake, date, STEP)
    run.table(DAILY_SAMPLES, TableCounts(figures.rows + sum(dropped.values()), figures.rows, rows_dropped=dropped))


def day_events(events: "DataFrame", date: dt.date, landings: list[dt.date]) -> "DataFrame":
    """The events of a date that came in some landings; partitions are pruned."""
    from pyspark.sql import functions as F

    chosen = F.col("landing_date").isin(landings) if landings else F.lit(False)
    return events.where((F.col("date") == F.lit(date)) & chosen)


def labelled_by_bucket(events: "DataFrame", before: PreviousState, config: Config) -> "DataFrame":
    """``label_samples`` over each user bucket (events as EVENT_COLUMNS); a task opens only its own bucket's state."""
    from pyspark.sql.pandas.types import from_arrow_schema

    labeller = _labeller(before.files, config)
    return events.groupBy("user_bucket").applyInArrow(labeller, from_arrow_schema(LABELLED_COLUMNS))


def _labeller(files: BucketFiles, config: Config) -> Callable[[pa.Table], pa.Table]:
    def label(events: pa.Table) -> pa.Table:
        bucket = events["user_bucket"][0].as_py()
        state = state_of(files, bucket, pc.unique(events["user_id"]))
        return label_samples(events, state, config)

    return label


def state_of(files: BucketFiles, bucket: int, users: pa.Array) -> pa.Table:
    """What labelling needs of the state of some users of a bucket."""
    state = files.read(bucket, pa.schema([STATE.field(name) for name in STATE_COLUMNS]))
    return state.filter(
        pc.is_in(state["user_id"], value_set=users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users)
    )


def _figures(labelled: "DataFrame", trailing: Trailing | None) -> tuple[DayFigures, dict[str, int], int]:
    """The gates' figures, rows dropped by reason, and samples whose item had no version yet; one pass."""
    from pyspark.sql import functions as F

    counted = labelled.groupBy("dropped").agg(
        F.count("*").alias("rows"),
        F.count_if("item_version_missing").alias("missing"),
        *(F.count_if(F.col(name).isNull()).alias(f"null_{name}") for name in COLUMNS),
        *(F.count_if(name).alias(f"label_{name}") for name in LABELS),
    )
    rows = {row["dropped"]: row.asDict() for row in counted.collect()}
    kept = rows.pop(None, {})
    figures = DayFigures(
        rows=kept.get("rows", 0),
        nulls={name: kept.get(f"null_{name}", 0) for name in COLUMNS},
        labels={name: kept.get(f"label_{name}", 0) for name in LABELS},
        trailing=trailing,
    )
    return figures, {reason: row["rows"] for reason, row in rows.items()}, kept.get("missing", 0)


def with_day_quantile(samples: "DataFrame") -> "DataFrame":
    """Add ``watch_quantile_day``: the share of the samples in the same duration bucket whose play time is at most this one's;
    null in the bucket of unknown lengths.

    Counted over distinct (bucket, play time) cells, so no task sees a bucket's every play.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    cells = samples.where("duration_bucket >= 0").groupBy("duration_bucket", "play_time_ms").agg(F.count("*").alias("plays"))
    upto = Window.partitionBy("duration_bucket").orderBy("play_time_ms")
    whole = Window.partitionBy("duration_bucket")
    share = F.sum("plays").over(upto) / F.sum("plays").over(whole)
    quantiles = cells.select("duration_bucket", "play_time_ms", share.alias("watch_quantile_day"))
    return samples.join(F.broadcast(quantiles), ["duration_bucket", "play_time_ms"], "left")


def publish(samples: "DataFrame", lake: Lake, date: dt.date, note: str) -> None:
    """Replace the date's partitions in one commit, rows in (user_id, request_ts, ts, sample_id) order by bucket."""
    ordered = samples.select(*DAILY_SAMPLES.schema.names).sortWithinPartitions(
        "date", "user_bucket", "user_id", "request_ts", "ts", "sample_id"
    )
    (
        ordered.write.format("delta")
        .mode("overwrite")
        .option("replaceWhere", f"date = '{date.isoformat()}'")
        .option("userMetadata", note)
        .save(lake.table_uri(DAILY_SAMPLES))
    )
