"""Files of the shard store: Arrow IPC under content-hash names, manifests, the writers' lock, cleaning, verification.

``docs/shards.md`` shows the layout. A file is written under a temporary name, synced and renamed; a manifest that names
it is replaced afterwards. Shards lie on a local or mounted filesystem, because readers map them into memory.
"""

import datetime as dt
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import BadInput
from schemas.lake import Lake, first_line, parse_date, write_atomically
from schemas.registry import file_sha256
from schemas.shard_manifest import (
    DayManifest,
    Manifest,
    MaskManifest,
    RefreshManifest,
    checked_manifest,
    inside_store,
    manifest_content,
)

USERS_PER_BATCH = 4096
_AGAIN = "run `onerec shards` for its day again"
MANIFEST = "manifest.json"
RSFT_MANIFEST = "targets-rsft.json"


def shards_root(lake: Lake) -> Path:
    """Folder of the shard store. Raises BadInput for a lake that is not on a local or mounted filesystem."""
    return lake.local_path("shards")


def day_folder(root: Path, date: str) -> Path:
    """Folder of a day's shard."""
    return root / f"date={date}"


def shard_days(lake: Lake) -> list[dt.date]:
    """Days that have a folder in the shard store, whether complete or not, oldest first; none on an object store."""
    if not lake.is_local:
        return []
    names = (path.name.removeprefix("date=") for path in shards_root(lake).glob("date=*"))
    return sorted(parse_date(name, f"{lake.root}: folder of shards/date=") for name in names)


@contextmanager
def writer_lock(root: Path) -> Iterator[None]:
    """One writer at a time, so that cleaning never meets files whose manifest is still to come. A kill releases it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_ipc(table: pa.Table, folder: Path, prefix: str, *, compressed: bool) -> dict[str, Any]:
    """Write ``<prefix>-<sha256, 12 hex>.arrow`` and return its name, bytes and sha256; equal tables give equal bytes.

    ``compressed``: zstd buffers; otherwise plain ones, which a reader can map without a copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{prefix}-{uuid.uuid4().hex}.tmp"
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None)
    batches = table.combine_chunks().to_batches(max_chunksize=USERS_PER_BATCH if compressed else None)
    try:
        with temporary.open("wb") as stream:
            with pa.ipc.new_file(stream, table.schema, options=options) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            stream.flush()
            os.fsync(stream.fileno())
        sha256 = file_sha256(temporary)
        size = temporary.stat().st_size
        name = f"{prefix}-{sha256[:12]}.arrow"
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return {"path": name, "bytes": size, "sha256": sha256}


def ipc_schema(path: Path) -> pa.Schema:
    """Columns of a file of the store. Raises BadInput for one that is missing or damaged."""
    with _unreadable_named(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).schema


def read_ipc(path: Path, columns: pa.Schema) -> pa.Table:
    """These columns, in this order, of a file of the store, mapped into memory; no others are decompressed.

    Raises BadInput for a file that is missing or damaged, or lacks one of the columns in its type.
    """
    found = ipc_schema(path)
    places = [found.get_field_index(column.name) for column in columns]  # -1 where it is missing, or there twice
    for place, column in zip(places, columns, strict=True):
        kind = found.field(place).type if place >= 0 else None
        if kind != column.type:
            raise BadInput(f"{path}: column {column.name} is {kind or 'missing'}, expected {column.type}; {_AGAIN}")
    options = pa.ipc.IpcReadOptions(included_fields=places)
    with _unreadable_named(path):
        table = pa.ipc.open_file(pa.memory_map(str(path)), options=options).read_all().select(columns.names)
        table.validate()
    return table


@contextmanager
def _unreadable_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: unreadable shard file ({first_line(error)}); {_AGAIN}") from error


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Publish a manifest atomically."""
    write_atomically(str(path), (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def read_manifest(path: Path, kind: type[Manifest]) -> dict[str, Any] | None:
    """A manifest with the fields of its model and all others that are in it, or None if there is none.

    Raises BadInput for one that is damaged or foreign. What its paths lead to is for ``inside_store`` to say.
    """
    if not path.is_file():
        return None
    content: dict[str, Any] = manifest_content(path, kind)
    checked_manifest(path, content, kind)
    return content


def manifests(root: Path) -> list[Path]:
    """Every manifest of the store: days, masks and lifelong refreshes."""
    return sorted([*root.glob(f"date=*/{MANIFEST}"), *root.glob("date=*/targets-*.json"), *root.glob(f"lifelong/*/{MANIFEST}")])


def named_files(root: Path, manifest_path: Path) -> dict[Path, dict[str, Any]]:
    """The files that a manifest names, each with its ``bytes`` and ``sha256``. Raises BadInput if a path leaves the store; where
    links lead is not looked at."""
    kind = _kind_of(manifest_path)
    manifest = read_manifest(manifest_path, kind) or {}
    found = {manifest_path.parent / entry["path"]: entry for entry in manifest.get("files", [])}
    if manifest and kind is DayManifest:
        shared = [manifest["items"], manifest["tokens"], *manifest["lifelong"].values()]
        found |= {root / entry["path"]: entry for entry in shared}
    return found


def _kind_of(manifest_path: Path) -> type[Manifest]:
    if manifest_path.name != MANIFEST:
        return MaskManifest
    return RefreshManifest if manifest_path.parent.parent.name == "lifelong" else DayManifest


def data_files(root: Path, manifest: dict[str, Any]) -> dict[int, Path]:
    """Where a day's data files lie, by user bucket. Raises BadInput if a link leads out of the store."""
    folder = day_folder(root, manifest["date"])
    return {entry["user_bucket"]: inside_store(root, folder / entry["path"]) for entry in manifest["files"]}


def verify_files(root: Path, manifest_path: Path) -> int:
    """Check size and sha256 of every file that a manifest names; returns how many. Raises BadInput naming a damaged one."""
    named = named_files(root, manifest_path)
    for path, entry in named.items():
        if not inside_store(root, path).is_file():
            raise BadInput(f"{path}: missing, though {manifest_path.name} names it; run `onerec shards` for this day again")
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            raise BadInput(
                f"{path}: damaged (not the bytes of its manifest); remove it and run `onerec shards` for this day again"
            )
    return len(named)


def is_whole(root: Path, entry: dict[str, Any] | None) -> bool:
    """Whether a file of the store (path relative to the root) is there with its size, and no link to one."""
    if entry is None:
        return False
    path = root / entry["path"]
    return path.is_file() and not path.is_symlink() and path.stat().st_size == entry["bytes"]


def clean(root: Path) -> int:
    """Remove data and temporary files that no manifest names; returns how many. The caller holds the writers' lock."""
    named = {path for manifest in manifests(root) for path in named_files(root, manifest)}
    folders = [*root.glob("date=*"), *root.glob("lifelong/*"), root / "items"]
    removed = 0
    for folder in folders:
        for path in [*folder.glob("*.arrow"), *folder.glob(".*.tmp")]:
            if path not in named:
                path.unlink()
                removed += 1
    return removed
