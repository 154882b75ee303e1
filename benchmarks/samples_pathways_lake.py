"""The lake that a typical day starts from: a full day of events before it, everybody's state at its end, the history's files.

A billion users, 400 million of them a day: the state holds 2.5 users for each active one. An active user's lifetime is
log-normal with median 5,000 behaviours (DESIGN §9), so nearly all of their lists are full (20, 256, 512); the others have a
median of 150. Written straight into the tables by the library's own writer; no job runs.
"""

import datetime as dt
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import write_deltalake

from benchmarks.samples_pathways_data import (
    DAY_BEFORE,
    World,
    day_events,
    item_durations,
    item_ids,
    item_versions,
    midnight,
    play_times,
    popular_items,
    user_ids,
    user_snapshots,
)
from feature_jobs.partition_files import FileReport, PartitionFile, commit_files
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.shards import stable_key
from schemas.tables import BEHAVIOUR, EVENTS, FEEDBACK, HISTORY, ITEMS, POSITIVE_BIT, USER_STATE, USERS

USERS_PER_ACTIVE = 2.5
LIFETIME_ACTIVE, LIFETIME_OTHERS = 5000, 150
POSITIVE_SHARE = 0.2
PENDING_SHARE = 0.005
HISTORY_DAYS, HISTORY_USERS = 28, 10
"""Days of ``history`` behind the day, each with a few users' rows a bucket: no daily step opens them, but they are in the log."""
LANDINGS_SEEN = 30
NEW_USERS = 100
"""One user in so many appears on the day for the first time."""
_USERS_AT_ONCE = 8192
_SECOND, _HOUR = 1_000_000, 3_600_000_000
_ALL_DONE = 900 * _SECOND
"""Feedback of what lies in the lists was complete so long before midnight, at least the longest play."""


@dataclass(frozen=True)
class Past:
    """What lies behind the day: the world, buckets, and how many times as long as usual the users' history is."""

    world: World
    buckets: int
    times: int = 1

    @property
    def config(self) -> Config:
        """The lake's configuration: the defaults but for the number of buckets."""
        return Config.model_validate({"lake": {"user_buckets": self.buckets}})


