"""Items and users: judged in Arrow, then compared with what the tables have, as Spark frames, and appended once.

They are few beside the events, and their keys have nothing to do with user buckets, so Spark's joins do.
"""

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feature_jobs.ingest.forgotten import forgotten_users, of_forgotten
from feature_jobs.ingest.judging import Judged, judged_blocks
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
MARKS = [
    pa.field("_row", pa.string()),
    pa.field("_reasons", pa.list_(pa.string())),
    pa.field("_file", pa.string()),
    pa.field("_forgotten", pa.bool_()),
    pa.field("_read", pa.int64()),
]
"""Of rejected rows (else null) the row, why and from where; whether it is of a forgotten person; in a block's first row the
number of rows that were read, else 0: the sum is how many rows there were, whatever is done to the frame."""


def judged_frame(
    spark: "SparkSession", landing: Landing, source: Source, date: dt.date, config: Config, suppression: Suppression
) -> "DataFrame":
    """A landing table's rows: its input columns, and MARKS."""
    from pyspark.sql.pandas.types import from_arrow_schema

    table = source.table
    schema = pa.schema([*(column.with_nullable(True) for column in input_columns(table)), *MARKS])

    def rules(read: Columns, dated: bool, reasons: Reasons) -> Columns:
        if table is ITEMS:
            return judge_items(read, dated, date, config, landing.uri, reasons)
        return judge_users(read, dated, date, reasons)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for judged in judged_blocks(landing, table, source.tasks[number], rules):
                    yield from _marked(judged, schema, suppression).to_batches()

    tasks = len(source.tasks)
    return spark.range(0, tasks, 1, max(tasks, 1)).mapInArrow(work, from_arrow_schema(schema))


def _marked(judged: Judged, schema: pa.Schema, suppression: Suppression) -> pa.Table:
    """A block's rows with their marks."""
    rejected = judged.rejected.rename_columns({"row_json": "_row", "reasons": "_reasons", "source_file": "_file"})
    rows = pa.concat_tables([_with_all(judged.good, schema), _with_all(rejected, schema)])
    marks = {"_read": np.where(np.arange(len(rows)) == 0, judged.read, 0)}
    if "user_id" in schema.names:  # a row of items is nobody's
        by_id = forgotten_users(judged.good["user_id"], suppression)
        marks["_forgotten"] = np.append(by_id, of_forgotten(judged.rejected, suppression))
    for name, values in marks.items():
        rows = rows.set_column(schema.get_field_index(name), schema.field(name), pa.array(values))
    return rows


def _with_all(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with all of the schema's columns, absent ones null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def with_fates(rows: "DataFrame", published: "DataFrame", table: Table) -> "DataFrame":
    """Add ``_fate``: rows of people who were forgotten (``onerec forget``), which are neither published nor quarantined,
    whatever is wrong with them; rejected rows; of the others, the first of each key that the table does not have yet is
    kept, the rest are duplicates, since versions and snapshots never change once published.

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
    fate = F.when(F.col("_forgotten"), FORGOTTEN).otherwise(fate)
    return ranked.join(there, list(table.key), "left").withColumn("_fate", fate).drop("_there", "_place")


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
