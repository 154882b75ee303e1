"""Folders of the cache: what nobody used for long goes, whoever else is cleaning; everything else stays."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from feature_jobs import cache_folders
from feature_jobs.cache_folders import COMPLETE, KEPT_HOURS, SPARK_COMPLETE, in_use, mark_used, remove_folder, remove_unused
from feature_jobs.run_folders import run_folder
from schemas.errors import BadInput
from schemas.lake import Lake

LOCAL = pafs.LocalFileSystem()
STORE = pafs.SubTreeFileSystem("/", LOCAL)
"""Not a local filesystem to the code: it stands for an object store."""
either = pytest.mark.parametrize("filesystem", [LOCAL, STORE], ids=["local", "store"])


def folder(path: Path, hours: float, *names: str) -> Path:
    """A folder with files that were written so long ago."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    moment = time.time() - hours * 3600
    for entry in [path, *path.rglob("*")]:
        os.utime(entry, (moment, moment))
    return path


def old(path: Path, *names: str) -> Path:
    return folder(path, KEPT_HOURS + 1, *names)


@either
def test_folders_that_were_not_used_for_long_go_and_nothing_else(tmp_path: Path, filesystem: pafs.FileSystem) -> None:
    old(tmp_path / "items-1", COMPLETE)
    old(tmp_path / "items-2", COMPLETE, "part-0/keys.npy")
    old(tmp_path / "items-3", COMPLETE)
    mark_used(filesystem, str(tmp_path / "items-3"))
    old(tmp_path / "items-4", COMPLETE, "part-0/keys.npy")
    (tmp_path / "items-4" / "part-0" / "rows.npy").touch()
    folder(tmp_path / "items-5", KEPT_HOURS - 1, COMPLETE)
    for name in ("items-own", "items-", "my-items-1", "items-1-copy", "other"):
        old(tmp_path / name)
    (tmp_path / "items-6").touch()
    os.utime(tmp_path / "items-6", (0, 0))
    remove_unused(filesystem, str(tmp_path), re.compile(r"items-\d+"), own="items-2")
    stay = {"items-2", "items-3", "items-4", "items-5", "items-6", "items-own", "items-", "my-items-1", "items-1-copy", "other"}
    assert {path.name for path in tmp_path.iterdir()} == stay
    remove_unused(filesystem, str(tmp_path / "absent"), re.compile(".*"))


@either
def test_a_folder_that_another_run_removes_meanwhile_is_no_error(
    tmp_path: Path, filesystem: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        old(tmp_path / f"items-{number}", COMPLETE)
    remove = cache_folders.remove_folder

    def second(found: pafs.FileSystem, path: str) -> None:
        remove(found, path)
        remove(found, path)

    monkeypatch.setattr(cache_folders, "remove_folder", second)
    remove_unused(filesystem, str(tmp_path), re.compile(r"items-\d+"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", [COMPLETE, SPARK_COMPLETE])
def test_a_folder_that_is_half_removed_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder(tmp_path / "a", 0, mark, "part-0/keys.npy")
    with monkeypatch.context() as patch:
        patch.setattr(cache_folders.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(LOCAL, str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()

    class Store:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return killed if name == "delete_dir" else getattr(STORE, name)

    folder(tmp_path / "b", 0, mark, "part-0/keys.npy")
    with pytest.raises(KeyboardInterrupt):
        remove_folder(Store(), str(tmp_path / "b"))
    assert not (tmp_path / "b" / mark).exists()
    assert (tmp_path / "b" / "part-0").is_dir()


@either
def test_who_uses_a_folder_that_is_gone_is_told_so(tmp_path: Path, filesystem: pafs.FileSystem) -> None:
    with pytest.raises(BadInput, match=r"items-1: this folder of the cache was removed while it was in use; run the step again"):
        mark_used(filesystem, str(tmp_path / "items-1"))
    with pytest.raises(BadInput, match="somewhere: this folder"), in_use("somewhere"):
        (tmp_path / "absent").read_bytes()


def test_a_run_removes_its_folder_also_when_it_fails_and_what_killed_runs_left_long_ago(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    cache = lake.local_path("cache")
    name = "0123456789abcdef" * 2
    for step in ("samples", "ingest", "snapshots"):
        old(cache / f"{step}-{name}", "part-0")
    kept = [old(cache / other) for other in ("samples-mine", "snapshots-yesterday", "snapshots-20200101T000000-x", "samples-")]
    kept.append(folder(cache / f"samples-{name[::-1]}", 1, "cells-0.arrow"))

    def failing() -> None:
        with run_folder(lake, "samples") as uri:
            folder(Path(uri), 0, "cells-0.arrow")
            assert len(list(cache.iterdir())) == len(kept) + 1
            raise RuntimeError("fails")

    with pytest.raises(RuntimeError, match="fails"):
        failing()
    assert sorted(cache.iterdir()) == sorted(kept)
