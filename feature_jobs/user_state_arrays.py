"""Arithmetic over many users' lists at once: ragged arrays, stable hashes and logarithmic buckets in NumPy and Arrow.

A ragged array is a flat array of values beside ``owner``, the index of each value's user (int64, not decreasing unless
said otherwise). Nothing here loops over rows in Python; hashing loops over distinct strings.
"""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys, relaxed
from feature_jobs.parquet_layout import coded
from schemas.tables import BEHAVIOUR, FEEDBACK

BEHAVIOURS = relaxed(pa.field("behaviours", pa.list_(BEHAVIOUR))).type
"""``list<BEHAVIOUR>`` nullable at every depth: what files of both engines can be cast to."""

CODED_BEHAVIOURS = coded(BEHAVIOURS)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def integers(column: pa.ChunkedArray | pa.Array, null: int = 0) -> np.ndarray:
    """A numeric, boolean, date or timestamp column as int64; nulls become ``null``."""
    array = flat(column)
    if pa.types.is_date32(array.type):
        array = array.cast(pa.int32())
    return pc.fill_null(array.cast(pa.int64()), null).to_numpy(zero_copy_only=False)


def owners(lists: pa.Array) -> np.ndarray:
    """For each value of ``lists.flatten()``, the row whose list holds it."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists), dtype=np.int64), lengths)


def lists_of(owner: np.ndarray, values: pa.Array, rows: int) -> pa.Array:
    """The ragged array as a list column of ``rows`` rows."""
    ends = np.cumsum(np.bincount(owner, minlength=rows)) if rows else np.empty(0, np.int64)
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def lists_of_lengths(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    """Values, those of the first list first, as a list column."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def list_lengths(lists: pa.Array) -> np.ndarray:
    """Length of each list (int64), 0 for null."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[i], starts[i] + 1, …`` (``lengths[i]`` of them) for each i, one after another (int64)."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total)


def behaviour_order(owner: np.ndarray, observed: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
    """Indices that sort behaviours by (owner, observed_ts, sample_id); all int64, owners not negative.

    Owner and time share one 64-bit key where they fit, which sorts in one pass (and in linear time what is nearly in
    order); sample ids then settle the few ties.
    """
    if not len(owner):
        return np.empty(0, np.int64)
    earliest = int(observed.min())
    span = int(observed.max()) - earliest + 1
    if (int(owner.max()) + 1) * span >= 2**63:
        return np.lexsort((sample_id, observed, owner))
    key = owner * span + (observed - earliest)
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    tied = np.zeros(len(key) + 1, bool)
    tied[1:-1] = sorted_key[1:] == sorted_key[:-1]
    places = np.flatnonzero(tied[1:] | tied[:-1])
    if len(places):
        rows = order[places]
        order[places] = rows[np.lexsort((sample_id[rows], sorted_key[places]))]
    return order


def rank_in_group(*keys: np.ndarray) -> np.ndarray:
    """Place (from 0) of each row among the equal ones before it, for rows sorted by ``keys``."""
    starts = group_starts(*keys)
    index = np.arange(len(starts))
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def group_starts(*keys: np.ndarray) -> np.ndarray:
    """Mask of the rows that begin a new group, for rows sorted by ``keys``."""
    length = len(keys[0])
    starts = np.ones(length, bool)
    if length > 1:
        starts[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return starts


def sorted_users(*columns: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The distinct users of some columns in UTF-8 byte order."""
    unique = flat(pa.chunked_array([pc.unique(flat(column)) for column in columns], pa.string())).unique()
    return unique.take(pc.sort_indices(unique))


def user_index(users: pa.Array, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Place of each user of a column in ``users``; −1 for one who is not there."""
    return integers(pc.index_in(flat(column), value_set=users), null=-1)


def log_bucket(milliseconds: np.ndarray, base: float) -> np.ndarray:
    """⌊log_base(seconds + 1)⌋ (int32), −1 for a negative (unknown) length: V2's F(d) with ε = 1 s.

    Compared with the exact edges base^k − 1 in whole milliseconds, so that no rounding of a logarithm decides.
    """
    edges = np.array(_bucket_edges(base, int(milliseconds.max(initial=0))), np.int64)
    return np.where(milliseconds < 0, -1, np.searchsorted(edges, milliseconds, side="right") - 1).astype(np.int32)


def _bucket_edges(base: float, longest: int) -> list[int]:
    edges, power = [0], Fraction(base)
    while (edge := math.ceil((power - 1) * 1000)) <= longest:
        edges.append(edge)
        power *= Fraction(base)
    return edges


def behaviour_columns(samples: pa.Table) -> dict[str, pa.ChunkedArray | pa.Array]:
    """The columns of BEHAVIOUR, from those of ``daily_samples`` that a behaviour needs."""
    bits = np.zeros(len(samples), np.int32)
    for bit, name in enumerate((*FEEDBACK, "positive")):
        bits |= integers(samples[name]).astype(np.int32) << bit
    copied = [field.name for field in BEHAVIOURS.value_type if field.name != "feedback"]
    return {name: samples[name] for name in copied} | {"feedback": pa.array(bits)}


def watched_items(behaviours: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """For each behaviour, whether it is a watch (play time above 0), and its item's xxhash64."""
    watched = integers(behaviours.field("play_time_ms")) > 0
    return watched, integers(item_keys(behaviours.field("item_id")))