def make_lake(past: Past, folder: Path, processes: int = 2) -> Lake:
    """A lake at the end of DAY_BEFORE."""
    lake = create_lake(str(folder), past.config)
    everyone = np.arange(1 + int(past.world.users * USERS_PER_ACTIVE))
    keys = np.array([stable_key(name) for name in user_ids(everyone).to_pylist()])
    _append(lake, ITEMS, item_versions(past.world))
    _append(lake, USERS, user_snapshots(everyone, DAY_BEFORE - dt.timedelta(days=1)))
    in_state = lake.table_version(USERS)
    _append(lake, USERS, user_snapshots(everyone[: past.world.users], DAY_BEFORE))
    work = [(past, lake, bucket, everyone[keys % past.buckets == bucket], in_state) for bucket in range(past.buckets)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        reports = list(pool.map(_write_bucket, work))
    for table in (EVENTS, HISTORY, USER_STATE):
        commit_files(lake, table, [file for report in reports for file in report[table.name]], pads.scalar(True))
    return lake


def clone(lake: Lake, folder: Path) -> Lake:
    """The same lake elsewhere: data files, which never change, are linked, the rest is copied."""

    def place(source: str, target: str) -> str:
        if source.endswith(".parquet") and "_delta_log" not in source:
            os.link(source, target)
            return target
        return str(shutil.copy2(source, target))

    shutil.copytree(lake.root, folder, copy_function=place)
    return Lake(str(folder), lake.config)


def _append(lake: Lake, table: Any, rows: pa.Table) -> None:
    columns = []
    for field in table.schema:
        if field.name in rows.column_names:
            columns.append(rows[field.name].cast(field.type))
        else:
            columns.append(pa.repeat(pa.scalar(None if field.nullable else False, field.type), len(rows)))
    partitions = list(table.partition_by) or None
    write_deltalake(lake.table_uri(table), pa.table(columns, schema=table.schema), mode="append", partition_by=partitions)


def _write_bucket(work: tuple[Past, Lake, int, np.ndarray, int]) -> dict[str, list[FileReport | None]]:
    past, lake, bucket, numbers, users_version = work
    names = user_ids(numbers)
    numbers = numbers[pc.sort_indices(names).to_numpy()]
    generator = np.random.default_rng([past.world.seed, 5, bucket])
    states = PartitionFile(lake, USER_STATE, {"date": str(DAY_BEFORE), "user_bucket": str(bucket)})
    events = PartitionFile(lake, EVENTS, {"date": str(DAY_BEFORE), "landing_date": str(DAY_BEFORE), "user_bucket": str(bucket)})
    behaviours = None
    for start in range(0, len(numbers), _USERS_AT_ONCE):
        some = numbers[start : start + _USERS_AT_ONCE]
        state = user_states(past, some[some % NEW_USERS != 0], generator)
        state = state.append_column("users_version", pa.repeat(pa.scalar(users_version), len(state)))
        behaviours = behaviours or pa.table({"user_id": state["user_id"], "behaviours": state["short"]}).slice(0, HISTORY_USERS)
        states.write(state)
        active = some[(some >= 1) & (some <= past.world.users) & (some % NEW_USERS != 0)]
        events.write(published_events(past.world, active, generator))
    history = []
    for back in range(HISTORY_DAYS * past.times):
        day = DAY_BEFORE - dt.timedelta(days=back)
        file = PartitionFile(lake, HISTORY, {"user_bucket": str(bucket), "date": str(day)})
        if behaviours is not None:
            file.write(behaviours)
        history.append(file.close())
    return {USER_STATE.name: [states.close()], EVENTS.name: [events.close()], HISTORY.name: history}


def published_events(world: World, users: np.ndarray, generator: np.random.Generator) -> pa.Table:
    """Events of DAY_BEFORE as ingest published them, by user and time."""
    rows = day_events(world, generator, DAY_BEFORE, users)
    observed = pa.array(rows["ts"].cast(pa.int64()).to_numpy() + rows["play_time_ms"].to_numpy() * 1000)
    time = EVENTS.schema.field("observed_ts").type
    rows = rows.append_column("observed_ts", observed.cast(time)).append_column("ingested_at", observed.cast(time))
    for name in FEEDBACK:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.repeat(pa.scalar(False), len(rows)))
    return rows


def user_states(past: Past, users: np.ndarray, generator: np.random.Generator) -> pa.Table:
    """State (USER_STATE without partition columns) of some users at the end of DAY_BEFORE, in the order given."""
    active = users <= past.world.users
    median = np.where(active, LIFETIME_ACTIVE, LIFETIME_OTHERS) * past.times
    lifetime = np.maximum(1, median * np.exp(generator.normal(0, 1, len(users)))).astype(np.int64)
    drawn = popular_items(past.world, generator, 1 << 18)
    catalogue = item_versions(past.world).select(["author_id", "tags"])
    recent = np.minimum(lifetime, 20)
    older = np.minimum((lifetime - recent) * POSITIVE_SHARE, 256).astype(np.int64)
    owner = np.repeat(np.arange(len(users)), older + recent)
    last = np.cumsum(older + recent)
    in_short = np.arange(len(owner)) >= last[owner] - recent[owner]
    positive = ~in_short | (generator.random(len(owner)) < POSITIVE_SHARE)
    so_far = np.cumsum(positive)
    positive &= so_far[last - 1][owner] - so_far < 256
    gap = generator.exponential(np.where(in_short, 20 * 60 * _SECOND, 9 * _HOUR)).astype(np.int64)
    passed = np.cumsum(gap[::-1])[::-1]
    observed = midnight(DAY_BEFORE) + 24 * _HOUR - _ALL_DONE - (passed - np.append(passed, 0)[last][owner])
    values = _behaviours(past.world, catalogue, _draw(drawn, len(owner), generator), observed, positive, generator)
    waiting = np.flatnonzero(generator.random(len(users)) < np.where(active, PENDING_SHARE, 0))
    after = midnight(DAY_BEFORE) + 24 * _HOUR + generator.integers(0, 60 * _SECOND, len(waiting))
    pending = _behaviours(
        past.world, catalogue, _draw(drawn, len(waiting), generator), after, generator.random(len(waiting)) < 0.3, generator
    )
    keys = np.array([stable_key(name) for name in item_ids(np.arange(past.world.items)).to_pylist()])
    watched = np.repeat(np.arange(len(users)), np.minimum(lifetime, 512))
    seen = pa.array([[DAY_BEFORE - dt.timedelta(days=back) for back in range(LANDINGS_SEEN)][::-1]], pa.list_(pa.date32()))
    columns = {
        "user_id": user_ids(users),
        "short": _lists(owner[in_short], values.filter(pa.array(in_short)), len(users)),
        "positive": _lists(owner[positive], values.filter(pa.array(positive)), len(users)),
        "pending": _lists(waiting, pending, len(users)),
        "recent_items": _lists(watched, pa.array(keys[_draw(drawn, len(watched), generator)]), len(users)),
        "watch_histogram": _histograms(past.world, lifetime, drawn, generator),
        "active_days": pa.array(generator.integers(0, 1 << 55, len(users)) << 1 | active),
        "behaviours": pa.array(lifetime),
        "landings_seen": seen.take(pa.array(np.zeros(len(users), np.int64))),
        "landings_from": pa.repeat(pa.scalar(DAY_BEFORE - dt.timedelta(days=2 * LANDINGS_SEEN)), len(users)),
    }
    snapshot = user_snapshots(users, DAY_BEFORE - dt.timedelta(days=1)).rename_columns({"date": "snapshot_date"})
    return pa.table(columns | {name: snapshot[name] for name in snapshot.column_names})


