"""Which version of an item held before a request: the catalogue as sorted files that every task of a host maps.

A join of the day's impressions with the catalogue would shuffle either by item, once a day, and a popular item would meet
in one task. The catalogue is small beside the impressions, so it travels instead: written once for a version of ``items``,
below ``LAKE/cache``, and shared by all tasks and steps until the catalogue changes. Losing it costs one rewrite.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from feature_jobs.bucket_files import item_keys
from feature_jobs.cache_folders import in_use, mark_used, remove_unused
from schemas.errors import BadInput
from schemas.lake import Lake, damage_named, filesystem_of, first_line
from schemas.lake_folders import COMPLETE, remove_folder, staging_path
from schemas.tables import ITEMS

ROWS_A_PART = 4_000_000
"""Item versions sorted at once, in memory, when the files are written."""
ATTRIBUTES = pa.schema(
    [("author_id", pa.string()), ("category", pa.string()), ("tags", pa.list_(pa.string())), ("duration_ms", pa.int64())]
)
_COLUMNS = ["item_id", "valid_from", *ATTRIBUTES.names]
_BATCH_ROWS = 131_072
_FOLDER = re.compile(r"items-\d+")


@dataclass(frozen=True)
class ItemVersions:
    """All versions of all items, in parts by the high bits of ``stable_key(item_id)``: in ``part-N/``, sorted by (key,
    valid_from), ``keys.npy`` and ``valid_from.npy`` (int64, µs) and ``attributes.arrow`` (ATTRIBUTES), row for row.

    ``identity`` is what the folder's mark says, new whenever the files are written. Two items whose 64-bit keys agree would
    be taken for one; among a billion items the odds of any such pair are 3 %.
    """

    uri: str
    parts: int
    identity: str

    def known(self, items: pa.Array | pa.ChunkedArray, others: np.ndarray | None = None) -> np.ndarray:
        """Whether the catalogue has any version of each item, or its key is among ``others`` (int64, sorted), which are
        searched, not copied (bool; False for null)."""
        keys, index = _distinct_keys(items)
        found = np.zeros(len(keys) + 1, bool)  # the last stands for null
        if others is not None and len(others):
            place = np.searchsorted(others, keys)
            found[:-1] = others[np.minimum(place, len(others) - 1)] == keys
        for part, places in self._by_part(keys):
            start, end = part.range_of(keys[places])
            found[places] |= end > start
        return found[index]

    def used_before(self, items: pa.Array | pa.ChunkedArray, request_ts: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        """For each row the version with the latest ``valid_from`` < ``request_ts`` (int64, µs), deleted or not: attributes
        (ATTRIBUTES) of each version that any row uses, once, and for each row its place among them (−1 if there is none)."""
        keys, index = _distinct_keys(items)
        part_of = _part_of(keys, self.parts)
        tables = [ATTRIBUTES.empty_table()]
        place = np.full(len(index), -1, np.int64)
        offset = 0
        for part, places in self._by_part(keys):
            start, end = (np.zeros(len(keys) + 1, np.int64) for _ in range(2))
            start[places], end[places] = part.range_of(keys[places])
            of_part = np.append(part_of == part.number, False)[index]
            rows = np.flatnonzero(of_part)
            version = part.last_before(start[index[rows]], end[index[rows]], request_ts[rows])
            used, position = np.unique(version[version >= 0], return_inverse=True)
            tables.append(part.attributes(used))
            place[rows[version >= 0]] = offset + position
            offset += len(used)
        return pa.concat_tables(tables).combine_chunks(), place

    def _by_part(self, keys: np.ndarray) -> Iterator[tuple["_Part", np.ndarray]]:
        folder = _local_copy(self.uri, self.identity)
        part_of = _part_of(keys, self.parts)
        for number in np.unique(part_of).tolist():
            yield _Part(folder / f"part-{number}", number), np.flatnonzero(part_of == number)


@dataclass(frozen=True)
class _Part:
    folder: Path
    number: int

    def _column(self, name: str) -> np.ndarray:
        with in_use(str(self.folder.parent)), _damage_named(self.folder.parent):
            column: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return column

    def range_of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row of each key and the row after its last."""
        known = self._column("keys")
        return np.searchsorted(known, keys, side="left"), np.searchsorted(known, keys, side="right")

    def last_before(self, start: np.ndarray, end: np.ndarray, request_ts: np.ndarray) -> np.ndarray:
        """The last row of each range with ``valid_from`` < ``request_ts``, −1 if none: a bisection of all ranges at once."""
        valid_from = self._column("valid_from")
        low, high = start.copy(), end.copy()
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            earlier = valid_from[middle] < request_ts[open_]
            low[open_[earlier]] = middle[earlier] + 1
            high[open_[~earlier]] = middle[~earlier]
        return np.where(low > start, low - 1, -1)

    def attributes(self, rows: np.ndarray) -> pa.Table:
        where = self.folder.parent
        with in_use(str(where)), _damage_named(where), pa.memory_map(str(self.folder / "attributes.arrow")) as source:
            return pa.ipc.open_file(source).read_all().take(pa.array(rows))


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, EOFError) as error:  # of NumPy, and Arrow's own
        raise BadInput(
            f"{folder}: damaged ({first_line(error)}); remove this folder of the cache and run the step again"
        ) from error


