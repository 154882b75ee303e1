"""Co-watched pairs: all kinds of the latest window, each once; training and inspection mean the same by them."""

import datetime as dt
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.lake import Lake
from schemas.tables import CO_INTERACTION
from tests.lake_rows import write_rows
from tokenization.inspection_tables import TokenisedItems, co_watched_rows
from tokenization.pairs import latest_pairs, pair_rows

DAYS = [dt.date(2026, 1, day) for day in (1, 2, 3)]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"))))
def test_pairs_as_rows(pairs: list[tuple[str, str]]) -> None:
    ids = ["c", "a", "b"]
    table = pa.table(
        {"item_a": pa.array([a for a, _ in pairs], pa.string()), "item_b": pa.array([b for _, b in pairs], pa.string())}
    )
    expected = sorted({tuple(sorted((ids.index(a), ids.index(b)))) for a, b in pairs if a != b and "d" not in (a, b)})
    assert [tuple(pair) for pair in pair_rows(table, pa.array(ids)).tolist()] == expected


def write_pairs(lake: Lake, day: dt.date, *pairs: tuple[str, str, str]) -> None:
    """(kind, item, item) of a window."""
    names = ("kind", "item_a", "item_b")
    write_rows(
        lake, CO_INTERACTION, [dict(zip(names, pair, strict=True)) | {"score": 1.0, "support": 2, "date": day} for pair in pairs]
    )


def tokenised(ids: list[str]) -> TokenisedItems:
    count = len(ids)
    return TokenisedItems(
        "v", pa.array(ids), np.zeros((count, 1), np.int32), np.zeros(count, np.int32), np.zeros(count, np.float32)
    )


def test_training_and_inspection_take_all_kinds_of_the_latest_window(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_pairs(lake, DAYS[0], ("swing", "a", "d"))
    write_pairs(
        lake, DAYS[1], ("swing", "a", "b"), ("swing", "b", "a"), ("co_occurrence", "a", "b"), ("co_occurrence", "b", "c"),
        ("user_to_item", "d", "c"), ("user_to_item", "d", "without tokens"),
    )  # fmt: skip
    items = tokenised(["d", "c", "b", "a"])
    found = co_watched_rows(lake, items)
    assert found is not None
    assert found.tolist() == [[0, 1], [1, 2], [2, 3]]
    day, pairs = latest_pairs(lake, lake.table_version(CO_INTERACTION), None)
    assert day == DAYS[1]
    assert pair_rows(pairs, items.item_ids).tolist() == found.tolist()


@pytest.mark.parametrize(("date", "expected"), [(DAYS[0], DAYS[0]), (DAYS[1], DAYS[0]), (DAYS[2], DAYS[2]), (None, DAYS[2])])
def test_the_latest_window_is_the_one_that_ends_by_the_date(
    make_lake: Callable[..., Lake], date: dt.date | None, expected: dt.date
) -> None:
    lake = make_lake()
    write_pairs(lake, DAYS[0], ("co_occurrence", "a", str(DAYS[0])))
    write_pairs(lake, DAYS[2], ("co_occurrence", "a", str(DAYS[2])))
    day, pairs = latest_pairs(lake, lake.table_version(CO_INTERACTION), date)
    assert day == expected
    assert pairs.to_pylist() == [{"item_a": "a", "item_b": str(expected)}]


def test_without_a_window_there_are_no_pairs(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert co_watched_rows(lake, tokenised(["a"])) is None
    write_pairs(lake, DAYS[1], ("swing", "a", "b"))
    day, pairs = latest_pairs(lake, lake.table_version(CO_INTERACTION), DAYS[0])
    assert day is None
    assert pair_rows(pairs, pa.array(["a", "b"])).shape == (0, 2)
