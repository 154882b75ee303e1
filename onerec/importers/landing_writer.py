"""Writes a landing zone whole: files go into a folder beside the target, which takes the target's place at the end."""

import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from schemas.errors import BadInput
from schemas.runs import TableCounts
from schemas.tables import EVENTS, ITEMS, USERS, Table

LANDING_FILE = "landing.json"
EARLY = "2000-01-01T00:00:00Z"
"""``valid_from`` of item versions whose source says nothing of changes: before every request."""


def sql_text(value: str | Path) -> str:
    """A text as an SQL literal."""
    return "'" + str(value).replace("'", "''") + "'"


def require_files(source: Path, names: Mapping[str, str]) -> dict[str, list[Path]]:
    """The files of ``source`` by what they hold, each a pattern; raises BadInput naming the first that is missing."""
    if not source.is_dir():
        raise BadInput(f"SRC {source}: no such folder; it holds the files of the published data set")
    found = {what: sorted(path for path in source.glob(pattern) if path.is_file()) for what, pattern in names.items()}
    for what, paths in found.items():
        if not paths:
            raise BadInput(f"SRC {source}: no {names[what]} ({what}); unpack the whole data set there")
    return found


def check_target(out: Path, source_name: str) -> None:
    """Raise BadInput if ``out`` cannot be written, or holds what an earlier import of the same source did not write."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--out {out}: {parent} is no folder that can be written to; choose another place")
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"--out {out}: a file, not a folder; choose another place")
    if not any(out.iterdir()):
        return
    try:
        description = json.loads((out / LANDING_FILE).read_text())
    except (OSError, ValueError):
        description = None
    if not isinstance(description, dict) or description.get("source") != source_name:
        raise BadInput(f"--out {out}: not empty and not an import of {source_name}; choose another place or remove it")


@contextmanager
def replacing(out: Path, source_name: str) -> Iterator[Path]:
    """A folder to write into; it becomes ``out`` if the block ends well, and is removed if not."""
    check_target(out, source_name)
    work = out.absolute().parent / f".{out.name}.import-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--out {out}: {work.parent} cannot be written to ({error.strerror}); choose another place") from error
    try:
        yield work
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def describe(work: Path, source_name: str, day_timezone: str, report: Mapping[str, Any]) -> None:
    """Write ``landing.json``."""
    description = {"source": source_name, "day_timezone": day_timezone, "import_report": report}
    (work / LANDING_FILE).write_text(json.dumps(description, indent=2, allow_nan=False) + "\n")


def row_accounting(out: Path, log_rows: int) -> dict[str, dict[str, Any]]:
    """What a finished import wrote of ``log_rows`` rows of the log, by table: importers leave no row out, ingest judges them."""
    tables = {}
    for table in (EVENTS, ITEMS, USERS):
        written = sum(pq.read_metadata(path).num_rows for path in out.glob(f"{table.name}/**/*.parquet"))
        counts = TableCounts(log_rows if table is EVENTS else written, written)
        counts.check(table.name)
        tables[table.name] = counts.to_json()
    return tables


def write_events(connection: duckdb.DuckDBPyConnection, work: Path, query: str) -> dict[str, int]:
    """Write events by landing day as Parquet, in order; ``query`` gives the columns and ``landing_day``.

    Returns rows by landing day.
    """
    columns = ", ".join(f'"{name}"' for name in _columns(connection, query) if name != "landing_day")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE landed AS {query}")
    days = connection.execute("SELECT landing_day, count(*) FROM landed GROUP BY landing_day ORDER BY landing_day").fetchall()
    for day, _ in days:
        folder = work / EVENTS.name / f"date={day}"
        folder.mkdir(parents=True)
        chosen = f"SELECT {columns} FROM landed WHERE landing_day = {sql_text(day)} ORDER BY ALL"
        _copy(connection, chosen, folder / "part-00000.parquet")
    return {str(day): rows for day, rows in days}


def write_items(connection: duckdb.DuckDBPyConnection, work: Path, query: str) -> None:
    """Write item versions as one Parquet file that every day reads."""
    _write_table(connection, work, ITEMS, query)


def write_users(connection: duckdb.DuckDBPyConnection, work: Path, query: str) -> None:
    """Write user snapshots as one Parquet file that every day reads."""
    _write_table(connection, work, USERS, query)


def _write_table(connection: duckdb.DuckDBPyConnection, work: Path, table: Table, query: str) -> None:
    (work / table.name).mkdir()
    _copy(connection, f"SELECT * FROM ({query}) ORDER BY ALL", work / table.name / "part-00000.parquet")


def _columns(connection: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    return [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    connection.execute(f"COPY ({query}) TO {sql_text(path)} (FORMAT parquet, COMPRESSION zstd)")


@contextmanager
def reading(source: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection; what it cannot read of ``source`` becomes BadInput (DuckDB names file and line)."""
    connection = duckdb.connect(config={"threads": 2, "preserve_insertion_order": True})
    connection.execute("SET TimeZone = 'UTC'")
    try:
        yield connection
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.BinderException) as error:
        raise BadInput(f"SRC {source}: {' '.join(str(error).split())[:300]}") from error
    finally:
        connection.close()


def text_table(paths: list[Path], separator: str, **options: str) -> str:
    """A DuckDB table function over delimited files with a header, all columns text."""
    files = ", ".join(sql_text(path) for path in paths)
    more = "".join(f", {name} = {value}" for name, value in options.items())
    return f"read_csv([{files}], delim = {sql_text(separator)}, header = true, all_varchar = true, union_by_name = true{more})"


def day_before(day: str) -> str:
    """The calendar day before an ISO date."""
    return (dt.date.fromisoformat(day) - dt.timedelta(days=1)).isoformat()
