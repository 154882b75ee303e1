"""Landing bytes as blocks: Arrow's parser and Python's give the same rows, whatever the lines, and every line is one row."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.ingest import blocks
from feature_jobs.ingest.blocks import csv_blocks, json_blocks, parquet_blocks
from feature_jobs.ingest.sources import REQUIRED, input_columns
from feature_jobs.ingest.values import Reasons, read_column
from schemas.tables import EVENTS, ITEMS, Table

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
instants = st.datetimes().map(lambda moment: moment.isoformat()) | st.sampled_from(
    ["2026-01-31T12:00:00Z", "2026-01-31 12:00:00.5Z", "2026-01-31T12:00:00.123456Z", "2026-01-31T24:00:00Z", "2026-01-31",
     "2026-01-31T12:00Z", "2026-01-31T12:00:00.Z", "2026-01-31T12:00:60Z", "2026-02-30T12:00:00Z", "2026-01-31T12:00:00+05:30"]
)  # fmt: skip
usual = st.fixed_dictionaries(
    {
        "impression_id": texts,
        "user_id": st.sampled_from(["u", "ü", "物"]),
        "item_id": st.just("i"),
        "ts": st.just("2026-01-31T12:00:00Z") | instants,
        "play_time_ms": st.integers(-5, 10**6),
    },
    optional={
        "like": st.booleans(),
        "duration_ms": st.none() | st.integers(),
        "scene": st.none() | texts,
        "unknown": st.none() | texts,
    },
)
no_numbers = st.sampled_from([float("nan"), float("inf"), float("-inf")])
"""Python writes them as NaN, Infinity and -Infinity, which JSON does not have."""
usual_but_one = st.builds(lambda row, extra: row | extra, usual, st.dictionaries(
    st.sampled_from(["unknown", "play_time_ms", "scene", "like"]), no_numbers | st.lists(no_numbers, min_size=1, max_size=2),
    min_size=1, max_size=1))  # fmt: skip
anything = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(st.integers(), max_size=2)
names = st.sampled_from([field.name for field in input_columns(EVENTS)])
objects = usual | usual_but_one | st.dictionaries(names, anything, max_size=4)
lines = st.builds(lambda value, ascii: json.dumps(value, ensure_ascii=ascii), objects, st.booleans()) | st.sampled_from(
    ["", "  ", "{", "7", "null", '{"a":1}{"b":2}', '{"a":1} x', '{"user_id":"\\ud800"}', '{"play_time_ms":-0}', '{"user_id":-0}',
     '{"user_id":1,"user_id":2}', '{"play_time_ms":1e3}', '{"play_time_ms":01}', "\t{}", '{"user_id":"a\tb"}']
)  # fmt: skip


def rows_of(data: bytes, table: Table) -> list[tuple[Any, ...]]:
    """Every row as it came, with its values, and what is wrong with it."""
    rows = []
    for block in json_blocks(io.BytesIO(data), input_columns(table)):
        reasons = Reasons()
        columns = []
        for column in input_columns(table):
            source = block.columns.get(column.name, pa.nulls(block.rows))
            columns.append(read_column(column, source, reasons, required=column.name in REQUIRED[table.name]).to_pylist())
            nested = block.nested.get(column.name, [])
            reasons.add(nested, [f"{column.name}: not a text"] * len(nested))
        for row, reason in block.failures.items():
            reasons.only(row, reason)
        bad = set(reasons.rows.tolist())
        for row, values in enumerate(zip(*columns, strict=True)):
            wrong = sorted(reasons.of(reasons.rows[reasons.rows == row])[0]) if row in bad else []
            rows.append((block.texts([row])[0], None if row in block.failures else values, wrong))
    return rows


@pytest.mark.slow
@given(st.lists(lines, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_both_parsers_read_the_same_rows(some: list[str], separator: str, ends: bool) -> None:
    data = separator.join(some).encode() + (separator.encode() if ends else b"")
    found = rows_of(data, EVENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_parsed_by_arrow", lambda *_: None)
        assert found == rows_of(data, EVENTS)
    assert [row[0] for row in found] == [line for line in some if line.strip()]


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "Inf", "-Inf", "[1, NaN]", '{"y":NaN }'])
def test_a_line_with_a_number_that_json_does_not_have_is_no_json(token: str) -> None:
    """Wherever it stands: Arrow would read past it in a column that nobody asked for."""
    good = '{"impression_id":"a","user_id":"NaN","item_id":"Infinity","ts":"2026-01-31T12:00:00Z","play_time_ms":1,"x":"NaN, "}'
    data = "\n".join([good, good[:-1] + f',"z":{token}}}', ""]).encode()
    assert [wrong and wrong[0].split(" (found")[0] for _, _, wrong in rows_of(data, EVENTS)] == [
        [],
        "row: not a JSON object on a line of its own",
    ]


def test_texts_of_many_rows_are_those_of_each_in_any_order() -> None:
    lines = [json.dumps({"user_id": f"u{n}", "play_time_ms": n}) for n in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 100)
        (block,) = json_blocks(io.BytesIO("\n".join(lines).encode()), input_columns(EVENTS))
    rows = [5, 199, 0, 1, 1, 77, *range(200)]
    assert block.texts(rows) == [lines[row] for row in rows]


@pytest.mark.slow
@given(st.lists(usual, min_size=1, max_size=30))
def test_usual_lines_take_the_fast_way_and_may_be_cut_anywhere(rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = rows_of(data, EVENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 100)
        assert rows_of(data, EVENTS) == whole
        patch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
        patch.setattr(blocks, "_parsed_by_line", lambda *_: pytest.fail("a usual block was read line by line"))
        simple = [row | {"duration_ms": 5, "play_time_ms": 3} for row in rows]
        list(json_blocks(io.BytesIO("".join(json.dumps(row) + "\n" for row in simple).encode()), input_columns(EVENTS)))


def test_numbers_as_ids_and_flags_take_the_fast_way_too_and_keep_their_digits() -> None:
    rows = [
        {
            "impression_id": 10**12 + n,
            "user_id": n + 1,
            "item_id": 7,
            "ts": "2026-01-31T12:00:00Z",
            "play_time_ms": 1,
            "like": n % 2,
        }
        for n in range(9)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_parsed_by_line", lambda *_: pytest.fail("read line by line"))
        found = rows_of("".join(json.dumps(row) + "\n" for row in rows).encode(), EVENTS)
    names = [column.name for column in input_columns(EVENTS)]
    assert [values[names.index("user_id")] for _, values, _ in found if values] == [str(n + 1) for n in range(9)]
    assert [values[names.index("like")] for _, values, _ in found if values] == [n % 2 == 1 for n in range(9)]


def test_bytes_that_are_no_utf8_are_replaced_not_refused() -> None:
    line = b'{"impression_id":"a\xff","user_id":"u","item_id":"i","ts":"2026-01-31T12:00:00Z","play_time_ms":1}\n'
    ((text, values, wrong),) = rows_of(line, EVENTS)
    assert values is not None
    assert values[0] == "a�"
    assert wrong == []
    assert text.startswith('{"impression_id":"a�')


def test_lists_in_json_lines_are_lists_of_texts() -> None:
    data = b'{"item_id":"i","valid_from":"2026-01-31T12:00:00Z","tags":["a","b"]}\n'
    data += b'{"item_id":"i","valid_from":"x","tags":[1,null]}\n'
    first, second = rows_of(data, ITEMS)
    assert first[1] is not None
    assert ["a", "b"] in first[1]
    assert [reason.split(" (found")[0] for reason in second[2]] == [
        "tags: a list with a null in it",
        "valid_from: not a timestamp like 2026-01-31T12:00:00Z",
    ]


def test_csv_cells_may_hold_line_breaks_and_a_short_record_is_shown_as_its_line() -> None:
    data = 'user_id,scene,other\nu,"a\nb",1\n\nv\nw,,"x, ""y"""\n'.encode("utf-8-sig")
    (block,) = csv_blocks(io.BytesIO(data), ["user_id", "scene"])
    assert block.rows == 3
    assert {name: column.to_pylist() for name, column in block.columns.items()} == {
        "user_id": ["u", None, "w"],
        "scene": ["a\nb", None, None],
    }
    assert list(block.failures) == [1]
    assert [json.loads(text) for text in block.texts([1, 2])] == [{"line": "v"}, {"user_id": "w", "other": 'x, "y"'}]


