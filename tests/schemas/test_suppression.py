"""The list of people to leave out is taken whole or not at all: what is damaged is named, since it would suppress nobody."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.suppression import SUPPRESSION_FILE, suppress, suppressed_users

HASH = "ab" * 32
LIST = {"version": 1, "salt": "5a17", "hashes": [HASH]}


def test_nobody_is_suppressed_before_anybody_was_forgotten(make_lake: Callable[..., Lake]) -> None:
    assert "anna" not in suppressed_users(make_lake())


def test_who_was_forgotten_stays_suppressed(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert suppress(lake, ["anna", "bert"]) == 2
    assert suppress(lake, ["anna", "zoë 🙂"]) == 1
    listed = suppressed_users(lake)
    assert [user in listed for user in ("anna", "bert", "zoë 🙂", "else")] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hashes": HASH}, "hashes: not a list"),
        ({"hashes": {HASH: 1}}, "hashes: not a list"),
        ({"hashes": None}, "hashes: not a list"),
        ({"hashes": [HASH, 7]}, "hashes: not each the hex of a sha256"),
        ({"hashes": [HASH[:-1]]}, "hashes: not each the hex of a sha256"),
        ({"hashes": [HASH.upper()]}, "hashes: not each the hex of a sha256"),
        ({"hashes": [HASH + "\n"]}, "hashes: not each the hex of a sha256"),
        ({"salt": None}, "no salt"),
        ({"salt": ""}, "no salt"),
        ({"salt": ["5a17"]}, "no salt"),
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
    ],
)
def test_a_list_of_another_shape_is_refused(make_lake: Callable[..., Lake], changes: dict[str, Any], said: str) -> None:
    lake = make_lake()
    path = lake.local_path(SUPPRESSION_FILE)
    path.write_text(json.dumps(LIST | changes))
    with pytest.raises(BadInput, match=rf"suppression\.json: damaged suppression list \({said}"):
        suppressed_users(lake)
    before = path.read_text()
    with pytest.raises(BadInput, match="damaged suppression list"):
        suppress(lake, ["anna"])
    assert path.read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"9" * 5000], ids=lambda value: repr(value[:9])
)
def test_what_is_no_list_is_refused(make_lake: Callable[..., Lake], content: bytes) -> None:
    lake = make_lake()
    lake.local_path(SUPPRESSION_FILE).write_bytes(content)
    with pytest.raises(BadInput, match=r"suppression\.json: damaged suppression list \(.+\); restore it"):
        suppressed_users(lake)


def test_a_folder_in_its_place_is_refused(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    lake.local_path(SUPPRESSION_FILE).mkdir()
    with pytest.raises(BadInput, match=r"damaged suppression list \(not a file\)"):
        suppressed_users(lake)
