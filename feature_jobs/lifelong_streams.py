"""Rows of many files of one bucket, user by user: each file is read some users ahead, so that memory follows neither their
number nor the number of a bucket's users."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.bucket_files import BucketFiles, relaxed
from schemas.errors import BadInput
from schemas.lake import filesystem_of, first_line


class UserStream:
    """The rows of one file of a bucket in user order, with the columns of ``schema`` (at every depth nullable).

    A file that is not in user order (a rewrite by another program) is read whole and sorted.
    """

    def __init__(self, files: BucketFiles, bucket: int, path: str, schema: pa.Schema, users_ahead: int) -> None:
        self._ahead = users_ahead
        self._held = pa.schema([relaxed(column) for column in schema]).empty_table()
        self._rest = self._batches(files, bucket, path, self._held.schema)
        self._ended = False

    def fill(self) -> str | None:
        """Read until ``users_ahead`` users are held; the last one held, or None if nothing follows it."""
        while not self._ended and len(self._held) < self._ahead:
            self._read()
        return None if self._ended else self._held["user_id"][-1].as_py()

    def take(self, last: str | None) -> pa.Table:
        """The rows of the users up to ``last``, all that are left for None; they are not given again."""
        while not self._ended and (last is None or not len(self._held) or self._held["user_id"][-1].as_py() <= last):
            self._read()
        upto = len(self._held) if last is None else pc.sum(pc.less_equal(self._held["user_id"], last)).as_py() or 0
        taken = self._held.slice(0, upto)
        self._held = self._held.slice(upto)
        return taken

    def _read(self) -> None:
        batch = next(self._rest, None)
        if batch is None:
            self._ended = True
        else:
            self._held = pa.concat_tables([self._held, batch])

    def _batches(self, files: BucketFiles, bucket: int, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
        filesystem, root = filesystem_of(files.uri)
        try:
            with filesystem.open_input_file(f"{root}/{path}") as stream:
                file = pq.ParquetFile(stream)
                users = file.read(columns=["user_id"])["user_id"].combine_chunks()
                if len(users) > 1 and not pc.all(pc.less_equal(users[:-1], users[1:])).as_py():
                    yield BucketFiles(files.uri, {bucket: (path,)}, files.partitions).read(bucket, schema).sort_by("user_id")
                    return
                present = [name for name in schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(self._ahead, columns=present, use_threads=False):
                    columns = [
                        batch[column.name].cast(column.type)
                        if column.name in present
                        else pa.repeat(pa.scalar(files.partitions[path].get(column.name), column.type), len(batch))
                        for column in schema
                    ]
                    yield pa.table(columns, schema=schema)
        except (OSError, pa.ArrowException) as error:
            raise BadInput(
                f"{root}/{path}: missing or damaged ({first_line(error)}); restore it, or run the step that writes it"
            ) from error


def user_streams(files: BucketFiles, bucket: int, schema: pa.Schema, users_ahead: int) -> list[UserStream]:
    """A stream for each file of a bucket."""
    return [UserStream(files, bucket, path, schema, users_ahead) for path in files.paths.get(bucket, ())]


def user_ranges(streams: Sequence[UserStream]) -> Iterator[tuple[str | None, list[pa.Table]]]:
    """The rows of all streams by ranges of some users each: the range's last user (None: all that are left), and its rows in
    each stream."""
    while True:
        ends = [end for end in (stream.fill() for stream in streams) if end is not None]
        last = min(ends, default=None)
        yield last, [stream.take(last) for stream in streams]
        if last is None:
            return
