"""Removes people from shards: data files, target masks and lifelong sidecars, and the manifests that name them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.shard_files import MANIFEST, clean, read_manifest, write_ipc, write_manifest, writer_lock
from feature_jobs.shard_records import counts_of, targets_without_tokens
from feature_jobs.shard_side_tables import keys_with_tokens
from schemas.errors import BadInput
from schemas.shards import stable_key


def forget_in_shards(root: Path, users: Iterable[str]) -> dict[str, int]:
    """Rewrite the files that hold any of ``users``; how many records were removed by kind.

    Repeatable after a kill at any point: a manifest is replaced once its new files are there, and what no manifest names
    any more is removed at the end. Only the users' buckets are read.
    """
    removed = {"records": 0, "masks": 0, "lifelong": 0}
    if not root.is_dir():
        return removed
    with writer_lock(root):
        job = _Forgetting(root, sorted(users))
        for path in sorted(root.glob(f"lifelong/*/{MANIFEST}")):
            job.refresh(path)
        removed["lifelong"] = job.removed
        for path in sorted(root.glob(f"date=*/{MANIFEST}")):
            records, masks = job.day(path)
            removed["records"] += records
            removed["masks"] += masks
        clean(root)
    return removed


def search_shards(root: Path, users: pa.Array) -> dict[str, int]:
    """Search the user column of every shard file: files, values searched, and how many of ``users`` were found."""
    totals = {"files": 0, "values": 0, "found": 0}
    for path in sorted(root.rglob("*.arrow")):
        table = read_shard(path)
        if "user_id" in table.schema.names:
            totals["files"] += 1
            totals["values"] += len(table)
            totals["found"] += pc.sum(pc.is_in(table["user_id"], value_set=users)).as_py() or 0
    return totals


def read_shard(path: Path) -> pa.Table:
    """A shard file. Raises BadInput naming one that is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{path}: unreadable shard file ({error}); run `onerec shards` for its day again") from error


class _Forgetting:
    def __init__(self, root: Path, users: list[str]) -> None:
        self.removed = 0
        self._root = root
        self._keys = [stable_key(user) for user in users]
        self._users = pa.array(users, pa.string())
        self._sidecars: dict[Path, dict[str, Any]] = {}

    def refresh(self, path: Path) -> None:
        """Rewrite one refresh's sidecars and manifest."""
        manifest = read_manifest(path) or {}
        for entry in manifest["files"]:
            entry |= self._sidecar(path.parent / entry["path"], entry)
        write_manifest(path, manifest)

    def day(self, path: Path) -> tuple[int, int]:
        """Rewrite one day's data files, masks and manifests; records removed from data and from masks."""
        folder, manifest = path.parent, read_manifest(path) or {}
        buckets = {key % manifest["user_buckets"] for key in self._keys}
        tokens = self._root / manifest["tokens"]["path"]
        records, changed = 0, {}
        for entry in manifest["files"]:
            if entry["user_bucket"] not in buckets:
                continue
            table = read_shard(folder / entry["path"])
            kept = self._without_users(table)
            if len(kept) == len(table):
                continue
            known = keys_with_tokens(tokens)
            before, after = (
                counts_of(part) | {"targets_without_tokens": targets_without_tokens(part, known)} for part in (table, kept)
            )
            manifest["counts"] = {name: count - before[name] + after[name] for name, count in manifest["counts"].items()}
            old = entry["sha256"]
            entry |= _rewrite(folder / entry["path"], kept, compressed=True)
            entry |= {name: after[name] for name in ("users", "requests", "events")}
            changed[old] = entry["sha256"]
            records += len(table) - len(kept)
        for bucket, entry in manifest["lifelong"].items():
            if int(bucket) in buckets:
                sidecar = self._root / entry["path"]
                fresh = self._sidecar(sidecar, entry)
                entry |= {**{name: fresh[name] for name in ("bytes", "sha256")}}
                entry["path"] = str((sidecar.parent / fresh["path"]).relative_to(self._root))
        masks = {mask: read_manifest(mask) or {} for mask in folder.glob("targets-*.json")} if changed else {}
        removed = sum(self._mask(folder, mask, changed, manifest["counts"]["targets"]) for mask in masks.values())
        for mask_path in masks:
            mask_path.unlink()  # never beside data of another order; if killed here, the mask is built anew
        write_manifest(path, manifest)
        for mask_path, mask in masks.items():
            write_manifest(mask_path, mask)
        return records, removed

    def _mask(self, folder: Path, mask: dict[str, Any], changed: dict[str, str], targets: int) -> int:
        removed = kept_targets = 0
        for entry in mask["files"]:
            table = read_shard(folder / entry["path"])
            kept = self._without_users(table)
            if entry["data_sha256"] in changed:
                entry |= _rewrite(folder / entry["path"], kept, compressed=True)
                entry["data_sha256"] = changed[entry["data_sha256"]]
            removed += len(table) - len(kept)
            kept_targets += pc.sum(pc.list_flatten(kept["event_target"])).as_py() or 0
        mask["counts"] = {"targets": kept_targets, "dropped": targets - kept_targets}
        mask["counts_by_unit"] = {mask["unit"]: mask["counts"]}
        return removed

    def _sidecar(self, path: Path, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry of a sidecar without the users: the file's own if it holds none of them."""
        if path not in self._sidecars:
            table = read_shard(path)
            kept = self._without_users(table)
            self.removed += len(table) - len(kept)
            unchanged = {"path": path.name, "bytes": entry["bytes"], "sha256": entry["sha256"]}
            fresh = unchanged if len(kept) == len(table) else _rewrite(path, kept, compressed=False)
            self._sidecars[path] = {**fresh, "users": len(kept)}
        return self._sidecars[path]

    def _without_users(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.invert(pc.is_in(table["user_id"], value_set=self._users)))


def _rewrite(path: Path, table: pa.Table, *, compressed: bool) -> dict[str, Any]:
    return write_ipc(table, path.parent, path.name.rsplit("-", 1)[0], compressed=compressed)
