"""The folder of one run: Parquet parts that the driver hands to workers, and those that they hand back.

Pipeline elements are addresses of parts, never vectors or pictures: the runner keeps what lies between two stages in memory.
A worker writes a part whole under a name of its own and the driver reads all of them when the pipeline is done; a bundle that
was tried twice leaves its rows twice, so the driver takes each key once. A part gets that name when it is whole, so what a
killed worker left of one is never read. Nothing of it is part of a table before the driver's one commit, so a run killed at any
point leaves the tables as they were.
"""

import io
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from schemas.lake import Lake, filesystem_of
from schemas.lake_folders import WORK_KEPT_HOURS, remove_folder, remove_unused

PART_ROWS = 2048
_UNFINISHED = "."
"""What names of files begin with that a dataset of a folder leaves out."""


class WorkFolder:
    """Parts by stage (a name), below one URI that driver and workers both reach."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def write_parts(self, stage: str, batches: pa.RecordBatchReader | pa.Table, rows: int = PART_ROWS) -> list[str]:
        """Write rows as parts of at most ``rows`` rows; returns their URIs in order."""
        reader = batches.to_reader() if isinstance(batches, pa.Table) else batches
        return [self.write_part(stage, part.replace_schema_metadata(None)) for part in _regrouped(reader, rows) if part.num_rows]

    def write_part(self, stage: str, part: pa.Table) -> str:
        """Write one part, whole or not at all, under a name of its own; returns its URI."""
        filesystem, folder = filesystem_of(f"{self.uri}/{stage}")
        filesystem.create_dir(folder, recursive=True)
        name = f"{uuid.uuid4().hex}.parquet"
        passing = f"{folder}/{_UNFINISHED}{name}"
        pq.write_table(part, passing, filesystem=filesystem, compression="zstd")
        filesystem.move(passing, f"{folder}/{name}")
        return f"{self.uri}/{stage}/{name}"

    def fresh(self, kind: str) -> str:
        """A name below this folder that nothing has yet."""
        return f"{kind}/{uuid.uuid4().hex}"

    def write_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write arrays to a file, whole or not at all; one of the same name is replaced."""
        buffer, named = io.BytesIO(), cast(dict[str, Any], arrays)
        np.savez(buffer, **named)
        self.write_bytes(name, buffer.getvalue())

    def read_arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a file."""
        with np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False) as arrays:
            return dict(arrays)

    def write_bytes(self, name: str, value: bytes) -> None:
        """Write a file, whole or not at all; one of the same name is replaced."""
        filesystem, path = filesystem_of(f"{self.uri}/{name}")
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        passing = f"{path}.{uuid.uuid4().hex}"
        with filesystem.open_output_stream(passing) as file:
            file.write(value)
        filesystem.move(passing, path)

    def read_bytes(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """A file, or ``size`` bytes of it from ``start``."""
        filesystem, path = filesystem_of(f"{self.uri}/{name}")
        with filesystem.open_input_file(path) as file:
            found: bytes = file.read_at(file.size() if size is None else size, start)
        return found

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, which nobody reads any more, if that can be done now: what stays
        goes with the work folder."""
        filesystem, path = filesystem_of(f"{self.uri}/{name}")
        folder = filesystem.get_file_info(path).type is pafs.FileType.Directory
        with suppress(OSError):
            (filesystem.delete_dir if folder else filesystem.delete_file)(path)

    def parts(self, stage: str, schema: pa.Schema) -> pads.Dataset:
        """All whole parts of a stage as one dataset; an empty one if none was written."""
        filesystem, folder = filesystem_of(f"{self.uri}/{stage}")
        if filesystem.get_file_info(folder).type is not pafs.FileType.Directory:
            return pads.dataset(schema.empty_table())
        return pads.dataset(folder, schema=schema, filesystem=filesystem, format="parquet", ignore_prefixes=[_UNFINISHED])


@contextmanager
def work_folder(lake: Lake, step: str) -> Iterator[WorkFolder]:
    """A fresh folder ``work/<step>-…`` in the lake, removed at the end whatever happened.

    Those that killed runs of the step left behind are removed once nothing was written into them for WORK_KEPT_HOURS.
    """
    filesystem, folder = lake.filesystem("work")
    # What was half removed goes, too, of whichever step.
    names = re.compile(rf"{re.escape(step)}-[0-9a-f]{{12}}|\.staging-[0-9a-f]{{32}}")
    remove_unused(filesystem, folder, names, WORK_KEPT_HOURS)
    name = f"{step}-{uuid.uuid4().hex[:12]}"
    filesystem.create_dir(f"{folder}/{name}", recursive=True)
    try:
        yield WorkFolder(lake.uri("work", name))
    finally:
        remove_folder(filesystem, f"{folder}/{name}")


def as_declared(batches: pa.RecordBatchReader, schema: pa.Schema) -> pa.RecordBatchReader:
    """A stream in the declared types and column order of a table."""
    names = schema.names
    cast = (part for batch in batches for part in pa.Table.from_batches([batch]).select(names).cast(schema).to_batches())
    return pa.RecordBatchReader.from_batches(schema, cast)


def read_part(uri: str) -> pa.Table:
    """The rows of one part."""
    filesystem, path = filesystem_of(uri)
    return pq.read_table(path, filesystem=filesystem)


@contextmanager
def query_engine() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection for the driver's joins; it spills to disk where they outgrow memory."""
    connection = duckdb.connect(":memory:")
    try:
        execute(connection, "SET TimeZone = 'UTC'")
        yield connection
    finally:
        connection.close()


def execute(connection: duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement to its end and return its rows."""
    rows: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
    return rows


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one number that a query gives."""
    return int(execute(connection, query)[0][0] or 0)


def _regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            taken = batch.slice(0, rows - count)
            held.append(taken)
            count += taken.num_rows
            batch = batch.slice(taken.num_rows)
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)