def _draw(drawn: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    return drawn[generator.integers(0, len(drawn), size)]


def _behaviours(
    world: World,
    catalogue: pa.Table,
    items: np.ndarray,
    observed: np.ndarray,
    positive: np.ndarray,
    generator: np.random.Generator,
) -> pa.Array:
    """Behaviours (BEHAVIOUR) with items' own lengths, whose feedback was complete at ``observed`` (µs)."""
    duration = item_durations(world)[items]
    play = play_times(duration, generator)
    feedback = generator.integers(0, 2, len(items)) | positive << 7 | positive << POSITIVE_BIT
    taken = catalogue.take(pa.array(items)).combine_chunks()
    columns = {
        "sample_id": pa.array(generator.integers(-(2**63), 2**63 - 1, len(items))),
        "item_id": item_ids(np.arange(world.items)).take(pa.array(items)),
        "author_id": taken["author_id"].combine_chunks(),
        "tags": taken["tags"].combine_chunks(),
        "ts": pa.array(observed - play * 1000),
        "observed_ts": pa.array(observed),
        "play_time_ms": pa.array(play),
        "duration_ms": pa.array(duration, mask=duration < 0),
        "feedback": pa.array(feedback),
    }
    return pa.StructArray.from_arrays([columns[field.name].cast(field.type) for field in BEHAVIOUR], fields=list(BEHAVIOUR))


def _histograms(world: World, lifetime: np.ndarray, drawn: np.ndarray, generator: np.random.Generator) -> pa.Array:
    """Cells of up to 150 plays a user; a longer lifetime has larger counts."""
    plays = np.minimum(lifetime, 150)
    owner = np.repeat(np.arange(len(lifetime)), plays)
    duration = item_durations(world)[_draw(drawn, len(owner), generator)]
    play = play_times(duration, generator)

    def bucket(milliseconds: np.ndarray, base: float) -> np.ndarray:
        return np.where(milliseconds < 0, -1, np.log1p(np.maximum(milliseconds, 0) / 1000) / np.log(base)).astype(np.int64)

    key = (owner << 20) | (bucket(duration, 1.5) + 1) << 10 | bucket(play, 1.2)
    cells, counts = np.unique(key, return_counts=True)
    scale = np.maximum(lifetime // 150, 1)[cells >> 20]
    kind = USER_STATE.schema.field("watch_histogram").type.value_type
    arrays = [pa.array((cells >> 10 & 1023) - 1), pa.array(cells & 1023), pa.array(counts * scale)]
    return _lists(
        cells >> 20,
        pa.StructArray.from_arrays(
            [array.cast(field.type) for array, field in zip(arrays, kind, strict=True)], fields=list(kind)
        ),
        len(lifetime),
    )


def _lists(owner: np.ndarray, values: pa.Array, rows: int) -> pa.Array:
    ends = np.cumsum(np.bincount(owner, minlength=rows))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), values)
