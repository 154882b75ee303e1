"""A bucket's base and the days since, merged user by user: Arrow in, Arrow out, no Python per behaviour.

A base remembers of each behaviour the day it landed on. So a day that a backfill wrote anew replaces what the base took of
it, and its rows keep the clusters of those they replace. Of rows with one ``sample_id`` that of the earliest day stays.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import relaxed
from feature_jobs.user_state_arrays import BEHAVIOURS, flat, integers
from schemas.tables import HISTORY

BASE = pa.schema(
    [
        relaxed(HISTORY.schema.field(name))
        for name in ("user_id", "behaviours", "landed", "leaf", "joined", "fusion_version", "refresh_date")
    ]
)
"""Columns of a base. Those from ``landed`` on are null in a day's rows."""
DAY = pa.schema([relaxed(HISTORY.schema.field(name)) for name in ("user_id", "behaviours", "date")])
"""Columns of a day's rows."""
NO_LEAF = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Upto:
    """What a refresh may see: behaviours landed by ``day`` and observed before ``end_micros``, the newest ``max_history``."""

    day: dt.date
    end_micros: int
    max_history: int


@dataclass(frozen=True)
class Histories:
    """Behaviours of some users by (user, observed_ts, sample_id); user u's are ``offsets[u : u + 2]``.

    ``landed`` (int32, days since 1970) and ``leaf`` (int64, NO_LEAF where there is none) are theirs. Not ``visible`` are those
    not observed by the refresh's end. A user of whom the base held behaviours that are gone or replaced is ``changed``.
    ``joined`` and ``fusion`` (null without clusters) are the user's columns of the base.
    """

    users: pa.Array
    offsets: np.ndarray
    behaviours: pa.StructArray
    landed: np.ndarray
    leaf: np.ndarray
    visible: np.ndarray
    changed: np.ndarray
    joined: np.ndarray
    fusion: pa.Array
    rows_in: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class _Rows:
    """Behaviours one by one, with the user of each (int64) and a key that tells (user, sample_id) apart (uint64)."""

    behaviours: pa.StructArray
    user: np.ndarray
    key: np.ndarray
    landed: np.ndarray
    leaf: np.ndarray

    def where(self, mask: np.ndarray) -> "_Rows":
        kept = np.flatnonzero(mask)
        behaviours = self.behaviours if len(kept) == len(mask) else self.behaviours.take(pa.array(kept))
        return _Rows(behaviours, self.user[kept], self.key[kept], self.landed[kept], self.leaf[kept])


def merge_histories(base: pa.Table, days: Sequence[pa.Table], written: Sequence[dt.date], upto: Upto) -> Histories:
    """The histories of all users of ``base`` (BASE, a row a user) and ``days`` (DAY).

    ``written`` are all days that have rows in this bucket, whether or not of these users: what the base holds of them is
    replaced. Behaviours landed after the day of ``upto`` are left out.
    """
    users = _sorted_users([base, *days])
    old = _rows(users, base, _values(base["landed"]), _values(base["leaf"], NO_LEAF))
    day_rows = pa.concat_tables([DAY.empty_table(), *days])
    lengths = integers(pc.list_value_length(flat(day_rows["behaviours"])))
    new = _rows(users, day_rows, np.repeat(integers(day_rows["date"]), lengths), np.full(int(lengths.sum()), NO_LEAF))
    rows_in = len(old.user) + len(new.user)
    in_time = old.landed <= (upto.day - dt.date(1970, 1, 1)).days
    old = old.where(in_time)
    order = np.lexsort((new.landed, new.key))
    first = np.ones(len(order), bool)
    first[1:] = new.key[order[1:]] != new.key[order[:-1]]
    once = np.zeros(len(order), bool)
    once[order[first]] = True
    new = new.where(once)
    again = int((~once).sum())
    old_stays, new_stays = _chosen(old, new, [(day - dt.date(1970, 1, 1)).days for day in written])
    changed = np.bincount(old.user[~old_stays], minlength=len(users)) > 0
    kept_old, kept_new = old.where(old_stays), new.where(new_stays)
    rows = _in_time_order(kept_old, kept_new, len(users))
    visible = _observed(rows.behaviours) < upto.end_micros
    newest = _newest(rows.user, visible, upto.max_history, len(users))
    trimmed = int((~newest).sum())
    rows, visible = rows.where(newest), visible[newest]
    offsets = np.searchsorted(rows.user, np.arange(len(users) + 1))
    place = integers(pc.index_in(users, value_set=flat(base["user_id"])), null=-1)
    taken = pa.array(place, mask=place < 0)
    return Histories(
        users=users,
        offsets=offsets,
        behaviours=rows.behaviours,
        landed=rows.landed.astype(np.int32),
        leaf=rows.leaf,
        visible=visible,
        changed=changed,
        joined=integers(flat(base["joined"]).take(taken)),
        fusion=flat(base["fusion_version"]).take(taken),
        rows_in=rows_in,
        dropped={
            "after_the_date": int((~in_time).sum()),
            "duplicate": again + int((~new_stays).sum()),
            "replaced_by_a_backfill": int((~old_stays).sum()),
            "over_max_history": trimmed,
        },
    )


