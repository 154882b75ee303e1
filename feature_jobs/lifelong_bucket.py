"""One bucket's histories compressed to representatives: Arrow in, Arrow out, no Python per behaviour."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys
from feature_jobs.lifelong_clusters import hierarchical_clusters
from feature_jobs.lifelong_vectors import VectorFiles
from schemas.config import LifelongSection
from schemas.shards import stable_key
from schemas.tables import HISTORY, REPRESENTATIVE

HISTORY_COLUMNS = pa.schema([HISTORY.schema.field(name) for name in ("user_id", "behaviours")])
COMPRESSED = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("representatives", pa.list_(REPRESENTATIVE), nullable=False),
        pa.field("history_length", pa.int64(), nullable=False),
        pa.field("trimmed", pa.int64(), nullable=False),
        pa.field("without_vectors", pa.int64(), nullable=False),
    ]
)
"""One row a user of the bucket. ``history_length`` behaviours were compressed, ``trimmed`` older ones left out;
``without_vectors`` of them took part in clustering as zero vectors."""


@dataclass(frozen=True)
class _History:
    """Behaviours of all users of a bucket, by (user, observed_ts, sample_id), trimmed; user u's are ``offsets[u : u + 2]``."""

    users: pa.Array
    offsets: np.ndarray
    behaviours: pa.StructArray
    trimmed: np.ndarray


def compress(history: pa.Table, end_micros: int, settings: LifelongSection, files: VectorFiles) -> pa.Table:
    """``COMPRESSED`` rows of a bucket's ``history`` rows, with what was observed before ``end_micros``.

    A user with at most ``max_representatives`` behaviours keeps each one. An item without a vector counts as the zero
    vector: such behaviours cluster with one another, at the same distance from every unit vector.
    """
    merged = _merged(history, end_micros, settings.max_history)
    keys = item_keys(pc.struct_field(merged.behaviours, "item_id")).to_numpy()
    cluster, without_vectors = _clusters(merged, keys, settings, files)
    representative, number, count = np.unique(cluster, return_inverse=True, return_counts=True)
    columns = _averages(merged.behaviours, representative, number, count)
    user = np.searchsorted(merged.offsets, representative, side="right") - 1
    order = np.lexsort((representative, columns["ts"], user))
    taken = merged.behaviours.take(pa.array(representative[order]))
    known = columns["known"][order] > 0
    values = {
        **{name: pc.struct_field(taken, name) for name in ("item_id", "author_id", "tags", "feedback")},
        "ts": pa.array(columns["ts"][order]).cast(pa.timestamp("us", tz="UTC")),
        "play_time_ms": pa.array(columns["play_time_ms"][order].astype(np.float32)),
        "duration_ms": pa.array(columns["duration_ms"][order].astype(np.float32), mask=~known),
        "count": pa.array(count[order], pa.int32()),
    }
    flat = pa.StructArray.from_arrays([values[field.name] for field in REPRESENTATIVE], fields=list(REPRESENTATIVE))
    bounds = np.searchsorted(user[order], np.arange(len(merged.users) + 1))
    return pa.table(
        [
            merged.users,
            pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), flat),
            np.diff(merged.offsets),
            merged.trimmed,
            without_vectors,
        ],
        schema=COMPRESSED,
    )


def _merged(history: pa.Table, end_micros: int, max_history: int) -> _History:
    rows = history.combine_chunks()
    lists = rows["behaviours"].combine_chunks()
    names = rows["user_id"].combine_chunks().dictionary_encode()
    ranks = pc.rank(names.dictionary, tiebreaker="first").to_numpy().astype(np.int64) - 1
    users = names.dictionary.take(pa.array(np.argsort(ranks)))
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    user = np.repeat(ranks[names.indices.to_numpy()], lengths)
    flat = lists.flatten()
    observed = pc.struct_field(flat, "observed_ts").cast(pa.int64()).to_numpy()
    sample = pc.struct_field(flat, "sample_id").to_numpy()
    order = np.lexsort((sample, observed, user))
    order = order[observed[order] < end_micros]
    # a backfill may leave a late row in two days: the earlier day's, which was rebuilt, comes first in file order
    again = (np.diff(user[order]) == 0) & (np.diff(observed[order]) == 0) & (sample[order][1:] == sample[order][:-1])
    order = order[np.concatenate([[True], ~again])] if len(order) else order
    offsets = np.searchsorted(user[order], np.arange(len(users) + 1))
    kept = np.minimum(np.diff(offsets), max_history)
    newest = np.arange(len(order)) >= np.repeat(offsets[1:] - kept, np.diff(offsets))
    behaviours = flat.take(pa.array(order[newest]))
    return _History(users, np.concatenate([[0], np.cumsum(kept)]), behaviours, np.diff(offsets) - kept)


def _clusters(merged: _History, keys: np.ndarray, settings: LifelongSection, files: VectorFiles) -> tuple[np.ndarray, np.ndarray]:
    """Each behaviour's representative (its place in the history), and each user's behaviours that had no vector."""
    cluster = np.arange(len(keys))
    without_vectors = np.zeros(len(merged.users), np.int64)
    matrix = files.vectors()
    for user in np.flatnonzero(np.diff(merged.offsets) > settings.max_representatives):
        start, end = merged.offsets[user], merged.offsets[user + 1]
        rows, found = files.look_up(keys[start:end])
        vectors = np.where(found[:, None], matrix[rows], np.float32(0))
        seed = abs(settings.seed) * 2**64 + stable_key(merged.users[user].as_py()) % 2**64
        labels, representatives = hierarchical_clusters(vectors, settings.max_representatives, seed)
        cluster[start:end] = start + representatives[labels]
        without_vectors[user] = (~found).sum()
    return cluster, without_vectors


def _averages(
    behaviours: pa.StructArray, representative: np.ndarray, number: np.ndarray, count: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean ts (µs, rounded), play time and known duration of each cluster; ``known``: members of known duration."""
    ts = pc.struct_field(behaviours, "ts").cast(pa.int64()).to_numpy()
    duration = pc.struct_field(behaviours, "duration_ms")
    is_known = duration.is_valid().to_numpy(zero_copy_only=False)
    size = len(representative)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, weights=values, minlength=size)

    known = total(is_known.astype(np.float64))
    # around the representative's own time, since a sum of absolute microseconds has no room in 64 bits
    shift = np.rint(total((ts - ts[representative][number]).astype(np.float64)) / count).astype(np.int64)
    return {
        "ts": ts[representative] + shift,
        "play_time_ms": total(pc.struct_field(behaviours, "play_time_ms").to_numpy().astype(np.float64)) / count,
        "duration_ms": total(duration.fill_null(0).to_numpy().astype(np.float64)) / np.maximum(known, 1),
        "known": known,
    }
