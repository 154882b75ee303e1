"""Rejected rows of people who were forgotten are found by their id, or in the text of a row that could not be read."""

import json

import pyarrow as pa
import pytest

from feature_jobs.ingest.forgotten import forgotten_users, of_forgotten, without_forgotten
from feature_jobs.ingest.judging import REJECTED
from schemas.suppression import Suppression

NOBODY = Suppression("", frozenset())
USERS = ("anna", "user-7", "李雷", "a b", 'say "hi"', "17")
LISTED = Suppression("salt", frozenset(Suppression("salt", frozenset()).hash_of(user) for user in USERS))


def found(text: str, user: str | None = None, suppression: Suppression = LISTED) -> bool:
    rows = pa.table([[text], [["row: broken"]], ["part.jsonl"], [user]], schema=REJECTED)
    return bool(of_forgotten(rows, suppression)[0])


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("escaped", [True, False])
def test_a_cut_line_names_them(user: str, escaped: bool) -> None:
    whole = json.dumps({"play_time_ms": 5, "user_id": user, "scene": "feed"}, ensure_ascii=escaped)
    assert found(whole[: whole.index("scene")])
    assert not found(whole[: whole.index("scene")], suppression=NOBODY)


@pytest.mark.parametrize(
    "text",
    [
        '{"user_id":["anna"]}',  # which is no text
        '{"context":{"user_id":"user-7"}}',
        '{"user_id":17',
        '{"line":"user-7,i,2026"}',  # CSV with too few cells
        '{"line":"x,\\"a b\\",i"}',
        '{"uid":"anna"}',
        "{'user_id': 'anna'}",
        "anna\t5",
        '{"uid":"\\u674e\\u96f7","t":5',
        '{"uid":"say \\"hi\\""}',
        '{"uid":"say \\"hi\\"","t',
        json.dumps({"payload": json.dumps({"user_id": "李雷"})}),
        json.dumps({"payload": json.dumps({"uid": 'say "hi"'})}),
    ],
)
def test_a_row_without_a_user_is_searched(text: str) -> None:
    assert found(text)


def test_a_row_of_somebody_else_stays() -> None:
    assert not found('{"user_id":"bert","scene":"anna"}', user="bert")
    assert not found('{"user_id":" bert","scene":"anna"}'), "JSON goes by its user_id"
    assert not found('{"user_id":"annabel","item_id":"i1')
    assert not found('{"scene":"annabel"}')
    assert not found('{"user_id":"\\ud83d"}'), "half of a surrogate pair"
    assert not found('{"user_id":"\\ud83d')
    assert found('{"scene":"x"}', user="anna"), "an id that was read is enough"
    assert found('{"user_id":["anna","x"]}', user='["anna","x"]'), "an array stands for a text that it is not"


def test_good_rows_go_by_their_id() -> None:
    rows = pa.table({"user_id": ["anna", "bert", "anna", "李雷"], "n": [1, 2, 3, 4]})
    kept, dropped = without_forgotten(rows, LISTED)
    assert (kept["n"].to_pylist(), dropped) == ([2], 3)
    assert without_forgotten(rows, NOBODY) == (rows, 0)
    assert forgotten_users(pa.array(["anna", None]), LISTED).tolist() == [True, False]
