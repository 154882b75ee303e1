"""What one day's lifelong rotation costs: 1 of 7 buckets of 400 million users, by CPU time of the task that Spark runs.

Users have lognormal histories (median 5,000, σ = 1, at most 100,000) and one in 200 has 100,000; each brings 45 behaviours a
day. A bucket of such users is clustered from scratch, then refreshed week by week. Where a user stands between two updates, and
between two clusterings from scratch, is drawn at random, so that a week holds as many of either as any other.
"""

import argparse
import datetime as dt
import sys
import tempfile
import time
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.harness import progress
from feature_jobs.bucket_files import bucket_files, item_keys, partition_values
from feature_jobs.lifelong import commit_refresh, plan_turn
from feature_jobs.lifelong_bucket import Turn, refresh_bucket
from feature_jobs.lifelong_history import BASE, NO_LEAF
from feature_jobs.partition_files import PartitionFile, commit_files
from schemas.config import Config, LakeSection, LifelongSection
from schemas.lake import Lake, create_lake
from schemas.runs import StepRun
from schemas.tables import BEHAVIOUR, HISTORY, HISTORY_BASE, ITEM_VECTORS, PATHWAY_LIFELONG, Table

USERS_A_DAY = 400_000_000 / 7
EVENTS_A_DAY = 45
MEDIAN, SIGMA, LONGEST = 5_000, 1.0, 100_000
ITEMS, DIMENSIONS, TOPICS = 200_000, 128, 256
START = dt.date(2026, 1, 5)
_DAY_MICROS = 86_400_000_000


