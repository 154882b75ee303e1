"""Reads one column of a block of rows into its type: from text (JSON, CSV), or from a Parquet column of whatever type.

Every kind of column says what it accepts; anything else is no value and a reason. Values are judged by their text, so a
row gives the same result in each of the three formats: ``"like": 1``, ``true`` and ``"true"`` are one thing. Columns that
have their type already are taken as they are; texts are parsed once for each distinct text.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_ID_CHARACTERS = 512
MAX_TEXT_CHARACTERS = 1_000_000
_SHOWN_CHARACTERS = 100
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0+)?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LARGEST_OFFSET = dt.timedelta(hours=18)
_YEAR_ONE = -62_135_596_800_000_000  # in microseconds
TIMESTAMP = pa.timestamp("us", tz="UTC")
TEXTS = pa.list_(pa.string())


class Reasons:
    """What is wrong with the rows of a block, in the order in which it was found."""

    def __init__(self) -> None:
        self._of: dict[int, list[str]] = {}

    def add(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """One reason for each of some rows."""
        for row, text in zip(rows, texts, strict=True):
            self._of.setdefault(row, []).append(text)

    def only(self, row: int, text: str) -> None:
        """The row's single reason, whatever else was found."""
        self._of[row] = [text]

    @property
    def rows(self) -> np.ndarray:
        """Rows that have a reason (int64, ascending)."""
        return np.array(sorted(self._of), np.int64)

    def of(self, rows: np.ndarray) -> list[list[str]]:
        """The reasons of rows that have some."""
        return [self._of[row] for row in rows.tolist()]


def found(text: str) -> str:
    """The end of a reason: what stood there, shortened."""
    return f" (found {text[:_SHOWN_CHARACTERS]})"


def read_column(column: pa.Field, source: pa.Array, reasons: Reasons, *, required: bool) -> pa.Array:
    """The values of ``column`` (in its type, null where absent or wrong) that ``source``, of any type, holds."""
    source = _plain(source)
    if required and source.null_count:
        missing = np.flatnonzero(source.is_null())
        reasons.add(missing.tolist(), [f"{column.name}: missing"] * len(missing))
    if column.type == pa.string():
        return _read_text(column.name, source if source.type == pa.string() else as_texts(source), reasons)
    if column.type == TEXTS and source.type == TEXTS:
        return _without_null_entries(column.name, source, reasons)
    typed = _typed(column.type, source)
    if typed is not None:
        return typed
    return _parsed(column, source if source.type == pa.string() else as_texts(source), reasons)


def _plain(source: pa.Array) -> pa.Array:
    """Dictionaries decoded, large and view types as the plain ones."""
    kind = source.type
    if pa.types.is_dictionary(kind):
        return _plain(source.dictionary_decode())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return source.cast(pa.string())
    if pa.types.is_large_list(kind) and pa.types.is_string(kind.value_type):
        return source.cast(TEXTS)
    return source


def _typed(target: pa.DataType, source: pa.Array) -> pa.Array | None:
    """The column where its type leaves nothing to judge, else None."""
    kind = source.type
    if kind == target:
        return source
    if target == pa.int64() and pa.types.is_integer(kind) and kind != pa.uint64():
        return source.cast(pa.int64())
    if target == TIMESTAMP and pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            return _truncated(source)
        return source.cast(pa.timestamp(kind.unit, tz="UTC")).cast(TIMESTAMP)
    if pa.types.is_null(kind):
        return pa.nulls(len(source), target)
    if target == TIMESTAMP and kind == pa.string():
        return _usual_timestamps(source)
    return None


def _truncated(nanoseconds: pa.Array) -> pa.Array:
    """Timestamps without what follows the microsecond, before 1970 too, as in a text with nine decimals."""
    numbers = nanoseconds.cast(pa.int64())
    micros = np.floor_divide(numbers.fill_null(0).to_numpy(), 1000)
    return pa.array(micros, mask=~np.asarray(numbers.is_valid())).cast(TIMESTAMP)


def _usual_timestamps(texts: pa.Array) -> pa.Array | None:
    """Texts that all look like 2026-01-31T12:00:00[.123456]Z, parsed at once; None if any does not.

    Arrow's parser takes shorter forms too (a day alone), which the length rules out, and the year 0, which ours refuses.
    """
    lengths = pc.binary_length(texts)
    bounds = pc.min_max(lengths).as_py()
    if bounds["min"] is None:
        return pa.nulls(len(texts), TIMESTAMP)
    if bounds["min"] < len("2026-01-31T12:00:00Z") or bounds["max"] > len("2026-01-31T12:00:00.123456Z"):
        return None
    if not pc.all(pc.ends_with(texts, "Z")).as_py():
        return None
    try:
        parsed = texts.cast(TIMESTAMP)
    except pa.ArrowInvalid:
        return None
    return parsed if pc.min(parsed.cast(pa.int64())).as_py() >= _YEAR_ONE else None