def test_a_whole_number_of_thousands_of_digits_is_a_text_like_any_other() -> None:
    good = {"item_id": "i", "valid_from": "2026-01-31T12:00:00Z", "tags": ["a"]}
    data = "".join(json.dumps(good).replace('"a"', tag) + "\n" for tag in ('"a"', "9" * 5000, '"a"'))
    found = rows_of(data.encode(), ITEMS)
    assert [wrong for _, _, wrong in found] == [[], [], []]
    assert [values is not None and tag in values for (_, values, _), tag in zip(found, (["a"], ["9" * 5000], ["a"]), strict=True)]
    ignored = json.dumps(good | {"unknown": 0}).replace("0}", "9" * 5000 + "}") + "\n"
    for neighbour in ("", '{"item_id":7}\n'):
        assert rows_of((ignored + neighbour).encode(), ITEMS)[0][2] == []


def test_half_of_a_surrogate_pair_in_a_list_spoils_nothing() -> None:
    data = b'{"item_id":"i","valid_from":"2026-01-31T12:00:00Z","tags":["\\ud83d"]}\n'
    ((_, values, wrong),) = rows_of(data, ITEMS)
    assert wrong == []
    assert values is not None
    assert ["?"] in values
    cells = b'item_id,valid_from,tags\ni,2026-01-31T12:00:00Z,"[""\\ud83d""]"\n'
    (block,) = csv_blocks(io.BytesIO(cells), ["tags"])
    assert read_column(ITEMS.schema.field("tags"), block.columns["tags"], Reasons(), required=False).to_pylist() == [["?"]]


