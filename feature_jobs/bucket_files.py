"""Work by user bucket: which files of a table version hold a bucket, and one Spark task for each bucket.

Tables and shards are partitioned by ``user_bucket``, but Delta tells Spark nothing of it, so a join of them would shuffle
users a second time. Here the driver reads the Delta logs once, and each task opens only its own bucket's files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake import DeltaTable

from feature_jobs.text_hashes import text_hashes
from schemas.errors import BadInput
from schemas.lake import Lake, damage_named, filesystem_of, first_line
from schemas.tables import Table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Result = TypeVar("Result")


@dataclass(frozen=True)
class BucketFiles:
    """The live data files of some partitions of a table version, by bucket: paths relative to the table, and for each path
    the values of its partition columns."""

    uri: str
    paths: dict[int, tuple[str, ...]]
    partitions: dict[str, dict[str, Any]]

    @property
    def buckets(self) -> list[int]:
        """Buckets that have a file."""
        return sorted(self.paths)

    def read(self, bucket: int, schema: pa.Schema) -> pa.Table:
        """A bucket's rows with these columns (partition columns too), in file order; nullability is relaxed, columns that a
        file lacks are null.

        Raises BadInput naming a file that is missing or damaged.
        """
        paths = self.paths.get(bucket, ())
        empty = pa.schema([relaxed(column) for column in schema]).empty_table()
        return pa.concat_tables([empty, *(self.read_file(path, schema) for path in paths)])

    def read_file(self, path: str, schema: pa.Schema) -> pa.Table:
        """One file's rows, as ``read`` gives them."""
        wanted = pa.schema([relaxed(column) for column in schema])
        with self._opened(path, []) as file:
            rows = file.read(columns=[name for name in wanted.names if name in file.schema_arrow.names])
        return self._with_all(path, rows, wanted)

    def batches(self, path: str, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
        """One file's rows with these columns, at most ``rows`` at a time; columns that it lacks as for ``read``. Types are taken
        as they are given: texts that are dictionary arrays there are never decoded."""
        with self._opened(path, [column.name for column in schema if pa.types.is_dictionary(column.type)]) as file:
            present = [name for name in schema.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(rows, columns=present, use_threads=False):
                yield self._with_all(path, pa.Table.from_batches([batch]), schema)

    @contextmanager
    def _opened(self, path: str, dictionaries: Sequence[str]) -> Iterator[pq.ParquetFile]:
        filesystem, root = filesystem_of(self.uri)
        try:
            with filesystem.open_input_file(f"{root}/{path}") as stream:
                yield pq.ParquetFile(stream, read_dictionary=dictionaries)
        except (OSError, pa.ArrowException) as error:
            raise BadInput(
                f"{root}/{path}: missing or damaged ({first_line(error)}); restore it, or run the step that writes it"
            ) from error

    def _with_all(self, path: str, rows: pa.Table, schema: pa.Schema) -> pa.Table:
        """The rows with all columns of the schema: partition columns by the file's partition, others that are absent null."""
        columns = [
            rows[column.name].cast(column.type)
            if column.name in rows.column_names
            else pa.repeat(pa.scalar(self.partitions[path].get(column.name), column.type), len(rows))
            for column in schema
        ]
        return pa.table(columns, schema=schema)


def bucket_files(lake: Lake, table: Table, version: int, where: pads.Expression) -> BucketFiles:
    """Files of the partitions that ``where`` (over partition columns) selects."""
    files = partition_values(lake, table, version)
    if len(files):
        files = files.filter(where).sort_by("path")
    paths: dict[int, list[str]] = {}
    partitions: dict[str, dict[str, Any]] = {}
    for row in files.to_pylist():
        path = unquote(row["path"])
        paths.setdefault(row["user_bucket"], []).append(path)
        partitions[path] = {name: row[name] for name in table.partition_by}
    return BucketFiles(lake.table_uri(table), {bucket: tuple(names) for bucket, names in paths.items()}, partitions)


def partition_values(lake: Lake, table: Table, version: int) -> pa.Table:
    """What ``live_files`` gives, of a table version."""
    return live_files(lake.open_table(table, version), table)


def live_files(opened: DeltaTable, table: Table) -> pa.Table:
    """``path`` (as the log has it), ``size_bytes``, ``num_records`` (null where the log has no count) and the partition columns
    of each live file of an opened table."""
    actions = pa.table(opened.get_add_actions(flatten=True))
    partitions = [table.schema.field(name) for name in table.partition_by]
    counted = [("path", pa.string()), ("size_bytes", pa.int64()), ("num_records", pa.int64())]
    if not len(actions):
        return pa.schema([*counted, *partitions]).empty_table()
    columns = {
        name: actions[name].cast(kind) if name in actions.column_names else pa.nulls(len(actions), kind) for name, kind in counted
    }
    return pa.table(columns | {column.name: actions[f"partition.{column.name}"] for column in partitions})


def recorded_rows(lake: Lake, table: Table, version: int, where: pads.Expression) -> int:
    """Rows of the files that ``where`` (over partition columns and ``path``) selects: as the log counts them or, where it does
    not, the file's footer. Read beside whoever reads the rows themselves, so that what is lost on the way shows.

    Raises BadInput naming a file that is missing or damaged.
    """
    files = partition_values(lake, table, version)
    if not len(files):
        return 0
    files = files.filter(where)
    uncounted = files.filter(pc.field("num_records").is_null())["path"].to_pylist()
    filesystem, root = filesystem_of(lake.table_uri(table))
    rows = pc.sum(files["num_records"]).as_py() or 0
    for path in map(unquote, uncounted):
        with damage_named(f"{root}/{path}"), filesystem.open_input_file(f"{root}/{path}") as stream:
            rows += pq.read_metadata(stream).num_rows
    return int(rows)


def relaxed(column: pa.Field) -> pa.Field:
    """The same column, nullable at every depth: what both engines' files can be cast to."""
    return pa.field(column.name, _relaxed_type(column.type))


def _relaxed_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([relaxed(child) for child in kind])
    if pa.types.is_list(kind):
        return pa.list_(_relaxed_type(kind.value_type))
    return kind


def run_by_bucket(spark: "SparkSession", buckets: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
    """Call ``work(bucket)`` once in a task of its own for each bucket; its results (small, JSON) in the order given.

    Raises BadInput with a task's message if it raised one.
    """
    if not buckets:
        return []

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                try:
                    report = json.dumps({"result": work(buckets[index])})
                except BadInput as error:
                    report = json.dumps({"bad_input": str(error)})
                yield pa.RecordBatch.from_pydict({"index": [index], "report": [report]})

    frame = spark.range(0, len(buckets), 1, len(buckets)).mapInArrow(task, "index long, report string")
    reports = [json.loads(row["report"]) for row in sorted(frame.collect(), key=lambda row: row["index"])]
    for report in reports:
        if "bad_input" in report:
            raise BadInput(report["bad_input"])
    return [report["result"] for report in reports]


def item_keys(items: pa.ChunkedArray | pa.Array) -> pa.Array:
    """``stable_key`` of each item id (int64), hashed once for each distinct one."""
    whole = items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items
    encoded = pc.dictionary_encode(whole)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return pa.array(text_hashes(encoded.dictionary)).take(encoded.indices)
