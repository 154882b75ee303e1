"""Examples of evaluations that cannot be searched are named: nobody may be overlooked in them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_jobs.forget_examples import EXAMPLES, forget_in_examples, search_examples
from schemas.errors import BadInput
from schemas.lake import Lake


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    made = make_lake()
    made.local_path("training", "pretrain").mkdir(parents=True)
    return made


def examples(lake: Lake) -> Path:
    return lake.local_path("training", "pretrain", EXAMPLES)


def test_only_the_named_leave(lake: Lake) -> None:
    examples(lake).write_text(json.dumps({"stage": "pretrain", "users": [{"user_id": "anna"}, {"user_id": "bert"}]}))
    assert search_examples(lake, {"anna"}) == {"files": 1, "values": 2, "found": 1}
    assert forget_in_examples(lake, {"anna"}) == 1
    assert json.loads(examples(lake).read_text()) == {"stage": "pretrain", "users": [{"user_id": "bert"}]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"users": [{"user_id": "anna"}], "more": ' + b"[" * 900 + b"]" * 900 + b"}",  # read it could be, not written
        b"9" * 5000,
        b"[]",
        b"{}",
        b'{"users": ""}',
        b'{"users": {"user_id": "anna"}}',
        b'{"users": ["anna"]}',
        b'{"users": [{"user": "anna"}]}',
        b'{"users": [{"user_id": ["anna"]}]}',
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_cannot_be_searched_is_named(lake: Lake, content: bytes) -> None:
    examples(lake).write_bytes(content)
    for look in (forget_in_examples, search_examples):
        with pytest.raises(BadInput, match=r"examples\.json: not the examples of an evaluation of ours \(.+\); remove it"):
            look(lake, {"anna"})
    assert examples(lake).read_bytes() == content
