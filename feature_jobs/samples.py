"""``onerec samples``: a day's deduplicated, labelled impressions, behind quality gates, published in one commit.

Nothing is shuffled. Two passes over the day's events, one Spark task a user bucket: the first counts plays for the day's
watch-time quantile (a dozen columns, a few bytes a row out), the second labels, looks the quantile up and writes the bucket's
file; the driver judges the figures and commits all files at once, or discards them.
"""

import datetime as dt
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads

from feature_jobs.bucket_files import bucket_files, recorded_rows, run_by_bucket
from feature_jobs.gates import DayFigures, check_gate_names, check_gates, trailing_figures
from feature_jobs.item_versions import item_versions
from feature_jobs.partition_files import check_unchanged, commit_files, discard_files
from feature_jobs.samples_bucket import SampleInputs, count_bucket, write_bucket
from feature_jobs.samples_cells import cell_folder, distinct_items, merge_plan
from feature_jobs.samples_inputs import event_partitions, previous_state, sample_landings
from feature_jobs.samples_labels import check_positive
from feature_jobs.samples_notes import samples_note
from feature_jobs.stale import check_finished, clear_stale
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import DAILY_SAMPLES, EVENTS, ITEMS, USER_STATE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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
    settings = lake.config.samples
    check_positive(settings.positive)
    check_gate_names(settings.gates)
    check_finished(lake, date - dt.timedelta(days=1))
    before = previous_state(lake, date, run.reads(lake, USER_STATE))
    version = run.reads(lake, EVENTS)
    present = {landing for day, landing in event_partitions(lake, version) if day == date}
    landings = sample_landings(date, present, before.seen, every=every_landing)
    if not landings and settings.gates.min_rows > 0:
        raise BadInput(
            f"{lake.table_uri(EVENTS)}: no events of {date}; run `onerec ingest --date {date}` first "
            "(a day that is empty by right: --set samples.gates.min_rows=0)"
        )
    chosen = (pads.field("date") == date) & pads.field("landing_date").isin(pa.array(landings, pa.date32()))
    events = bucket_files(lake, EVENTS, version, chosen)
    items = item_versions(lake, run.reads(lake, ITEMS))
    with cell_folder(lake) as folder:
        day = SampleInputs(lake, date, events, before.files, items, folder)
        distinct = _count(spark, day)
        reports = run_by_bucket(spark, events.buckets, partial(write_bucket, day))
    figures = _figures(lake, date, reports, distinct)
    dropped = {reason: count for reason, count in _total(reports, "dropped").items() if count}
    counts = TableCounts(recorded_rows(lake, EVENTS, version, chosen), figures.rows, rows_dropped=dropped)
    run.extra |= {
        "landings": [landing.isoformat() for landing in landings],
        "items_without_a_version": _total(reports, "counts").get("items_without_a_version", 0),
        "labels": dict(figures.labels),
        "users": figures.users,
        "items": figures.items,
    }
    files = [report["file"] for report in reports]
    try:
        counts.check(DAILY_SAMPLES.name)
        check_gates(figures, settings.gates, date)
        check_finished(lake, date - dt.timedelta(days=1))
        before.check_unchanged(lake)  # who changes them marks this day as stale: its mark must not go for what was made before
        check_unchanged(lake, EVENTS, (version, chosen))
    except BaseException:
        discard_files(lake, DAILY_SAMPLES, files)
        raise
    note = samples_note(date, landings, {"users": figures.users, "items": figures.items})
    commit_files(lake, DAILY_SAMPLES, files, pads.field("date") == date, note=note)
    clear_stale(lake, date, STEP)
    run.table(DAILY_SAMPLES, counts)


def _count(spark: "SparkSession", day: SampleInputs) -> int:
    """Lay the day's shares of plays into the run's folder; the day's distinct items."""
    batches = run_by_bucket(spark, day.events.buckets, partial(count_bucket, day))
    plan = merge_plan(dict(zip(day.events.buckets, batches, strict=True)))
    merged = run_by_bucket(spark, range(len(plan)), lambda place: day.folder.merge(*plan[place]))
    return distinct_items(plan, merged)


def _figures(lake: Lake, date: dt.date, reports: Sequence[dict[str, Any]], items: int) -> DayFigures:
    counts = _total(reports, "counts")
    return DayFigures(
        rows=counts.get("rows", 0),
        users=counts.get("users", 0),
        items=items,
        nulls=_total(reports, "nulls"),
        labels=_total(reports, "labels"),
        trailing=trailing_figures(lake, date, lake.config.samples.gates.volume_days, lake.table_version(DAILY_SAMPLES)),
    )


def _total(reports: Sequence[dict[str, Any]], group: str) -> dict[str, int]:
    """A group of counts summed over the buckets."""
    return {name: sum(report[group][name] for report in reports) for name in (reports[0][group] if reports else ())}
