"""Removes people from shards: data files, target masks and lifelong sidecars, and the manifests that name them.

A task a file; a manifest is replaced once its new files are there, and what no manifest names any more is removed at the end.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.forget_files import Tasks
from feature_jobs.shard_files import (
    MANIFEST,
    clean,
    ipc_schema,
    read_ipc,
    read_manifest,
    shards_root,
    write_ipc,
    write_manifest,
    writer_lock,
)
from feature_jobs.shard_records import counts_of, targets_without_tokens
from feature_jobs.shard_side_tables import keys_with_tokens
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.shard_manifest import DayManifest, MaskManifest, RefreshManifest, inside_store
from schemas.shards import LIFELONG, TARGET_MASK, USER_DAY, stable_key

_USER_ID = pa.schema([USER_DAY.field("user_id")])
_DAY_COUNTS = ("users", "requests", "events")


def forget_in_shards(lake: Lake, users: pa.Array, tasks: Tasks) -> dict[str, int]:
    """Rewrite the files that hold any of ``users``; how many records were removed by kind.

    Repeatable after a kill at any point: what is left to do is seen from the files themselves. Only the users' buckets are
    read.
    """
    removed = {"records": 0, "masks": 0, "lifelong": 0}
    if not lake.is_local or not shards_root(lake).is_dir():
        return removed
    root = shards_root(lake)
    with writer_lock(root):
        job = _Forgetting(root, users, tasks)
        for path in sorted(root.glob(f"lifelong/*/{MANIFEST}")):
            job.refresh(path)
        for path in sorted(root.glob(f"date=*/{MANIFEST}")):
            records, masks = job.day(path)
            removed["records"] += records
            removed["masks"] += masks
        removed["lifelong"] = sum(fresh["removed"] for fresh in job.sidecars.values())
        clean(root)
    return removed


def search_shards(lake: Lake, users: pa.Array, tasks: Tasks) -> dict[str, int]:
    """Search the user column of every shard file: files, values searched, and how many of ``users`` were found."""

    def work(path: Path) -> dict[str, Any]:
        if "user_id" not in ipc_schema(path).names:
            return {"files": 0, "values": 0, "found": 0}
        there = read_ipc(path, _USER_ID)["user_id"]
        return {"files": 1, "values": len(there), "found": pc.sum(pc.is_in(there, value_set=users)).as_py() or 0}

    files = sorted(shards_root(lake).rglob("*.arrow")) if lake.is_local else []
    reports = tasks.each(files, work)
    return {name: sum(report[name] for report in reports) for name in ("files", "values", "found")}


class _Forgetting:
    def __init__(self, root: Path, users: pa.Array, tasks: Tasks) -> None:
        self.sidecars: dict[Path, dict[str, Any]] = {}
        self._root = root
        self._users = users
        self._keys = np.array([stable_key(user) for user in users.to_pylist()], np.int64)
        self._tasks = tasks

    def refresh(self, path: Path) -> None:
        """Rewrite one refresh's sidecars and manifest."""
        manifest = read_manifest(path, RefreshManifest) or {"files": []}
        self._forget_in_sidecars([path.parent / entry["path"] for entry in manifest["files"]])
        changed = [entry for entry in manifest["files"] if self._follow(entry, path.parent / entry["path"], path.parent)]
        if changed:
            write_manifest(path, manifest)

    def day(self, path: Path) -> tuple[int, int]:
        """Rewrite one day's data files, masks and manifests; records removed from data and from masks."""
        folder, manifest = path.parent, read_manifest(path, DayManifest) or {}
        users = self._by_bucket(manifest["user_buckets"])
        affected = [entry for entry in manifest["files"] if entry["user_bucket"] in users]
        tokens = inside_store(self._root, self._root / manifest["tokens"]["path"])
        reports = self._tasks.each(self._units(folder, affected, users), lambda unit: _data_file(*unit, tokens))
        for entry, report in zip(affected, reports, strict=True):
            for name, count in report["lost"].items():
                manifest["counts"][name] -= count
            entry |= report["file"] | {name: entry[name] - report["lost"].get(name, 0) for name in _DAY_COUNTS}
        refreshed = [entry for bucket, entry in manifest["lifelong"].items() if int(bucket) in users]
        self._forget_in_sidecars([self._root / entry["path"] for entry in refreshed])
        moved = [entry for entry in refreshed if self._follow(entry, self._root / entry["path"], self._root)]
        removed = sum(report["removed"] for report in reports)
        if removed or moved:
            write_manifest(path, manifest)
        data = {entry["user_bucket"]: entry["sha256"] for entry in manifest["files"]}
        masks = sum(self._mask(mask, users, data, manifest["counts"]["targets"]) for mask in folder.glob("targets-*.json"))
        return removed, masks

    def _mask(self, path: Path, users: dict[int, pa.Array], data: dict[int, str], targets: int) -> int:
        """Rewrite a mask's files; how many records it lost. Until its manifest is, readers refuse it beside the new data."""
        manifest = read_manifest(path, MaskManifest) or {"files": []}
        affected = [entry for entry in manifest["files"] if entry["user_bucket"] in users]
        if foreign := [entry["path"] for entry in affected if entry["user_bucket"] not in data]:
            raise BadInput(f"{path}: {foreign[0]} is a mask of other data than the day's; run `onerec shards --targets rsft`")
        reports = self._tasks.each(self._units(path.parent, affected, users), lambda unit: _mask_file(*unit))
        for entry, report in zip(affected, reports, strict=True):
            entry |= report["file"]
            if report["removed"]:
                entry["data_sha256"] = data[entry["user_bucket"]]
        removed = sum(report["removed"] for report in reports)
        if removed:
            kept = manifest["counts"]["targets"] - sum(report["targets"] for report in reports)
            manifest["counts"] = {"targets": kept, "dropped": targets - kept}
            manifest["counts_by_unit"] = {manifest["unit"]: manifest["counts"]}
            write_manifest(path, manifest)
        return removed

    def _forget_in_sidecars(self, paths: list[Path]) -> None:
        """Rewrite those not looked at yet."""
        fresh = [inside_store(self._root, path) for path in paths if path not in self.sidecars]
        reports = self._tasks.each(fresh, lambda path: _sidecar_file(path, self._users))
        self.sidecars |= dict(zip(fresh, reports, strict=True))

    def _follow(self, entry: dict[str, Any], path: Path, relative_to: Path) -> bool:
        """Make a manifest's entry name the rewritten sidecar; whether it was rewritten."""
        report = self.sidecars[path]
        if report["removed"]:
            written = report["file"]
            entry |= written | {"path": str((path.parent / written["path"]).relative_to(relative_to))}
            if "users" in entry:
                entry["users"] -= report["removed"]
        return bool(report["removed"])

    def _units(self, folder: Path, entries: list[dict[str, Any]], users: dict[int, pa.Array]) -> list[tuple[Path, pa.Array]]:
        """The files of entries of a manifest, each with the users of its bucket."""
        return [(inside_store(self._root, folder / entry["path"]), users[entry["user_bucket"]]) for entry in entries]

    def _by_bucket(self, buckets: int) -> dict[int, pa.Array]:
        of = self._keys % buckets
        return {int(bucket): self._users.filter(pa.array(of == bucket)) for bucket in np.unique(of)}


