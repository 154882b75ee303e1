"""Windows of ``user_state``: each user's last few behaviours, watches and histogram, moved on by what has arrived.

Lists of users without arrivals are passed on as they are. The tail of a union is the tail of (the parts' tails), so nothing
older than the window is ever read. Order everywhere: (observed_ts, sample_id). Owners are places of users, from 0.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys
from feature_jobs.user_state_arrays import (
    behaviour_order,
    group_starts,
    integers,
    list_lengths,
    lists_of_lengths,
    log_bucket,
    ranges,
)
from schemas.config import SamplesSection
from schemas.tables import POSITIVE_BIT


@dataclass(frozen=True)
class Arrivals:
    """Behaviours (BEHAVIOUR) of many users, sorted by (owner, observed_ts, sample_id), and what windows need to know of
    each: all arrays have one entry a behaviour. ``watched``: play time above 0; ``item``: its xxhash64; ``cell``: duration
    bucket and play bucket in one number, ordered as the pair is."""

    owner: np.ndarray
    values: pa.StructArray
    observed: np.ndarray
    sample_id: np.ndarray
    positive: np.ndarray
    watched: np.ndarray
    item: np.ndarray
    cell: np.ndarray

    @classmethod
    def of(cls, owner: np.ndarray, values: pa.StructArray, settings: SamplesSection) -> "Arrivals":
        """Of behaviours that are in order already."""
        lengths = integers(values.field("duration_ms"), null=-1)
        play = integers(values.field("play_time_ms"))
        return cls(
            owner,
            values,
            integers(values.field("observed_ts")),
            integers(values.field("sample_id")),
            is_positive(values),
            play > 0,
            integers(item_keys(values.field("item_id"))),
            _cells(log_bucket(lengths, settings.duration_log_base), log_bucket(play, settings.play_log_base)),
        )

    def slice(self, start: int, stop: int) -> "Arrivals":
        """Some of them, without a copy."""
        arrays = (self.observed, self.sample_id, self.positive, self.watched, self.item, self.cell)
        return Arrivals(self.owner[start:stop], self.values.slice(start, stop - start), *(array[start:stop] for array in arrays))

    def take(self, rows: np.ndarray) -> "Arrivals":
        """Those at some places, which must be in order again; a mask does too."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        arrays = (self.observed, self.sample_id, self.positive, self.watched, self.item, self.cell)
        return Arrivals(self.owner[rows], self.values.take(pa.array(rows)), *(array[rows] for array in arrays))

    def merged(self, other: "Arrivals") -> "Arrivals":
        """Both, in order."""
        if not len(other.owner):
            return self
        pairs = ("owner", "observed", "sample_id", "positive", "watched", "item", "cell")
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in pairs}
        joined = Arrivals(values=pa.concat_arrays([self.values, other.values]), **both)
        return joined.take(behaviour_order(joined.owner, joined.observed, joined.sample_id))

    def owned_by(self, owner: np.ndarray) -> "Arrivals":
        """The same behaviours under other numbers of their owners, in the same order."""
        arrays = (self.observed, self.sample_id, self.positive, self.watched, self.item, self.cell)
        return Arrivals(owner, self.values, *arrays)


def is_positive(values: pa.StructArray) -> np.ndarray:
    """Mask of the behaviours (BEHAVIOUR) that have the positive bit."""
    return (integers(values.field("feedback")) >> POSITIVE_BIT & 1).astype(bool)


@dataclass(frozen=True)
class Lists:
    """A list column of the state as values and, for each user of the day, where its values begin and how many there are
    (none for a user who is new)."""

    values: pa.Array
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, column: pa.ListArray, place: np.ndarray, users: int) -> "Lists":
        """``place``: for each row of the column the place of its user among the day's ``users``, ascending."""
        lengths = list_lengths(column)
        spread = np.zeros(users, np.int64)
        spread[place] = lengths
        return cls(column.flatten(), np.cumsum(spread) - spread, spread)

    def followed_by(self, added: pa.Array, counts: np.ndarray, limit: int) -> pa.ListArray:
        """Each user's last ``limit`` of its values and then its ``counts`` of the ``added``, which lie in user order."""
        surplus = np.maximum(self.lengths + counts - limit, 0)
        if not len(added) and not surplus.any():
            return lists_of_lengths(self.lengths, self.values)
        index, lengths = _followed(self, counts, surplus, len(self.values))
        return lists_of_lengths(lengths, pa.concat_arrays([self.values, added]).take(pa.array(index)))


