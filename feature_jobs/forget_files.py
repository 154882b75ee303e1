"""What a task of ``onerec forget`` does with the data files of one user bucket: search them, or write them without the users.

A file is written anew beside the old one and belongs to no table until the driver commits it (``partition_files``). Of the
sample_ids that a file of ``events`` notes (``owned_by_earlier``) it keeps those of other people: whose an id is, the rows tell
that an earlier landing has of it, as long as they are there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from feature_jobs.bucket_events import sample_ids
from feature_jobs.bucket_files import live_files, relaxed, run_by_bucket
from feature_jobs.forget_text import USER_COLUMN, Mentions
from feature_jobs.owned_by_earlier import as_metadata, from_metadata
from feature_jobs.partition_files import FileReport, PartitionFile, data_schema
from schemas.errors import BadInput
from schemas.lake import Lake, filesystem_of, first_line
from schemas.shards import stable_key
from schemas.tables import EVENTS, QUARANTINE, TABLES, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyspark.sql import SparkSession

Unit = TypeVar("Unit")
_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Tasks:
    """Runs work on many units: each in a Spark task of its own or, without Spark, one after the other in this process."""

    spark: "SparkSession | None"

    def each(self, units: Sequence[Unit], work: Callable[[Unit], dict[str, Any]]) -> list[dict[str, Any]]:
        """``work(unit)`` (small JSON) for each unit, in order."""
        if self.spark is None:
            return [work(unit) for unit in units]
        return run_by_bucket(self.spark, range(len(units)), lambda index: work(units[index]))


@dataclass(frozen=True)
class People:
    """The users to forget: ``ids`` (string, distinct), and the bucket of each (int64)."""

    ids: pa.Array
    buckets: np.ndarray

    @classmethod
    def of(cls, lake: Lake, users: Sequence[str]) -> "People":
        """These users in a lake."""
        count = lake.config.lake.user_buckets
        return cls(pa.array(users, pa.string()), np.array([stable_key(user) % count for user in users], np.int64))

    def of_bucket(self, bucket: int) -> "People":
        """Those of one bucket."""
        here = self.buckets == bucket
        return People(self.ids.filter(pa.array(here)), self.buckets[here])

    @cached_property
    def names(self) -> frozenset[str]:
        """Their ids."""
        return frozenset(self.ids.to_pylist())

    @cached_property
    def mentions(self) -> Mentions:
        """Looks for them in texts."""
        return Mentions(self.names)


@dataclass(frozen=True)
class FileGroup:
    """Data files of a table that one task works on: those of a bucket, or one file where there are no buckets (None).

    ``files`` are (path as the log has it, value of each partition column as Delta writes it).
    """

    bucket: int | None
    files: tuple[tuple[str, dict[str, str]], ...]


def file_groups(table: Table, files: Sequence[tuple[str, dict[str, str]]]) -> list[FileGroup]:
    """Files by user bucket, or each by itself where the table has none."""
    if "user_bucket" not in table.partition_by:
        return [FileGroup(None, (file,)) for file in files]
    by_bucket: dict[int, list[tuple[str, dict[str, str]]]] = {}
    for path, partition in files:
        by_bucket.setdefault(int(partition["user_bucket"]), []).append((path, partition))
    return [FileGroup(bucket, tuple(of_bucket)) for bucket, of_bucket in sorted(by_bucket.items())]


def live(opened: "DeltaTable", table: Table) -> list[tuple[str, dict[str, str]]]:
    """Live files of an opened table with their partitions, in path order."""
    rows = live_files(opened, table).to_pylist()
    return sorted((row["path"], {name: str(row[name]) for name in table.partition_by}) for row in rows)


def unnamed(lake: Lake, opened: "DeltaTable", table: Table) -> list[tuple[str, dict[str, str]]]:
    """Parquet files below a table that its newest version does not name: of older versions, of runs that were killed."""
    filesystem, root = lake.filesystem(table.name)
    named = {unquote(path) for path, _ in live(opened, table)}
    found = []
    for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        path = info.path[len(root) + 1 :]
        if info.type is pafs.FileType.File and path.endswith(".parquet") and not path.startswith("_") and path not in named:
            values = dict(part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
            if values.keys() == set(table.partition_by):
                found.append((path, {name: unquote(values[name]) for name in table.partition_by}))
    return sorted(found)


def search(lake: Lake, table: Table, people: People, group: FileGroup) -> dict[str, Any]:
    """Look for the people in each file's user column (quarantine: in its raw rows).

    Returns ``values`` searched, how many are ``found``, the paths they were found ``in`` and those that are ``unreadable``.
    """
    looks = {path: _read(lake, table, path, [_searched(table)]) for path, _ in group.files}
    unreadable = [path for path, rows in looks.items() if rows is None]
    columns = {path: rows.column(0) for path, rows in looks.items() if rows is not None}
    found_in: dict[str, int] = {}
    if _is_quarantine(table):
        partitions = dict(group.files)
        for path, texts in columns.items():
            found_in[path] = pc.sum(_mentioning(texts, partitions[path], people)).as_py() or 0
    elif columns:
        present = pa.chunked_array([chunk.unique() for chunk in columns.values()], pa.string()).unique()
        there = present.filter(pc.is_in(present, value_set=people.ids))  # the long list is hashed once a task
        found_in = {path: pc.sum(pc.is_in(users, value_set=there)).as_py() or 0 for path, users in columns.items()}
    return {
        "values": sum(map(len, columns.values())),
        "found": sum(found_in.values()),
        "in": sorted(path for path, count in found_in.items() if count),
        "unreadable": unreadable,
    }


def rewrite(lake: Lake, table: Table, people: People, group: FileGroup) -> dict[str, Any]:
    """Write those of the files that hold some of the people, or note ids of their rows, without them.

    Returns the paths ``replaced``, the ``files`` written instead (one that would be empty is not, unless it notes ids),
    and the rows ``removed``.
    Raises BadInput naming a file that is missing or damaged.
    """
    result: dict[str, Any] = {"replaced": [], "files": [], "removed": 0}
    of_group = people if group.bucket is None else people.of_bucket(group.bucket)
    if not len(of_group.ids):
        return result
    gone = {path: _theirs(table, _column(lake, table, path), partition, of_group) for path, partition in group.files}
    theirs = _sample_ids(lake, table, gone) if table.name == EVENTS.name else _NO_IDS
    for path, partition in group.files:
        removed = pc.sum(gone[path]).as_py() or 0
        if removed or (len(theirs) and np.isin(_noted(lake, table, path), theirs).any()):
            result["replaced"].append(path)
            result["files"].append(_without(lake, table, path, partition, gone[path], theirs))
            result["removed"] += removed
    return result


def _column(lake: Lake, table: Table, path: str) -> pa.ChunkedArray:
    """The column that is searched."""
    rows = _read(lake, table, path, [_searched(table)])
    if rows is None:
        _, root = lake.filesystem(table.name)
        raise BadInput(f"{root}/{unquote(path)}: missing or damaged; restore it, or run the step that writes it")
    return rows.column(0)


def _sample_ids(lake: Lake, table: Table, gone: Mapping[str, pa.ChunkedArray | pa.Array]) -> np.ndarray:
    """The ids (int64) of the rows of ``events`` that are to go."""
    found = [_NO_IDS]
    for path, mask in gone.items():
        if pc.any(mask).as_py():
            rows = _read(lake, table, path, [USER_COLUMN, "impression_id"])
            if rows is not None:
                rows = rows.filter(mask)
                found.append(sample_ids(rows[USER_COLUMN], rows["impression_id"]).to_numpy())
    return np.unique(np.concatenate(found))


def _noted(lake: Lake, table: Table, path: str) -> np.ndarray:
    filesystem, root = filesystem_of(lake.table_uri(table))
    with filesystem.open_input_file(f"{root}/{unquote(path)}") as stream:
        return from_metadata(pq.read_metadata(stream).metadata)


def _is_quarantine(table: Table) -> bool:
    return table.name == QUARANTINE.name  # by name: what a task receives is a copy


def _searched(table: Table) -> str:
    return "row_json" if _is_quarantine(table) else USER_COLUMN


def _theirs(table: Table, column: pa.ChunkedArray, partition: dict[str, str], people: People) -> pa.ChunkedArray | pa.Array:
    if _is_quarantine(table):
        return _mentioning(column, partition, people)
    return pc.is_in(column, value_set=people.ids)


def _mentioning(texts: pa.ChunkedArray, partition: dict[str, str], people: People) -> pa.Array:
    meant = TABLES.get(partition["table_name"])
    of_users = meant is None or USER_COLUMN in meant.schema.names
    return pa.array([people.mentions.in_row(text, of_users=of_users) for text in texts.to_pylist()], pa.bool_())


def _read(lake: Lake, table: Table, path: str, columns: list[str]) -> pa.Table | None:
    """Columns of a file, or None if it cannot be read."""
    filesystem, root = filesystem_of(lake.table_uri(table))
    try:
        with filesystem.open_input_file(f"{root}/{unquote(path)}") as stream:
            return pq.ParquetFile(stream).read(columns=columns)
    except (OSError, pa.ArrowException):
        return None


def _without(
    lake: Lake, table: Table, path: str, partition: dict[str, str], gone: pa.ChunkedArray | pa.Array, ids: np.ndarray
) -> FileReport | None:
    """Copy a file row group by row group, less the rows of which ``gone`` (bool, one a row) is true, and the noted ``ids``."""
    schema = pa.schema([relaxed(column) for column in data_schema(table)])
    filesystem, root = filesystem_of(lake.table_uri(table))
    written: PartitionFile | None = None
    done = 0
    try:
        with filesystem.open_input_file(f"{root}/{unquote(path)}") as stream:
            file = pq.ParquetFile(stream)
            owned = np.setdiff1d(from_metadata(file.metadata.metadata), ids)
            written = PartitionFile(lake, table, partition, as_metadata(owned, f"{root}/{unquote(path)}"))
            present = [name for name in schema.names if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number, columns=present)
                kept = rows.filter(pc.invert(gone.slice(done, len(rows))))
                done += len(rows)
                for column in schema:
                    if column.name not in present:
                        kept = kept.append_column(column, pa.nulls(len(kept), column.type))
                written.write(kept.select(schema.names).cast(schema))
    except (OSError, pa.ArrowException) as error:
        if written is not None:
            written.discard()
        raise BadInput(f"{root}/{unquote(path)}: damaged ({first_line(error)}); restore it") from error
    return written.close()
