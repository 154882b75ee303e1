"""Reads landing files of the three formats into one frame a table: typed columns, reasons, the row as it came, its file.

Files that share a format and a header are read together. What Spark would only find out while publishing is looked at
first, on the driver: headers, footers, the first lines.
"""

import csv
import gzip
import io
import itertools
import json
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from feature_jobs.ingest.landing import Landing, LandingFile
from feature_jobs.ingest.values import SPARK_TYPES, as_text, found, read_value
from schemas.errors import BadInput
from schemas.lake import first_line
from schemas.tables import EVENTS, ITEMS, USERS, Table

REQUIRED = {
    EVENTS.name: ("impression_id", "user_id", "item_id", "ts", "play_time_ms"),
    ITEMS.name: ("item_id", "valid_from"),
    USERS.name: ("user_id", "date"),
}
LINES_LOOKED_AT = 1000
"""Unknown columns of JSON are those of a file's first lines; CSV and Parquet name all of theirs."""
MAX_HEADER_BYTES = 1 << 20
_COMPUTED = {EVENTS.name: ("ingested_at", "date", "landing_date", "user_bucket"), ITEMS.name: (), USERS.name: ()}
_CORRUPT = "_corrupt_record"


@dataclass
class Source:
    """What a table's landing files hold.

    ``frame`` has the table's input columns (typed), ``_reasons`` (array<string>, empty for a good row), ``_row`` (JSON
    text), ``_file`` and ``_dated`` (from a ``date=…`` folder). ``unknown`` maps a file to the columns that are left out.
    """

    frame: DataFrame
    unknown: dict[str, list[str]] = field(default_factory=dict)


def input_columns(table: Table) -> list[pa.Field]:
    """Columns that a landing file may have: the table's, less those that ingest computes."""
    return [column for column in table.schema if column.name not in _COMPUTED[table.name]]


def read_source(spark: SparkSession, landing: Landing, table: Table, files: Sequence[LandingFile]) -> Source:
    """Read a table's landing files. Raises BadInput naming a file that cannot be read or lacks a required column."""
    names = [column.name for column in input_columns(table)]
    unknown: dict[str, list[str]] = {}
    groups: dict[tuple[str, tuple[str, ...]], list[LandingFile]] = {}
    for file in files:
        with _naming(landing, file):
            columns = _columns_of(landing, file)
        _check_columns(landing, table, file, columns)
        others = sorted({name for name in columns if name not in names})
        if others:
            unknown[file.name] = others
        key = () if file.format == "jsonl" else tuple(columns)
        groups.setdefault((file.format, key), []).append(file)
    readers = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet}
    frames = [readers[format](spark, table, list(columns), group) for (format, columns), group in groups.items()]
    if not frames:
        return Source(_no_rows(spark, table))
    frame = frames[0]
    for other in frames[1:]:
        frame = frame.unionByName(other)
    name = F.regexp_extract("_file", rf"{table.name}/(date=[^/]*/)?[^/]*\z", 0)
    return Source(frame.withColumn("_file", name).withColumn("_dated", F.col("_file").contains("/date=")), unknown)


def _no_rows(spark: SparkSession, table: Table) -> DataFrame:
    columns = [f"`{column.name}` {SPARK_TYPES[column.type]}" for column in input_columns(table)]
    return spark.createDataFrame([], ", ".join([*columns, "_reasons array<string>, _row string, _file string, _dated boolean"]))


@contextmanager
def _naming(landing: Landing, file: LandingFile) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error, pa.ArrowException) as error:
        raise BadInput(f"{landing.given}/{file.name}: {first_line(error)}; deliver the file again") from error


@contextmanager
def unreadable_files_named(landing: Landing, files: Iterable[LandingFile]) -> Iterator[None]:
    """Turn Spark's failure to read a landing file into BadInput that names the file."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:  # a failed task reaches Python as either
        text = urllib.parse.unquote(str(error))
        for file in sorted(files, key=lambda file: -len(file.uri)):  # a name may begin with another's
            if file.uri in text:
                raise BadInput(
                    f"{landing.given}/{file.name}: truncated or damaged, it cannot be read to its end; deliver the file again"
                ) from error
        raise


def _check_columns(landing: Landing, table: Table, file: LandingFile, columns: list[str]) -> None:
    if file.format == "jsonl":
        return  # a JSON line names its own columns: each row is judged
    where = f"{landing.given}/{file.name}"
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise BadInput(f"{where}: column {twice[0]!r} appears twice; name each column once")
    missing = [name for name in REQUIRED[table.name] if name not in columns]
    if missing:
        raise BadInput(f"{where}: required column {missing[0]!r} is missing (found {', '.join(columns)[:200]}); add it")


def _columns_of(landing: Landing, file: LandingFile) -> list[str]:
    """Names of a file's columns: Parquet's schema, CSV's header, the keys of the first JSON lines."""
    if file.format == "parquet":
        with landing.filesystem.open_input_file(file.path) as stream:
            schema = pq.read_schema(stream)
        for column in schema:
            if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
                raise ValueError(f"column {column.name!r} has nanosecond timestamps, which Spark cannot read: use microseconds")
        return list(schema.names)
    with landing.filesystem.open_input_stream(file.path, compression=None) as raw, _decompressed(raw, file) as stream:
        if file.format == "csv":
            return _header(stream)
        return _keys(stream)


def _decompressed(raw: Any, file: LandingFile) -> Any:
    """The bytes of a file, as a stream of Python's."""
    return gzip.GzipFile(fileobj=raw) if file.compressed else raw


