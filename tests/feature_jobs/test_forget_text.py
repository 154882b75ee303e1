"""Which rejected rows, texts as they came, are a person's."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.forget_text import DEEPEST, Mentions, forms_of

ids = st.text(alphabet="ab1 -'ü🙂\"", min_size=1, max_size=4)


@given(st.lists(ids, max_size=5), st.text(alphabet="ab1 -'ü🙂\",{}:", max_size=20))
def test_an_id_is_found_where_it_stands_as_a_word_of_its_own(users: list[str], text: str) -> None:
    """As by one expression of all ids, whose cost grows with their number."""
    expected = any(re.search(rf"(?<!\w){re.escape(user)}(?!\w)", text) for user in users)
    assert Mentions(users).in_text(text) == expected


@pytest.mark.parametrize(
    ("row", "theirs"),
    [
        ('{"user_id": "anna", "play_time_ms": -1}', True),
        ('{"user_id": "bert", "item_id": "anna"}', False),  # an item may be called like a user
        ('{"user_id": 17}', True),
        ('{"user_id": " anna "}', True),
        ('{"user_id": "anna", "user_id": "bert"}', True),  # a key twice
        ('{"event": {"user_id": "anna"}}', True),
        ('[1, [{"user_id": "anna"}]]', True),
        ('{"uid": "anna"}', True),  # a column of another name
        ('{"user_id": null, "extra": "anna"}', True),
        ('{"user_id": "\\u0061nna"}', True),
        ('["anna", 3]', True),
        ("anna,3", True),
        ("annabel,3", False),
        ('{"user_id": "anna", "play', True),  # cut off
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_a_row_is_theirs_by_its_user_or_else_by_any_word(row: str, theirs: bool) -> None:
    assert Mentions(["anna", "17"]).in_row(row) is theirs


@pytest.mark.parametrize("user", ["李雷", 'say "hi"', "a\\b", "🙂", "tab\there"])
@pytest.mark.parametrize("escaped", [True, False])
def test_an_id_is_found_however_json_writes_it(user: str, escaped: bool) -> None:
    named, elsewhere = ({"t": 5, key: user, "scene": "feed"} for key in ("user_id", "uid"))
    for row in (json.dumps(columns, ensure_ascii=escaped) for columns in (named, elsewhere)):
        assert Mentions([user]).in_row(row)
        assert Mentions([user]).in_row(row[: row.index("scene")]), "cut off"
        assert not Mentions(["scen", "us"]).in_row(row[: row.index("scene")])
        assert Mentions([user]).in_row(json.dumps({"payload": row})), "JSON in a text of JSON"


@pytest.mark.slow
def test_a_text_that_unfolds_without_end_is_looked_into_so_far_only() -> None:
    assert not Mentions(["anna"]).in_row('{"a": "\\' + "u005c" * 1_000_000)
    assert len(forms_of("\\" + "u005c" * 1_000_000)) == 1 + DEEPEST


def test_half_of_a_surrogate_pair_is_no_id() -> None:
    assert not Mentions(["anna"]).in_row('{"user_id": "\\ud83d')
    assert not Mentions(["anna"]).in_row('{"user_id": "\\ud83d"}')


def test_a_row_of_a_table_without_users_is_theirs_only_if_nobody_can_tell_what_it_is() -> None:
    """Items may be numbered as users are: their rejected rows stay."""
    item = json.dumps({"item_id": "17", "duration_ms": -1})
    assert not Mentions(["17"]).in_row(item, of_users=False)
    assert Mentions(["17"]).in_row(item[:-1], of_users=False)


@pytest.mark.slow
def test_many_people_cost_a_text_no_more_than_a_few() -> None:
    many = Mentions(f"user-{number}" for number in range(200_000))
    assert not many.in_text("somebody else, user-x 17")
    assert many.in_text("seen: user-17")
