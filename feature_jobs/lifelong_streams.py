"""Rows of many files of one bucket, user by user: each file is read some users ahead, so that memory follows neither their
number nor the number of a bucket's users."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import BucketFiles, relaxed


class UserStream:
    """The rows of one file of a bucket in user order, with the columns of ``schema`` (at every depth nullable).

    A file that is not in user order (a rewrite by another program) is read whole and sorted.
    """

    def __init__(self, files: BucketFiles, path: str, schema: pa.Schema, users_ahead: int) -> None:
        self._ahead = users_ahead
        self._held = pa.schema([relaxed(column) for column in schema]).empty_table()
        self._rest = self._batches(files, path, self._held.schema)
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

    def _batches(self, files: BucketFiles, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
        users = files.read_file(path, pa.schema([("user_id", pa.string())]))["user_id"].combine_chunks()
        if len(users) > 1 and not pc.all(pc.less_equal(users[:-1], users[1:])).as_py():
            yield files.read_file(path, schema).sort_by("user_id")
        else:
            yield from files.batches(path, schema, self._ahead)


def user_streams(files: BucketFiles, bucket: int, schema: pa.Schema, users_ahead: int) -> list[UserStream]:
    """A stream for each file of a bucket."""
    return [UserStream(files, path, schema, users_ahead) for path in files.paths.get(bucket, ())]


def user_ranges(streams: Sequence[UserStream]) -> Iterator[tuple[str | None, list[pa.Table]]]:
    """The rows of all streams by ranges of some users each: the range's last user (None: all that are left), and its rows in
    each stream."""
    while True:
        ends = [end for end in (stream.fill() for stream in streams) if end is not None]
        last = min(ends, default=None)
        yield last, [stream.take(last) for stream in streams]
        if last is None:
            return
