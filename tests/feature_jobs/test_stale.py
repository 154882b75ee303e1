"""Marks of a backfill that are damaged or foreign are named, whatever is in the file."""

from collections.abc import Callable

import pytest

from feature_jobs.stale import STALE_FILE, mark_stale, read_stale
from schemas.errors import BadInput
from schemas.lake import Lake

MARKS = {"2026-01-01": {"samples": "ümlaut"}, "2026-01-02": {}}


def test_marks_are_read_as_they_were_written(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert read_stale(lake) == {}
    mark_stale(lake, MARKS)
    assert read_stale(lake) == MARKS


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000], ids=lambda value: repr(value[:9])
)
def test_what_is_no_json_is_named(make_lake: Callable[..., Lake], content: bytes) -> None:
    lake = make_lake()
    lake.local_path(STALE_FILE).write_bytes(content)
    with pytest.raises(BadInput, match=r"stale\.json: not JSON; remove it and run the backfill again"):
        read_stale(lake)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["null", "7", '{"2026-01-01": 7}', '{"2026-01-01": {"samples": ["a list"]}}'])
def test_json_that_is_no_marks_is_named(make_lake: Callable[..., Lake], content: str) -> None:
    lake = make_lake()
    lake.local_path(STALE_FILE).write_text(content)
    with pytest.raises(BadInput, match=r"stale\.json: not marks of ours"):
        mark_stale(lake, MARKS)
    assert lake.local_path(STALE_FILE).read_text() == content
