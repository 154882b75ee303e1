"""Events dealt to their user buckets: Spark's shuffle of a few large rows, each a block of Arrow rows of one bucket.

A row of Spark's for every impression would be converted twice between Python's columns and the JVM's rows. Here a task
judges its files in Arrow, sorts what it read by bucket and hands over one compressed block a bucket: Spark moves, spills
and, where a machine is lost, recomputes them as it does any row.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feature_jobs.ingest.cap import within_the_cap
from feature_jobs.ingest.judging import fill_a_pack, judged_blocks
from feature_jobs.ingest.landed_keys import LandedKeys
from feature_jobs.ingest.landing import Landing
from feature_jobs.ingest.rules import Bounds, Columns, judge_events
from feature_jobs.ingest.sources import Source, input_columns
from feature_jobs.ingest.values import Reasons
from feature_jobs.item_versions import ItemVersions
from feature_jobs.samples_drops import OVER_THE_CAP
from schemas.shards import stable_key
from schemas.tables import EVENTS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LANDED = pa.schema([*(column.with_nullable(True) for column in input_columns(EVENTS)), pa.field("date", pa.date32())])
"""Good events on their way to a bucket."""
PACKED = "group int, block binary"
ROWS_AT_ONCE = 1 << 20
"""Rows that are sorted by bucket together: more make larger blocks, and need more memory."""
BUCKETS_A_REJECTING_GROUP = 64
TALLY = pa.schema([pa.field("read", pa.int64()), pa.field(OVER_THE_CAP, pa.int64())])
"""Rows that a task read, before they were judged: what became of them must add up to it. And those that it dropped itself."""


@dataclass(frozen=True)
class KnownItems:
    """Items that a catalogue row knows: of the published table, or of this landing."""

    published: ItemVersions
    landed: LandedKeys

    def __call__(self, items: pa.Array) -> np.ndarray:
        """Whether each item is known (bool; False for null)."""
        return self.published.known(items, self.landed.keys())


@dataclass(frozen=True)
class Dealing:
    """What a task needs to judge events and deal them to ``buckets`` groups, and rejected rows to ``rejecting`` more; of a
    user's day it need not deal more than ``cap`` impressions."""

    landing: Landing
    source: Source
    known: KnownItems
    bounds: Bounds
    buckets: int
    cap: int

    @property
    def rejecting(self) -> int:
        """Groups that take rejected rows."""
        return 1 + self.buckets // BUCKETS_A_REJECTING_GROUP

    @property
    def tally(self) -> int:
        """The last group: how many rows were read, and dropped (TALLY)."""
        return self.buckets + self.rejecting


def dealt(spark: "SparkSession", dealing: Dealing) -> "DataFrame":
    """PACKED rows, partitioned by group: groups 0 … buckets − 1 hold LANDED rows, then REJECTED rows, the last TALLY."""
    tasks = len(dealing.source.tasks)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from _deal(dealing, number)

    packed = spark.range(0, tasks, 1, max(tasks, 1)).mapInArrow(work, PACKED)
    return packed.repartitionById(dealing.tally + 1, packed["group"])


def _deal(dealing: Dealing, number: int) -> Iterator[pa.RecordBatch]:
    def rules(columns: Columns, _: bool, reasons: Reasons) -> Columns:
        return judge_events(columns, dealing.known, dealing.bounds, reasons)

    waiting: list[pa.Table] = []
    rejected: list[pa.Table] = []
    groups = itertools.cycle(range(dealing.buckets, dealing.tally))
    group = next(itertools.islice(groups, number % dealing.rejecting, None))
    read = dropped = 0
    for judged in judged_blocks(dealing.landing, EVENTS, dealing.source.tasks[number], rules):
        read += judged.read
        waiting.append(judged.good.select(LANDED.names).cast(LANDED))
        rejected.append(judged.rejected)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            rows, users, over = within_the_cap(pa.concat_tables(waiting), dealing.cap)
            yield from by_bucket(rows, users, dealing.buckets)
            waiting, dropped = [], dropped + over
        if fill_a_pack(rejected):
            yield packed(group, pa.concat_tables(rejected))
            rejected, group = [], next(groups)
    if waiting:
        rows, users, over = within_the_cap(pa.concat_tables(waiting), dealing.cap)
        yield from by_bucket(rows, users, dealing.buckets)
        dropped += over
    if any(map(len, rejected)):
        yield packed(group, pa.concat_tables(rejected))
    yield packed(dealing.tally, pa.table([[read], [dropped]], schema=TALLY))


def by_bucket(rows: pa.Table, users: pa.DictionaryArray, buckets: int) -> Iterator[pa.RecordBatch]:
    """The rows of each bucket that has some, packed; ``users`` is their column ``user_id``, encoded."""
    bucket_of = np.array([stable_key(user) % buckets for user in users.dictionary.to_pylist()], np.int32)
    bucket = bucket_of[users.indices.to_numpy()].astype(np.min_scalar_type(buckets))
    order = np.argsort(bucket, kind="stable")
    ordered = rows.take(pa.array(order))
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        yield packed(number, ordered.slice(bounds[number], bounds[number + 1] - bounds[number]))


def packed(group: int, rows: pa.Table) -> pa.RecordBatch:
    """One PACKED row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
    return pa.RecordBatch.from_arrays(
        [pa.array([group], pa.int32()), pa.array([sink.getvalue().to_pybytes()], pa.binary())], ["group", "block"]
    )


def unpacked(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """The blocks of a partition, each with its group, one at a time."""
    for batch in batches:
        for group, block in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
            yield group, pa.ipc.open_stream(block.as_buffer()).read_all()


def work_on_groups(frame: "DataFrame", work: Callable[[int, Iterator[pa.Table]], str]) -> list[str]:
    """``work(group, blocks)`` of each group that has rows, one task each; what they return."""

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for group, blocks in itertools.groupby(unpacked(batches), key=lambda entry: entry[0]):
            yield pa.RecordBatch.from_pydict({"report": [work(group, (rows for _, rows in blocks))]})

    return [row["report"] for row in frame.mapInArrow(task, "report string").collect()]
