"""Folders that runs keep below a lake: what nobody uses goes, whoever else is cleaning, and never looks whole when it is not."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from schemas import lake_folders
from schemas.lake_folders import COMPLETE, SPARK_COMPLETE, is_idle, remove_folder, remove_unused
from tests.aged_folders import LOCAL, STORE, aged_folder

either = pytest.mark.parametrize("filesystem", [LOCAL, STORE], ids=["local", "store"])


@either
def test_a_folder_that_another_run_removes_meanwhile_is_no_error(
    tmp_path: Path, filesystem: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        aged_folder(tmp_path / f"items-{number}", 25, COMPLETE)
    remove = lake_folders.remove_folder

    def second(found: pafs.FileSystem, path: str) -> None:
        remove(found, path)
        remove(found, path)

    monkeypatch.setattr(lake_folders, "remove_folder", second)
    remove_unused(filesystem, str(tmp_path), re.compile(r"items-\d+"), 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", [COMPLETE, SPARK_COMPLETE])
def test_a_folder_that_is_half_removed_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    aged_folder(tmp_path / "a", 0, mark, "part-0/keys.npy")
    with monkeypatch.context() as patch:
        patch.setattr(lake_folders.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(LOCAL, str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()

    class Store:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return killed if name == "delete_dir" else getattr(STORE, name)

    aged_folder(tmp_path / "b", 0, mark, "part-0/keys.npy")
    with pytest.raises(KeyboardInterrupt):
        remove_folder(Store(), str(tmp_path / "b"))
    assert not (tmp_path / "b" / mark).exists()
    assert (tmp_path / "b" / "part-0").is_dir()


def test_a_folder_is_as_old_as_the_newest_file_in_it_also_where_folders_have_no_time(tmp_path: Path) -> None:
    class WithoutTimes:
        """An object store: folders are only beginnings of names."""

        def get_file_info(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
            found = LOCAL.get_file_info(selector)
            return [pafs.FileInfo(one.path, one.type) if one.type is pafs.FileType.Directory else one for one in found]

    store = WithoutTimes()
    [old] = store.get_file_info(pafs.FileSelector(str(aged_folder(tmp_path / "a", 3, "x/file").parent)))
    assert is_idle(store, old, 2)
    (tmp_path / "a" / "x" / "other").touch()
    assert not is_idle(store, old, 2)
    empty = pafs.FileInfo(str(aged_folder(tmp_path / "b", 3)), pafs.FileType.Directory)
    assert not is_idle(store, empty, 2), "nothing says how old it is"
