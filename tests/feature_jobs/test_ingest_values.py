"""One column of a block in its type: the quick ways agree with the exact ones, and what is no value says why."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.ingest.values import TEXTS, TIMESTAMP, Reasons, _timestamp, _usual_timestamps, read_column

digits = st.integers(0, 99).map(lambda number: f"{number:02}")
shapes = st.builds(
    lambda y, mo, d, sep, h, mi, s, f, z: f"{y}-{mo}-{d}{sep}{h}:{mi}:{s}{f}{z}",
    st.integers(1, 9999).map(lambda year: f"{year:04}"),
    *(digits, digits),
    st.sampled_from(["T", " ", "t"]),
    *(digits, digits, digits),
    st.sampled_from(["", ".", ".1", ".123456", ".1234567"]),
    st.sampled_from(["Z", "z", "", "+05:30", "ZZ"]),
)
moments = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)).map(lambda moment: moment.isoformat() + "Z")


@given(st.lists(shapes | moments | st.text(max_size=30), min_size=1, max_size=3))
def test_timestamps_parsed_at_once_are_those_parsed_one_by_one(texts: list[str]) -> None:
    at_once = _usual_timestamps(pa.array(texts, pa.string()))
    if at_once is not None:
        assert at_once.cast(pa.int64()).to_pylist() == [_timestamp(text)[0] for text in texts]
        assert all(_timestamp(text)[1] is None for text in texts)


nanoseconds = st.none() | st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-2000, 2000)


@given(st.lists(nanoseconds, max_size=5), st.sampled_from([None, "UTC", "Asia/Shanghai"]))
def test_nanoseconds_are_cut_as_in_a_text_with_nine_decimals(numbers: list[int | None], zone: str | None) -> None:
    values = pa.array(numbers, pa.timestamp("ns", tz=zone))
    texts = [number if number is None else nine_decimals(number) for number in numbers]
    reasons = Reasons()
    found = read_column(pa.field("ts", TIMESTAMP), values, reasons, required=False)
    assert found.equals(read_column(pa.field("ts", TIMESTAMP), pa.array(texts, pa.string()), reasons, required=False))
    assert not len(reasons.rows)


def nine_decimals(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)}.{rest:09}Z"


def read(kind: pa.DataType, source: pa.Array, name: str = "column") -> tuple[list[Any], list[list[str]]]:
    reasons = Reasons()
    values = read_column(pa.field(name, kind), source, reasons, required=False)
    assert values.type == kind
    return values.to_pylist(), reasons.of(reasons.rows)


@pytest.mark.parametrize(
    ("kind", "source", "values"),
    [
        (pa.int64(), pa.array([1, None], pa.int8()), [1, None]),
        (pa.int64(), pa.array([2.0, None], pa.float64()), [2, None]),
        (pa.int64(), pa.array(["1", "-2.0", "+3"]), [1, -2, 3]),
        (pa.int64(), pa.array([7, 2**63 - 1], pa.uint64()), [7, 2**63 - 1]),
        (pa.bool_(), pa.array([1, 0, None], pa.int64()), [True, False, None]),
        (pa.bool_(), pa.array(["TRUE", "0", "false"]), [True, False, False]),
        (pa.string(), pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.string(), pa.array([b"a\xff"], pa.binary()), ["a�"]),
        (pa.string(), pa.array([12, None], pa.int64()), ["12", None]),
        (TEXTS, pa.array([["a"], [], None], pa.large_list(pa.string())), [["a"], [], None]),
        (TEXTS, pa.array(['["a", 1.50]', None]), [["a", "1.50"], None]),
        (pa.date32(), pa.array(["2026-01-31"]), [dt.date(2026, 1, 31)]),
        (TIMESTAMP, pa.array([1], pa.timestamp("s")), [dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)]),
        (TIMESTAMP, pa.array([1], pa.timestamp("ms", tz="Asia/Shanghai")), [dt.datetime(1970, 1, 1, 0, 0, 0, 1000, dt.UTC)]),
        (TIMESTAMP, pa.nulls(2), [None, None]),
    ],
)
def test_what_each_kind_accepts(kind: pa.DataType, source: pa.Array, values: list[Any]) -> None:
    assert read(kind, source) == (values, [])


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        (pa.int64(), pa.array([2.5]), "column: not a whole number of 64 bits (found 2.5)"),
        (pa.int64(), pa.array(["1e3"]), "column: not a whole number of 64 bits (found 1e3)"),
        (pa.int64(), pa.array([2**63], pa.uint64()), f"column: not a whole number of 64 bits (found {2**63})"),
        (pa.bool_(), pa.array([2], pa.int64()), "column: not true or false (found 2)"),
        (TEXTS, pa.array([["a", None]], TEXTS), 'column: a list with a null in it (found ["a",null])'),
        (TEXTS, pa.array(["{}"]), "column: not a JSON array of texts (found {})"),
        (pa.date32(), pa.array(["2026-02-30"]), "column: not a date like 2026-01-31 (found 2026-02-30)"),
        (TIMESTAMP, pa.array(["x" * 200]), f"column: not a timestamp like 2026-01-31T12:00:00Z (found {'x' * 100})"),
    ],
)
def test_what_is_no_value_is_null_with_a_reason(kind: pa.DataType, source: pa.Array, reason: str) -> None:
    values, reasons = read(kind, source)
    assert reasons == [[reason]]
    assert values == [None] or kind == TEXTS


def test_an_id_is_not_empty_and_not_longer_than_512_characters_of_any_width() -> None:
    values = ["", "   ", " a", "物" * 512, "物" * 513, None]
    found, reasons = read(pa.string(), pa.array(values), "user_id")
    assert found == values
    assert [reason[0].split(" (found")[0] for reason in reasons] == ["user_id: empty"] * 2 + [
        "user_id: longer than 512 characters"
    ]
