"""The target mask ``rsft``: exposure sessions in the bottom share by play duration are no targets (V1 §3.3; reference §5).

The paper leaves the unit open. ``session`` ranks whole sessions of the day, of all users, by their total play time;
``impression`` ranks the impressions within each session. In both, one is dropped if the share of its peers (itself
included) that played no longer is at most ``drop_share``: equals stay or go together, and never more than the share goes.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from feature_jobs.bucket_files import run_by_bucket
from feature_jobs.session import table_failures_named
from feature_jobs.shard_files import (
    MANIFEST,
    RSFT_MANIFEST,
    clean,
    data_files,
    day_folder,
    read_ipc,
    shards_root,
    write_ipc,
    write_manifest,
    writer_lock,
)
from feature_jobs.shards import existing_manifest
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, step_run
from schemas.shard_manifest import MASK_FORMAT
from schemas.shards import TARGET_MASK, USER_DAY

MASK_VERSION = 1
COLUMNS = pa.schema(
    [USER_DAY.field(name) for name in ("user_id", "request_session", "request_events", "event_play_time_ms", "event_target")]
)
"""What the rule looks at."""


def sessions_of_events(records: pa.Table) -> np.ndarray:
    """Each event's session, numbered from 0 over all users (int64, events)."""
    sessions = records["request_session"].combine_chunks()
    user_of_request = np.repeat(np.arange(len(records)), pc.list_value_length(sessions).to_numpy(zero_copy_only=False))
    session = sessions.flatten().to_numpy().astype(np.int64)
    width = int(session.max(initial=0)) + 1
    _, number = np.unique(user_of_request * width + session, return_inverse=True)
    return np.repeat(number, _flat(records["request_events"]))


def session_play_times(records: pa.Table) -> np.ndarray:
    """Total milliseconds played in each session (int64, sessions)."""
    session = sessions_of_events(records)
    totals = np.zeros(int(session.max(initial=-1)) + 1, np.int64)
    np.add.at(totals, session, _flat(records["event_play_time_ms"]))
    return totals


def session_cut(play_times: np.ndarray, counts: np.ndarray, drop_share: float) -> int:
    """Largest total play time that is dropped (−1: none), from distinct totals and how many sessions have each."""
    order = np.argsort(play_times)
    share = np.cumsum(counts[order]) / max(1, counts.sum())
    dropped = play_times[order][share <= drop_share]
    return int(dropped[-1]) if len(dropped) else -1


def keep_by_session(records: pa.Table, cut: int) -> np.ndarray:
    """Events (bool) whose session played longer than ``cut`` milliseconds."""
    return session_play_times(records)[sessions_of_events(records)] > cut


def keep_by_impression(records: pa.Table, drop_share: float) -> np.ndarray:
    """Events (bool) that are above the bottom share of their own session by play time."""
    session, play = sessions_of_events(records), _flat(records["event_play_time_ms"])
    if not len(session):
        return np.zeros(0, bool)
    order = np.lexsort((play, session))
    ordered_session, ordered_play = session[order], play[order]
    sizes = np.bincount(session)
    starts = np.cumsum(sizes) - sizes
    last = np.append((np.diff(ordered_session) != 0) | (np.diff(ordered_play) != 0), True)
    places = np.arange(len(order))
    last_equal = np.flatnonzero(last)[np.searchsorted(np.flatnonzero(last), places)]
    share = (last_equal + 1 - starts[ordered_session]) / sizes[ordered_session]
    keep = np.empty(len(order), bool)
    keep[order] = share > drop_share
    return keep


def days_to_catch_up(lake: Lake, date: dt.date, days: int) -> list[dt.date]:
    """Those of the ``days`` days before ``date`` that have a shard and no mask, oldest first."""
    root = shards_root(lake)
    before = [date - dt.timedelta(days=back) for back in range(days, 0, -1)]
    folders = {day: day_folder(root, day.isoformat()) for day in before}
    return [day for day, folder in folders.items() if (folder / MANIFEST).is_file() and not (folder / RSFT_MANIFEST).is_file()]


