"""Tables written by tasks and committed once by the driver: Parquet files beside a table's others, then one Delta commit.

A file belongs to no table until ``commit_files`` names it, so a task that is killed or repeated leaves only files that
nothing refers to (``onerec lake vacuum`` removes them), and a reader sees all of a step's files or none.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.transaction import AddAction, RemoveAction

from feature_jobs.bucket_files import live_files
from feature_jobs.parquet_layout import coded, writer_options
from schemas.commits import commit_on_newest
from schemas.errors import BadInput
from schemas.lake import Lake, filesystem_of
from schemas.suppression import check_nobody_forgotten
from schemas.tables import Table

FileReport = dict[str, Any]
"""What a commit needs to know of a file; JSON, so that a task can report it: path, size, partition, statistics."""


def data_schema(table: Table) -> pa.Schema:
    """A table's columns but those of its partitions: what its files hold."""
    return pa.schema([column for column in table.schema if column.name not in table.partition_by])


class PartitionFile:
    """A Parquet file of one partition of a table, written row group by row group; not yet part of the table.

    ``partition`` maps each partition column to its value as Delta writes it (dates as YYYY-MM-DD). ``metadata`` becomes key-value
    metadata of the file; a file that has some is written even without rows, any other is not.
    """

    def __init__(self, lake: Lake, table: Table, partition: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> None:
        self.rows = 0
        self._metadata = dict(metadata or {})
        self._table = table
        self._partition = {name: str(partition[name]) for name in table.partition_by}
        self._folder = "".join(f"{name}={value}/" for name, value in self._partition.items())
        self._uri = lake.table_uri(table)
        self._schema = pa.schema([column.with_type(coded(column.type)) for column in data_schema(table)])
        self._nulls = dict.fromkeys(self._schema.names, 0)
        self._writer: pq.ParquetWriter | None = None
        self._path = ""

    def write(self, rows: pa.Table) -> None:
        """Append rows that have the table's columns but the partition's (more are left out), cast to their types."""
        if not len(rows):
            return
        writer = self._opened()
        columns = [
            pa.nulls(len(rows), column.type)
            if column.nullable and column.name not in rows.column_names
            else rows[column.name].cast(column.type)
            for column in self._schema
        ]
        writer.write_table(pa.table(columns, schema=self._schema))
        self.rows += len(rows)
        for column, name in zip(columns, self._schema.names, strict=True):
            self._nulls[name] += column.null_count

    def _opened(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._path = f"{self._folder}part-{uuid.uuid4()}.zstd.parquet"
            filesystem, root = filesystem_of(self._uri)
            filesystem.create_dir(f"{root}/{self._folder}", recursive=True)
            self._writer = pq.ParquetWriter(
                f"{root}/{self._path}", self._schema, filesystem=filesystem, **writer_options(self._schema)
            )
        return self._writer

    def close(self) -> FileReport | None:
        """Finish the file; what the commit needs to know of it, or None if there is nothing to write."""
        if self._metadata:
            self._opened().add_key_value_metadata(self._metadata)
        if self._writer is None:
            return None
        self._writer.close()
        filesystem, root = filesystem_of(self._uri)
        # No bounds: those of some columns only make delta-rs compare the others with null, and a filter then finds nothing;
        # of all columns they would help nobody, since a bucket's file holds users, items and times of every kind.
        statistics = {"numRecords": self.rows, "nullCount": self._nulls}
        return {
            "path": self._path,
            "size": filesystem.get_file_info(f"{root}/{self._path}").size,
            "partition": self._partition,
            "rows": self.rows,
            "statistics": json.dumps(statistics),
        }

    def discard(self) -> None:
        """Remove the file, which no commit names."""
        if self._writer is not None:
            self._writer.close()
            filesystem, root = filesystem_of(self._uri)
            _remove(filesystem, f"{root}/{self._path}")


def discard_files(lake: Lake, table: Table, files: Sequence[FileReport | None]) -> None:
    """Remove files that no commit will name."""
    filesystem, root = filesystem_of(lake.table_uri(table))
    for file in files:
        if file is not None:
            _remove(filesystem, f"{root}/{file['path']}")


def _remove(filesystem: pafs.FileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # `onerec forget` removes uncommitted files too
        filesystem.delete_file(path)


def commit_files(
    lake: Lake,
    table: Table,
    files: Sequence[FileReport | None],
    replaced: pads.Expression,
    *,
    note: str | None = None,
    read: tuple[int, pads.Expression] | None = None,
) -> None:
    """Make ``files`` the only ones of the partitions that ``replaced`` (over partition columns) selects, in one commit.

    The commit is made on the newest version and on no other: if another process commits first, what to remove is looked
    up again, so that two runs of one step leave the files of one of them. No commit where nothing is added or removed.
    ``replaced`` may also select single files, by ``path``. ``read`` is a version and the partitions (or files) of it that
    ours were computed from. ``note`` becomes the commit's ``userMetadata``.

    Raises BadInput if what was ``read`` has changed by now, if people were forgotten since the step began (ours may hold
    them, or were removed like those of a killed run), or if other processes commit without end.
    """
    added = [file for file in files if file is not None]
    adds = [
        AddAction(file["path"], file["size"], file["partition"], int(time.time() * 1000), True, file["statistics"])
        for file in added
    ]
    properties = CommitProperties(max_commit_retries=0, custom_metadata={"userMetadata": note} if note else None)

    def commit() -> None:
        target = _with_declared_columns(lake, table)
        if read:
            check_unchanged(lake, table, read, target.version())
        check_nobody_forgotten(lake)
        _check_present(lake, table, added)
        removes = _removals(live_files(target, table), replaced, table)
        if adds or removes:
            target.create_write_transaction(
                [*adds, *removes],
                "append",
                target.schema(),
                partition_by=list(table.partition_by),
                commit_properties=properties,
            )

    commit_on_newest(lake, table, commit)


def _with_declared_columns(lake: Lake, table: Table) -> DeltaTable:
    """The table at its newest version; columns declared since the lake was made are added, null in the files there are."""
    opened = lake.open_table(table)
    present = {column.name for column in opened.schema().fields}
    missing = pa.schema([column for column in table.schema if column.name not in present])
    if not len(missing):
        return opened
    opened.alter.add_columns(Schema.from_arrow(missing).fields)
    return lake.open_table(table)


CARRIED_NOTES = "onerecNotes"
"""Key in a commit's metadata: a JSON list of the notes, newest first, of commits before it that ``onerec forget`` took off."""


def commit_notes(opened: DeltaTable) -> Iterator[str]:
    """The notes of a table's commits, newest first."""
    for commit in opened.history():
        note = commit.get("userMetadata")
        if isinstance(note, str):
            yield note
        yield from json.loads(commit.get(CARRIED_NOTES) or "[]")


def _check_present(lake: Lake, table: Table, added: Sequence[FileReport]) -> None:
    filesystem, root = filesystem_of(lake.table_uri(table))
    infos = filesystem.get_file_info([f"{root}/{file['path']}" for file in added])
    missing = [info.path for info in infos if info.type is not pafs.FileType.File]
    if missing:
        raise BadInput(f"{min(missing)}: removed before it was committed, by `onerec forget` or a vacuum; run this again")


def _removals(live: pa.Table, replaced: pads.Expression, table: Table) -> list[RemoveAction]:
    now = int(time.time() * 1000)
    removed = live.filter(replaced) if len(live) else live
    return [
        RemoveAction(
            row["path"],
            True,
            now,
            size=row["size_bytes"],
            partition_values={name: str(row[name]) for name in table.partition_by},
        )
        for row in removed.to_pylist()
    ]


def check_unchanged(lake: Lake, table: Table, read: tuple[int, pads.Expression], version: int | None = None) -> None:
    """Raise BadInput if the files that ``read`` (a version, and partitions or files of it) selects are others by ``version``
    (the newest if None): what was computed from them is outdated before it is published."""
    opened = lake.open_table(table, version)
    if opened.version() == read[0]:
        return
    before, now = (live_files(one, table) for one in (lake.open_table(table, read[0]), opened))
    names = [sorted((some.filter(read[1]) if len(some) else some)["path"].to_pylist()) for some in (before, now)]
    if names[0] != names[1]:
        raise BadInput(
            f"{lake.table_uri(table)}: another process wrote partitions that this run had read, so it published no more; run it "
            "again when the other has ended"
        )
