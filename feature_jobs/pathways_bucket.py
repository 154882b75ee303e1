"""One user bucket's day, in one Spark task: reads the bucket's state and samples, writes its part of five tables.

State streams in user order, some thousand users at a time, so memory follows the bucket's *day* and not its users.
Files are written beside the tables' others and belong to no table until the driver commits them.
"""

import datetime as dt
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.bucket_files import BucketFiles, relaxed
from feature_jobs.partition_files import PartitionFile
from feature_jobs.samples_labels import EVENT_COLUMNS, STATE_COLUMNS, label_samples
from feature_jobs.user_state import FRESH, PROFILE, STATE, advance, align, behaviour_lists, positive_only, static_rows
from feature_jobs.user_state_arrays import behaviours_of, flat, integers, sorted_users, user_index
from schemas.lake import Lake, filesystem_of
from schemas.tables import (
    DAILY_SAMPLES,
    FEEDBACK,
    HISTORY,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    USER_STATE,
)

WRITTEN = (HISTORY, PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE, USER_STATE)
"""Tables of the step in the order of their commits: the state, from which the next day starts, is last."""
USERS_AT_ONCE = 8192
LATE_COLUMNS = pa.schema([*EVENT_COLUMNS, pa.field("already_taken", pa.bool_())])
"""Late events as a task receives them; a row without a user only says that the bucket exists."""
_SAMPLE_COLUMNS = pa.schema(
    [
        relaxed(DAILY_SAMPLES.schema.field(name))
        for name in (
            *("user_id", "sample_id", "item_id", "author_id", "tags", "ts", "observed_ts", "play_time_ms", "duration_ms"),
            *FEEDBACK,
            "positive",
        )
    ]
)


@dataclass(frozen=True)
class DayInputs:
    """What every task of a day knows: the lake, the day, yesterday's state, the day's samples, landings seen by its end."""

    lake: Lake
    date: dt.date
    state: BucketFiles
    samples: BucketFiles
    seen: list[dt.date]


def bucket_task(day: DayInputs) -> Callable[[pa.Table, pa.Table], pa.Table]:
    """The function of a Spark cogroup: (late events of a bucket, its users' profiles) → one row ``report`` (JSON)."""

    def task(late: pa.Table, profiles: pa.Table) -> pa.Table:
        bucket = late["user_bucket"][0].as_py()
        late = late.filter(pc.is_valid(late["user_id"])).select(LATE_COLUMNS.names).cast(LATE_COLUMNS)
        report = advance_bucket(day, bucket, late, profiles.select(PROFILE.names).cast(PROFILE))
        return pa.table({"report": [json.dumps(report)]})

    return task


def advance_bucket(day: DayInputs, bucket: int, late: pa.Table, profiles: pa.Table) -> dict[str, Any]:
    """Write the bucket's part of the day's tables. Returns the files and the counts (behaviours, users), by name."""
    samples = day.samples.read(bucket, _SAMPLE_COLUMNS)
    taken, dropped = _late_behaviours(day, bucket, late)
    fresh = pa.concat_tables([_fresh(samples, pa.array([day.date] * len(samples), pa.date32())), taken])
    fresh_users = sorted_users(fresh["user_id"])
    fresh_owner = user_index(fresh_users, fresh["user_id"])
    order = np.argsort(fresh_owner, kind="stable")
    fresh, fresh_owner = fresh.take(pa.array(order)), fresh_owner[order]
    active = sorted_users(samples["user_id"])
    names, active_names = fresh_users.to_pylist(), active.to_pylist()
    partition = {"date": day.date.isoformat(), "user_bucket": str(bucket)}
    files = {table.name: PartitionFile(day.lake, table, partition) for table in WRITTEN}
    counts = {"users_before": 0, "new_users": 0, "without_snapshot": 0, "behaviours": 0}
    done, active_done = 0, 0
    for state, last in _state_slices(day.state, bucket):
        upto = len(names) if last is None else bisect_right(names, last)
        active_upto = len(active_names) if last is None else bisect_right(active_names, last)
        rows = slice(*np.searchsorted(fresh_owner, [done, upto]))
        part = fresh.slice(rows.start, rows.stop - rows.start)
        prior = align(state, active.slice(active_done, active_upto - active_done))
        static = static_rows(prior, profiles, day.date, day.lake.config)
        history = behaviour_lists(part)
        files[PATHWAY_STATIC.name].write(static)
        files[PATHWAY_SHORT.name].write(_pathway(prior, "short", flat(prior["pending"])))
        files[PATHWAY_POSITIVE.name].write(_pathway(prior, "positive", positive_only(flat(prior["pending"]))))
        files[HISTORY.name].write(history)
        files[USER_STATE.name].write(advance(state, part, day.date, day.seen, day.lake.config))
        counts["users_before"] += len(state)
        counts["new_users"] += int((user_index(flat(state["user_id"]), fresh_users.slice(done, upto - done)) < 0).sum())
        counts["without_snapshot"] += static["snapshot_date"].null_count
        counts["behaviours"] += int(integers(pc.list_value_length(flat(history["behaviours"]))).sum())
        done, active_done = upto, active_upto
    return {
        "files": {name: file.close() for name, file in files.items()},
        "rows": {name: file.rows for name, file in files.items()},
        "counts": counts | {"samples": len(samples), "late": len(late), "active_users": len(active)},
        "dropped": dropped,
    }


