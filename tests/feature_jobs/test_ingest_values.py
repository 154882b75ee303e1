"""One column of a block in its type: the quick ways agree with the exact ones, and what is no value says why."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.ingest.values import TEXTS, TIMESTAMP, Reasons, _timestamp, _usual_timestamps, read_column

TS = pa.field("ts", TIMESTAMP)
moments = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))
SPOILT = {
    "month": ["00-", "13-", "1-", "01/"],
    "day": ["00", "29", "30", "31", "32", "1"],
    "separator": ["t", "_", "", "  "],
    "hour": ["24", "1", "-1"],
    "minute": [":60", ":1", "", "00"],
    "second": [":60", ":61", ":1", ""],
    "decimals": [".", ",5", ".1234567", ".123456789", ".1234567890", ".12 "],
    "zone": ["", "z", "ZZ", " Z", "+05:30", "-00:00", "+0530", "+05"],
}
"""What a field of a timestamp may hold instead: most of it is wrong, some is only rare."""


@st.composite
def written(draw: st.DrawFn, spoilt: bool = False) -> str:
    """A timestamp of the usual form; with ``spoilt`` one field is from SPOILT."""
    moment = draw(moments)
    decimals = draw(st.integers(0, 6))
    fields = {
        "year": f"{moment.year:04}-",
        "month": f"{moment.month:02}-",
        "day": f"{moment.day:02}",
        "separator": draw(st.sampled_from("T ")),
        "hour": f"{moment.hour:02}",
        "minute": f":{moment.minute:02}",
        "second": f":{moment.second:02}",
        "decimals": f".{moment.microsecond:06}"[: decimals + 1] if decimals else "",
        "zone": "Z",
    }
    if spoilt:
        name = draw(st.sampled_from(sorted(SPOILT)))
        fields[name] = draw(st.sampled_from(SPOILT[name]))
    return "".join(fields.values())


@settings(deadline=None)
@given(st.lists(written(), min_size=1, max_size=4))
def test_usual_timestamps_are_parsed_at_once_and_as_one_by_one(texts: list[str]) -> None:
    at_once = _usual_timestamps(pa.array(texts, pa.string()))
    assert at_once is not None
    assert [(value, None) for value in at_once.cast(pa.int64()).to_pylist()] == [_timestamp(text) for text in texts]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(written(), max_size=3), written(spoilt=True) | st.text(max_size=30), st.integers(0, 3))
def test_an_odd_timestamp_among_usual_ones_gives_what_each_gives_alone(texts: list[str], odd: str, place: int) -> None:
    texts.insert(place, odd)
    reasons = Reasons()
    found = read_column(TS, pa.array(texts, pa.string()), reasons, required=False)
    expected = [_timestamp(text) for text in texts]
    assert found.cast(pa.int64()).to_pylist() == [value for value, _ in expected]
    assert reasons.rows.tolist() == [row for row, (_, reason) in enumerate(expected) if reason is not None]


USUAL = {
    "2026-01-31T12:00:00Z": (2026, 1, 31, 12),
    "2026-01-31 12:00:00.5Z": (2026, 1, 31, 12, 0, 0, 500_000),
    "2024-02-29T23:59:59.123456Z": (2024, 2, 29, 23, 59, 59, 123_456),
    "1969-12-31T23:59:59.999999Z": (1969, 12, 31, 23, 59, 59, 999_999),
    "0001-01-01T00:00:00Z": (1, 1, 1),
    "9999-12-31T23:59:59.999999Z": (9999, 12, 31, 23, 59, 59, 999_999),
}


def micros(*moment: int) -> int:
    return (dt.datetime(*moment) - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


def test_a_column_of_usual_timestamps_takes_the_quick_way() -> None:
    found = _usual_timestamps(pa.array([*USUAL, None]))
    assert found is not None
    assert found.type == TIMESTAMP
    assert found.cast(pa.int64()).to_pylist() == [*(micros(*moment) for moment in USUAL.values()), None]


@pytest.mark.parametrize(
    ("odd", "moment"),
    [
        ("2026-02-30T12:00:00Z", None),
        ("2026-01-31T24:00:00Z", None),
        ("2026-01-31T12:00:60Z", None),
        ("2026-01-31T12:00Z", None),
        ("2026-01-31T12Z", None),
        ("2026-01-31T12:00:00.Z", None),
        ("2026-01-31t12:00:00Z", (2026, 1, 31, 12)),
        ("2026-01-31T12:00:00.1234567Z", (2026, 1, 31, 12, 0, 0, 123_456)),
        ("2026-01-31T12:00:00+05:30", (2026, 1, 31, 6, 30)),
    ],
)
def test_what_hardly_misses_the_usual_form(odd: str, moment: tuple[int, ...] | None) -> None:
    reasons = Reasons()
    usual = "2026-01-31T12:00:00Z"
    found = read_column(TS, pa.array([usual, odd, usual]), reasons, required=False)
    value = None if moment is None else micros(*moment)
    assert found.cast(pa.int64()).to_pylist() == [micros(2026, 1, 31, 12), value, micros(2026, 1, 31, 12)]
    wrong = [[f"ts: not a timestamp like 2026-01-31T12:00:00Z (found {odd})"]]
    assert reasons.of(reasons.rows) == ([] if moment else wrong)


nanoseconds = st.none() | st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-2000, 2000)


@pytest.mark.slow
@given(st.lists(nanoseconds, max_size=5), st.sampled_from([None, "UTC", "Asia/Shanghai"]))
def test_nanoseconds_are_cut_as_in_a_text_with_nine_decimals(numbers: list[int | None], zone: str | None) -> None:
    values = pa.array(numbers, pa.timestamp("ns", tz=zone))
    texts = [number if number is None else nine_decimals(number) for number in numbers]
    reasons = Reasons()
    found = read_column(TS, values, reasons, required=False)
    assert found.equals(read_column(TS, pa.array(texts, pa.string()), reasons, required=False))
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


def test_a_timestamp_of_the_year_0_is_none_whatever_its_neighbours_are() -> None:
    good, odd = "2026-01-31T12:00:00Z", "0000-01-01T00:00:00Z"
    for texts in ([odd], [good, odd], [good, odd, "2026-01-31 12:00:00"]):
        reasons = Reasons()
        values = read_column(pa.field("ts", TIMESTAMP), pa.array(texts), reasons, required=True)
        assert values.is_null().to_pylist() == [text == odd for text in texts]
        assert reasons.rows.tolist() == [texts.index(odd)]
