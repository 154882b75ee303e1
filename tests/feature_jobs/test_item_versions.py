"""The catalogue as mapped files: the version before a request, against a search row by row, however it is dealt into parts."""

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.item_versions import ATTRIBUTES, item_versions
from schemas.lake import Lake
from schemas.tables import ITEMS
from tests.lake_rows import utc, write_rows

START = utc("2026-01-01")
START_MICROS = int(START.timestamp()) * 1_000_000


def version(item: str, at: int, **values: Any) -> dict[str, Any]:
    """A version that begins ``at`` microseconds after the start."""
    return {"item_id": item, "valid_from": np.datetime64(START_MICROS + at, "us").item().replace(tzinfo=START.tzinfo)} | values


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
    attributes, missing = index.before(items, np.array([START_MICROS + at for _, at in asked], np.int64))
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


def test_the_files_of_a_version_are_written_once_and_only_the_newest_few_stay(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    for number in range(5):
        write_rows(lake, ITEMS, [version("a", number)])
        index = item_versions(lake, lake.table_version(ITEMS))
        assert item_versions(lake, lake.table_version(ITEMS)) == index
    assert len(list(lake.local_path("cache").glob("items-*"))) == 3
    assert not list(lake.local_path("cache").glob(".staging-*"))


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
