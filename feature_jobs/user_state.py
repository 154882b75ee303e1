"""``user_state``: what one day leaves to the next, and what each pathway holds at the start of a day.

Pure Arrow. state(D) = state(D−1) + the behaviours taken in on D. Windows are tails of unions, and the tail of a union is
the tail of (the parts' tails), so nothing older than the state is ever read. Order everywhere: (observed_ts, sample_id).
"""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import relaxed
from feature_jobs.user_state_arrays import (
    BEHAVIOURS,
    flat,
    group_starts,
    integers,
    last_of_each,
    lists_of,
    log_bucket,
    owners,
    sorted_users,
    user_index,
    watched_items,
)
from schemas.config import Config
from schemas.lake import day_start
from schemas.tables import PATHWAY_STATIC, POSITIVE_BIT, USER_STATE

STATE = pa.schema([relaxed(field) for field in USER_STATE.schema if field.name not in (*USER_STATE.partition_by,)])
"""``user_state`` without its partition columns, nullable at every depth."""
FRESH = pa.schema([("user_id", pa.string()), ("date", pa.date32()), ("behaviour", BEHAVIOURS.value_type)])
"""Behaviours that a day takes in: the user, the day of the request, the behaviour."""
PROFILE = pa.schema(
    [
        ("user_id", pa.string()),
        *((name, PATHWAY_STATIC.schema.field(name).type) for name in ("age_band", "gender", "region", "device")),
        ("register_ts", pa.timestamp("us", tz="UTC")),
        ("snapshot_date", pa.date32()),
    ]
)
"""A user's latest snapshot before the day."""
ACTIVE_DAYS = 56


def align(state: pa.Table, users: pa.Array) -> pa.Table:
    """The state (STATE) of exactly these users, in their order; someone new has empty lists and zeros."""
    blank = pa.table([_blank(field.type) for field in STATE], schema=STATE)
    index = integers(pc.index_in(users, value_set=flat(state["user_id"])), null=len(state))
    rows = pa.concat_tables([state, blank]).take(pa.array(index))
    return rows.set_column(0, STATE.field("user_id"), users)


def _blank(kind: pa.DataType) -> pa.Array:
    return pa.array([[] if pa.types.is_list(kind) else "" if pa.types.is_string(kind) else 0], kind)


def advance(state: pa.Table, fresh: pa.Table, day: dt.date, seen: list[dt.date], config: Config) -> pa.Table:
    """State at the end of ``day`` (STATE, sorted by user): every user of ``state`` (STATE, the day before) or ``fresh``.

    A behaviour with ``observed_ts`` before the day's end (in the lake's time zone) enters the windows, the histogram and
    ``recent_items``; the others wait in ``pending``. ``recent_items`` keeps watches (play time above 0) in the order of
    the days that took them in, inside a day by (observed_ts, sample_id). ``seen`` becomes ``landings_seen``.
    """
    users = sorted_users(state["user_id"], fresh["user_id"])
    prior = align(state, users)
    fresh_owner = user_index(users, fresh["user_id"])
    waiting = flat(prior["pending"])
    owner = np.concatenate([owners(waiting), fresh_owner])
    owner, taken = _ordered(owner, [waiting.flatten(), flat(fresh["behaviour"])])
    end = int(day_start(day + dt.timedelta(days=1), config).timestamp()) * 1_000_000
    known = integers(taken.field("observed_ts")) < end
    known_owner, newly_known = owner[known], taken.filter(pa.array(known))
    high = (integers(newly_known.field("feedback")) >> POSITIVE_BIT & 1).astype(bool)
    columns = {
        "user_id": users,
        "short": _tail(prior["short"], known_owner, newly_known, config.pathways.short_length),
        "positive": _tail(
            prior["positive"], known_owner[high], newly_known.filter(pa.array(high)), config.pathways.positive_length
        ),
        "pending": lists_of(owner[~known], taken.filter(pa.array(~known)), len(users)),
        "recent_items": _recent_items(
            flat(prior["recent_items"]), known_owner, newly_known, config.samples.positive.repeat_window
        ),
        "watch_histogram": _histogram(flat(prior["watch_histogram"]), known_owner, newly_known, config),
        "active_days": pa.array(_active_days(integers(prior["active_days"]), fresh_owner, integers(fresh["date"]), day)),
        "behaviours": pa.array(integers(prior["behaviours"]) + np.bincount(fresh_owner, minlength=len(users))),
        "landings_seen": pa.array([seen], pa.list_(pa.date32())).take(pa.array(np.zeros(len(users), np.int64))),
    }
    return pa.table([columns[field.name].cast(field.type) for field in STATE], schema=STATE)


