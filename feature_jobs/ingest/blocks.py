"""Landing files as blocks of rows: columns as they came, rows that are none, and each row's text for quarantine.

JSON lines are parsed by Arrow where a block's lines are all plain objects of the usual types; any block that is not, by
Python's parser line by line, which keeps numbers as they were written. Both give the same rows.
"""

import csv
import gzip
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from feature_jobs.ingest.values import TEXTS, as_text, as_texts, found, json_text

BLOCK_BYTES = 1 << 20
"""JSON parsed at once: what the processor's cache holds (8 MiB take nearly three times as long a row)."""
BLOCK_ROWS = 65_536
"""Rows of a block, about."""
MAX_BLOCK_BYTES = 32 << 20
"""Bytes of a block, about, where its rows are long: Arrow's texts of a column hold 2 GiB, and a task its share of memory."""
PARQUET_ROWS = 4096
"""Rows of a Parquet file decoded at once: a dictionary makes long texts short in the file, so only then is known how long."""
MAX_LINE_BYTES = 64 << 20
_SAMPLED_LINES = 50
_NOT_A_LINE = "row: not a JSON object on a line of its own"
_NO_JSON = re.compile(rb"[\s:,\[-](?:NaN|Inf(?:inity)?)\s*[,}\]]")
"""What Arrow takes for numbers though JSON has none such; in a text it may stand, too."""
_MOST_DIGITS = 4000
"""Python reads a whole number of 4,300 digits, and none that is longer."""
_NOT_A_RECORD = "row: not one value a column of the header"
csv.field_size_limit(MAX_LINE_BYTES)


@dataclass(frozen=True)
class Block:
    """Some rows of one file. ``columns`` have whatever type the file gave them; an absent one is null throughout.

    ``failures`` maps rows that could not be read at all to the reason; ``nested`` maps text columns to rows that hold a
    JSON object or array; ``texts`` gives the rows (by number) as they came.
    """

    rows: int
    columns: dict[str, pa.Array]
    texts: Callable[[Sequence[int]], list[str]]
    failures: dict[int, str] = field(default_factory=dict)
    nested: dict[str, list[int]] = field(default_factory=dict)


def parquet_blocks(filesystem: pafs.FileSystem, path: str, names: Sequence[str], row_groups: range | None) -> Iterator[Block]:
    """Blocks of a Parquet file (of some of its row groups). Timestamps of 96 bits become microseconds: as nanoseconds of 64
    bits, which Arrow would make them, those of far years are others."""
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")
        groups = None if row_groups is None else list(row_groups)
        batches = file.iter_batches(PARQUET_ROWS, row_groups=groups, use_threads=False)
        yield from _gathered((_parquet_block(batch, names), batch.nbytes) for batch in batches)


def _parquet_block(batch: pa.RecordBatch, names: Sequence[str]) -> Block:
    return Block(len(batch), {name: batch.column(name) for name in batch.schema.names if name in names}, _rows_of(batch))


def _rows_of(batch: pa.RecordBatch) -> Callable[[Sequence[int]], list[str]]:
    def texts(rows: Sequence[int]) -> list[str]:
        some = batch.take(pa.array(rows, pa.int64()))
        columns = [column if column.type == pa.string() else as_texts(_decoded(column)) for column in some.columns]
        values = zip(*(column.to_pylist() for column in columns), strict=True)
        named = [zip(some.schema.names, row, strict=True) for row in values]
        return [json_text({name: value for name, value in row if value is not None}) for row in named]

    return texts


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def csv_blocks(stream: BinaryIO, names: Sequence[str]) -> Iterator[Block]:
    """Blocks of a CSV file with a header. An empty cell is absent; a quoted text may hold line breaks."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    reader = csv.reader(text)
    header = next(reader, [])
    while records := _some(reader):
        yield _csv_block(records, header, names)


def _some(reader: Iterator[list[str]]) -> list[list[str]]:
    records, held = [], 0
    for record in reader:
        if record:  # a blank line is no row
            records.append(record)
            held += sum(map(len, record))
        if len(records) == BLOCK_ROWS or held >= MAX_BLOCK_BYTES:
            break
    return records


def _csv_block(records: list[list[str]], header: list[str], names: Sequence[str]) -> Block:
    width = len(header)
    lines = {row: _line(record) for row, record in enumerate(records) if len(record) != width}
    failures = {row: _NOT_A_RECORD + found(line) for row, line in lines.items()}
    whole = [record if len(record) == width else [""] * width for record in records] if lines else records
    columns = {
        name: pa.array([value or None for value in column], pa.string())
        for name, column in zip(header, zip(*whole, strict=True), strict=True)
        if name in names
    }

    def texts(rows: Sequence[int]) -> list[str]:
        return [
            json_text(
                {"line": lines[row]}
                if row in lines
                else {name: value for name, value in zip(header, records[row], strict=True) if value}
            )
            for row in rows
        ]

    return Block(len(records), columns, texts, failures)


def _line(record: list[str]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="").writerow(record)
    return buffer.getvalue()


def json_blocks(stream: BinaryIO, columns: Sequence[pa.Field]) -> Iterator[Block]:
    """Blocks of a file of JSON lines; a blank line is no row. Raises ValueError for a line above MAX_LINE_BYTES."""
    yield from _gathered(_json_parts(stream, columns))


def _json_parts(stream: BinaryIO, columns: Sequence[pa.Field]) -> Iterator[tuple[Block, int | None]]:
    schema: pa.Schema | None = None
    texts = [column.name for column in columns if column.type == pa.string()]
    numbers: list[str] = []
    for data in _line_blocks(stream):
        if schema is None:
            schema = _usual_schema(data, columns)
            numbers = [name for name in texts if schema.field(name).type == pa.int64()]
        block = _parsed_by_arrow(data, schema, numbers)
        yield (block, len(data)) if block is not None else (_parsed_by_line(data, columns), None)


def _gathered(parts: Iterable[tuple[Block, int | None]]) -> Iterator[Block]:
    """Parts of a file as blocks of about BLOCK_ROWS rows, or MAX_BLOCK_BYTES bytes; a part without a size stands alone."""
    waiting: list[Block] = []
    rows = held = 0
    for part, size in parts:
        if size is not None:
            waiting.append(part)
            rows, held = rows + part.rows, held + size
        if waiting and (size is None or rows >= BLOCK_ROWS or held >= MAX_BLOCK_BYTES):
            yield _joined(waiting)
            waiting, rows, held = [], 0, 0
        if size is None:
            yield part
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Block]) -> Block:
    """Blocks of equal types without failures, as one."""
    starts = list(itertools.accumulate((block.rows for block in blocks), initial=0))

    def texts(rows: Sequence[int]) -> list[str]:
        numbers = (np.searchsorted(starts, rows, side="right") - 1).tolist()
        runs = itertools.groupby(zip(numbers, rows, strict=True), key=lambda place: place[0])
        return [text for number, run in runs for text in blocks[number].texts([row - starts[number] for _, row in run])]

    columns = {name: pa.concat_arrays([block.columns[name] for block in blocks]) for name in blocks[0].columns}
    return Block(starts[-1], columns, texts)


def _line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a stream in blocks of whole lines."""
    rest = b""
    while data := stream.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError(f"a line longer than {MAX_LINE_BYTES} bytes")
    if rest:
        yield rest