def as_texts(source: pa.Array) -> pa.Array:
    """A column of any type as the text that JSON or CSV would hold."""
    kind = source.type
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else json_text(value) for value in source.to_pylist()], pa.string())
    if pa.types.is_floating(kind):  # a column of whole numbers with gaps often arrives as floats: 4.5E7 is 45000000
        return pa.array([None if value is None else _number_text(value) for value in source.to_pylist()], pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        values = source.to_pylist()
        return pa.array([None if value is None else value.decode(errors="replace") for value in values], pa.string())
    return source.cast(pa.string())


def json_text(value: Any) -> str:
    """A nested value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _number_text(value: float) -> str:
    return str(int(value)) if abs(value) < 2.0**53 and value % 1 == 0 else str(value)


def _read_text(name: str, values: pa.Array, reasons: Reasons) -> pa.Array:
    longest = pc.max(pc.binary_length(values)).as_py() or 0  # bytes: never fewer than characters
    limit = MAX_ID_CHARACTERS if name.endswith("_id") else MAX_TEXT_CHARACTERS
    if name.endswith("_id") and _any_blank(values):
        rows = np.flatnonzero(pc.fill_null(pc.equal(pc.utf8_trim(values, " "), ""), False))
        texts = values.take(pa.array(rows)).to_pylist()
        reasons.add(rows.tolist(), [f"{name}: empty{found(text)}" for text in texts])
    if longest > limit:
        rows = np.flatnonzero(pc.fill_null(pc.greater(pc.utf8_length(values), limit), False))
        texts = values.take(pa.array(rows)).to_pylist()
        reasons.add(rows.tolist(), [f"{name}: longer than {limit} characters{found(text)}" for text in texts])
    return values


def _any_blank(values: pa.Array) -> bool:
    """Whether a text is empty or begins with a space: only those can be nothing but spaces."""
    shortest = pc.min(pc.binary_length(values)).as_py()
    return shortest == 0 or bool(pc.any(pc.starts_with(values, " ")).as_py())


def _without_null_entries(name: str, lists: pa.Array, reasons: Reasons) -> pa.Array:
    entries = lists.flatten()
    if not entries.null_count:
        return lists
    rows = np.unique(pc.list_parent_indices(lists).filter(entries.is_null()).to_numpy())
    texts = [json_text(value) for value in lists.take(pa.array(rows)).to_pylist()]
    reasons.add(rows.tolist(), [f"{name}: a list with a null in it{found(text)}" for text in texts])
    return lists


def _parsed(column: pa.Field, texts: pa.Array, reasons: Reasons) -> pa.Array:
    """Texts parsed one distinct text at a time."""
    parse, wrong = _PARSERS[column.type]
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    parsed = [parse(text) for text in distinct]
    values = pa.array([value for value, _ in parsed], column.type).take(encoded.indices)
    bad = pa.array([reason for _, reason in parsed], pa.string()).take(encoded.indices)
    rows = np.flatnonzero(bad.is_valid())
    if len(rows):
        what = bad.take(pa.array(rows)).to_pylist()
        shown = texts.take(pa.array(rows)).to_pylist()
        reasons.add(
            rows.tolist(), [f"{column.name}: {reason or wrong}{found(text)}" for reason, text in zip(what, shown, strict=True)]
        )
    return values


Parsed = tuple[Any, str | None]
"""The value (None if there is none) and, if the text is wrong, why ("" for the kind's usual reason)."""


def _integer(text: str) -> Parsed:
    # "12.0" is a whole number: writers that keep missing integers as floats produce it
    match = _INTEGER.fullmatch(text)
    if match and len(match[1]) < 4000 and -(1 << 63) <= (value := int(match[1])) < 1 << 63:
        return value, None
    return None, ""


def _boolean(text: str) -> Parsed:
    value = _BOOLEANS.get(text.lower())
    return value, None if value is not None else ""


def _date(text: str) -> Parsed:
    try:
        return (dt.date.fromisoformat(text), None) if _DATE.fullmatch(text) else (None, "")
    except ValueError:
        return None, ""


def _timestamp(text: str) -> Parsed:
    match = _TIMESTAMP.fullmatch(text)
    if not match:
        return None, ""
    offset = (match[4] or "Z").upper().replace("Z", "+00:00")
    try:
        moment = dt.datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}")
    except ValueError:
        return None, ""
    if abs(moment.utcoffset() or dt.timedelta()) > _LARGEST_OFFSET:
        return None, ""
    seconds = (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(seconds=1)
    return seconds * 1_000_000 + int(((match[3] or "") + "000000")[:6]), None


def _list(text: str) -> Parsed:
    try:
        value = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(value, list):
        return None, ""
    if None in value:
        return None, "a list with a null in it"
    return [as_text(entry) for entry in value], None


def as_text(value: Any) -> str:
    """A JSON value as a text: itself, or as it stood. Half of a surrogate pair is no text, and becomes a question mark."""
    text = value if isinstance(value, str) else json_text(value)
    return text.encode(errors="replace").decode()


_PARSERS: dict[pa.DataType, tuple[Callable[[str], Parsed], str]] = {
    pa.int64(): (_integer, "not a whole number of 64 bits"),
    pa.bool_(): (_boolean, "not true or false"),
    pa.date32(): (_date, "not a date like 2026-01-31"),
    TIMESTAMP: (_timestamp, "not a timestamp like 2026-01-31T12:00:00Z"),
    TEXTS: (_list, "not a JSON array of texts"),
}