def static_rows(prior: pa.Table, profiles: pa.Table, day: dt.date, config: Config) -> pa.Table:
    """``pathway_static`` (without its partition columns) of the users of ``prior``: their state (STATE) at the end of the
    day before, and their latest snapshots (PROFILE; someone without one has nulls)."""
    index = pa.array(user_index(flat(profiles["user_id"]), prior["user_id"]))
    index = pc.if_else(pc.less(index, 0), pa.scalar(None, pa.int64()), index)
    facts = {name: flat(profiles[name]).take(index) for name in profiles.column_names if name != "user_id"}
    start = int(day_start(day, config).timestamp()) * 1_000_000
    registered = integers(facts["register_ts"])
    days = pa.array(
        np.maximum((start - registered) // 86_400_000_000, 0),
        mask=facts.pop("register_ts").is_null().to_numpy(zero_copy_only=False),
    )
    before = integers(prior["active_days"]) & ((1 << 28) - 1)
    known = integers(prior["behaviours"]) - integers(pc.list_value_length(flat(prior["pending"])))
    columns = facts | {
        "user_id": flat(prior["user_id"]),
        "register_days": days,
        "active_days_28": pa.array(np.bitwise_count(before)),
        "behaviours": pa.array(known),
    }
    schema = pa.schema([field for field in PATHWAY_STATIC.schema if field.name in columns])
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def positive_only(lists: pa.Array) -> pa.Array:
    """The behaviours of each list that have the positive bit."""
    values = lists.flatten()
    high = (integers(values.field("feedback")) >> POSITIVE_BIT & 1).astype(bool)
    return lists_of(owners(lists)[high], values.filter(pa.array(high)), len(lists))


def behaviour_lists(fresh: pa.Table) -> pa.Table:
    """``history``'s rows (user_id, behaviours) of what a day took in (FRESH)."""
    users = sorted_users(fresh["user_id"])
    owner, values = _ordered(user_index(users, fresh["user_id"]), [flat(fresh["behaviour"])])
    return pa.table({"user_id": users, "behaviours": lists_of(owner, values, len(users))})


def _ordered(owner: np.ndarray, parts: list[pa.Array]) -> tuple[np.ndarray, pa.Array]:
    """Behaviours of several parts together, by owner and (observed_ts, sample_id)."""
    values = pa.concat_arrays(parts)
    keys = (integers(values.field("sample_id")), integers(values.field("observed_ts")), owner)
    order = np.lexsort(keys)
    return owner[order], values.take(pa.array(order))


def _tail(before: pa.ChunkedArray, owner: np.ndarray, added: pa.Array, limit: int) -> pa.Array:
    lists = flat(before)
    joined, values = _ordered(np.concatenate([owners(lists), owner]), [lists.flatten(), added])
    keep = last_of_each(joined, limit)
    return lists_of(joined[keep], values.filter(pa.array(keep)), len(lists))


def _recent_items(before: pa.Array, owner: np.ndarray, added: pa.Array, window: int) -> pa.Array:
    watched, items = watched_items(added)
    joined = np.concatenate([owners(before), owner[watched]])
    values = np.concatenate([integers(before.flatten()), items[watched]])
    order = np.argsort(joined, kind="stable")
    joined, values = joined[order], values[order]
    keep = last_of_each(joined, window)
    return lists_of(joined[keep], pa.array(values[keep]), len(before))


def _histogram(before: pa.Array, owner: np.ndarray, added: pa.Array, config: Config) -> pa.Array:
    cells = before.flatten()
    lengths = integers(added.field("duration_ms"), null=-1)
    columns = [
        np.concatenate([owners(before), owner]),
        np.concatenate([integers(cells.field("duration_bucket")), log_bucket(lengths, config.samples.duration_log_base)]),
        np.concatenate(
            [
                integers(cells.field("play_bucket")),
                log_bucket(integers(added.field("play_time_ms")), config.samples.play_log_base),
            ]
        ),
    ]
    order = np.lexsort(columns[::-1])
    columns = [column[order] for column in columns]
    counts = np.concatenate([integers(cells.field("count")), np.ones(len(owner), np.int64)])[order]
    starts = np.flatnonzero(group_starts(*columns)) if len(counts) else np.empty(0, np.int64)
    kind = STATE.field("watch_histogram").type.value_type
    values = [columns[1][starts], columns[2][starts], np.add.reduceat(counts, starts) if len(starts) else counts]
    arrays = [pa.array(value).cast(field.type) for value, field in zip(values, kind, strict=True)]
    return lists_of(columns[0][starts], pa.StructArray.from_arrays(arrays, fields=list(kind)), len(before))


def _active_days(before: np.ndarray, owner: np.ndarray, dates: np.ndarray, day: dt.date) -> np.ndarray:
    """The bitmap a day on, with the days of ``dates`` (days since the epoch) set."""
    bitmap = before << 1 & ((1 << ACTIVE_DAYS) - 1)
    age = (day - dt.date(1970, 1, 1)).days - dates
    recent = (age >= 0) & (age < ACTIVE_DAYS)
    np.bitwise_or.at(bitmap, owner[recent], np.int64(1) << age[recent])
    return bitmap