def _usual_schema(data: bytes, columns: Sequence[pa.Field]) -> pa.Schema:
    """How Arrow shall read each column, after a few lines: flags are often 0 and 1, ids often numbers."""
    seen: dict[str, set[type]] = {}
    for line in data.split(b"\n", _SAMPLED_LINES)[:_SAMPLED_LINES]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for name, entry in value.items() if isinstance(value, dict) else ():
            seen.setdefault(name, set()).add(type(entry))
    fields = []
    for column in columns:
        kinds = seen.get(column.name, set()) - {type(None)}
        kind = column.type if column.type in (pa.string(), pa.int64(), pa.bool_(), TEXTS) else pa.string()
        if kinds == {int} and kind in (pa.string(), pa.bool_()):
            kind = pa.int64()
        fields.append(pa.field(column.name, kind))
    return pa.schema(fields)


def _parsed_by_arrow(data: bytes, schema: pa.Schema, numbers_as_texts: list[str]) -> Block | None:
    """The block, if each line is one object (and nothing else) whose values have the schema's types."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if not data.endswith(b"\n"):
        data += b"\n"
    # Arrow takes several objects a line, or one over several lines, too: not if each line begins and ends as one does
    lines = data.count(b"\n")
    if not (data.startswith(b"{") and data.endswith(b"}\n") and data.count(b"}\n{") == lines - 1):
        return None
    if (b"NaN" in data or b"Inf" in data) and _NO_JSON.search(data):
        return None
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = pajson.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        pa.array([data], pa.binary()).cast(pa.string())  # which checks that it is UTF-8
        table = pajson.read_json(pa.BufferReader(data), parse_options=options, read_options=reading).combine_chunks()
    except pa.ArrowInvalid:
        return None
    if len(table) != lines:
        return None
    columns = {name: table[name].combine_chunks() for name in schema.names}
    for name in numbers_as_texts:
        if pc.any(pc.equal(columns[name], 0)).as_py():  # it may have stood there as -0, which is another text
            return None
    split: list[bytes] = []

    def texts(rows: Sequence[int]) -> list[str]:
        if not split:
            split.extend(data.split(b"\n"))
        return [split[row].decode() for row in rows]

    return Block(lines, columns, texts)


def _parsed_by_line(data: bytes, columns: Sequence[pa.Field]) -> Block:
    """The block, line by line: values as the texts that stood there, ``null`` as absent."""
    lines = [line.rstrip("\r") for line in data.decode(errors="replace").split("\n")]
    lines = [line for line in lines if line.strip(_WHITE)]
    values: dict[str, list[str | None]] = {column.name: [None] * len(lines) for column in columns}
    texts = {column.name for column in columns if column.type == pa.string()}
    failures: dict[int, str] = {}
    nested: dict[str, list[int]] = {}
    for row, line in enumerate(lines):
        record = _object(line)
        if record is None:
            failures[row] = _NOT_A_LINE + found(line)
            continue
        held = {name: value for name, value in record.items() if name in values and value is not None}
        nests = [name for name, value in held.items() if isinstance(value, dict | list)]
        numbers = json.loads(line, parse_int=_whole_number) if nests else {}  # within which numbers are numbers again
        for name, value in held.items():
            values[name][row] = _text(numbers[name] if name in nests else value)
            if name in texts and name in nests:
                nested.setdefault(name, []).append(row)
    arrays = {name: pa.array(column, pa.string()) for name, column in values.items()}
    return Block(len(lines), arrays, lambda rows: [lines[row] for row in rows], failures, nested)


_WHITE = " \t\n\x0b\f\r"


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return as_text(value)


def opened(filesystem: pafs.FileSystem, path: str, *, compressed: bool) -> Any:
    """The (decompressed) bytes of a file, as a stream of Python's."""
    stream = filesystem.open_input_stream(path, compression=None)
    return gzip.GzipFile(fileobj=stream) if compressed else stream
