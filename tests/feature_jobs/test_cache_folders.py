"""Folders of the cache: what nobody used for long goes, whoever else is cleaning; everything else stays."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from feature_jobs.cache_folders import KEPT_HOURS, in_use, mark_used, remove_unused
from feature_jobs.run_folders import run_folder
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.lake_folders import COMPLETE
from tests.aged_folders import LOCAL, STORE, aged_folder

either = pytest.mark.parametrize("filesystem", [LOCAL, STORE], ids=["local", "store"])


def old(path: Path, *names: str) -> Path:
    return aged_folder(path, KEPT_HOURS + 1, *names)


@either
def test_folders_that_were_not_used_for_long_go_and_nothing_else(tmp_path: Path, filesystem: pafs.FileSystem) -> None:
    old(tmp_path / "items-1", COMPLETE)
    old(tmp_path / "items-2", COMPLETE, "part-0/keys.npy")
    old(tmp_path / "items-3", COMPLETE)
    mark_used(filesystem, str(tmp_path / "items-3"))
    old(tmp_path / "items-4", COMPLETE, "part-0/keys.npy")
    (tmp_path / "items-4" / "part-0" / "rows.npy").touch()
    aged_folder(tmp_path / "items-5", KEPT_HOURS - 1, COMPLETE)
    for name in ("items-own", "items-", "my-items-1", "items-1-copy", "other"):
        old(tmp_path / name)
    (tmp_path / "items-6").touch()
    os.utime(tmp_path / "items-6", (0, 0))
    remove_unused(filesystem, str(tmp_path), re.compile(r"items-\d+"), own="items-2")
    stay = {"items-2", "items-3", "items-4", "items-5", "items-6", "items-own", "items-", "my-items-1", "items-1-copy", "other"}
    assert {path.name for path in tmp_path.iterdir()} == stay
    remove_unused(filesystem, str(tmp_path / "absent"), re.compile(".*"))


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
    kept.append(aged_folder(cache / f"samples-{name[::-1]}", 1, "cells-0.arrow"))

    def failing() -> None:
        with run_folder(lake, "samples") as uri:
            aged_folder(Path(uri), 0, "cells-0.arrow")
            assert len(list(cache.iterdir())) == len(kept) + 1
            raise RuntimeError("fails")

    with pytest.raises(RuntimeError, match="fails"):
        failing()
    assert sorted(cache.iterdir()) == sorted(kept)
