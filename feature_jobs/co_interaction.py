"""``onerec co-interaction``: which items people engaged with together, over a window of days (reference §1).

An incidence is a user and an item that the user engaged with positively in the window. Each user keeps the latest
``max_items_per_user`` items (I_u); each item takes part with at most ``max_users_per_item`` of its users (U_i), chosen by
hash. Three kinds of directed pairs come out, at most ``max_pairs_per_item`` an item and kind:

* ``swing``: Σ over ordered pairs of users u ≠ v in U_a ∩ U_b of w_u w_v ÷ (α + |I_u ∩ I_v|), w_u = |I_u|^(−1/2);
* ``co_occurrence``: |U_a ∩ U_b| ÷ √(|U_a| |U_b|);
* ``user_to_item``: for each user in U_a, at the request of the latest positive impression of a, the item b of I_u with the
  highest swing among those whose feedback was known before that request (equal ones: the smaller item id); the score is
  the swing of the pair, the support the users who chose it.
"""

import datetime as dt
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from feature_jobs.bucket_files import partition_values
from feature_jobs.co_interaction_blocks import block_pairs, user_lists
from feature_jobs.partition_files import check_unchanged
from feature_jobs.session import table_failures_named
from feature_jobs.stale import clear_stale
from schemas.config import CoInteractionSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.shards import stable_key
from schemas.tables import CO_INTERACTION, DAILY_SAMPLES

_PAIRS = "kind string, item_a string, item_b string, score double, support long, dropped long"


def incidences(samples: DataFrame, settings: CoInteractionSection) -> DataFrame:
    """Positive samples as one row a user and item: when it was last requested and first known, and its two ranks.

    ``place`` is its place among the user's items, latest first; ``draw`` its place in the random order of the item's users,
    among the incidences that the user keeps (null for the others).
    """
    latest_first = Window.partitionBy("user_id").orderBy(F.desc("requested"), "item_id")
    by_hash = Window.partitionBy("item_id", "kept").orderBy(F.xxhash64("item_id", "user_id"), "user_id")
    return (
        samples.where("positive")
        .select("user_id", "item_id", "request_ts", "observed_ts")
        .repartition("user_id")
        .groupBy("user_id", "item_id")
        .agg(F.max("request_ts").alias("requested"), F.min("observed_ts").alias("observed"))
        .withColumn("place", F.row_number().over(latest_first))
        .withColumn("kept", F.col("place") <= settings.max_items_per_user)
        .withColumn("draw", F.when(F.col("kept"), F.row_number().over(by_hash)))
        .withColumn("users", F.count("*").over(Window.partitionBy("item_id", "kept")))
    )


def pairs(rows: DataFrame, settings: CoInteractionSection, blocks: int) -> DataFrame:
    """Scored pairs from ``incidences``: ``PAIRS`` columns. Each of ``blocks`` blocks of items is one Arrow group.

    A user's list travels once to each block that holds one of the items, so the shuffle carries at most
    Σ_u min(|I_u|, blocks) · |I_u| entries.
    """
    entry = F.struct(
        "item_id",
        (F.col("draw") <= settings.max_users_per_item).alias("sampled"),
        F.least(F.col("users"), F.lit(settings.max_users_per_item)).alias("item_users"),
        F.unix_micros("requested").alias("requested"),
        F.unix_micros("observed").alias("observed"),
    )
    lists = (
        rows.where("kept")
        .groupBy("user_id")
        .agg(
            F.sort_array(F.collect_list(entry)).alias("items"),
            F.collect_set(
                F.when(F.col("draw") <= settings.max_users_per_item, F.expr(f"pmod(xxhash64(item_id), {blocks})"))
            ).alias("blocks"),
        )
    )
    sent = lists.select(F.explode("blocks").alias("block"), "user_id", "items")
    scored: DataFrame = sent.groupBy("block").applyInArrow(_block_task(settings, blocks), _PAIRS)
    return scored


def run(spark: SparkSession, lake: Lake, date: dt.date) -> StepRun:
    """Replace the pairs of the window that ends on ``date``.

    Raises BadInput if that day has no samples, or samples of the window were written anew meanwhile.
    """
    settings = lake.config.co_interaction
    with step_run(lake, "co-interaction", date) as step, table_failures_named():
        version = step.reads(lake, DAILY_SAMPLES)
        first = date - dt.timedelta(days=settings.window_days - 1)
        held = set(partition_values(lake, DAILY_SAMPLES, version)["date"].to_pylist())
        if date not in held:
            raise BadInput(f"{lake.table_uri(DAILY_SAMPLES)}: no samples of {date}; run `onerec samples --date {date}` first")
        samples = (
            spark.read.format("delta")
            .option("versionAsOf", version)
            .load(lake.table_uri(DAILY_SAMPLES))
            .where(F.col("date").between(first, date))
        )
        blocks = int(spark.conf.get("spark.sql.shuffle.partitions", "200") or 200)
        result = pairs(incidences(samples, settings), settings, blocks).persist()
        # not an Observation on the write: adaptive execution drops it, and with it the counts, where no pair comes out
        totals = result.agg(F.count("*").alias("kept"), F.coalesce(F.sum("dropped"), F.lit(0)).alias("dropped")).collect()[0]
        in_window = (pads.field("date") >= first) & (pads.field("date") <= date)
        check_unchanged(lake, DAILY_SAMPLES, (version, in_window))
        (
            result.drop("dropped")
            .withColumn("date", F.lit(date))
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", f"date = '{date.isoformat()}'")
            .save(lake.table_uri(CO_INTERACTION))
        )
        result.unpersist()
        kept, dropped = totals["kept"], totals["dropped"]
        step.table(CO_INTERACTION, TableCounts(kept + dropped, kept, rows_dropped={"over_max_pairs_per_item": dropped}))
        # Who changes samples marks this day as stale: its mark must not go for pairs of the samples before.
        check_unchanged(lake, DAILY_SAMPLES, (version, in_window))
        clear_stale(lake, date, "co-interaction")
        step.extra["window"] = [day.isoformat() for day in sorted(held) if first <= day <= date]
    return step


def _block_task(settings: CoInteractionSection, blocks: int) -> Callable[[tuple[pa.Scalar, ...], pa.Table], pa.Table]:
    def score(key: tuple[pa.Scalar, ...], users: pa.Table) -> pa.Table:
        lists = user_lists(users)
        block = key[0].as_py()
        wanted = np.array([stable_key(item) % blocks == block for item in lists.item_ids])
        return block_pairs(lists, np.flatnonzero(wanted), settings.swing_alpha, settings.max_pairs_per_item)

    return score
