"""One user bucket's day, in one Spark task: reads the bucket's state, samples and late events, writes its part of five tables.

State streams in user order, some thousand users at a time, so memory follows the bucket's *day* and not its users.
Files are written beside the tables' others and belong to no table until the driver commits them.
"""

import datetime as dt
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import BucketFiles, relaxed
from feature_jobs.partition_files import PartitionFile
from feature_jobs.pathways_commit import WRITTEN
from feature_jobs.pathways_late import LateInputs
from feature_jobs.pathways_snapshots import DealtSnapshots
from feature_jobs.user_state import STATE, Fresh, Marks, advance, align, fresh_rows, static_rows
from feature_jobs.user_state_arrays import flat, sorted_users
from feature_jobs.user_state_facts import PROFILE
from feature_jobs.user_state_files import USERS_AT_ONCE, state_slices
from feature_jobs.user_state_windows import only_positive
from schemas.lake import Lake
from schemas.tables import (
    DAILY_SAMPLES,
    FEEDBACK,
    HISTORY,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    USER_STATE,
)

_SAMPLE_COLUMNS = pa.schema(
    [
        relaxed(DAILY_SAMPLES.schema.field(name))
        for name in (
            *("user_id", "date", "sample_id", "item_id", "author_id", "tags", "ts", "observed_ts", "play_time_ms"),
            *("duration_ms", *FEEDBACK, "positive"),
        )
    ]
)


@dataclass(frozen=True)
class DayInputs:
    """What every task of a day knows: the lake, the day, yesterday's state, the day's samples, what is late (None: nothing),
    new snapshots (None: none), and what the state at the day's end says of its inputs."""

    lake: Lake
    date: dt.date
    state: BucketFiles
    samples: BucketFiles
    late: LateInputs | None
    snapshots: DealtSnapshots | None
    marks: Marks


def advance_bucket(day: DayInputs, bucket: int) -> dict[str, Any]:
    """Write the bucket's part of the day's tables. Returns the files and the counts (behaviours, users), by name."""
    config = day.lake.config
    samples = day.samples.read(bucket, _SAMPLE_COLUMNS)
    late, dropped = day.late.read(bucket, day.state, config) if day.late else (_SAMPLE_COLUMNS.empty_table(), {})
    snapshots = day.snapshots.read(bucket) if day.snapshots else PROFILE.empty_table()
    fresh = Fresh.of(pa.concat_tables([fresh_rows(samples), fresh_rows(late)]), config.samples)
    active = flat(pc.unique(samples["user_id"]))
    active = active.take(pc.sort_indices(active))
    partition = {"date": day.date.isoformat(), "user_bucket": str(bucket)}
    files = {table.name: PartitionFile(day.lake, table, partition) for table in WRITTEN}
    counts = {
        "samples": len(samples),
        "late": len(late) + sum(dropped.values()),
        "active_users": len(active),
        "behaviours": len(fresh.dates),
        "new_users": 0,
        "without_snapshot": 0,
    }
    fresh_done = active_done = snapshots_done = 0
    for state, last in state_slices(day.state, bucket, STATE.names):
        fresh_upto = _upto(fresh.users, last)
        active_upto = _upto(active, last)
        snapshots_upto = _upto(flat(snapshots["user_id"]), last)
        part = fresh.slice(fresh_done, fresh_upto)
        known = snapshots.slice(snapshots_done, snapshots_upto - snapshots_done)
        prior = align(state, known, active.slice(active_done, active_upto - active_done))
        static = static_rows(prior, day.date, config)
        pending = flat(prior["pending"])
        after = advance(state, part, known, day.date, day.marks, config)
        for name, rows in {
            HISTORY.name: part.history(),
            PATHWAY_STATIC.name: static,
            PATHWAY_SHORT.name: _pathway(prior, "short", pending),
            PATHWAY_POSITIVE.name: _pathway(prior, "positive", only_positive(pending)),
            USER_STATE.name: after,
        }.items():
            for start in range(0, len(rows), USERS_AT_ONCE):
                files[name].write(rows.slice(start, USERS_AT_ONCE))
        counts["new_users"] += _newcomers(flat(state["user_id"]), part.users, flat(known["user_id"]))
        counts["without_snapshot"] += static["snapshot_date"].null_count
        fresh_done, active_done, snapshots_done = fresh_upto, active_upto, snapshots_upto
    return {
        "files": {name: file.close() for name, file in files.items()},
        "rows": {name: file.rows for name, file in files.items()},
        "counts": counts,
        "dropped": dropped,
    }


def _upto(users: pa.Array, last: str | None) -> int:
    """How many of the sorted users come no later than ``last``; all of them if it is None."""
    return len(users) if last is None else bisect_right(range(len(users)), last, key=lambda place: users[place].as_py())


def _newcomers(before: pa.Array, *others: pa.Array) -> int:
    """How many distinct users of the others are not among those before."""
    users = sorted_users(*others)
    return len(users) - (pc.sum(pc.is_in(before, value_set=users)).as_py() or 0)


def _pathway(prior: pa.Table, window: str, pending: pa.Array) -> pa.Table:
    return pa.table({"user_id": prior["user_id"], "behaviours": prior[window], "pending": pending})
