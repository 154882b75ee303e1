"""Made histories, vectors and refreshes for the tests of the lifelong pathway; refreshes run without Spark, task by task."""

import datetime as dt
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from feature_jobs.lifelong import commit_refresh, plan_turn
from feature_jobs.lifelong_bucket import refresh_bucket
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun
from schemas.tables import HISTORY, HISTORY_BASE, ITEM_VECTORS, PATHWAY_LIFELONG
from tests.lake_rows import user_bucket, write_rows

DAY = dt.date(2026, 1, 5)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ITEM_IDS = [f"i{number}" for number in range(60)]
WITH_VECTORS = ITEM_IDS[:50]

USERS = [*(f"u{number}" for number in range(10)), "李雷", ""]

Row = dict[str, Any]
MakeLake = Callable[..., Lake]


def end_of(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), tzinfo=dt.UTC)


def micros(when: dt.datetime) -> int:
    return (when - EPOCH) // dt.timedelta(microseconds=1)


def behaviour(rng: random.Random, day: dt.date, items: Sequence[str] = ITEM_IDS) -> Row:
    """Shown on a day (some of them shortly before midnight), observed then or up to half an hour later."""
    shown = end_of(day) - dt.timedelta(minutes=rng.randrange(1, 90), microseconds=rng.randrange(99))
    return {
        "sample_id": rng.randrange(-(2**63), 2**63),
        "item_id": rng.choice(items),
        "author_id": rng.choice([None, "a", "b"]),
        "tags": rng.choice([None, [], ["t"], ["t", "u"]]),
        "ts": shown,
        "observed_ts": shown + dt.timedelta(minutes=rng.choice([0, 1, 30])),
        "play_time_ms": rng.randrange(1000),
        "duration_ms": rng.choice([None, 500, 700]),
        "feedback": rng.randrange(512),
    }


def day_rows(seed: int, users: Sequence[str], day: dt.date, most: int, items: Sequence[str] = ITEM_IDS) -> list[Row]:
    """Rows of ``history`` of one day, in random user order; some of the users are absent."""
    rng = random.Random(seed)
    rows = [
        {"user_id": user, "date": day, "behaviours": made}
        for user in users
        if (made := [behaviour(rng, day, items) for _ in range(rng.randrange(most))])
    ]
    rng.shuffle(rows)
    return rows


def publish_fusion(lake: Lake, seed: int, items: Sequence[str] = WITH_VECTORS) -> str:
    """Publish a fusion version with random vectors of these items."""
    version = Registry.of(lake).publish("fusion", {"seed": seed}, {}).version
    vectors = np.random.default_rng(seed).normal(size=(len(items), 6)).astype(np.float32)
    rows = [vector_row(item, vector.tolist(), source=version) for item, vector in zip(items, vectors, strict=True)]
    write_rows(lake, ITEM_VECTORS, rows)
    return version


def vector_row(item: str, vector: list[float], source: str = "f1", content: str = "c") -> Row:
    return {"item_id": item, "kind": "fused", "source": source, "content_hash": content, "presence_mask": 1, "vector": vector}


def vectors_of(lake: Lake, fusion: str) -> dict[str, np.ndarray]:
    rows = lake.read(ITEM_VECTORS).to_pylist()
    return {row["item_id"]: np.array(row["vector"], np.float32) for row in rows if row["source"] == fusion}


def refresh(lake: Lake, date: dt.date, fusion: str) -> dict[int, Row]:
    """A refresh of every bucket in this process; the tasks' reports."""
    step = StepRun("lifelong", date)
    buckets = list(range(lake.config.lake.user_buckets))
    turn = plan_turn(lake, date, step, fusion, buckets)
    reports = {bucket: refresh_bucket(turn, bucket) for bucket in buckets}
    commit_refresh(lake, date, step, reports)
    return reports


def total(reports: dict[int, Row], name: str) -> int:
    return sum(report["counts"].get(name, 0) for report in reports.values())


def bases(lake: Lake) -> dict[str, Row]:
    """The base's rows by user, with behaviours, landing days and leaves zipped into one list of dictionaries."""
    result = {}
    for row in lake.read(HISTORY).to_pylist():
        if row["date"] == HISTORY_BASE:
            assert row["user_id"] not in result
            lists = zip(row.pop("behaviours"), row.pop("landed"), row.pop("leaf"), strict=True)
            result[row["user_id"]] = row | {"entries": [{**one, "landed": day, "leaf": leaf} for one, day, leaf in lists]}
    return result


