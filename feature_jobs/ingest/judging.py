"""One task's share of a landing table: blocks read, typed and judged; good rows as a table, rejected ones with reasons."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_jobs.ingest.blocks import Block, csv_blocks, json_blocks, opened, parquet_blocks
from feature_jobs.ingest.landing import Landing
from feature_jobs.ingest.rules import Columns
from feature_jobs.ingest.sources import REQUIRED, Split, input_columns, named
from feature_jobs.ingest.values import Reasons, found, read_column
from schemas.tables import Table

REJECTED = pa.schema(
    [
        pa.field("row_json", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
        pa.field("source_file", pa.string()),
        pa.field("user_id", pa.string()),
    ]
)
"""Rejected rows: as they came, why, from where, and whose they are if that could be read."""
_PACK_ROWS, _PACK_BYTES = 50_000, 32 << 20


def fill_a_pack(rejected: Sequence[pa.Table]) -> bool:
    """Whether these are as many REJECTED rows, or bytes, as a task keeps in memory: a landing may be nothing but bad rows."""
    return sum(map(len, rejected)) >= _PACK_ROWS or sum(part.nbytes for part in rejected) >= _PACK_BYTES


def in_packs(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """REJECTED rows in tables of about that size, however few each part has."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if fill_a_pack(waiting):
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


@dataclass(frozen=True)
class Judged:
    """A block's rows: the good ones (the table's input columns, and what its rules add), and REJECTED ones; ``read`` is how
    many the block had when it was read, for the accounting."""

    read: int
    good: pa.Table
    rejected: pa.Table


def judged_blocks(
    landing: Landing, table: Table, splits: Sequence[Split], rules: Callable[[Columns, bool, Reasons], Columns]
) -> Iterator[Judged]:
    """Read and judge a task's splits, block by block; ``rules(columns, dated, reasons)`` are the table's.

    Raises BadInput naming a file that cannot be read to its end.
    """
    for split in splits:
        blocks = _blocks(landing, table, split)
        while True:
            with named(landing, split.file):
                block = next(blocks, None)
            if block is None:
                break
            with named(landing, split.file, (pa.ArrowException, UnicodeError)):  # its values; all else is a fault of ours
                judged = _judged(block, table, split, rules)
            yield judged


def _blocks(landing: Landing, table: Table, split: Split) -> Iterator[Block]:
    file, columns = split.file, input_columns(table)
    names = [column.name for column in columns]
    if file.format == "parquet":
        yield from parquet_blocks(landing.filesystem, file.path, names, split.row_groups)
        return
    with opened(landing.filesystem, file.path, compressed=file.compressed) as stream:
        yield from csv_blocks(stream, names) if file.format == "csv" else json_blocks(stream, columns)


def _judged(block: Block, table: Table, split: Split, rules: Callable[[Columns, bool, Reasons], Columns]) -> Judged:
    reasons = Reasons()
    columns: Columns = {}
    for column in input_columns(table):
        source = block.columns.get(column.name, pa.nulls(block.rows))
        required = column.name in REQUIRED[table.name]
        columns[column.name] = read_column(column, source, reasons, required=required)
        nested = block.nested.get(column.name, [])
        shown = source.take(pa.array(nested, pa.int64())).to_pylist()
        reasons.add(nested, [f"{column.name}: not a text{found(text)}" for text in shown])
    columns = rules(columns, split.file.dated, reasons)
    for row, reason in block.failures.items():
        reasons.only(row, reason)
    every = pa.table(columns)
    rows = reasons.rows
    if not len(rows):
        return Judged(block.rows, every, REJECTED.empty_table())
    good = np.ones(block.rows, bool)
    good[rows] = False
    rejected = pa.table(
        [block.texts(rows.tolist()), reasons.of(rows), [split.file.name] * len(rows), columns["user_id"].take(pa.array(rows))]
        if "user_id" in columns
        else [block.texts(rows.tolist()), reasons.of(rows), [split.file.name] * len(rows), [None] * len(rows)],
        schema=REJECTED,
    )
    return Judged(block.rows, every.filter(pa.array(good)), rejected)
