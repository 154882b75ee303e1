"""Item attributes as of a moment, and tokens, by key."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from schemas.shards import ITEM_TABLE, TOKEN_TABLE, stable_key
from trainer.batches import NO_TOKEN
from trainer.item_table import ItemTable, ItemTokens


def item_table(rows):
    """From (item, valid_from, author, tags)."""
    full = [
        {
            "item_key": stable_key(item),
            "item_id": item,
            "valid_from": valid_from,
            "author_id": author,
            "tags": tags,
            "duration_ms": -1,
            "deleted": False,
        }
        for item, valid_from, author, tags in rows
    ]
    ordered = sorted(full, key=lambda row: (row["item_key"], row["valid_from"]))
    return ItemTable.from_arrow(pa.Table.from_pylist(ordered, schema=ITEM_TABLE), "items")


def token_table(rows):
    return pa.Table.from_pylist([{"item_key": k, "tokens": t, "rank": 0} for k, t in rows], schema=TOKEN_TABLE)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), unique=True, max_size=9),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 7)), min_size=1, max_size=9),
)
def test_attributes_are_of_the_last_version_valid_before_the_moment(versions, asked):
    table = item_table([(item, at, f"author of {item} at {at}", [f"tag {at}"]) for item, at in versions])
    keys = np.array([stable_key(item) for item, _ in asked])
    author, tag = table.attributes(keys, np.array([moment for _, moment in asked]))
    for row, (item, moment) in enumerate(asked):
        before = [at for name, at in versions if name == item and at < moment]
        assert author[row] == (stable_key(f"author of {item} at {max(before)}") if before else 0)
        assert tag[row].tolist() == ([stable_key(f"tag {max(before)}"), 0, 0] if before else [0, 0, 0])


def test_unknown_authors_and_surplus_tags():
    table = item_table([("a", 0, None, ["one", "two", "three", "four"]), ("b", 0, "x", None)])
    author, tag = table.attributes(np.array([stable_key("a"), stable_key("b")]), np.array([1, 1]))
    assert author.tolist() == [0, stable_key("x")]
    assert tag.tolist() == [[stable_key(name) for name in ("one", "two", "three")], [0, 0, 0]]


def test_deleted_items_have_tokens_and_are_not_live():
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    day = int(moment.timestamp() * 1e6)
    versions = {"gone": [0, day - 1], "goes": [0, day], "back": [0, 5, day - 1], "new": [day + 9], "alive": [0]}
    rows = [
        {
            "item_key": stable_key(item),
            "item_id": item,
            "valid_from": at,
            "author_id": None,
            "tags": None,
            "duration_ms": -1,
            "deleted": (item, at) in {("gone", day - 1), ("goes", day), ("back", 5)},
        }
        for item, moments in versions.items()
        for at in moments
    ]
    rows.sort(key=lambda row: (row["item_key"], row["valid_from"]))
    items = ItemTable.from_arrow(pa.Table.from_pylist(rows, schema=ITEM_TABLE), "items")
    keys = sorted(stable_key(item) for item in (*versions, "unknown"))
    tokens = ItemTokens.from_arrow(token_table([(key, [1, 2]) for key in keys]), (4, 4), "tokens")
    assert set(tokens.live(items, moment).keys_I.tolist()) == set(keys) - {stable_key("gone")}
    nothing = ItemTable.from_arrow(ITEM_TABLE.empty_table(), "items")
    assert tokens.live(nothing, moment).keys_I.tolist() == keys


def test_item_id_behind_a_key():
    table = item_table([("a", 0, None, []), ("a", 3, None, [])])
    assert table.item_id(stable_key("a")) == "a"
    assert table.item_id(stable_key("b")) is None


def test_an_empty_table_knows_nothing():
    table = item_table([])
    author, tag = table.attributes(np.array([[1, 2]]), np.array([[5, 5]]))
    assert not author.any()
    assert tag.shape == (1, 2, 3)


def test_rows_out_of_order_are_refused():
    rows = pa.Table.from_pylist(
        [{"item_key": k, "item_id": "x", "valid_from": 0, "duration_ms": -1, "deleted": False} for k in (2, 1)],
        schema=ITEM_TABLE,
    )
    with pytest.raises(BadInput, match="order"):
        ItemTable.from_arrow(rows, "items")


def test_tokens_by_key():
    tokens = ItemTokens.from_arrow(token_table([(-5, [1, 2]), (7, [3, 0])]), (4, 4), "tokens")
    assert tokens.lookup(np.array([[7, 8], [-5, 0]])).tolist() == [[[3, 0], [NO_TOKEN] * 2], [[1, 2], [NO_TOKEN] * 2]]
    assert tokens.known(np.array([7, 8])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([(1, [0, 4])], "outside"),
        ([(1, [-1, 0])], "outside"),
        ([(1, [0])], "not 2 tokens"),
        ([(2, [0, 0]), (1, [0, 0])], "order"),
        ([(1, [0, 0]), (1, [0, 1])], "two codes"),
    ],
)
def test_tokens_that_cannot_be(rows, complaint):
    with pytest.raises(BadInput, match=complaint):
        ItemTokens.from_arrow(token_table(rows), (4, 4), "tokens")