def _late_behaviours(day: DayInputs, bucket: int, late: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Late events as FRESH, labelled as samples are, and those dropped by reason."""
    again = pc.fill_null(late["already_taken"], False)
    dropped = {"duplicate": int(integers(again).sum())}
    late = late.filter(pc.invert(again))
    if not len(late):
        return FRESH.empty_table(), dropped
    users = flat(late["user_id"]).unique()
    state = day.state.read(bucket, pa.schema([STATE.field(name) for name in STATE_COLUMNS]))
    state = state.filter(pc.is_in(state["user_id"], value_set=users))
    labelled = label_samples(late, state, day.lake.config)
    for reason in labelled["dropped"].drop_null().to_pylist():
        dropped[reason] = dropped.get(reason, 0) + 1
    kept = labelled.filter(pc.is_null(labelled["dropped"]))
    return _fresh(kept, flat(kept["date"])), dropped


def _fresh(samples: pa.Table, dates: pa.Array) -> pa.Table:
    return pa.table([flat(samples["user_id"]), dates, behaviours_of(samples)], schema=FRESH)


def _pathway(prior: pa.Table, window: str, pending: pa.Array) -> pa.Table:
    return pa.table({"user_id": prior["user_id"], "behaviours": prior[window], "pending": pending})


def _state_slices(files: BucketFiles, bucket: int) -> Iterator[tuple[pa.Table, str | None]]:
    """The bucket's state (STATE) in user order, each slice with its last user; the last slice says None: everyone after.

    A bucket that is not one sorted file (a rewrite by another program) is read whole and sorted.
    """
    users = files.read(bucket, pa.schema([STATE.field("user_id")]))["user_id"]
    users = flat(users)
    in_order = len(users) < 2 or pc.all(pc.less(users[:-1], users[1:])).as_py()
    if in_order and len(files.paths.get(bucket, ())) == 1:
        filesystem, root = filesystem_of(files.uri)
        with filesystem.open_input_file(f"{root}/{files.paths[bucket][0]}") as stream:
            held: pa.Table | None = None
            for batch in pq.ParquetFile(stream).iter_batches(USERS_AT_ONCE, columns=STATE.names):
                if held is not None:
                    yield held, held["user_id"][-1].as_py()
                held = pa.Table.from_batches([batch]).select(STATE.names).cast(STATE)
            yield (STATE.empty_table() if held is None else held), None
        return
    whole = files.read(bucket, STATE).sort_by("user_id")
    for start in range(0, max(len(whole) - USERS_AT_ONCE, 0), USERS_AT_ONCE):
        part = whole.slice(start, USERS_AT_ONCE)
        yield part, part["user_id"][-1].as_py()
    start = max(len(whole) - 1, 0) // USERS_AT_ONCE * USERS_AT_ONCE
    yield whole.slice(start), None
