"""Snapshots of users that the state has not seen, dealt to user buckets once; on a day without any, nothing is read.

``user_state`` of day d names the version of ``users`` it was made from (``users_version``), and holds every snapshot of that
version exported before d began. New on day D are thus the partitions before D that have a file which that version did not,
and those of D − 1. However late a snapshot lands, and whatever was rebuilt, each user has the latest one before the day.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from feature_jobs.bucket_files import BucketFiles, partition_values
from feature_jobs.cache_folders import in_use
from feature_jobs.run_folders import run_folder
from feature_jobs.user_state_facts import FACTS, PROFILE, latest_of_each
from schemas.errors import BadInput
from schemas.lake import Lake, filesystem_of
from schemas.lake_folders import SPARK_COMPLETE
from schemas.tables import USER_STATE, USERS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WRITERS = 1024
"""Most tasks that write dealt snapshots."""


@dataclass(frozen=True)
class DealtSnapshots:
    """A folder of Parquet files by bucket (``user_bucket=N/``) of each user's latest new snapshot (PROFILE)."""

    uri: str

    def read(self, bucket: int) -> pa.Table:
        """The bucket's snapshots, in user order. Raises BadInput if the folder is not there any more, or not whole."""
        filesystem, root = filesystem_of(self.uri)
        found = filesystem.get_file_info(pafs.FileSelector(f"{root}/user_bucket={bucket}", allow_not_found=True))
        if filesystem.get_file_info(f"{root}/{SPARK_COMPLETE}").type is not pafs.FileType.File:  # looked for after the listing
            raise BadInput(f"{self.uri}: the snapshots dealt to buckets are missing or not whole; run `onerec pathways` again")
        parts = [PROFILE.empty_table()]
        for path in sorted(info.path for info in found if info.path.endswith(".parquet")):
            with in_use(self.uri), filesystem.open_input_file(path) as stream:
                parts.append(pq.ParquetFile(stream).read(columns=PROFILE.names, use_threads=False).cast(PROFILE))
        return latest_of_each(pa.concat_tables(parts))


def users_version(state: BucketFiles) -> int | None:
    """The version of ``users`` that a day's state was made from; None if it does not say."""
    column = pa.schema([USER_STATE.schema.field("users_version")])
    for bucket in state.buckets:
        rows = state.read(bucket, column)
        if len(rows):
            version: int | None = rows["users_version"][0].as_py()
            return version
    return None


def new_snapshot_dates(lake: Lake, date: dt.date, version: int, seen: int | None) -> list[dt.date]:
    """Partitions of ``users`` (at ``version``) to read for ``date``, given the version that yesterday's state has ``seen``.

    Without one, or where its log is gone by retention, every partition before the date: that is always right, and dear.
    """
    now = _paths(lake, version)
    before: set[str] = set()
    if seen is not None:
        try:
            then = _paths(lake, seen)
        except BadInput:
            then = {}
        before = {path for path, day in then.items() if day < date - dt.timedelta(days=1)}
    return sorted({day for path, day in now.items() if day < date and path not in before})


def _paths(lake: Lake, version: int) -> dict[str, dt.date]:
    files = partition_values(lake, USERS, version)
    return dict(zip(files["path"].to_pylist(), files["date"].to_pylist(), strict=True))


@contextmanager
def dealt(users: "DataFrame", lake: Lake, dates: list[dt.date]) -> Iterator[DealtSnapshots | None]:
    """Snapshots of some dates, shuffled to buckets by Spark into a folder of ``LAKE/cache`` that goes away at the end; None
    where there are no dates."""
    if not dates:
        yield None
        return
    with run_folder(lake, "snapshots") as uri:
        by_bucket(users, dates, lake.config.lake.user_buckets).write.partitionBy("user_bucket").parquet(uri)
        yield DealtSnapshots(uri)


def by_bucket(users: "DataFrame", dates: list[dt.date], buckets: int) -> "DataFrame":
    """Each user's latest snapshot of some dates (PROFILE and ``user_bucket``), one shuffle, a bucket in one partition.

    Partitions are dealt by number: by hash, a third of them would get nothing and others three buckets.
    """
    from pyspark.sql import functions as F

    writers = min(buckets, WRITERS)
    bucket = F.pmod(F.xxhash64("user_id"), F.lit(buckets)).cast("int")
    facts = F.struct(*(name for name in FACTS if name != "snapshot_date"))
    return (
        users.where(F.col("date").isin(dates))
        .withColumn("user_bucket", bucket)
        .withColumn("writer", F.pmod("user_bucket", F.lit(writers)))
        .repartitionById(writers, F.col("writer"))
        .groupBy("writer", "user_bucket", "user_id")
        .agg(F.max_by(facts, "date").alias("facts"), F.max("date").alias("snapshot_date"))
        .select("user_bucket", "user_id", "facts.*", "snapshot_date")
    )
