"""The day's watch-time quantile, exact and without a shuffle: plays are counted in cells, cells are summed, shares looked up.

A *cell* is a (duration bucket, play time in ms) with its number of plays. Each user bucket counts its own into one file, with
one Arrow batch a duration bucket; then each duration bucket is summed by a task of its own, which reads its batch of every
file and writes the share of plays up to each play time; then every task maps the duration buckets it needs. What moves is a
few bytes a distinct cell, in sorted arrays, and no machine ever holds more than one duration bucket's distinct play times.

The same files carry each user bucket's sketches of the day's distinct items (``samples_sketch``), merged in the same way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from feature_jobs.run_folders import run_folder
from feature_jobs.samples_arrays import order_by
from feature_jobs.samples_sketch import PARTS, ItemSketch, PartedSketch
from feature_jobs.user_state_arrays import group_starts
from schemas.lake import Lake, damage_named, filesystem_of, write_atomically

Cells = tuple[np.ndarray, np.ndarray]
"""Keys, sorted, each once (int64: ``duration_bucket << 40 | play_time_ms``), and the plays of each (int64)."""
_PLAY_BITS = 40
CELLS_AT_ONCE = 2**23
"""Cells that are collected before they are summed: a few hundred megabytes."""
_ITEMS = range(-PARTS - 1, -1)
"""Stand for the parts of the sketch of items among duration buckets."""
_CELL_FILE = pa.schema([("value", pa.int64()), ("plays", pa.int64())])
_SHARE_FILE = pa.schema([("play_time_ms", pa.int64()), ("share", pa.float64())])


class CellCounter:
    """Counts plays by cell; memory follows the distinct cells."""

    def __init__(self) -> None:
        self._parts: list[Cells] = []
        self._size = 0

    def add(self, keys: np.ndarray, plays: np.ndarray | None = None) -> None:
        """Add cells, or single plays (any order, repeated)."""
        self._parts.append(_summed(keys, plays))
        self._size += len(self._parts[-1][0])
        if self._size > CELLS_AT_ONCE:
            self._parts = [self.cells()]
            self._size = 0  # what is summed already is not counted, or a large sum would be summed at every call

    def cells(self) -> Cells:
        """All that was added."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        keys, plays = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        return _summed(keys, plays)


def _summed(keys: np.ndarray, plays: np.ndarray | None) -> Cells:
    if plays is None:
        keys = np.sort(keys)
    else:
        order = np.argsort(keys, kind="stable")
        keys, plays = keys[order], plays[order]
    if not len(keys):
        return keys, np.zeros(0, np.int64)
    starts = np.flatnonzero(group_starts(keys))
    counts = np.diff(np.append(starts, len(keys))) if plays is None else np.add.reduceat(plays, starts)
    return keys[starts], counts


def cell_keys(duration_bucket: np.ndarray, play_time_ms: np.ndarray) -> np.ndarray:
    """Keys of the cells of plays whose length is known (duration bucket not negative); plays of unknown ones are left out."""
    known = duration_bucket >= 0
    keys: np.ndarray = duration_bucket[known].astype(np.int64) << _PLAY_BITS | play_time_ms[known]
    return keys


