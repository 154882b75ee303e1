"""What is looked at before any row is read: headers, footers, first lines; and how a landing's files are dealt to tasks.

Runs on the driver. What a file's rows hold is judged by the tasks (``blocks``, ``values``, ``rules``).
"""

import csv
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.ingest.blocks import MAX_LINE_BYTES, opened
from feature_jobs.ingest.landing import Landing, LandingFile
from schemas.errors import BadInput
from schemas.lake import first_line
from schemas.tables import EVENTS, ITEMS, USERS, Table

REQUIRED = {
    EVENTS.name: ("impression_id", "user_id", "item_id", "ts", "play_time_ms"),
    ITEMS.name: ("item_id", "valid_from"),
    USERS.name: ("user_id", "date"),
}
LINES_LOOKED_AT = 1000
"""Unknown columns of JSON are those of a file's first lines (of MAX_LINE_BYTES in all); CSV and Parquet name all of theirs."""
FILES_AT_ONCE = 8
"""Files that are looked at at the same time: on an object store that is mostly waiting."""
MAX_HEADER_BYTES = 1 << 20
MIN_TASK_BYTES, MAX_TASK_BYTES = 4 << 20, 128 << 20
"""Bytes of landing files that one task reads, about: a compressed text cannot be split."""
TASKS_A_CORE = 3
"""Tasks a core at least, where there are bytes enough, so that the last ones end at about the same time."""
_COMPUTED = {EVENTS.name: ("ingested_at", "date", "landing_date", "user_bucket"), ITEMS.name: (), USERS.name: ()}


@dataclass(frozen=True)
class Split:
    """A file, or some row groups of a Parquet file, that a task reads."""

    file: LandingFile
    size: int
    row_groups: range | None = None


@dataclass(frozen=True)
class Source:
    """A table's landing files: the splits that each task reads, and by file the unknown columns, which are left out."""

    table: Table
    tasks: list[list[Split]]
    unknown: dict[str, list[str]]


def input_columns(table: Table) -> list[pa.Field]:
    """Columns that a landing file may have: the table's, less those that ingest computes."""
    return [column for column in table.schema if column.name not in _COMPUTED[table.name]]


def look_at(landing: Landing, table: Table, files: Sequence[LandingFile], cores: int) -> Source:
    """Check a table's landing files and deal them to tasks for so many cores.

    Raises BadInput naming a file that cannot be read or lacks a required column.
    """
    task_bytes = min(MAX_TASK_BYTES, max(MIN_TASK_BYTES, sum(file.size for file in files) // (TASKS_A_CORE * cores)))
    names = [column.name for column in input_columns(table)]
    unknown: dict[str, list[str]] = {}
    splits: list[Split] = []
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        looked = list(pool.map(lambda file: _looked_at(landing, file), files))
    for file, (columns, groups) in zip(files, looked, strict=True):
        _check_columns(landing, table, file, columns)
        others = sorted({name for name in columns if name not in names})
        if others:
            unknown[file.name] = others
        splits += _splits(file, groups, task_bytes)
    return Source(table, _dealt(splits, task_bytes), unknown)


def _looked_at(landing: Landing, file: LandingFile) -> tuple[list[str], list[int]]:
    with named(landing, file):
        return _columns_of(landing, file)


def _splits(file: LandingFile, group_bytes: list[int], task_bytes: int) -> list[Split]:
    """A large Parquet file by its row groups, any other as it is."""
    if file.size <= task_bytes or len(group_bytes) < 2:
        return [Split(file, file.size)]
    result, start, size = [], 0, 0
    for number, group in enumerate(group_bytes):
        if size and size + group > task_bytes:
            result.append(Split(file, size, range(start, number)))
            start, size = number, 0
        size += group
    return [*result, Split(file, size, range(start, len(group_bytes)))]


def _dealt(splits: list[Split], task_bytes: int) -> list[list[Split]]:
    """Small files together, in their order, so that a task has something to do."""
    tasks: list[list[Split]] = []
    size = 0
    for split in splits:
        if not tasks or size + split.size > task_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(split)
        size += split.size
    return tasks


UNREADABLE = (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException)
"""What reading a damaged file raises."""


@contextmanager
def named(landing: Landing, file: LandingFile, failures: tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
    """Turn a failure to read a file into BadInput that names it."""
    try:
        yield
    except failures as error:
        raise BadInput(f"{landing.given}/{file.name}: {first_line(error)}; deliver the file again") from error


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


def _columns_of(landing: Landing, file: LandingFile) -> tuple[list[str], list[int]]:
    """Names of a file's columns (Parquet's schema, CSV's header, the keys of the first JSON lines); Parquet's row group sizes."""
    if file.format == "parquet":
        with landing.filesystem.open_input_file(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        return list(schema.names), groups
    with opened(landing.filesystem, file.path, compressed=file.compressed) as stream:
        return (_header(stream) if file.format == "csv" else _keys(stream)), []


def _header(stream: Any) -> list[str]:
    start = stream.read(MAX_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    header = next(csv.reader(io.StringIO(start, newline="")), [])
    if not all(name.strip() for name in header) or not header:
        raise ValueError("its header has a column without a name, or there is no header")
    return header


def _keys(stream: Any) -> list[str]:
    keys: set[str] = set()
    lines, left = io.BufferedReader(stream), MAX_LINE_BYTES
    for _ in range(LINES_LOOKED_AT):
        line = lines.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a line longer than {MAX_LINE_BYTES} bytes")
        left -= len(line)
        if not line or left < 0:
            break
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the row is quarantined when it is read
        if isinstance(value, dict):
            keys.update(value)
    return sorted(keys)
