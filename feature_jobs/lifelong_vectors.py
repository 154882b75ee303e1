"""The fused item vectors as files that tasks map into memory: sorted keys, their rows, one float32 matrix, and its norms.

They lie below ``LAKE/cache``, named by fusion version and the version of ``item_vectors``: written once, streamed, and
shared by all tasks and following days until either version moves on. Losing them costs one rewrite.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from feature_jobs.bucket_files import item_keys
from feature_jobs.cache_folders import in_use, mark_used, remove_unused
from schemas.errors import BadInput
from schemas.lake import Lake, damage_named
from schemas.lake_folders import staging_path
from schemas.tables import ITEM_VECTORS

_BATCH_ROWS = 65_536
_FOLDER = re.compile(r"vectors-.+-\d+")


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of all items (float32, items × d) and their squared lengths (float32); row −1 stands for the zero vector."""

    matrix: np.ndarray
    norms: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of these rows (float32, rows × d)."""
        vectors: np.ndarray = self.matrix[rows]
        vectors[rows < 0] = 0
        return vectors

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """Squared lengths of the vectors of these rows (float32)."""
        return np.where(rows >= 0, self.norms[rows], np.float32(0))


@dataclass(frozen=True)
class VectorFiles:
    """A folder with ``keys.npy`` (int64, sorted), ``rows.npy`` (int64), ``vectors.npy`` (float32, rows × d) and ``norms.npy``
    (float32, squared lengths)."""

    folder: Path

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """Row of each key (int64) in ``vectors``, −1 where there is none."""
        known, rows = self._mapped("keys", "rows")
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, rows[place], -1)

    def vectors(self) -> ItemVectors:
        """The vectors, mapped."""
        matrix, norms = self._mapped("vectors", "norms")
        return ItemVectors(matrix.view(np.ndarray), norms.view(np.ndarray))

    def _mapped(self, *names: str) -> list[np.ndarray]:
        with in_use(str(self.folder)):
            return [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names]


def vector_files(lake: Lake, fusion_version: str, table_version: int) -> VectorFiles:
    """The files of a fusion version's vectors, written if absent. Of an item's several contents the one with the greatest
    hash is kept, so that the choice does not depend on file order.

    Raises BadInput if that version has no vectors, or vectors of different lengths.
    """
    cache = lake.local_path("cache")
    folder = cache / f"vectors-{fusion_version}-{table_version}"
    if not folder.is_dir():
        _publish(lake, fusion_version, table_version, folder)
    local = pafs.LocalFileSystem()
    mark_used(local, str(folder))
    remove_unused(local, str(cache), _FOLDER, own=folder.name)
    return VectorFiles(folder)


def _publish(lake: Lake, fusion_version: str, table_version: int, folder: Path) -> None:
    """Write the files beside ``folder``, then give them its name."""
    dataset = lake.dataset(ITEM_VECTORS, version=table_version)
    chosen = (pads.field("kind") == "fused") & (pads.field("source") == fusion_version)
    with damage_named(lake.table_uri(ITEM_VECTORS)):
        count = dataset.count_rows(filter=chosen)
    if not count:
        raise BadInput(f"{lake.table_uri(ITEM_VECTORS)}: no vectors of fusion {fusion_version}; run `onerec fuse` first")
    staging = staging_path(folder)
    staging.mkdir(parents=True)
    try:
        batches = dataset.to_batches(columns=["item_id", "content_hash", "vector"], filter=chosen, batch_size=_BATCH_ROWS)
        with damage_named(lake.table_uri(ITEM_VECTORS)):
            _stream(batches, count, staging, f"{lake.table_uri(ITEM_VECTORS)}, fusion {fusion_version}")
        try:
            os.rename(staging, folder)
        except OSError:  # another run wrote the same files first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _stream(batches: "pa.RecordBatchReader", count: int, folder: Path, where: str) -> None:
    keys, hashes = np.empty(count, np.int64), np.empty(count, "S64")
    norms = np.empty(count, np.float32)
    matrix = None
    start = 0
    for batch in batches:
        if not len(batch):
            continue
        lengths = pc.unique(pc.list_value_length(batch["vector"])).to_pylist()
        dim = lengths[0] if matrix is None else matrix.shape[1]
        if lengths != [dim]:
            raise BadInput(f"{where}: vectors of lengths {sorted({*lengths, dim})}; run `onerec fuse` again")
        if matrix is None:
            matrix = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dim))
        end = start + len(batch)
        matrix[start:end] = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        norms[start:end] = np.einsum("nd,nd->n", matrix[start:end], matrix[start:end])
        keys[start:end] = item_keys(batch["item_id"]).to_numpy()
        hashes[start:end] = batch["content_hash"].to_numpy(zero_copy_only=False).astype("S64")
        start = end
    if matrix is not None:
        matrix.flush()
    order = np.lexsort((hashes, keys))
    last = np.append(np.diff(keys[order]) != 0, True)
    np.save(folder / "keys.npy", keys[order][last])
    np.save(folder / "rows.npy", order[last])
    np.save(folder / "norms.npy", norms)
