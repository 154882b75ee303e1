"""Reads a bucket's ``user_state`` a few thousand users at a time, so that memory does not follow the number of users."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.bucket_files import BucketFiles
from feature_jobs.parquet_layout import leaves
from feature_jobs.user_state import STATE
from feature_jobs.user_state_arrays import flat
from schemas.errors import BadInput
from schemas.lake import filesystem_of, first_line

USERS_AT_ONCE = 4096
"""A row group of ``user_state``: more compress a little better and need memory in proportion."""


def state_slices(files: BucketFiles, bucket: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, str | None]]:
    """The bucket's state (columns of STATE, ``user_id`` among them) in user order, each slice with its last user; the last
    slice says None: everyone after. Columns that an old file lacks are null.

    A bucket that is not one sorted file (written by another program) is read whole and sorted. Raises BadInput naming a
    file that is missing or damaged.
    """
    schema = pa.schema([STATE.field(name) for name in columns])
    users = flat(files.read(bucket, pa.schema([STATE.field("user_id")]))["user_id"])
    in_order = len(users) < 2 or pc.all(pc.less(users[:-1], users[1:])).as_py()
    parts: Iterator[pa.Table]
    if not in_order or len(files.paths.get(bucket, ())) != 1:
        whole = files.read(bucket, schema).sort_by("user_id")
        parts = (whole.slice(start, USERS_AT_ONCE) for start in range(0, len(whole), USERS_AT_ONCE))
    else:
        parts = _streamed(files, files.paths[bucket][0], schema)
    held: pa.Table | None = None
    for part in parts:
        if held is not None:
            yield held, held["user_id"][-1].as_py()
        held = part
    yield (schema.empty_table() if held is None else held), None


def state_of(files: BucketFiles, bucket: int, users: pa.Array, columns: Sequence[str]) -> pa.Table:
    """The state of those of ``users`` that the bucket's has."""
    parts = [
        part.filter(pc.is_in(part["user_id"], value_set=users))
        for part, _ in (state_slices(files, bucket, columns) if len(users) else ())
    ]
    return pa.concat_tables([pa.schema([STATE.field(name) for name in columns]).empty_table(), *parts])


def _streamed(files: BucketFiles, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    filesystem, root = filesystem_of(files.uri)
    try:
        with filesystem.open_input_file(f"{root}/{path}") as stream:
            texts = [leaf for leaf, kind in leaves(schema) if pa.types.is_dictionary(kind)]
            file = pq.ParquetFile(stream, read_dictionary=texts)
            present = [name for name in schema.names if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):  # iter_batches has no dictionaries inside lists
                rows = file.read_row_group(number, columns=present, use_threads=False)
                columns = [
                    rows[column.name].cast(column.type) if column.name in present else pa.nulls(len(rows), column.type)
                    for column in schema
                ]
                whole = pa.table(columns, schema=schema)
                yield from (whole.slice(start, USERS_AT_ONCE) for start in range(0, len(whole), USERS_AT_ONCE))
    except (OSError, pa.ArrowException) as error:
        raise BadInput(
            f"{root}/{path}: missing or damaged ({first_line(error)}); restore it, or run the step that writes it"
        ) from error
