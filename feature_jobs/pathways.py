"""``onerec pathways``: what was known at the start of a day, and the state at its end, in one pass over user buckets.

One Spark task a bucket reads its own files of ``user_state`` (the day before), ``daily_samples`` (the day) and ``events``
(what landed late), and writes Parquet for five tables; the driver commits each table once. Nothing but new snapshots of
users is shuffled.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as pads

from feature_jobs.bucket_files import bucket_files, recorded_rows, run_by_bucket
from feature_jobs.item_versions import item_versions
from feature_jobs.partition_files import check_unchanged
from feature_jobs.pathways_bucket import DayInputs, advance_bucket
from feature_jobs.pathways_commit import WRITTEN, commit_day
from feature_jobs.pathways_late import LateInputs
from feature_jobs.pathways_snapshots import dealt, new_snapshot_dates, users_version
from feature_jobs.samples_inputs import (
    event_partitions,
    previous_state,
    published_landings,
    read_table,
    sample_landings,
)
from feature_jobs.samples_labels import check_positive
from feature_jobs.stale import check_finished, clear_stale
from feature_jobs.user_state import Marks
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import (
    DAILY_SAMPLES,
    EVENTS,
    HISTORY,
    ITEMS,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    USER_STATE,
    USERS,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

STEP = "pathways"
_REPORTED = {
    "late_events": ("counts", "late"),
    "users_without_snapshot": ("counts", "without_snapshot"),
    "history_users": ("rows", HISTORY.name),
}
"""Figures of the report that are sums of the tasks' counts."""


def run_pathways(spark: "SparkSession", lake: Lake, date: dt.date, *, every_landing: bool = False) -> dict[str, Any]:
    """Write the three daily pathways, ``history`` and ``user_state`` of a date and return the step's report.

    ``every_landing`` (a backfill) takes in late events of landings after the date too. Raises BadInput, with the command
    to run, if the date has no samples, or earlier days exist and yesterday has no state.
    """
    from feature_jobs.session import table_failures_named

    with step_run(lake, STEP, date) as run, table_failures_named():
        _pathways(spark, lake, date, every_landing, run)
    return run.to_json()


def _pathways(spark: "SparkSession", lake: Lake, date: dt.date, every_landing: bool, run: StepRun) -> None:
    check_positive(lake.config.samples.positive)
    check_finished(lake, date - dt.timedelta(days=1))
    state_version = run.reads(lake, USER_STATE)
    before = previous_state(lake, date, state_version)
    sampled_version = run.reads(lake, DAILY_SAMPLES)
    sampled = published_landings(lake, date, sampled_version)
    version = run.reads(lake, EVENTS)
    partitions = event_partitions(lake, version)
    if sampled is None:
        present = {landing for day, landing in partitions if day == date}
        if lake.config.samples.gates.min_rows > 0 or sample_landings(date, present, before.seen, every=every_landing):
            raise BadInput(f"{lake.table_uri(DAILY_SAMPLES)}: no samples of {date}; run `onerec samples --date {date}` first")
        sampled = []  # empty by right: Delta makes no commit where there is nothing to write
    oldest = oldest_landing(date, before.seen_from, lake.config.ingest.max_late_days)
    seen, late = taken_in(date, partitions, before.seen, sampled, oldest, every=every_landing)
    earlier = {(day, landing) for day, landing in partitions if landing in (sampled if day == date else before.seen)}
    users_now = run.reads(lake, USERS)
    snapshot_dates = new_snapshot_dates(lake, date, users_now, users_version(before.files))
    day = DayInputs(
        lake=lake,
        date=date,
        state=before.files,
        samples=bucket_files(lake, DAILY_SAMPLES, sampled_version, pads.field("date") == date),
        late=late_inputs(lake, version, late, earlier, run.reads(lake, ITEMS)),
        snapshots=None,
        marks=Marks(seen, oldest, users_now),
    )
    with dealt(read_table(spark, lake, USERS, users_now), lake, snapshot_dates) as snapshots:
        work = partial(advance_bucket, replace(day, snapshots=snapshots))
        reports = run_by_bucket(spark, range(lake.config.lake.user_buckets), work)
    of_day, of_state = pads.field("date") == date, pads.field("date") == date - dt.timedelta(days=1)
    behaviours = recorded_rows(lake, DAILY_SAMPLES, sampled_version, of_day) + recorded_rows(
        lake, EVENTS, version, _of_pairs(late)
    )
    counts = _counts(reports, behaviours, recorded_rows(lake, USER_STATE, state_version, of_state))
    for name, of_table in counts.items():
        of_table.check(name)
    check_finished(lake, date - dt.timedelta(days=1))
    before.check_unchanged(lake)  # who changes them marks this day as stale: its mark must not go for what was made before
    check_unchanged(lake, DAILY_SAMPLES, (sampled_version, of_day))
    check_unchanged(lake, EVENTS, (version, _of_pairs(late)))
    commit_day(lake, date, {table.name: [report["files"][table.name] for report in reports] for table in WRITTEN})
    for name, of_table in counts.items():
        run.table(name, of_table)
    clear_stale(lake, date, STEP)
    for name, (group, count) in _REPORTED.items():
        run.extra[name] = sum(report[group][count] for report in reports)
    run.extra["landings_taken_in"] = sorted({landing.isoformat() for landing in seen} - {x.isoformat() for x in before.seen})
    run.extra["snapshots_read"] = [day.isoformat() for day in snapshot_dates]