@dataclass(frozen=True)
class CellFolder:
    """A run's own folder below ``LAKE/cache``: cells of each user bucket, then shares of each duration bucket."""

    uri: str

    def write(self, bucket: int, cells: Cells, items: PartedSketch) -> list[int]:
        """Write a user bucket's cells and sketches; the duration buckets in the order of their batches."""
        keys, plays = cells
        of = keys >> _PLAY_BITS
        batches = [
            (number, part.keys, np.ones(len(part.keys), np.int64)) for number, part in zip(_ITEMS, items.parts, strict=True)
        ]
        for number in np.unique(of).tolist():
            rows = slice(*np.searchsorted(of, [number, number + 1]))
            batches.append((number, keys[rows] & (1 << _PLAY_BITS) - 1, plays[rows]))
        cells_of = [pa.record_batch([pa.array(values), pa.array(counts)], schema=_CELL_FILE) for _, values, counts in batches]
        self._write(f"cells-{bucket}", cells_of, compression="lz4")
        return [number for number, _, _ in batches]

    def merge(self, number: int, places: Sequence[tuple[int, int]]) -> int:
        """Sum one duration bucket, whose cells are the batches (user bucket, place in its file): write the share of its plays
        up to each play time. For one of ``_ITEMS``: the part's estimate of distinct items."""
        if number in _ITEMS:
            sketch = ItemSketch()
            for bucket, place in places:
                sketch.add(self._batch(bucket, place).column(0).to_numpy())
            return sketch.distinct()
        counter = CellCounter()
        for bucket, place in places:
            batch = self._batch(bucket, place)
            counter.add(batch.column(0).to_numpy(), batch.column(1).to_numpy())
        play_time, plays = counter.cells()
        upto = np.cumsum(plays)
        self._write(f"shares-{number}", [pa.record_batch([pa.array(play_time), pa.array(upto / upto[-1])], schema=_SHARE_FILE)])
        return len(play_time)

    def _write(self, name: str, batches: Sequence[pa.RecordBatch], compression: str | None = None) -> None:
        """Write a file whole, so that a second attempt at a task may write it while others read the first one's."""
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        write_atomically(f"{self.uri}/{name}.arrow", content.getvalue().to_pybytes())

    def _batch(self, bucket: int, place: int) -> pa.RecordBatch:
        filesystem, root = filesystem_of(self.uri)
        with damage_named(self.uri), filesystem.open_input_file(f"{root}/cells-{bucket}.arrow") as source:
            return pa.ipc.open_file(source).get_batch(place)

    def shares(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Play times of a duration bucket, sorted, and the share of its plays up to each; mapped where the lake is mounted."""
        filesystem, root = filesystem_of(self.uri)
        path = f"{root}/shares-{number}.arrow"
        with damage_named(self.uri):
            mapped = isinstance(filesystem, pafs.LocalFileSystem)
            source = pa.memory_map(path) if mapped else filesystem.open_input_file(path)
            batch = pa.ipc.open_file(source).get_batch(0)
            return batch.column(0).to_numpy(), batch.column(1).to_numpy()


class DayQuantile:
    """Looks up the quantiles of plays that were counted; opens each duration bucket's shares once."""

    def __init__(self, folder: CellFolder) -> None:
        self._folder = folder
        self._shares: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, duration_bucket: np.ndarray, play_time_ms: np.ndarray) -> np.ndarray:
        """``watch_quantile_day`` of plays; NaN where the length is unknown."""
        quantile = np.full(len(duration_bucket), np.nan)
        order = order_by(duration_bucket, play_time_ms)
        sorted_buckets = duration_bucket[order]
        for number in np.unique(sorted_buckets[sorted_buckets >= 0]).tolist():
            if number not in self._shares:
                self._shares[number] = self._folder.shares(number)
            plays, share = self._shares[number]
            rows = order[slice(*np.searchsorted(sorted_buckets, [number, number + 1]))]
            quantile[rows] = share[np.searchsorted(plays, play_time_ms[rows])]
        return quantile


def merge_plan(batches: dict[int, list[int]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """From each user bucket's list of batches (``CellFolder.write``), for each thing to merge where its batches are."""
    places: dict[int, list[tuple[int, int]]] = {}
    for bucket, numbers in batches.items():
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append((bucket, place))
    return sorted(places.items())


def distinct_items(plan: Sequence[tuple[int, list[tuple[int, int]]]], merged: Sequence[int]) -> int:
    """The distinct items among the results of merging a plan."""
    return sum(result for (number, _), result in zip(plan, merged, strict=True) if number in _ITEMS)


@contextmanager
def cell_folder(lake: Lake) -> Iterator[CellFolder]:
    """A folder of this run's own, removed at its end."""
    with run_folder(lake, "samples") as uri:
        yield CellFolder(uri)
