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
from schemas.tables import BEHAVIOUR, FEEDBACK, POSITIVE_BIT

BEHAVIOURS = relaxed(pa.field("behaviours", pa.list_(BEHAVIOUR))).type
"""``list<BEHAVIOUR>`` nullable at every depth: what files of both engines can be cast to."""


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


def last_of_each(owner: np.ndarray, limit: int) -> np.ndarray:
    """Mask of the last ``limit`` values of each owner."""
    if not len(owner):
        return np.zeros(0, bool)
    ends = np.cumsum(np.bincount(owner))
    return ends[owner] - np.arange(len(owner)) <= limit


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


def behaviours_of(samples: pa.Table) -> pa.Array:
    """Samples as BEHAVIOUR structs; ``samples`` has the columns of ``daily_samples`` that a behaviour needs."""
    bits = np.zeros(len(samples), np.int32)
    for bit, name in enumerate(FEEDBACK):
        bits |= integers(samples[name]).astype(np.int32) << bit
    bits |= integers(samples["positive"]).astype(np.int32) << POSITIVE_BIT
    fields = list(BEHAVIOURS.value_type)
    columns = [pa.array(bits) if field.name == "feedback" else flat(samples[field.name]).cast(field.type) for field in fields]
    return pa.StructArray.from_arrays(columns, fields=fields)


def watched_items(behaviours: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """For each behaviour, whether it is a watch (play time above 0), and its item's xxhash64."""
    watched = integers(behaviours.field("play_time_ms")) > 0
    return watched, integers(item_keys(behaviours.field("item_id")))
