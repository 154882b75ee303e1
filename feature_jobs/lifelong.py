"""``onerec lifelong``: histories compressed to representatives, one bucket in ``lifelong.rotation`` a day.

Bucket b is refreshed on day D if b mod rotation = D's ordinal mod rotation; the first refresh, and the first after a new
fusion version, covers every bucket. Each task reads one bucket's files of ``history`` and maps the fused vectors.
"""

import datetime as dt
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.dataset as pads
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from feature_jobs.bucket_files import BucketFiles, bucket_files
from feature_jobs.lifelong_bucket import COMPRESSED, HISTORY_COLUMNS, compress
from feature_jobs.lifelong_vectors import VectorFiles, vector_files
from feature_jobs.session import table_failures_named
from feature_jobs.stale import clear_stale
from schemas.config import LifelongSection
from schemas.errors import BadInput
from schemas.lake import Lake, day_start
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import HISTORY, ITEM_VECTORS, PATHWAY_LIFELONG

_USERS_PER_BATCH = 1000


def buckets_to_refresh(date: dt.date, user_buckets: int, rotation: int, *, every: bool) -> list[int]:
    """Buckets whose turn it is on a day, or every bucket."""
    return [bucket for bucket in range(user_buckets) if every or bucket % rotation == date.toordinal() % rotation]


def run(spark: SparkSession, lake: Lake, date: dt.date) -> StepRun:
    """Replace the refresh of ``date`` for the buckets whose turn it is.

    Raises BadInput if no fusion model is published, or it has given no vectors yet.
    """
    with step_run(lake, "lifelong", date) as step, table_failures_named():
        fusion = published_fusion(lake)
        history_version = step.reads(lake, HISTORY)
        every = not refreshed_before(lake, date, fusion)
        buckets = buckets_to_refresh(date, lake.config.lake.user_buckets, lake.config.lifelong.rotation, every=every)
        step.extra |= {"buckets": buckets, "fusion_version": fusion}
        if buckets:
            vectors = vector_files(lake, fusion, step.reads(lake, ITEM_VECTORS))
            known = pads.field("date") <= date
            files = bucket_files(lake, HISTORY, history_version, known & pads.field("user_bucket").isin(buckets))
            _refresh(spark, lake, date, step, files, vectors, buckets, fusion)
        else:
            step.table(PATHWAY_LIFELONG, TableCounts(0, 0))
        clear_stale(lake, date, "lifelong")
    return step


def published_fusion(lake: Lake) -> str:
    """The fusion version in force. Raises BadInput before the first."""
    registry = Registry.of(lake)
    version = registry.latest("fusion")
    if version is None:
        raise BadInput(f"{registry.root}: no fusion model yet; run `onerec train-fusion`, then `onerec fuse`")
    return version


def refreshed_before(lake: Lake, date: dt.date, fusion_version: str) -> bool:
    """Whether a refresh of an earlier day already used this fusion version."""
    same = (pads.field("refresh_date") < date) & (pads.field("fusion_version") == fusion_version)
    return lake.dataset(PATHWAY_LIFELONG).head(1, filter=same, columns=["user_id"]).num_rows > 0


def _refresh(
    spark: SparkSession,
    lake: Lake,
    date: dt.date,
    step: StepRun,
    files: BucketFiles,
    vectors: VectorFiles,
    buckets: list[int],
    fusion: str,
) -> None:
    end = int(day_start(date + dt.timedelta(days=1), lake.config).timestamp()) * 1_000_000
    compressed = _compressed(spark, files, end, lake.config.lifelong, vectors).persist()
    has_history = F.col("history_length") > 0
    over = F.col("history_length") > F.size("representatives")
    totals = compressed.agg(
        F.count("*").alias("users"),
        F.count(F.when(has_history, 1)).alias("refreshed"),
        F.count(F.when(over, 1)).alias("users_compressed"),
        *[F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in ("history_length", "trimmed", "without_vectors")],
    ).collect()[0]
    rows = compressed.where(has_history).select(
        "user_id",
        "representatives",
        "history_length",
        F.lit(fusion).alias("fusion_version"),
        F.lit(date).alias("refresh_date"),
        "user_bucket",
    )
    covered = ", ".join(str(bucket) for bucket in buckets)
    (
        rows.write.format("delta")
        .mode("overwrite")
        .option("replaceWhere", f"refresh_date = '{date.isoformat()}' AND user_bucket IN ({covered})")
        .save(lake.table_uri(PATHWAY_LIFELONG))
    )
    compressed.unpersist()
    waiting = totals["users"] - totals["refreshed"]
    step.table(
        PATHWAY_LIFELONG, TableCounts(totals["users"], totals["refreshed"], rows_dropped={"nothing_observed_yet": waiting})
    )
    step.extra |= {
        "behaviours": totals["history_length"],
        "behaviours_trimmed": totals["trimmed"],
        "behaviours_without_vectors": totals["without_vectors"],
        "users_compressed": totals["users_compressed"],
    }


def _compressed(
    spark: SparkSession, files: BucketFiles, end_micros: int, settings: LifelongSection, vectors: VectorFiles
) -> DataFrame:
    """``COMPRESSED`` and ``user_bucket`` of every bucket that has files, one task a bucket."""
    buckets = files.buckets
    schema = COMPRESSED.append(pa.field("user_bucket", pa.int32(), nullable=False))

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                rows = compress(files.read(buckets[index], HISTORY_COLUMNS), end_micros, settings, vectors)
                rows = rows.append_column(
                    schema.field("user_bucket"), pa.repeat(pa.scalar(buckets[index], pa.int32()), len(rows))
                )
                yield from rows.to_batches(max_chunksize=_USERS_PER_BATCH)

    work: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]] = task
    frame: DataFrame = spark.range(0, len(buckets), 1, max(1, len(buckets))).mapInArrow(work, from_arrow_schema(schema))
    return frame
