"""How columns lie in the Parquet files that tasks write, by what they hold: chosen by measurement
(docs/decisions/storage-layout.md).

Times and play times pack well as differences, and build no dictionary that nobody would use; ids of impressions hardly ever
repeat; names and hashes of items repeat all the time, so their dictionary may grow large. Only encodings that every reader
knows: Spark's vectorised one, for instance, refuses BYTE_STREAM_SPLIT.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_UNREPEATED = frozenset({"sample_id", "impression_id", "request_id", "session_id", "request_ts", "play_ratio", "active_days"})
"""A dictionary of these is as long as the column, and costs more than all the rest of writing it."""
_DIFFERENCES = frozenset({"ts", "observed_ts", "play_time_ms", "count"})
"""Numbers whose neighbours are near, or that are small: DELTA_BINARY_PACKED where they are whole."""
_SHARED_BEGINNINGS = frozenset({"impression_id"})
"""Texts that begin as the row before does, in the order of their file: DELTA_BYTE_ARRAY."""
_HASHES = frozenset({"sample_id"})
"""What no codec shortens stays uncompressed."""
_DICTIONARY_BYTES = 2**24


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Keyword arguments of ``pyarrow.parquet.ParquetWriter`` for files of a schema; the only statistics are those of the user,
    by whom rows are ordered."""
    every = leaves(schema)
    encoding = {}
    for path, kind in every:
        if _name(path) in _SHARED_BEGINNINGS:
            encoding[path] = "DELTA_BYTE_ARRAY"
        elif _name(path) in _DIFFERENCES and (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
            encoding[path] = "DELTA_BINARY_PACKED"
    plain = {path for path, kind in every if _name(path) in _UNREPEATED or pa.types.is_boolean(kind)}
    hashes = {path for path, _ in every if _name(path) in _HASHES}
    return {
        "compression": {path: "none" if path in hashes else "zstd" for path, _ in every},
        "compression_level": {path: 1 for path, _ in every if path not in hashes},
        "use_dictionary": [path for path, _ in every if path not in encoding and path not in plain],
        "store_schema": False,  # readers shall see texts, whatever the writer had
        "column_encoding": encoding,
        "dictionary_pagesize_limit": _DICTIONARY_BYTES,
        "write_statistics": [path for path, _ in every if path == "user_id"],
    }


def _name(path: str) -> str:
    return path.removesuffix(".list.element").rpartition(".")[2]


def leaves(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Parquet path and type of each leaf column."""
    return [leaf for column in schema for leaf in _leaves(column, column.name)]


def _leaves(column: pa.Field, path: str) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(column.type):
        for child in column.type:
            yield from _leaves(child, f"{path}.{child.name}")
    elif pa.types.is_list(column.type):
        yield from _leaves(column.type.value_field, f"{path}.list.element")
    else:
        yield path, column.type


def coded(kind: pa.DataType) -> pa.DataType:
    """The type with texts inside lists as dictionaries: Parquet holds them so, and neither reading, nor moving behaviours
    about, nor writing them needs the texts themselves."""
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_coded_value(kind.value_type)))
    return kind


def _coded_value(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.dictionary(pa.int32(), pa.string())
    if pa.types.is_struct(kind):
        return pa.struct([child.with_type(_coded_value(child.type)) for child in kind])
    return coded(kind)