@pytest.mark.parametrize("kind", ["lines", "nested lines", "cells", "parquet", "parquet with a dictionary"])
def test_long_rows_come_in_blocks_that_hold_no_more_than_their_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(blocks, "MAX_BLOCK_BYTES", 10_000)
    monkeypatch.setattr(blocks, "PARQUET_ROWS", 1)
    several = 3 if kind == "parquet with a dictionary" else 1000
    rows = [{"item_id": f"i{number}", "asr_text": f"{number % several:0900}"} for number in range(100)]
    if kind == "cells":
        cells = "item_id,asr_text\n" + "".join(f"{row['item_id']},{row['asr_text']}\n" for row in rows)
        found = list(csv_blocks(io.BytesIO(cells.encode()), ["item_id", "asr_text"]))
    elif kind.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=60, use_dictionary=several == 3)
        found = list(parquet_blocks(pafs.LocalFileSystem(), str(tmp_path / "rows.parquet"), ["item_id", "asr_text"], None))
    else:
        odd = {"tags": {"a": 1}} if kind == "nested lines" else {}
        found = list(
            json_blocks(io.BytesIO("".join(json.dumps(row | odd) + "\n" for row in rows).encode()), input_columns(ITEMS))
        )
    held = [sum(len(text) for text in block.columns["asr_text"].to_pylist()) for block in found]
    assert max(held) <= 11_000
    assert [text for block in found for text in block.columns["item_id"].to_pylist()] == [row["item_id"] for row in rows]
    if kind != "nested lines":
        assert len(found) <= 12, "blocks are as large as they may be"