def waiting_days(lake: Lake) -> list[dt.date]:
    """Days of ``history`` that no base holds yet."""
    return sorted({row["date"] for row in lake.read(HISTORY, columns=["date"]).to_pylist()} - {HISTORY_BASE})


def pathways(lake: Lake, date: dt.date) -> dict[str, Row]:
    """``pathway_lifelong`` of a refresh by user."""
    rows = [row for row in lake.read(PATHWAY_LIFELONG).to_pylist() if row["refresh_date"] == date]
    assert len({row["user_id"] for row in rows}) == len(rows)
    return {row["user_id"]: row for row in rows}


def tables(lake: Lake) -> tuple[list[Row], list[Row]]:
    """Everything in the two tables that a refresh writes, in an order of its own."""
    return (
        sorted(lake.read(HISTORY).to_pylist(), key=lambda row: (row["date"], row["user_id"])),
        sorted(lake.read(PATHWAY_LIFELONG).to_pylist(), key=lambda row: (row["refresh_date"], row["user_id"])),
    )


def made(make_lake: MakeLake, name: str = "lake", **settings: Any) -> Lake:
    return make_lake(name, lifelong={"max_representatives": 12, "grown_share": 0.2, **settings})


def after(days: int) -> dt.date:
    return DAY + dt.timedelta(days=days)


def write_days(lake: Lake, first: int, last: int, most: int = 15, users: list[str] = USERS) -> list[Row]:
    rows = [row for number in range(first, last + 1) for row in day_rows(number, users, after(number), most)]
    write_rows(lake, HISTORY, rows)
    return rows


def rewrite_day(lake: Lake, day: dt.date, rows: list[Row]) -> None:
    """What a backfill does to a day of ``history``."""
    full = [row | {"user_bucket": user_bucket(row["user_id"], lake.config.lake.user_buckets)} for row in rows]
    table = pa.Table.from_pylist(full, schema=HISTORY.schema)
    write_deltalake(lake.table_uri(HISTORY), table, mode="overwrite", predicate=f"date = '{day.isoformat()}'")


def expected_representatives(row: Row, vectors: dict[str, np.ndarray], day: dt.date, most: int) -> list[Row]:
    """From a base's row, cluster by cluster: the member nearest the mean, its categorical features, averages of the others."""
    seen = [one for one in row["entries"] if one["observed_ts"] < end_of(day)]
    if len(seen) <= most:
        assert {one["leaf"] for one in row["entries"]} <= {-1}
        groups = [[one] for one in seen]
    else:
        groups = [[one for one in seen if one["leaf"] == leaf] for leaf in sorted({one["leaf"] for one in seen} - {-1})]
    found = []
    for members in groups:
        points = np.array([vectors.get(one["item_id"], np.zeros(6)) for one in members], np.float64)
        apart = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
        chosen = members[int(np.flatnonzero(apart <= apart.min() + 1e-6)[0])]
        shift = np.rint(sum(micros(one["ts"]) - micros(chosen["ts"]) for one in members) / len(members))
        lengths = [one["duration_ms"] for one in members if one["duration_ms"] is not None]
        found.append(
            {name: chosen[name] for name in ("item_id", "author_id", "tags", "feedback")}
            | {
                "ts": chosen["ts"] + dt.timedelta(microseconds=int(shift)),
                "play_time_ms": pytest.approx(np.mean([one["play_time_ms"] for one in members])),
                "duration_ms": pytest.approx(np.mean(lengths)) if lengths else None,
                "count": len(members),
            }
        )
    return sorted(found, key=lambda one: one["ts"])


def check(lake: Lake, date: dt.date, fusion: str, kept: Collection[str] = ()) -> None:
    """Every user's representatives follow from the base; those of ``kept`` users are of an earlier refresh."""
    most = lake.config.lifelong.max_representatives
    vectors = vectors_of(lake, fusion)
    found, held = pathways(lake, date), bases(lake)
    assert found.keys() == {
        user for user, row in held.items() if any(one["observed_ts"] < end_of(date) for one in row["entries"])
    }
    for user, row in found.items():
        times = [one["ts"] for one in row["representatives"]]
        assert times == sorted(times)
        assert len(times) <= most
        assert row["history_length"] == sum(one["count"] for one in row["representatives"])
        assert row["fusion_version"] == fusion
        if user not in kept:
            assert row["representatives"] == expected_representatives(held[user], vectors, date, most)


def clustered(lake: Lake) -> set[str]:
    return {user for user, row in bases(lake).items() if row["fusion_version"] is not None}
