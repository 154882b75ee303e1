"""A bucket's events and state in slices of whole users, so that memory follows neither the bucket's day nor its users.

Files of events are in user order as ingest writes them, so a slice is a range of rows of each file. That is looked up in
the column of users, not believed: a file in another order (written by another program) is held in memory and sorted.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import BucketFiles, relaxed
from feature_jobs.samples_arrays import encoded, encoded_users
from feature_jobs.samples_labels import STATE_COLUMNS
from feature_jobs.user_state_files import state_slices

SLICE_ROWS = 2**18
"""Events of a slice, unless one user has more: some 200 bytes a row, several times over."""
BATCH_ROWS = 2**16
_REPEATED = ("user_id", "item_id", "scene")
"""Texts that files hold as dictionaries and that stay so."""


def event_slices(files: BucketFiles, bucket: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """A bucket's rows with these columns (``user_id`` among them), at most SLICE_ROWS at once and whole users, in user order.

    Inside a slice rows are in no order; texts that repeat (``user_id``, ``item_id``, ``scene``) are dictionary arrays, that
    of the users sorted. Columns that a file lacks are null. Raises BadInput naming a file that is missing or damaged.
    """
    paths = files.paths.get(bucket, ())
    columns = [encoded(_users_of(files, path)) for path in paths]
    if not columns:
        return
    users, _ = encoded_users(pa.concat_arrays([column.dictionary for column in columns]))
    places = [pc.index_in(column.dictionary, users).to_numpy()[column.indices.to_numpy()] for column in columns]
    readers = [_UserRows(files, path, schema, place) for path, place in zip(paths, places, strict=True)]
    upto = np.cumsum(np.sum([np.bincount(place, minlength=len(users)) for place in places], axis=0))
    first = 0
    while first < len(users):
        before = upto[first - 1] if first else 0
        end = max(int(np.searchsorted(upto, before + SLICE_ROWS, side="right")), first + 1)
        yield _with_users([reader.upto(end) for reader in readers], schema, users.slice(first, end - first), first)
        first = end


def _with_users(parts: list[tuple[pa.Table, np.ndarray]], schema: pa.Schema, users: pa.Array, first: int) -> pa.Table:
    rows = pa.concat_tables([part for part, _ in parts]).unify_dictionaries().combine_chunks()
    place = np.concatenate([place for _, place in parts]) - first
    codes = pa.DictionaryArray.from_arrays(pa.array(place, pa.int32()), users)
    return pa.table([codes if name == "user_id" else rows[name] for name in schema.names], names=schema.names)


class _UserRows:
    """One file's rows, handed out user by user; ``place`` is each row's user's place among all."""

    def __init__(self, files: BucketFiles, path: str, schema: pa.Schema, place: np.ndarray) -> None:
        self._place = place
        self._done = 0
        self._schema = pa.schema([relaxed(_as_stored(column)) for column in schema if column.name != "user_id"])
        self._chunks = files.batches(path, self._schema, BATCH_ROWS)
        if (place[1:] < place[:-1]).any():
            order = np.argsort(place, kind="stable")
            self._place = place[order]
            self._chunks = iter([self._joined(list(self._chunks)).combine_chunks().take(pa.array(order))])
        self._held = self._schema.empty_table()

    def upto(self, end: int) -> tuple[pa.Table, np.ndarray]:
        """The rows not handed out yet of the users before place ``end``, and their users' places."""
        stop = int(np.searchsorted(self._place, end))
        parts, wanted = [self._held], stop - self._done
        while sum(len(part) for part in parts) < wanted:
            parts.append(next(self._chunks))
        rows = self._joined(parts)
        self._held = rows.slice(wanted)
        place, self._done = self._place[self._done : stop], stop
        return rows.slice(0, wanted), place

    def _joined(self, parts: list[pa.Table]) -> pa.Table:
        return pa.concat_tables([self._schema.empty_table(), *parts])


def _as_stored(column: pa.Field) -> pa.Field:
    return column.with_type(pa.dictionary(pa.int32(), pa.string())) if column.name in _REPEATED else column


def _users_of(files: BucketFiles, path: str) -> pa.ChunkedArray:
    kind = pa.dictionary(pa.int32(), pa.string())
    chunks = [chunk["user_id"] for chunk in files.batches(path, pa.schema([("user_id", kind)]), BATCH_ROWS)]
    return pa.chunked_array([part for chunk in chunks for part in chunk.chunks], kind)


class ActiveState:
    """The state (STATE_COLUMNS) of a bucket's users, read once in user order beside the slices of their events."""

    def __init__(self, files: BucketFiles, bucket: int) -> None:
        self._slices = state_slices(files, bucket, STATE_COLUMNS)
        first, self._last = next(self._slices)
        self._held = [first]

    def of(self, users: pa.Array) -> pa.Table:
        """The state of those of ``users`` that have one; ``users`` are sorted and all after those of the calls before."""
        last = users[-1].as_py()
        parts, self._held = self._held, []
        while self._last is not None and self._last < last:
            part, self._last = next(self._slices)
            parts.append(part)
        self._held = parts[-1:]
        return pa.concat_tables([part.filter(pc.is_in(part["user_id"], value_set=users)) for part in parts])