class Log:
    """Behaviours of users whose interest drifts between topics; popular items of a topic come more often."""

    def __init__(self, users: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.users = pa.array([f"user{number:07d}" for number in range(users)])
        topics = self._random.normal(size=(TOPICS, DIMENSIONS))
        self._topic = np.sort(self._random.integers(TOPICS, size=ITEMS))
        self._starts = np.searchsorted(self._topic, np.arange(TOPICS + 1))
        self.vectors = (topics[self._topic] + self._random.normal(size=(ITEMS, DIMENSIONS))).astype(np.float32)
        self.vectors /= np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.items = pa.array([f"item{number:09d}" for number in range(ITEMS)])
        self._authors = pa.array([f"author{number % 20_000:06d}" for number in range(ITEMS)])
        self._tags = pa.array([[f"tag{number % 300}", f"tag{number % 97}"] for number in range(ITEMS)])
        self._favourites = self._random.integers(TOPICS, size=(users, 12))

    def day(self, counts: np.ndarray, first: dt.date, days: int) -> pa.Table:
        """Rows of ``history`` with so many behaviours a user, shown on ``days`` days from the first on."""
        owner = np.repeat(np.arange(len(counts)), counts)
        moved = self._random.random(self._favourites.shape) < 0.01 * min(days, 7)
        self._favourites = np.where(moved, self._random.integers(TOPICS, size=moved.shape), self._favourites)
        favourite = np.minimum(self._random.geometric(0.25, len(owner)) - 1, self._favourites.shape[1] - 1)
        topic = self._favourites[owner, favourite]
        width = np.diff(self._starts)[topic]
        item = self._starts[topic] + (width * self._random.random(len(owner)) ** 2).astype(np.int64)
        start = (first - dt.date(1970, 1, 1)).days * _DAY_MICROS
        shown = start + self._random.integers(days * _DAY_MICROS - 3_600_000_000, size=len(owner))
        shown = shown[np.lexsort((shown, owner))]
        played = self._random.integers(60_000, size=len(owner))
        taken = pa.array(item)
        values = {
            "sample_id": pa.array(self._random.integers(-(2**63), 2**63 - 1, len(owner))),
            "item_id": self.items.take(taken),
            "author_id": self._authors.take(taken),
            "tags": self._tags.take(taken),
            "ts": pa.array(shown).cast(BEHAVIOUR.field("ts").type),
            "observed_ts": pa.array(shown + played * 1000).cast(BEHAVIOUR.field("ts").type),
            "play_time_ms": pa.array(played),
            "duration_ms": pa.array(5_000 + item % 60_000),
            "feedback": pa.array(self._random.integers(512, size=len(owner)), pa.int32()),
        }
        flat = pa.StructArray.from_arrays([values[field.name] for field in BEHAVIOUR], fields=list(BEHAVIOUR))
        offsets = pa.array(np.append(0, np.cumsum(counts)), pa.int32())
        return pa.table({"user_id": self.users, "behaviours": pa.ListArray.from_arrays(offsets, flat)})


def history_lengths(users: int) -> np.ndarray:
    """The lengths that the quantiles of the distribution give, one user in 200 with the longest."""
    normal = NormalDist(np.log(MEDIAN), SIGMA)
    lengths = [min(int(np.exp(normal.inv_cdf((place + 0.5) / users))), LONGEST) for place in range(users)]
    lengths[-max(1, users // 200) :] = [LONGEST] * max(1, users // 200)
    return np.random.default_rng(0).permutation(lengths)


def core_hours_lifelong(quick: bool, seed: int) -> dict[str, Any]:
    """Core-hours of one day's rotation, updating and from scratch, and what stands behind them (ms and bytes a user).

    ``error_ratio_*``: within-cluster error of the last week's updated clusters as a multiple of that from scratch, a user
    (``feature_jobs.lifelong_users.error_ratio``). Takes less than a minute of one core if ``quick``.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), users=200 if quick else 800, weeks=2 if quick else 4, seed=seed)


def _measured(folder: Path, users: int, weeks: int, seed: int) -> dict[str, Any]:
    log = Log(users, seed)
    lake = create_lake(str(folder / "lake"), Config(lake=LakeSection(user_buckets=1)))
    _save_vectors(lake, log)
    counts = history_lengths(users)
    _write_day(lake, START, log.day(counts, START - dt.timedelta(days=364), 364))
    progress(f"{users} users, {counts.sum()} behaviours, median {np.median(counts):.0f}, longest {counts.max()}")
    first, _ = _refresh(lake, START)
    progress(f"first refresh: {first / users:.2f} ms a user")
    _draw_phases(lake, seed)
    updating, shares = [], []
    date = START
    for week in range(weeks):
        for _ in range(7):
            date += dt.timedelta(days=1)
            _write_day(lake, date, log.day(np.full(users, EVENTS_A_DAY), date, 1))
        if week == weeks - 1:
            scratch = _cpu_ms(_turn(lake, date, "another"))[0] / users  # written, and never committed
            audited = _audit(lake, date)
            progress(f"{date}: {scratch:.2f} ms a user from scratch; error ratios up to {max(audited):.3f}")
        spent, report = _refresh(lake, date)
        updating.append(spent / users)
        shares.append({name: report["counts"][name] / users for name in ("updated", "from_scratch", "kept")})
        progress(f"{date}: {updating[-1]:.2f} ms a user updating, {shares[-1]}")
    return {
        "core_hours_lifelong": _core_hours(fmean(updating)),
        "core_hours_from_scratch": _core_hours(scratch),
        "ms_a_user": fmean(updating),
        "ms_a_user_from_scratch": scratch,
        "ms_a_user_first_refresh": first / users,
        "shares": {name: fmean(share[name] for share in shares) for name in shares[0]},
        "error_ratio_mean": fmean(audited),
        "error_ratio_max": max(audited),
        "bytes_a_user_base": _bytes(lake, HISTORY) / users,
        "bytes_a_user_pathway": _bytes(lake, PATHWAY_LIFELONG, pads.field("refresh_date") == date) / users,
        "bytes_a_user_leaf": _column_bytes(lake, "leaf") / users,
        "behaviours_a_user": float(counts.mean()),
        "users": users,
    }


def _core_hours(ms_a_user: float) -> float:
    return ms_a_user * USERS_A_DAY / 3_600_000


def _turn(lake: Lake, date: dt.date, fusion: str = "fusion") -> Turn:
    return plan_turn(lake, date, StepRun("lifelong", date), fusion, [0])


def _cpu_ms(turn: Turn) -> tuple[float, dict[str, Any]]:
    started = time.process_time()
    report = refresh_bucket(turn, 0)
    return (time.process_time() - started) * 1000, report


def _refresh(lake: Lake, date: dt.date) -> tuple[float, dict[str, Any]]:
    step = StepRun("lifelong", date)
    spent, report = _cpu_ms(plan_turn(lake, date, step, "fusion", [0]))
    commit_refresh(lake, date, step, {0: report})
    return spent, report


def _audit(lake: Lake, date: dt.date) -> list[float]:
    """Error of every updated user's clusters as a multiple of that from scratch; written, and never committed."""
    audited = Lake(lake.root, Config(lake=lake.config.lake, lifelong=LifelongSection(audit_one_in=1)))
    audits: list[float] = refresh_bucket(_turn(audited, date), 0)["audits"]
    return audits


def _save_vectors(lake: Lake, log: Log) -> None:
    """The files that ``vector_files`` would write, for both fusion versions."""
    keys = item_keys(log.items).to_numpy()
    for fusion in ("fusion", "another"):
        folder = lake.local_path("cache") / f"vectors-{fusion}-{lake.table_version(ITEM_VECTORS)}"
        folder.mkdir(parents=True)
        order = np.argsort(keys)
        arrays = {"keys": keys[order], "rows": order, "vectors": log.vectors, "norms": (log.vectors**2).sum(axis=1)}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)


def _write_day(lake: Lake, date: dt.date, rows: pa.Table) -> None:
    file = PartitionFile(lake, HISTORY, {"user_bucket": "0", "date": date.isoformat()})
    file.write(rows)
    commit_files(lake, HISTORY, [file.close()], pads.field("date") == date)


def _draw_phases(lake: Lake, seed: int) -> None:
    """Put every user at a random point between two updates (the newest behaviours wait for a cluster) and between two
    clusterings from scratch (so many behaviours have joined since)."""
    settings, random = lake.config.lifelong, np.random.default_rng(seed)
    is_base = pads.field("date") == HISTORY_BASE
    rows = bucket_files(lake, HISTORY, lake.table_version(HISTORY), is_base).read(0, BASE).combine_chunks()
    leaves = rows["leaf"].combine_chunks()
    offsets = leaves.offsets.to_numpy()
    lengths = np.diff(offsets)
    waiting = (random.random(len(rows)) * np.minimum(settings.grown_share * lengths, settings.grown_behaviours)).astype(np.int64)
    # a history grows from n to n / (1 - rebuild_share) between two, and all stages of it, in logarithms, are equally likely
    since = lengths * (1 - (1 - settings.rebuild_share) ** random.random(len(rows)))
    joined = np.maximum(since.astype(np.int64) - waiting, 0)
    newest = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1]) <= np.repeat(waiting, lengths)
    leaf = np.where(newest, np.int16(NO_LEAF), leaves.flatten().to_numpy())
    columns = {"joined": pa.array(joined), "leaf": pa.ListArray.from_arrays(leaves.offsets, pa.array(leaf))}
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), BASE.field(name), values)
    file = PartitionFile(lake, HISTORY, {"user_bucket": "0", "date": HISTORY_BASE.isoformat()})
    for start in range(0, len(rows), 50):
        file.write(rows.slice(start, 50))
    commit_files(lake, HISTORY, [file.close()], is_base)


def _bytes(lake: Lake, table: Table, where: pads.Expression | None = None) -> int:
    files = partition_values(lake, table, lake.table_version(table))
    return int(sum((files if where is None else files.filter(where))["size_bytes"].to_pylist()))


def _column_bytes(lake: Lake, name: str) -> int:
    total = 0
    for uri in lake.open_table(HISTORY).file_uris():
        file = pq.ParquetFile(uri.removeprefix("file://")).metadata
        for group in range(file.num_row_groups):
            columns = [file.row_group(group).column(number) for number in range(file.num_columns)]
            total += sum(one.total_compressed_size for one in columns if one.path_in_schema.split(".")[0] == name)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for key, value in core_hours_lifelong(chosen.quick, chosen.seed).items():
        print(key, value, file=sys.stdout)