def _data_file(path: Path, users: pa.Array, tokens: Path) -> dict[str, Any]:
    table = read_ipc(path, USER_DAY)
    gone = pc.is_in(table["user_id"], value_set=users)
    lost = table.filter(gone)
    if not len(lost):
        return {"removed": 0, "lost": {}, "file": {}}
    counts = counts_of(lost) | {"targets_without_tokens": targets_without_tokens(lost, keys_with_tokens(tokens))}
    return {"removed": len(lost), "lost": counts, "file": _rewritten(path, table.filter(pc.invert(gone)), compressed=True)}


def _mask_file(path: Path, users: pa.Array) -> dict[str, Any]:
    table = read_ipc(path, TARGET_MASK)
    gone = pc.is_in(table["user_id"], value_set=users)
    lost = table.filter(gone)
    if not len(lost):
        return {"removed": 0, "targets": 0, "file": {}}
    targets = pc.sum(pc.list_flatten(lost["event_target"])).as_py() or 0
    return {"removed": len(lost), "targets": targets, "file": _rewritten(path, table.filter(pc.invert(gone)), compressed=True)}


def _sidecar_file(path: Path, users: pa.Array) -> dict[str, Any]:
    table = read_ipc(path, LIFELONG)
    gone = pc.is_in(table["user_id"], value_set=users)
    removed = pc.sum(gone).as_py() or 0
    file = _rewritten(path, table.filter(pc.invert(gone)), compressed=False) if removed else {}
    return {"removed": removed, "file": file}


def _rewritten(path: Path, table: pa.Table, *, compressed: bool) -> dict[str, Any]:
    return write_ipc(table, path.parent, path.name.rsplit("-", 1)[0], compressed=compressed)
