"""Runs ingest, samples and pathways without Spark: their tasks one after another in this process, so that whole days cost little.

What Spark alone does is left out: catalogue rows come from the table ``items``, new snapshots of users do not come at all.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from feature_jobs import pathways, samples
from feature_jobs.ingest import job, shuffle
from feature_jobs.ingest.landing import open_landing
from schemas.lake import Lake

NO_SPARK: Any = cast(Any, SimpleNamespace(sparkContext=SimpleNamespace(defaultParallelism=2)))


def run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the jobs so that they run with NO_SPARK."""

    def in_turn(_: Any, buckets: Sequence[int], work: Callable[[int], Any]) -> list[Any]:
        return [json.loads(json.dumps(work(bucket))) for bucket in buckets]

    def dealt(_: Any, dealing: shuffle.Dealing) -> Iterator[pa.RecordBatch]:
        return (batch for number in range(len(dealing.source.tasks)) for batch in shuffle._deal(dealing, number))

    def on_groups(batches: Iterator[pa.RecordBatch], work: Callable[[int, Iterator[pa.Table]], str]) -> list[str]:
        blocks: dict[int, list[pa.Table]] = {}
        for group, block in shuffle.unpacked(batches):
            blocks.setdefault(group, []).append(block)
        return [work(group, iter(some)) for group, some in blocks.items()]

    monkeypatch.setattr(job, "dealt", dealt)
    monkeypatch.setattr(job, "work_on_groups", on_groups)
    monkeypatch.setattr(samples, "run_by_bucket", in_turn)
    monkeypatch.setattr(pathways, "run_by_bucket", in_turn)
    monkeypatch.setattr(pathways, "read_table", lambda *_: None)
    monkeypatch.setattr(pathways, "dealt", lambda *_: nullcontext(None))


def ingest(lake: Lake, zone: str, landing: dt.date) -> dict[str, Any]:
    """The report of ingesting a landing."""
    return job.run(NO_SPARK, lake, open_landing(zone), landing).to_json()


def run_day(lake: Lake, date: dt.date) -> dict[str, Any]:
    """The tables of the reports of samples and pathways of a date."""
    return {
        **samples.run_samples(NO_SPARK, lake, date)["tables"],
        **pathways.run_pathways(NO_SPARK, lake, date)["tables"],
    }
