"""A landing that is delivered again with other rows after samples or a state have taken it in: noticed, marked, told.

``events`` then holds the new rows, while what was made from the old ones stays as it is until a backfill. The bucket's task
compares the rows it writes with those of the files that they replace, which lie in the same order; the driver looks up who
had taken them in, and marks the days that hold old rows, and what depends on them, as stale before it publishes the new ones.
"""

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from feature_jobs.backfill import what_depends
from feature_jobs.bucket_files import BucketFiles, bucket_files, partition_values, relaxed
from feature_jobs.partition_files import data_schema
from feature_jobs.pathways import STEP as PATHWAYS_STEP
from feature_jobs.samples import STEP as SAMPLES_STEP
from feature_jobs.samples_inputs import landings_seen
from feature_jobs.samples_notes import newest_notes
from feature_jobs.stale import Marks
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, EVENTS, USER_STATE

_COMPARED = pa.schema([relaxed(column) for column in data_schema(EVENTS) if column.name != "ingested_at"])


@dataclass(frozen=True)
class TakenIn:
    """Who has taken in a landing: ``sampled`` are the dates whose published samples were made from it, ``seen`` those at whose
    end the state had seen it."""

    sampled: frozenset[dt.date]
    seen: frozenset[dt.date]

    def since(self, date: dt.date) -> dt.date | None:
        """The first day there is that was made from the landing's events of a date; None if none was."""
        return date if date in self.sampled else min((day for day in self.seen if day >= date), default=None)


def taken_in(lake: Lake, landing: dt.date) -> TakenIn:
    """Who has taken in a landing, by the notes of the published samples and by the states there are."""
    notes = newest_notes(lake.open_table(DAILY_SAMPLES))
    states = bucket_files(lake, USER_STATE, lake.table_version(USER_STATE), pads.scalar(True))
    paths: dict[dt.date, list[str]] = {}
    for path, partition in states.partitions.items():
        paths.setdefault(partition["date"], []).append(path)
    return TakenIn(
        frozenset(date for date, note in notes.items() if landing in note.landings),
        frozenset(date for date, of_date in paths.items() if landing in landings_seen(states, of_date)),
    )


def changed_dates(before: BucketFiles, bucket: int, rows: Mapping[dt.date, pa.Table]) -> list[str]:
    """The dates of which a bucket's rows of a landing (columns of ``events``, in their order) differ from its files before in
    more than when they were ingested; none on the landing's first delivery."""
    if not before.paths:
        return []
    paths: dict[dt.date, list[str]] = {}
    for path in before.paths.get(bucket, ()):
        paths.setdefault(before.partitions[path]["date"], []).append(path)
    changed = []
    for date in sorted(paths.keys() | rows.keys()):
        empty = _COMPARED.empty_table()
        held = pa.concat_tables([empty, *(before.read_file(path, _COMPARED) for path in paths.get(date, ()))])
        now = rows[date].select(_COMPARED.names).cast(_COMPARED) if date in rows else empty
        if not held.equals(now):
            changed.append(date.isoformat())
    return changed


def dates_gone(lake: Lake, landing: dt.date, version: int, buckets: Collection[int]) -> set[dt.date]:
    """The dates of rows that the landing has in a version of ``events`` in other than these buckets."""
    files = partition_values(lake, EVENTS, version)
    if not len(files):
        return set()
    elsewhere = ~pads.field("user_bucket").isin(pa.array(sorted(buckets), pa.int32()))
    rows = (pads.field("num_records") > 0) | pads.field("num_records").is_null()
    return set(files.filter((pads.field("landing_date") == landing) & elsewhere & rows)["date"].to_pylist())


def what_became_stale(lake: Lake, landing: dt.date, changed: Collection[dt.date]) -> dict[str, Any] | None:
    """What to report of a landing whose rows of the dates ``changed`` are others now: ``dates``, those of them that were taken
    in; ``stale``, the marks; ``warning``, a line. None if nobody had taken them in."""
    if not changed:
        return None  # as nearly always: nobody need be asked
    taken = taken_in(lake, landing)
    since = {date: day for date in sorted(changed) if (day := taken.since(date)) is not None}
    if not since:
        return None
    dates = ", ".join(map(str, since))
    because = f"before landing {landing} was delivered again with other rows of {dates}"
    marks: Marks = {}
    for day in sorted(set(since.values())):
        found = what_depends(lake, day, day, because)
        of_day = found.setdefault(day.isoformat(), {})
        if since.get(day) == day and day in taken.sampled:
            of_day[SAMPLES_STEP] = f"made {because}"
        if day in taken.seen:
            of_day[PATHWAYS_STEP] = f"pathways, history and user_state made {because}"
        for date, steps in found.items():
            marks.setdefault(date, {}).update(steps)
    first, last = min(since.values()), max(date for date, steps in marks.items() if {SAMPLES_STEP, PATHWAYS_STEP} & steps.keys())
    warning = (
        f"warning: landing {landing} was delivered again with other rows of {dates}, which had been taken in; run "
        f"`onerec backfill --from {first} --to {last}` (until then `onerec status` shows these days as stale)"
    )
    return {"dates": [date.isoformat() for date in since], "stale": dict(sorted(marks.items())), "warning": warning}