def oldest_landing(date: dt.date, before: dt.date | None, max_late_days: int) -> dt.date:
    """The date before which a day forgets landings: twice ``max_late_days`` ago, and never earlier than the day before did
    (``before``), since what that one has forgotten cannot be told from what is new when the setting grows."""
    return max(date - dt.timedelta(days=2 * max_late_days), before or dt.date.min)


def taken_in(
    date: dt.date,
    partitions: Iterable[tuple[dt.date, dt.date]],
    seen_before: Iterable[dt.date],
    sampled: Iterable[dt.date],
    oldest: dt.date,
    *,
    every: bool,
) -> tuple[list[dt.date], set[tuple[dt.date, dt.date]]]:
    """Landings seen by the day's end, and the (date, landing) pairs of events to take in besides the day's samples.

    By the day's end the state has seen what yesterday's had, what the samples were made from (``sampled``), and every
    landing present up to the date or to the latest of those (with ``every``: every one). Late are: earlier dates in landings
    not seen before, and the date itself in a landing that yesterday's state had seen and the samples had not. Landings before
    ``oldest`` are forgotten, and taken in by a backfill of earlier days only.
    """
    pairs, before, made_from = set(partitions), set(seen_before), set(sampled)
    last = max([date, *before, *made_from])
    present = {landing for _, landing in pairs if every or landing <= last}
    seen = {landing for landing in before | made_from | present if landing >= oldest}
    late = {
        (day, landing)
        for day, landing in pairs
        if landing in seen and ((day < date and landing not in before) or (day == date and landing not in made_from))
    }
    return sorted(seen), late


def late_inputs(
    lake: Lake, version: int, late: set[tuple[dt.date, dt.date]], earlier: set[tuple[dt.date, dt.date]], items: int
) -> LateInputs | None:
    """Files of ``events`` (at ``version``) in the ``late`` (date, landing) pairs and in the ``earlier`` ones of their dates,
    and no others; None if nothing is late. ``items`` is the version of the catalogue."""
    if not late:
        return None
    dates = {day for day, _ in late}
    chosen = (_of_pairs(pairs) for pairs in (late, {pair for pair in earlier if pair[0] in dates}))
    files = [bucket_files(lake, EVENTS, version, where) for where in chosen]
    return LateInputs(files[0], files[1], item_versions(lake, items))


def _of_pairs(pairs: set[tuple[dt.date, dt.date]]) -> pads.Expression:
    by_date: dict[dt.date, list[dt.date]] = {}
    for day, landing in sorted(pairs):
        by_date.setdefault(day, []).append(landing)
    chosen = pads.scalar(False)
    for day, landings in by_date.items():
        chosen = chosen | ((pads.field("date") == day) & pads.field("landing_date").isin(landings))
    return chosen


def _counts(reports: list[dict[str, Any]], behaviours: int, users: int) -> dict[str, TableCounts]:
    """Row accounting by table: ``behaviours`` and ``users`` are how many samples and late events, and users of the state before,
    the logs say there are to read; all else is what the tasks counted."""

    def total(group: str, name: str) -> int:
        return sum(report[group].get(name, 0) for report in reports)

    dropped = {reason: total("dropped", reason) for reason in {key for report in reports for key in report["dropped"]}}
    counts = {HISTORY.name: TableCounts(behaviours, total("counts", "behaviours"), rows_dropped=dropped)}
    for table in (PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE):
        counts[table.name] = TableCounts(total("counts", "active_users"), total("rows", table.name))
    counts[USER_STATE.name] = TableCounts(users + total("counts", "new_users"), total("rows", USER_STATE.name))
    return counts
