"""Items and users: judged in Arrow, then compared with what the tables have, as Spark frames, and appended once.

They are few beside the events, and their keys have nothing to do with user buckets, so Spark's joins do.
"""

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_jobs.ingest.judging import judged_blocks
from feature_jobs.ingest.landing import Landing
from feature_jobs.ingest.rules import Columns, judge_items, judge_users
from feature_jobs.ingest.sources import Source, input_columns
from feature_jobs.ingest.values import Reasons
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.suppression import Suppression
from schemas.tables import ITEMS, Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEPT, DUPLICATE, REJECTED, FORGOTTEN = "kept", "duplicate", "rejected", "forgotten"


def judged_frame(spark: "SparkSession", landing: Landing, source: Source, date: dt.date, config: Config) -> "DataFrame":
    """A landing table's rows: its input columns, and of rejected rows (else null) ``_row``, ``_reasons`` and ``_file``."""
    from pyspark.sql.pandas.types import from_arrow_schema

    table = source.table
    columns = [column.with_nullable(True) for column in input_columns(table)]
    marks = [pa.field("_row", pa.string()), pa.field("_reasons", pa.list_(pa.string())), pa.field("_file", pa.string())]
    schema = pa.schema([*columns, *marks])

    def rules(read: Columns, dated: bool, reasons: Reasons) -> Columns:
        if table is ITEMS:
            return judge_items(read, dated, date, config, landing.uri, reasons)
        return judge_users(read, dated, date, reasons)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for judged in judged_blocks(landing, table, source.tasks[number], rules):
                    yield from _with_marks(judged.good, schema).to_batches()
                    named = judged.rejected.rename_columns({"row_json": "_row", "reasons": "_reasons", "source_file": "_file"})
                    yield from _with_marks(named, schema).to_batches()

    tasks = len(source.tasks)
    return spark.range(0, tasks, 1, max(tasks, 1)).mapInArrow(work, from_arrow_schema(schema))


def _with_marks(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with all of the schema's columns, absent ones null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def with_fates(rows: "DataFrame", published: "DataFrame", table: Table) -> "DataFrame":
    """Add ``_fate``: rejected rows; of the others, the first of each key that the table does not have yet is kept, the rest
    are duplicates, since versions and snapshots never change once published.

    First is by all columns in the table's order (nulls first), so that rows that tie are equal.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    good = F.col("_row").isNull()
    # a rejected row has no key to be grouped by: its own text spreads it over the partitions
    group = [F.when(good, F.col(name)) for name in table.key] + [F.xxhash64("_row")]
    order = [F.col(column.name).asc_nulls_first() for column in input_columns(table)]
    place = F.row_number().over(Window.partitionBy(*group).orderBy(*order))
    there = published.select(*table.key, F.lit(True).alias("_there"))
    ranked = rows.withColumn("_place", place)
    fate = F.when(~good, REJECTED).when((F.col("_place") == 1) & F.col("_there").isNull(), KEPT).otherwise(DUPLICATE)
    return ranked.join(there, list(table.key), "left").withColumn("_fate", fate).drop("_there", "_place")


def without_forgotten(spark: "SparkSession", rows: "DataFrame", suppression: Suppression) -> "DataFrame":
    """People who were forgotten (``onerec forget``): their rows are neither published nor quarantined, whatever is wrong."""
    from pyspark.sql import functions as F

    if not suppression.hashes:
        return rows
    listed = spark.createDataFrame([(value,) for value in sorted(suppression.hashes)], "_hash string")
    hashed = rows.withColumn("_hash", F.sha2(F.concat(F.lit(suppression.salt), "user_id"), 256))
    found = hashed.join(F.broadcast(listed.withColumn("_forgotten", F.lit(True))), "_hash", "left")
    fate = F.when(F.col("_forgotten"), FORGOTTEN).otherwise(F.col("_fate"))
    return found.withColumn("_fate", fate).drop("_hash", "_forgotten")


def append_once(lake: Lake, table: Table, pinned: int, rows: "DataFrame") -> None:
    """Append rows that were compared with version ``pinned`` of the table, if that is still its newest.

    Raises BadInput if another process wrote the table meanwhile: its rows may repeat ours. Delta skips a transaction
    whose number it has seen without a word, so the commit is looked up by its mark afterwards.
    """
    mark = uuid.uuid4().hex
    options = {"txnAppId": f"ingest-{table.name}", "txnVersion": str(pinned + 1), "userMetadata": mark}
    if lake.table_version(table) == pinned:
        rows.select(*table.schema.names).write.format("delta").mode("append").options(**options).save(lake.table_uri(table))
        if lake.open_table(table, pinned + 1).history(1)[0].get("userMetadata") == mark:
            return
    raise BadInput(f"{lake.table_uri(table)}: another process wrote it meanwhile; run this again when it has ended")
