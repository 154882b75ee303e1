"""JSON that anybody may have written: read, or refused in one line that names the file."""

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from schemas.errors import BadInput
from schemas.json_files import MAX_DEPTH, JsonFiles, parse_json

FILES = JsonFiles(most_bytes=1000, larger="larger than 1000 bytes; remove it", foreign="no list of ours ({reason}); mend it")
UNREADABLE = {
    "empty": b"",
    "cut off": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}',
    "an integer of too many digits": b"9" * 5000,
    "nested deeper than Python goes": b"[" * 100_000,
    "closed, and as deep": b"[" * 50_000 + b"]" * 50_000,
    "objects in one another": b'{"a":' * 100_000,
    "one level too many": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "and of objects in arrays": b'[{"a":' * MAX_DEPTH + b"1" + b"}]" * MAX_DEPTH,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_json_of_ours_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


@pytest.mark.parametrize("value", [None, 7, "a", [], {}, [[], {"a": [{}]}], {"a": [1, {"b": None}], "c": "ö"}])
def test_what_is_json_is_read(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


def test_arrays_may_be_nested_as_deep_as_is_said() -> None:
    value = parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert json.loads(json.dumps(value, indent=1)) == value, "and can be written again"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b" " * 1001, "larger than 1000 bytes; remove it"),
        (b"[" * 500, r"no list of ours \(.+\); mend it"),
        (b"[" * 200 + b"]" * 200, r"no list of ours \(nested too deeply\); mend it"),
        (b"{", r"no list of ours \(Expecting property name .*\); mend it"),
        (b"\xff\xff", r"no list of ours \(.*\); mend it"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_file_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"list\.json: {said}"):
        FILES.read(path)
    filesystem = pafs.LocalFileSystem()
    with pytest.raises(BadInput, match=rf"^the list: {said}"):
        FILES.read_found(filesystem, filesystem.get_file_info(str(path)), "the list")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"a": [1]}')
    filesystem = pafs.LocalFileSystem()
    assert FILES.read(path) == FILES.read_found(filesystem, filesystem.get_file_info(str(path)), "it") == {"a": [1]}
    with pytest.raises(FileNotFoundError):
        FILES.read(tmp_path / "none.json")


def test_a_refusal_is_short() -> None:
    assert len(str(FILES.refusal("here", "x" * 10_000))) < 300
