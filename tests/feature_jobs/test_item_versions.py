"""The catalogue as mapped files: the version before a request, against a search row by row, however it is dealt into parts."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.item_versions import ATTRIBUTES, ItemVersions, item_versions
from schemas.errors import BadInput
from schemas.lake import Lake, filesystem_of
from schemas.tables import ITEMS
from tests.lake_rows import utc, write_rows

START = utc("2026-01-01")
START_MICROS = int(START.timestamp()) * 1_000_000


def version(item: str, at: int, **values: Any) -> dict[str, Any]:
    """A version that begins ``at`` microseconds after the start."""
    return {"item_id": item, "valid_from": np.datetime64(START_MICROS + at, "us").item().replace(tzinfo=START.tzinfo)} | values


def attributes_before(index: ItemVersions, items: pa.Array, request_ts: np.ndarray) -> pa.Table:
    """Attributes of the version before each request, null where there is none."""
    used, place = index.used_before(items, request_ts)
    return used.take(pa.array(place, mask=place < 0))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_version_before_each_request_is_what_a_search_row_by_row_finds(
    make_lake: Callable[..., Lake], data: st.DataObject
) -> None:
    names = ["a", "b", "ünï", "物", ""]
    keys = data.draw(st.sets(st.tuples(st.sampled_from(names), st.integers(0, 12)), max_size=25))
    rows = [
        version(
            item,
            at,
            author_id=data.draw(st.sampled_from([None, "x", "ü"])),
            tags=data.draw(st.sampled_from([None, [], ["t", "u"]])),
        )
        for item, at in keys
    ]
    lake = make_lake(f"lake-{uuid.uuid4()}")  # not drawn: hypothesis may repeat what it draws
    if rows:
        write_rows(lake, ITEMS, rows)
    index = item_versions(lake, lake.table_version(ITEMS), rows_a_part=data.draw(st.sampled_from([1, 4, 1000])))
    asked = data.draw(st.lists(st.tuples(st.sampled_from([*names, "never", None]), st.integers(-1, 14)), max_size=40))
    items = pa.array([item for item, _ in asked], pa.string())
    request_ts = np.array([START_MICROS + at for _, at in asked], np.int64)
    attributes, missing = attributes_before(index, items, request_ts), index.used_before(items, request_ts)[1] < 0
    expected = [
        max(
            (row for row in rows if row["item_id"] == item and row["valid_from"] < version("", at)["valid_from"]),
            key=lambda row: row["valid_from"],
            default=None,
        )
        for item, at in asked
    ]
    assert missing.tolist() == [row is None for row in expected]
    found = [{name: row.get(name) if row else None for name in ATTRIBUTES.names} for row in expected]
    assert attributes.to_pylist() == found
    assert index.known(items).tolist() == [any(row["item_id"] == item for row in rows) for item, _ in asked]


def knows(index: ItemVersions) -> list[bool]:
    return index.known(pa.array(["a", "b"])).tolist()


def test_versions_in_use_stay_whatever_their_number_and_go_when_nobody_used_them_for_long(
    make_lake: Callable[..., Lake],
) -> None:
    lake = make_lake()
    indexes = []
    for number in range(5):
        write_rows(lake, ITEMS, [version("a", number)])
        indexes.append(item_versions(lake, lake.table_version(ITEMS)))
        assert item_versions(lake, lake.table_version(ITEMS)) == indexes[-1], "written once"
    folders = [lake.local_path("cache") / index.uri.rpartition("/")[2] for index in indexes]
    for folder in folders[:2]:
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (0, 0))
    assert item_versions(lake, lake.table_version(ITEMS) - 4) == indexes[0], "an old one, used again, which sorts lowest"
    assert [folder.is_dir() for folder in folders] == [True, False, True, True, True]
    assert [knows(index) for number, index in enumerate(indexes) if number != 1] == [[True, False]] * 4
    before = np.array([START_MICROS + 9])
    for use in (lambda: knows(indexes[1]), lambda: indexes[1].used_before(pa.array(["a"]), before)):
        with pytest.raises(
            BadInput, match=r"items-[0-9]+: this folder of the cache was removed while it was in use; run the step"
        ):
            use()
    assert not list(lake.local_path("cache").glob(".staging-*"))


def test_a_folder_without_a_mark_is_written_again(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, ITEMS, [version("a", 1)])
    number = lake.table_version(ITEMS)
    folder = lake.local_path("cache", f"items-{number}")
    for mark in ("", None):
        (folder / "part-7").mkdir(parents=True)
        (folder / "complete").unlink(missing_ok=True)
        if mark is not None:
            (folder / "complete").write_text(mark)
        assert knows(item_versions(lake, number)) == [True, False]
        assert not (folder / "part-7").exists()


@pytest.fixture
def on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of lakes lies on what is no local filesystem to the code; the folder where tasks keep their copies."""
    import feature_jobs.item_versions as module

    store = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())
    monkeypatch.setattr(module, "filesystem_of", lambda uri: (store, filesystem_of(uri)[1]))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"onerec-{os.getuid()}"


