"""``onerec backfill``: rebuilds named dates with every landing there is, and marks what depends on them as stale."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from feature_jobs.pathways import STEP as PATHWAYS_STEP
from feature_jobs.pathways import run_pathways
from feature_jobs.samples import STEP as SAMPLES_STEP
from feature_jobs.samples import run_samples
from feature_jobs.samples_inputs import event_partitions, partition_dates, previous_state
from feature_jobs.shard_files import shard_days
from feature_jobs.stale import UNFINISHED, Marks, mark_stale, read_stale, replace_unfinished
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.runs import step_run
from schemas.tables import CO_INTERACTION, DAILY_SAMPLES, EVENTS, PATHWAY_LIFELONG, USER_STATE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Reason = TypeVar("Reason", str, str | None)


def run_backfill(spark: "SparkSession", lake: Lake, first: dt.date, last: dt.date) -> dict[str, Any]:
    """Rebuild samples, pathways, history and state of the dates ``first`` … ``last``, in order; return the report.

    ``tables`` sums the days' accounting, ``days`` holds each step's own report, ``stale`` what depends on the dates.
    Raises BadInput for dates in the wrong order, dates without any event, or a lake without the state before ``first``.
    """
    dates = backfill_dates(lake, first, last)
    days: list[dict[str, Any]] = []
    with step_run(lake, "backfill", first) as run:
        previous_state(lake, first, run.reads(lake, USER_STATE))
        mark_stale(lake, what_depends(lake, first, last))
        steps = [(date, step) for date in dates for step in (SAMPLES_STEP, PATHWAYS_STEP)]
        with _marked(lake, first, last, steps, days):
            for date, step in steps:
                make = run_samples if step == SAMPLES_STEP else run_pathways
                days.append(make(spark, lake, date, every_landing=True))
        stale = what_depends(lake, first, last)
        mark_stale(lake, stale)  # once more: a later day's step that ran meanwhile, on the old state, has no mark
    return run.to_json() | {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "tables": _summed([day["tables"] for day in days]),
        "stale": stale,
        "days": days,
    }


def backfill_dates(lake: Lake, first: dt.date, last: dt.date) -> list[dt.date]:
    """The dates to rebuild. Raises BadInput if there are none, the lake has no events of any, or, unless samples may be empty
    (``samples.gates.min_rows`` 0), none of one of them."""
    if last < first:
        raise BadInput(f"--from {first} --to {last}: the last date comes before the first; swap them")
    dates = [first + dt.timedelta(days=offset) for offset in range((last - first).days + 1)]
    with_events = {day for day, _ in event_partitions(lake, lake.table_version(EVENTS))}
    if not with_events.intersection(dates):
        raise BadInput(
            f"--from {first} --to {last}: {lake.table_uri(EVENTS)} has no events of these dates; choose others, or ingest first"
        )
    without = sorted(set(dates) - with_events)
    if without and lake.config.samples.gates.min_rows > 0:
        raise BadInput(
            f"--from {first} --to {last}: {lake.table_uri(EVENTS)} has no events of {without[0]}; leave that date out, or ingest "
            "it first (a day that is empty by right: --set samples.gates.min_rows=0)"
        )
    return dates


@contextmanager
def _marked(
    lake: Lake, first: dt.date, last: dt.date, steps: Sequence[tuple[dt.date, str]], done: Sequence[Any]
) -> Iterator[None]:
    """Have the steps marked as UNFINISHED, each of which takes its own mark away; ``done`` has a report of each that ended.

    A killed backfill leaves the marks of what it did not come to. One that fails leaves that of pathways which it was about to
    publish, whose tables may be of two runs; later steps were made from what it has replaced, or, if nothing ended, have the
    marks that they had before.
    """
    before = read_stale(lake)
    mark_stale(lake, _by_date((date, step, UNFINISHED) for date, step in steps))
    try:
        yield
    except BaseException:
        left = list(steps[len(done) :])
        if left and left[0][1] == PATHWAYS_STEP:
            del left[0]
        ended = f"made before the backfill of {first} to {last}, which ended early"

        def reason(date: dt.date, step: str) -> str | None:
            return ended if done else before.get(date.isoformat(), {}).get(step)

        replace_unfinished(lake, _by_date((date, step, reason(date, step)) for date, step in left))
        raise


def _by_date(marks: Iterable[tuple[dt.date, str, Reason]]) -> dict[str, dict[str, Reason]]:
    found: dict[str, dict[str, Reason]] = {}
    for date, step, reason in marks:
        found.setdefault(date.isoformat(), {})[step] = reason
    return found


def what_depends(lake: Lake, first: dt.date, last: dt.date, because: str | None = None) -> Marks:
    """What was made from the dates ``first`` … ``last`` and a backfill of them does not rebuild: date → step → reason, which ends
    with ``because``: before what it was made."""
    marks: Marks = {}
    because = because or f"before the backfill of {first} to {last}"

    def mark(date: dt.date, step: str, made: str) -> None:
        marks.setdefault(date.isoformat(), {})[step] = f"{made} made {because}"

    window = dt.timedelta(days=lake.config.co_interaction.window_days - 1)
    for date in partition_dates(lake, DAILY_SAMPLES):
        if date > last:
            mark(date, SAMPLES_STEP, "second watches and quantiles come from user_state")
    for date in partition_dates(lake, USER_STATE):
        if date > last:
            mark(date, PATHWAYS_STEP, "pathways, history and user_state come from the state of the day before,")
    for date in partition_dates(lake, CO_INTERACTION):
        if first <= date <= last + window:
            mark(date, "co-interaction", "its window holds samples")
    for date in partition_dates(lake, PATHWAY_LIFELONG, "refresh_date"):
        if date >= first:
            mark(date, "lifelong", "it compresses history")
    for date in shard_days(lake):
        if date >= first:
            mark(date, "shards", "its manifest pins samples and pathways")
            mark(date, "train", "a model trained on it read shards")
    return dict(sorted(marks.items()))


def _summed(reports: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for tables in reports:
        for table, counts in tables.items():
            into = total.setdefault(table, {"rows_in": 0, "rows_out": 0, "rows_quarantined": 0, "rows_dropped": {}})
            for name in ("rows_in", "rows_out", "rows_quarantined"):
                into[name] += counts[name]
            for reason, number in counts["rows_dropped"].items():
                into["rows_dropped"][reason] = into["rows_dropped"].get(reason, 0) + number
    return total