def _followed(old: Lists, counts: np.ndarray, surplus: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices into (old values ++ added) of each user's old and then added ones, the first ``surplus`` left out; lengths."""
    cut = np.minimum(surplus, old.lengths)
    cut_added = surplus - cut
    starts = np.stack([old.starts + cut, base + np.cumsum(counts) - counts + cut_added], axis=1)
    lengths = np.stack([old.lengths - cut, counts - cut_added], axis=1)
    return ranges(starts.ravel(), lengths.ravel()), lengths.sum(axis=1)


def window(old: Lists, added: Arrivals, limit: int) -> pa.ListArray:
    """Each user's last ``limit`` behaviours among those it had (in order) and those added, in order."""
    counts = np.bincount(added.owner, minlength=len(old.lengths))
    tangled = _tangled(old, added, counts)
    if not tangled.any():
        return old.followed_by(added.values, counts, limit)
    surplus = np.maximum(old.lengths + counts - limit, 0)
    index, lengths = _followed(old, counts, np.where(tangled, 0, surplus), len(old.values))
    mixed = np.flatnonzero(np.repeat(tangled, lengths))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    observed, sample_id = (
        np.concatenate([integers(old.values.field(name)), new])
        for name, new in (("observed_ts", added.observed), ("sample_id", added.sample_id))
    )
    rows = index[mixed]
    index[mixed] = rows[behaviour_order(owner[mixed], observed[rows], sample_id[rows])]
    kept = np.minimum(lengths, limit)
    index = index[ranges(np.cumsum(lengths) - kept, kept)]
    return lists_of_lengths(kept, pa.concat_arrays([old.values, added.values]).take(pa.array(index)))


def _tangled(old: Lists, added: Arrivals, counts: np.ndarray) -> np.ndarray:
    """Users whose first added behaviour comes before the last that they had (it landed late)."""
    both = np.flatnonzero((old.lengths > 0) & (counts > 0))
    last = pa.array((old.starts + old.lengths - 1)[both])
    first = (np.cumsum(counts) - counts)[both]
    observed = integers(old.values.field("observed_ts").take(last))
    earlier = added.observed[first] < observed
    earlier |= (added.observed[first] == observed) & (added.sample_id[first] < integers(old.values.field("sample_id").take(last)))
    tangled = np.zeros(len(counts), bool)
    tangled[both[earlier]] = True
    return tangled


def recent_items(old: Lists, added: Arrivals, limit: int) -> pa.ListArray:
    """Hashes of each user's last ``limit`` watches: those it had, then the added ones in their order."""
    counts = np.bincount(added.owner[added.watched], minlength=len(old.lengths))
    return old.followed_by(pa.array(added.item[added.watched]), counts, limit)


def histogram(old: Lists, added: Arrivals) -> pa.ListArray:
    """Each user's cells (duration bucket, play bucket, count), sorted, with the added plays counted."""
    users = len(old.lengths)
    touched = np.bincount(added.owner, minlength=users) > 0
    if not touched.any():
        return lists_of_lengths(old.lengths, old.values)
    before = ranges(old.starts[touched], old.lengths[touched])
    names = ("duration_bucket", "play_bucket", "count")
    duration, play, count = (integers(old.values.field(name))[before] for name in names)
    owner = np.concatenate([np.repeat(np.flatnonzero(touched), old.lengths[touched]), added.owner])
    cell = np.concatenate([_cells(duration, play), added.cell])
    count = np.concatenate([count, np.ones(len(added.owner), np.int64)])
    order = np.argsort(owner * _CELLS + cell, kind="stable")
    owner, cell = owner[order], cell[order]
    starts = np.flatnonzero(group_starts(owner, cell))
    counted = [cell[starts] // _PLAY_BUCKETS - 1, cell[starts] % _PLAY_BUCKETS, np.add.reduceat(count[order], starts)]
    fields = list(old.values.type)
    merged = pa.StructArray.from_arrays(
        [pa.array(value).cast(field.type) for value, field in zip(counted, fields, strict=True)], fields=fields
    )
    cells = np.bincount(owner[starts], minlength=users)
    index, lengths = _followed(old, cells, np.where(touched, old.lengths, 0), len(old.values))
    return lists_of_lengths(lengths, pa.concat_arrays([old.values, merged]).take(pa.array(index)))


_PLAY_BUCKETS = 1 << 20
_CELLS = 1 << 40
"""Buckets of either kind are logarithms, far fewer than this."""


def _cells(duration_bucket: np.ndarray, play_bucket: np.ndarray) -> np.ndarray:
    return (duration_bucket.astype(np.int64) + 1) * _PLAY_BUCKETS + play_bucket


def only_positive(lists: pa.ListArray) -> pa.ListArray:
    """The behaviours of each list that have the positive bit."""
    values = lists.flatten()
    high = is_positive(values)
    lengths = list_lengths(lists)
    counts = np.diff(np.concatenate([[0], np.cumsum(high)])[np.concatenate([[0], np.cumsum(lengths)])])
    return lists_of_lengths(counts, values.filter(pc.fill_null(pa.array(high), False)))