@pytest.mark.slow
def test_a_lake_made_anew_at_an_address_never_gets_the_copy_of_the_one_before(
    make_lake: Callable[..., Lake], on_a_store: Path
) -> None:
    lake = make_lake()
    write_rows(lake, ITEMS, [version("a", 1)])
    number = lake.table_version(ITEMS)
    dead = item_versions(lake, number)
    assert knows(dead) == [True, False]
    shutil.rmtree(lake.root)
    lake = make_lake()
    write_rows(lake, ITEMS, [version("b", 1)])
    assert lake.table_version(ITEMS) == number
    index = item_versions(lake, number)
    assert index.uri == dead.uri
    assert knows(index) == [False, True]
    assert on_a_store.stat().st_mode & 0o777 == 0o700
    assert len(list(on_a_store.iterdir())) == 2
    for path in [*on_a_store.iterdir(), *on_a_store.rglob("*")]:
        os.utime(path, (0, 0))
    other = make_lake("other")
    write_rows(other, ITEMS, [version("a", 1)])
    assert knows(item_versions(other, other.table_version(ITEMS))) == [True, False]
    assert len(list(on_a_store.iterdir())) == 3, "old, but another lake's"
    write_rows(lake, ITEMS, [version("a", 1)])
    assert knows(item_versions(lake, lake.table_version(ITEMS))) == [True, True]
    assert len(list(on_a_store.iterdir())) == 2, "this lake's old copies went"
    with pytest.raises(BadInput, match=r"replaced while it was in use; run the step again"):
        knows(dead)
    shutil.rmtree(lake.root)
    with pytest.raises(BadInput, match=r"removed while it was in use; run the step again"):
        knows(dead)


def test_copies_lie_where_only_the_user_can_write(make_lake: Callable[..., Lake], on_a_store: Path) -> None:
    lake = make_lake()
    write_rows(lake, ITEMS, [version("a", 1)])
    on_a_store.mkdir()
    on_a_store.chmod(0o777)
    with pytest.raises(BadInput, match="not a folder that only this user can use"):
        knows(item_versions(lake, lake.table_version(ITEMS)))
    on_a_store.rmdir()
    on_a_store.symlink_to(on_a_store.parent)
    with pytest.raises(BadInput, match="not a folder that only this user can use"):
        knows(item_versions(lake, lake.table_version(ITEMS)))


def test_two_writers_of_one_version_leave_one_folder(make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch) -> None:
    import feature_jobs.item_versions as module

    lake = make_lake()
    write_rows(lake, ITEMS, [version("a", 1)])
    number = lake.table_version(ITEMS)
    write = module._write

    def write_while_another_finishes(*args: Any) -> None:
        monkeypatch.setattr(module, "_write", write)
        module.item_versions(lake, number)
        write(*args)

    monkeypatch.setattr(module, "_write", write_while_another_finishes)
    index = item_versions(lake, number)
    assert index.known(pa.array(["a", "b"])).tolist() == [True, False]
    assert not list(lake.local_path("cache").glob(".staging-*"))


@pytest.mark.parametrize("name", ["keys.npy", "valid_from.npy", "attributes.arrow"])
def test_a_damaged_copy_is_named(make_lake: Callable[..., Lake], name: str) -> None:
    lake = make_lake()
    write_rows(lake, ITEMS, [version(f"i{number}", 0) for number in range(50)])
    index = item_versions(lake, lake.table_version(ITEMS))
    [path] = Path(lake.root, "cache").rglob(name)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(BadInput, match=r"items-\d+: damaged .*remove this folder of the cache"):
        index.used_before(pa.array(["i7"]), np.array([START_MICROS + 1], np.int64))