def _sorted_users(tables: Sequence[pa.Table]) -> pa.Array:
    users = pa.concat_arrays([flat(table["user_id"]) for table in tables]).unique()
    return users.take(pc.sort_indices(users))


def _values(lists: pa.ChunkedArray, null: int = 0) -> np.ndarray:
    return integers(flat(lists).flatten(), null=null)


def _rows(users: pa.Array, table: pa.Table, landed: np.ndarray, leaf: np.ndarray) -> _Rows:
    lists = flat(table["behaviours"].cast(BEHAVIOURS))
    user = np.repeat(integers(pc.index_in(flat(table["user_id"]), value_set=users)), integers(pc.list_value_length(lists)))
    behaviours = lists.flatten()
    sample = pc.struct_field(behaviours, "sample_id").to_numpy(zero_copy_only=False).view(np.uint64)
    return _Rows(behaviours, user, sample + user.astype(np.uint64) * _MIX, landed, leaf)


def _chosen(old: _Rows, new: _Rows, written: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the base's behaviours stay, and which of the days'. A new one that stays in place of an old one takes over its
    leaf, in place in ``new.leaf``."""
    replaced = np.isin(old.landed, written)
    place = integers(pc.index_in(pa.array(old.key), value_set=pa.array(new.key)), null=-1)
    met = np.flatnonzero(place >= 0)
    earlier = met[~replaced[met] & (old.landed[met] <= new.landed[place[met]])]
    old_stays = ~replaced & (place < 0)
    old_stays[earlier] = True
    new_stays = np.ones(len(new.user), bool)
    new_stays[place[earlier]] = False
    taken_over = met[~old_stays[met]]
    new.leaf[place[taken_over]] = old.leaf[taken_over]
    return old_stays, new_stays


def _observed(behaviours: pa.StructArray) -> np.ndarray:
    return integers(pc.struct_field(behaviours, "observed_ts"))


def _in_time_order(old: _Rows, new: _Rows, users: int) -> _Rows:
    """Both together by (user, observed_ts, sample_id). The base is in this order, so the sort is little more than a merge."""
    behaviours = pa.concat_arrays([old.behaviours, new.behaviours])
    user = np.concatenate([old.user, new.user])
    observed = _observed(behaviours)
    low = int(observed.min(initial=0))
    span = int(observed.max(initial=0)) - low + 1
    sample = pc.struct_field(behaviours, "sample_id").to_numpy(zero_copy_only=False)
    if span * max(users, 1) < 2**62:
        moment = user * span + (observed - low)
        order = np.argsort(moment, kind="stable")
        tie = moment[order[1:]] == moment[order[:-1]]
        tied = np.flatnonzero(np.append(tie, False) | np.append(False, tie)) if len(order) else order
        those = order[tied]
        order[tied] = those[np.lexsort((sample[those], moment[those]))]
    else:  # times that lie millennia apart
        order = np.lexsort((sample, observed, user))
    return _Rows(
        behaviours.take(pa.array(order)),
        user[order],
        np.concatenate([old.key, new.key])[order],
        np.concatenate([old.landed, new.landed])[order],
        np.concatenate([old.leaf, new.leaf])[order],
    )


def _newest(user: np.ndarray, visible: np.ndarray, max_history: int, users: int) -> np.ndarray:
    """Mask of what is not visible yet and of each user's last ``max_history`` visible behaviours."""
    seen = np.cumsum(visible)
    total = np.bincount(user, weights=visible, minlength=users).astype(np.int64)
    after = np.cumsum(total)[user] - seen  # visible behaviours of the user that come later
    return ~visible | (after < max_history)