def run(spark: SparkSession, lake: Lake, date: dt.date) -> StepRun:
    """Write a day's mask ``rsft`` beside its shard, in the same user and event order. Raises BadInput without a shard."""
    root = shards_root(lake)
    settings = lake.config.rsft
    with step_run(lake, "shards", date) as step, writer_lock(root), table_failures_named():
        manifest = existing_manifest(root, date)
        folder = day_folder(root, date.isoformat())
        files = data_files(root, manifest)
        hashes = {entry["user_bucket"]: entry["sha256"] for entry in manifest["files"]}
        cut = _session_cut(spark, files, settings.drop_share)
        task = _mask_task(files, hashes, settings.unit, cut, settings.drop_share)
        parts = run_by_bucket(spark, sorted(files), task)
        totals = {name: sum(part[name] for part in parts) for name in ("all", "session", "impression")}
        counts = {unit: {"targets": totals[unit], "dropped": totals["all"] - totals[unit]} for unit in ("session", "impression")}
        body = {
            "format": MASK_FORMAT,
            "version": MASK_VERSION,
            "targets": "rsft",
            "unit": settings.unit,
            "drop_share": settings.drop_share,
            "counts": counts[settings.unit],
            "counts_by_unit": counts,
            "files": [part["file"] for part in parts],
        }
        write_manifest(folder / RSFT_MANIFEST, body)
        step.extra["files_removed"] = clean(root)
        kept, dropped = counts[settings.unit]["targets"], counts[settings.unit]["dropped"]
        reason = {f"bottom_share_of_{settings.unit}s": dropped}
        step.table("shards_targets_rsft", TableCounts(rows_in=totals["all"], rows_out=kept, rows_dropped=reason))
        step.extra |= {"unit": settings.unit, "session_cut_ms": cut, "counts_by_unit": counts}
    return step


def _session_cut(spark: SparkSession, files: dict[int, Path], drop_share: float) -> int:
    """The day's cut, from the distinct session totals of all buckets (at most 86.4 million a day, by millisecond)."""
    buckets = sorted(files)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                totals = session_play_times(read_ipc(files[buckets[index]], COLUMNS))
                values, counts = np.unique(totals, return_counts=True)
                yield pa.RecordBatch.from_pydict({"play_time_ms": values, "sessions": counts})

    totals = spark.range(0, len(buckets), 1, len(buckets)).mapInArrow(task, "play_time_ms long, sessions long")
    merged = totals.groupBy("play_time_ms").sum("sessions").toArrow()
    return session_cut(merged[0].to_numpy(), merged[1].to_numpy(), drop_share)


def _mask_task(
    files: dict[int, Path], hashes: dict[int, str], unit: str, cut: int, drop_share: float
) -> Callable[[int], dict[str, Any]]:
    def work(bucket: int) -> dict[str, Any]:
        records = read_ipc(files[bucket], COLUMNS)
        target = _flat(records["event_target"])
        masks = {
            "session": target & keep_by_session(records, cut),
            "impression": target & keep_by_impression(records, drop_share),
        }
        lists = records["event_target"].combine_chunks()
        offsets = pa.array(
            np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))]), pa.int32()
        )
        column = pa.ListArray.from_arrays(offsets, pa.array(masks[unit]))
        mask = pa.table([records["user_id"], column], schema=TARGET_MASK)
        file = write_ipc(mask, files[bucket].parent, f"targets-rsft-bucket={bucket:05d}", compressed=True)
        counts = {name: int(kept.sum()) for name, kept in masks.items()}
        return {"all": int(target.sum()), **counts, "file": {**file, "user_bucket": bucket, "data_sha256": hashes[bucket]}}

    return work


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = pc.list_flatten(column.combine_chunks()).to_numpy(zero_copy_only=False)
    return values