def item_versions(lake: Lake, version: int, *, rows_a_part: int = ROWS_A_PART) -> ItemVersions:
    """The files of a version of the table ``items``, written if absent; those that were not used for long are removed."""
    uri = lake.uri("cache", f"items-{version}")
    filesystem, path = filesystem_of(uri)
    mark = _mark(filesystem, path)
    if mark is None:
        with _published(filesystem, path) as staging:
            _write(lake, version, rows_a_part, staging)
        mark = _mark(filesystem, path)
        if mark is None:
            raise BadInput(f"{uri}: this folder of the cache was removed as soon as it was written; run the step again")
    mark_used(filesystem, path)
    remove_unused(filesystem, path.rpartition("/")[0], _FOLDER, own=f"items-{version}")
    return ItemVersions(uri, **mark)


def _mark(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """What a folder's mark says (``identity``, ``parts``); None where there is no whole folder of this form."""
    try:
        with filesystem.open_input_stream(f"{path}/{COMPLETE}") as stream:
            return dict(json.loads(stream.read()))
    except (FileNotFoundError, ValueError):
        return None


def _distinct_keys(items: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the distinct items, and for each row the place of its own (the number of keys for null)."""
    whole = items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items
    encoded = whole.dictionary_encode()
    keys = item_keys(encoded.dictionary).to_numpy()
    return keys, pc.fill_null(encoded.indices, len(keys)).to_numpy()


def _part_of(keys: np.ndarray, parts: int) -> np.ndarray:
    return (keys.view(np.uint64) >> np.uint64(48)).astype(np.int64) * parts >> 16


def _write(lake: Lake, version: int, rows_a_part: int, folder: Path) -> None:
    """Deal the catalogue into parts, batch by batch, then sort each part in memory."""
    dataset = lake.dataset(ITEMS, version=version)
    with damage_named(lake.table_uri(ITEMS)):
        parts = max(1, -(-dataset.count_rows() // rows_a_part))
        schema = pa.schema([("key", pa.int64()), ("valid_from", pa.int64()), *ATTRIBUTES])
        heaps = [pa.OSFile(str(folder / f"heap-{number}"), "wb") for number in range(parts)]
        writers = [pa.ipc.new_stream(heap, schema) for heap in heaps]
        for batch in dataset.to_batches(columns=_COLUMNS, batch_size=_BATCH_ROWS):
            keys = item_keys(batch["item_id"])
            rows = pa.table(
                [keys, batch["valid_from"].cast(pa.int64()), *(batch[name] for name in ATTRIBUTES.names)], schema=schema
            )
            part_of = _part_of(keys.to_numpy(), parts)
            for number in np.unique(part_of).tolist():
                writers[number].write_table(rows.filter(pa.array(part_of == number)))
        for writer, heap in zip(writers, heaps, strict=True):
            writer.close()
            heap.close()
    for number in range(parts):
        _sort(folder / f"heap-{number}", folder / f"part-{number}")


def _sort(heap: Path, part: Path) -> None:
    part.mkdir()
    with pa.memory_map(str(heap)) as source:
        rows = pa.ipc.open_stream(source).read_all()
        keys, valid_from = rows["key"].to_numpy(), rows["valid_from"].to_numpy()
        order = np.lexsort((valid_from, keys))
        np.save(part / "keys.npy", keys[order])
        np.save(part / "valid_from.npy", valid_from[order])
        attributes = rows.select(ATTRIBUTES.names).combine_chunks().take(pa.array(order)).combine_chunks()
        with pa.OSFile(str(part / "attributes.arrow"), "wb") as sink, pa.ipc.new_file(sink, ATTRIBUTES) as writer:
            writer.write_table(attributes)
    heap.unlink()


@contextmanager
def _published(filesystem: pafs.FileSystem, path: str) -> Iterator[Path]:
    """A folder to write parts into that becomes ``path`` at the end, whole; of two writers of a local one the first stays."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    staging = staging_path(Path(path) if local else _private_folder() / "items")
    staging.mkdir(parents=True)
    try:
        yield staging
        mark = json.dumps({"identity": uuid.uuid4().hex, "parts": len(list(staging.glob("part-*")))})
        if local:
            (staging / COMPLETE).write_text(mark)
            _rename(staging, Path(path))
        else:  # an object store has no renaming: the mark that readers look for comes last
            pafs.copy_files(str(staging), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
            with filesystem.open_output_stream(f"{path}/{COMPLETE}") as stream:
                stream.write(mark.encode())
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rename(staging: Path, folder: Path) -> None:
    """Give a folder its name, unless a whole one has it."""
    local = pafs.LocalFileSystem()
    if folder.is_dir() and _mark(local, str(folder)) is None:
        remove_folder(local, str(folder))  # of an earlier form, or damaged
    try:
        os.rename(staging, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _local_copy(uri: str, identity: str) -> Path:
    """The folder on this host: the lake's own where it is mounted, else a copy made by whichever task comes first.

    A copy's name holds the lake's address and ``identity``, so that a lake made anew at an address never gets the copy of the
    one before it; the lake's other copies are removed when they were not used for long.
    """
    filesystem, path = filesystem_of(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    local, copies = pafs.LocalFileSystem(), _private_folder()
    lake = hashlib.sha256(uri.rpartition("/")[0].encode()).hexdigest()[:24]
    folder = copies / f"{lake}-{identity}"
    if not folder.is_dir():
        staging = staging_path(folder)
        try:
            with in_use(uri):
                pafs.copy_files(path, str(staging), source_filesystem=filesystem, destination_filesystem=local)
            if (_mark(local, str(staging)) or {}).get("identity") != identity:
                raise BadInput(f"{uri}: this folder of the cache was replaced while it was in use; run the step again")
            _rename(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        names = re.compile(rf"{lake}-[0-9a-f]{{32}}|\.staging-[0-9a-f]{{32}}")
        remove_unused(local, str(copies), names, own=folder.name)
    mark_used(local, str(folder))
    return folder


def _private_folder() -> Path:
    """This user's own folder for copies on this host. Raises BadInput if somebody else could put files there."""
    folder = Path(tempfile.gettempdir()) / f"onerec-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BadInput(f"{folder}: not a folder that only this user can use; remove it, or set TMPDIR to another place")
    return folder
