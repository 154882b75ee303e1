"""What a day's samples and pathways start from: which landings count, yesterday's state.

Landings are named, not counted: ``user_state`` of day d lists the landings L of which it has taken in every event with
date ≤ d (``landings_seen``). Day D adds (date = D, in ``daily_samples``) and (date < D, in a landing it sees for the first
time), so that each event is taken in once, whatever order landings come in and whatever was rebuilt.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as pads

from feature_jobs.bucket_files import BucketFiles, bucket_files
from feature_jobs.partition_files import check_unchanged
from feature_jobs.samples_notes import newest_notes
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, EVENTS, USER_STATE, Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class PreviousState:
    """``user_state`` at the end of the day before (``date``), at the table's ``version`` that it was read at: its files by bucket
    (none on the lake's first day), landings seen, and the date before which landings are forgotten (None: it does not say)."""

    date: dt.date
    version: int
    files: BucketFiles
    seen: frozenset[dt.date]
    seen_from: dt.date | None

    def check_unchanged(self, lake: Lake) -> None:
        """Raise BadInput if it was written anew since it was read."""
        check_unchanged(lake, USER_STATE, (self.version, pads.field("date") == self.date))


def partition_dates(lake: Lake, table: Table, column: str = "date", version: int | None = None) -> set[dt.date]:
    """The dates that a table has live files for, from its log."""
    actions = pa.table(lake.open_table(table, version).get_add_actions(flatten=True))
    name = f"partition.{column}"
    return set(actions[name].to_pylist()) if name in actions.column_names else set()


def event_partitions(lake: Lake, version: int) -> set[tuple[dt.date, dt.date]]:
    """The (date, landing_date) pairs that ``events`` has files for, from its log."""
    actions = pa.table(lake.open_table(EVENTS, version).get_add_actions(flatten=True))
    if not len(actions):
        return set()
    return set(zip(actions["partition.date"].to_pylist(), actions["partition.landing_date"].to_pylist(), strict=True))


def previous_state(lake: Lake, date: dt.date, version: int) -> PreviousState:
    """Yesterday's state, empty on the lake's first day.

    Raises BadInput, with the command to run, if earlier days have samples or state but yesterday has no state.
    """
    yesterday = date - dt.timedelta(days=1)
    files = bucket_files(lake, USER_STATE, version, pads.field("date") == yesterday)
    if files.buckets:
        return PreviousState(yesterday, version, files, landings_seen(files, files.partitions), _landings_from(files))
    states = {day for day in partition_dates(lake, USER_STATE, version=version) if day < date}
    samples = {day for day in partition_dates(lake, DAILY_SAMPLES) if day < date}
    if states or samples:
        first = max(states) + dt.timedelta(days=1) if states else min(samples)
        raise BadInput(
            f"{lake.table_uri(USER_STATE)}: no state of {yesterday}, which {date} starts from, though earlier days exist; "
            f"run `onerec samples` and `onerec pathways` for --date {first}" + (f" to {yesterday}" if first < yesterday else "")
        )
    return PreviousState(yesterday, version, files, frozenset(), None)


def landings_seen(files: BucketFiles, paths: Iterable[str]) -> frozenset[dt.date]:
    """The landings that a day's files of ``user_state`` say it has seen: every row of every file says it."""
    column = pa.schema([USER_STATE.schema.field("landings_seen")])
    lists = (files.read_file(path, column)["landings_seen"] for path in paths)
    return frozenset(next((seen[0].as_py() for seen in lists if len(seen)), ()))


def _landings_from(files: BucketFiles) -> dt.date | None:
    column = pa.schema([USER_STATE.schema.field("landings_from")])
    dates = (files.read_file(path, column)["landings_from"] for path in files.partitions)
    return next((some[0].as_py() for some in dates if len(some)), None)


def sample_landings(date: dt.date, present: Iterable[dt.date], seen: Iterable[dt.date], *, every: bool) -> list[dt.date]:
    """Landings whose events of ``date`` become its samples: those up to the date or, where yesterday's state was backfilled, up
    to the latest that it has seen; for a backfill, ``every`` one present.

    None before a landing that counts is left out: the later one's file lacks what the earlier one has (``owned_by_earlier``).
    """
    last = max([date, *seen])
    return sorted({landing for landing in present if every or landing <= last})


def published_landings(lake: Lake, date: dt.date, version: int) -> list[dt.date] | None:
    """The landings that the published samples of a date were made from; None if there are no samples of it.

    Read from the newest commit for the date. Rows written by another program carry no such note and raise BadInput.
    """
    note = newest_notes(lake.open_table(DAILY_SAMPLES, version)).get(date)
    if note:
        return note.landings
    if date in partition_dates(lake, DAILY_SAMPLES, version=version):
        raise BadInput(
            f"{lake.table_uri(DAILY_SAMPLES)}: no note of which landings date={date} was made from (not written by `onerec "
            f"samples`, or its commit is gone); run `onerec backfill --from {date} --to {date}`"
        )
    return None


def read_table(spark: "SparkSession", lake: Lake, table: Table, version: int) -> "DataFrame":
    """A table at a pinned version."""
    return spark.read.format("delta").option("versionAsOf", version).load(lake.table_uri(table))