def _header(stream: Any) -> list[str]:
    start = stream.read(MAX_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    header = next(csv.reader(io.StringIO(start, newline="")), [])
    if not all(name.strip() for name in header) or not header:
        raise ValueError("its header has a column without a name, or there is no header")
    return header


def _keys(stream: Any) -> list[str]:
    keys: set[str] = set()
    for line in itertools.islice(io.BufferedReader(stream), LINES_LOOKED_AT):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the row is quarantined when it is read
        if isinstance(value, dict):
            keys.update(value)
    return sorted(keys)


def _paths(files: Sequence[LandingFile]) -> list[str]:
    return [file.uri for file in files]


def _file_name() -> Column:
    return F.col("_metadata.file_path").alias("_file")


def _read_json(spark: SparkSession, table: Table, _: list[str], files: Sequence[LandingFile]) -> DataFrame:
    line = F.rtrim(F.make_valid_utf8("value"), F.lit("\r"))
    lines = spark.read.option("lineSep", "\n").text(_paths(files)).select(line.alias("_row"), _file_name())
    lines = lines.filter(~F.col("_row").rlike(r"^\s*\z"))
    columns = input_columns(table)
    schema = StructType([StructField(column.name, StringType()) for column in columns])
    strict = {"allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
    # Inside brackets, a line that holds anything beside one object is no JSON: `{…}{…}`, `{…} x`, a bare number.
    parsed = F.from_json(F.concat(F.lit("["), F.col("_row"), F.lit("]")), f"array<{schema.simpleString()}>", strict)
    rows = lines.withColumn("_rows", parsed).withColumn("_parsed", F.when(F.size("_rows") == 1, F.col("_rows")[0]))
    failure = F.when(
        F.col("_parsed").isNull(), F.concat(F.lit("row: not a JSON object on a line of its own"), found(F.col("_row")))
    )
    sources = {column.name: (F.col(f"_parsed.{column.name}"), "string") for column in columns}
    nested = {column.name: _nested(column.name) for column in columns if column.type == pa.string()}
    return _typed(rows, table, sources, failure, F.col("_row"), nested)


def _nested(name: str) -> Column:
    """A reason where a text column holds a JSON object or array (looked at only where the text begins like one)."""
    text = F.col(f"_parsed.{name}")
    kind = F.expr(f"schema_of_variant(try_variant_get(try_parse_json(_row), '$.{name}', 'variant'))")
    wrong = text.rlike(r"^[\[{]") & F.coalesce(kind.rlike("^(OBJECT|ARRAY)"), F.lit(True))  # null: a key twice
    return F.when(wrong, F.concat(F.lit(f"{name}: not a text"), found(text)))


def _read_csv(spark: SparkSession, table: Table, header: list[str], files: Sequence[LandingFile]) -> DataFrame:
    schema = StructType([StructField(name, StringType()) for name in [*header, _CORRUPT]])
    options = {
        "header": "true",
        "multiLine": "true",  # a quoted text may hold line breaks
        "escape": '"',
        "columnNameOfCorruptRecord": _CORRUPT,
        "columnPruning": "false",  # a row with a value too many is only seen when all are read
    }
    frame = spark.read.options(**options).schema(schema).csv(_paths(files)).select("*", _file_name())
    failure = F.when(
        F.col(_CORRUPT).isNotNull(), F.concat(F.lit("row: not one value a column of the header"), found(F.col(_CORRUPT)))
    )
    return _typed_columns(frame, table, dict.fromkeys(header, "string"), failure)


def _read_parquet(spark: SparkSession, table: Table, _: list[str], files: Sequence[LandingFile]) -> DataFrame:
    frame = spark.read.parquet(*_paths(files))
    types = {column.name: column.dataType.simpleString() for column in frame.schema}
    return _typed_columns(frame.select("*", _file_name()), table, types, F.lit(None).cast("string"))


def _typed_columns(frame: DataFrame, table: Table, types: dict[str, str], failure: Column) -> DataFrame:
    def at(name: str) -> Column:
        return F.col(f"`{name.replace('`', '``')}`")

    sources = {column.name: (at(column.name), types[column.name]) for column in input_columns(table) if column.name in types}
    texts = [as_text(at(name), kind).alias(name) for name, kind in types.items()]
    row = F.when(failure.isNull(), F.to_json(F.struct(*texts)))
    if _CORRUPT in frame.columns:
        row = F.coalesce(row, F.to_json(F.struct(F.col(_CORRUPT).alias("line"))))
    return _typed(frame, table, sources, failure, row, {})


def _typed(
    frame: DataFrame,
    table: Table,
    sources: dict[str, tuple[Column, str]],
    failure: Column,
    row: Column,
    more_reasons: dict[str, Column],
) -> DataFrame:
    """The table's input columns from a format's columns. A row that is none (``failure``) has that one reason."""
    values, reasons = [], []
    for column in input_columns(table):
        if column.name not in sources:
            values.append(F.lit(None).cast(SPARK_TYPES[column.type]).alias(column.name))
            continue
        source, kind = sources[column.name]
        reading = read_value(column, source, kind, required=column.name in REQUIRED[table.name])
        values.append(reading.value.alias(column.name))
        reasons.append(F.coalesce(more_reasons[column.name], reading.reason) if column.name in more_reasons else reading.reason)
    every = F.when(failure.isNotNull(), F.array(failure)).otherwise(F.array_compact(F.array(*reasons)))
    return frame.select(*values, every.alias("_reasons"), row.alias("_row"), "_file")
