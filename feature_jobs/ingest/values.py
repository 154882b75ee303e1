"""Reads one value of a row: from the text of JSON or CSV, or from a Parquet column that already has its type.

Every kind of column says what it accepts; anything else is no value and a reason. Values are judged by their text, so a
row gives the same result in each of the three formats: ``"like": 1``, ``true`` and ``"true"`` are one thing.
"""

from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F

MAX_ID_CHARACTERS = 512
MAX_TEXT_CHARACTERS = 1_000_000
_SHOWN_CHARACTERS = 100
_TIMESTAMP = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})?\z"
_OFFSET = r"(Z|[+-]\d{2}:\d{2})\z"

SPARK_TYPES = {
    pa.string(): "string",
    pa.int64(): "bigint",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    pa.timestamp("us", tz="UTC"): "timestamp",
    pa.list_(pa.string()): "array<string>",
}


@dataclass(frozen=True)
class Reading:
    """``value`` in the column's type (null if absent or wrong) and ``reason``, null if nothing is wrong."""

    value: Column
    reason: Column


def found(text: Column) -> Column:
    """The end of a reason: what stood there, shortened."""
    return F.concat(F.lit(" (found "), F.substring(text, 1, _SHOWN_CHARACTERS), F.lit(")"))


def read_value(column: pa.Field, source: Column, source_type: str, *, required: bool) -> Reading:
    """Read ``column`` from ``source``, whose Spark type is ``source_type`` (``string`` for JSON and CSV)."""
    target = SPARK_TYPES[column.type]
    text = as_text(source, source_type)
    if source_type == target and target != "string":
        value, wrong = source, F.lit(None).cast("string")
    else:
        value, wrong = _READERS[target](text)
    if target == "string":
        wrong = _text_reason(column.name, value)
    if target == "array<string>":
        wrong = F.coalesce(wrong, F.when(F.exists(value, lambda entry: entry.isNull()), F.lit("a list with a null in it")))
    reason = F.concat(F.lit(f"{column.name}: "), wrong, found(text))
    if required:
        reason = F.when(text.isNull(), F.lit(f"{column.name}: missing")).otherwise(reason)
    return Reading(value, reason)


def as_text(source: Column, source_type: str) -> Column:
    """A column of any type as the text that JSON or CSV would hold."""
    if source_type == "string":
        return source
    if source_type.startswith(("array", "struct", "map")):
        return F.to_json(source)
    if source_type in ("double", "float"):  # a column of whole numbers with gaps often arrives as floats: 4.5E7 is 45000000
        whole = (F.abs(source) < 2.0**53) & (source % 1 == 0)
        return F.when(whole, F.when(whole, source).cast("bigint").cast("string")).otherwise(source.cast("string"))
    return F.make_valid_utf8(source.cast("string"))


def _text_reason(name: str, value: Column) -> Column:
    if not name.endswith("_id"):
        return F.when(F.length(value) > MAX_TEXT_CHARACTERS, F.lit(f"longer than {MAX_TEXT_CHARACTERS} characters"))
    return F.when(F.trim(value) == "", F.lit("empty")).when(
        F.length(value) > MAX_ID_CHARACTERS, F.lit(f"longer than {MAX_ID_CHARACTERS} characters")
    )


def _if_none(value: Column, text: Column, wrong: str) -> Column:
    return F.when(value.isNull() & text.isNotNull(), F.lit(wrong))


def _read_text(text: Column) -> tuple[Column, Column]:
    return text, F.lit(None).cast("string")


def _read_integer(text: Column) -> tuple[Column, Column]:
    # "12.0" is a whole number: writers that keep missing integers as floats produce it
    digits = F.when(text.rlike(r"^[+-]?\d+(\.0+)?\z"), F.regexp_extract(text, r"^[+-]?\d+", 0))
    value = digits.try_cast("bigint")
    return value, _if_none(value, text, "not a whole number of 64 bits")


def _read_boolean(text: Column) -> tuple[Column, Column]:
    lowered = F.lower(text)
    value = F.when(lowered.isin("true", "1"), F.lit(True)).when(lowered.isin("false", "0"), F.lit(False))
    return value, _if_none(value, text, "not true or false")


def _read_date(text: Column) -> tuple[Column, Column]:
    value = F.when(text.rlike(r"^\d{4}-\d{2}-\d{2}\z"), text).try_cast("date")
    return value, _if_none(value, text, "not a date like 2026-01-31")


def _read_timestamp(text: Column) -> tuple[Column, Column]:
    upper = F.upper(text)
    with_offset = F.when(upper.rlike(_OFFSET), upper).otherwise(F.concat(upper, F.lit("Z")))
    value = F.when(upper.rlike(_TIMESTAMP), with_offset).try_cast("timestamp")
    return value, _if_none(value, text, "not a timestamp like 2026-01-31T12:00:00Z")


def _read_list(text: Column) -> tuple[Column, Column]:
    value = F.when(F.ltrim(text).startswith("["), F.from_json(text, "array<string>"))
    return value, _if_none(value, text, "not a JSON array of texts")


_READERS = {
    "string": _read_text,
    "bigint": _read_integer,
    "boolean": _read_boolean,
    "date": _read_date,
    "timestamp": _read_timestamp,
    "array<string>": _read_list,
}
