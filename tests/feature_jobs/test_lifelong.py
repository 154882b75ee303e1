"""The lifelong pathway: which buckets a day refreshes, and what of a history its representatives keep."""

import datetime as dt
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs import lifelong
from feature_jobs.lifelong_bucket import HISTORY_COLUMNS, compress
from feature_jobs.lifelong_clusters import hierarchical_clusters
from feature_jobs.lifelong_vectors import VectorFiles, vector_files
from schemas.config import LifelongSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.shards import stable_key
from schemas.tables import HISTORY, ITEM_VECTORS, PATHWAY_LIFELONG
from tests.lake_rows import user_bucket, write_rows

DAY = dt.date(2026, 1, 5)
END = dt.datetime(2026, 1, 6, tzinfo=dt.UTC)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ITEM_IDS = [f"i{number}" for number in range(60)]


def history_rows(seed: int, users: list[str], count: int) -> list[dict[str, Any]]:
    """Behaviours of several days, unsorted times, some observed after the day's end, some of unknown length."""
    rng = random.Random(seed)
    rows = []
    for user in users:
        for back in range(3):
            behaviours = [
                {
                    "sample_id": rng.randrange(-(2**63), 2**63),
                    "item_id": rng.choice(ITEM_IDS),
                    "author_id": rng.choice([None, "a"]),
                    "tags": rng.choice([None, ["t"]]),
                    "ts": (shown := END - dt.timedelta(days=back, minutes=rng.randrange(1, 90), microseconds=rng.randrange(99))),
                    "observed_ts": shown + dt.timedelta(minutes=rng.choice([0, 1, 30])),
                    "play_time_ms": rng.randrange(1000),
                    "duration_ms": rng.choice([None, 500, 700]),
                    "feedback": rng.randrange(512),
                }
                for _ in range(rng.randrange(count))
            ]
            rows.append({"user_id": user, "behaviours": behaviours, "date": DAY - dt.timedelta(days=back)})
    rng.shuffle(rows)
    return rows


def save_vectors(folder: Path, items: list[str], seed: int = 0) -> tuple[VectorFiles, dict[str, np.ndarray]]:
    """Random unit vectors of these items, as the files that tasks map."""
    vectors = np.random.default_rng(seed).normal(size=(len(items), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = np.array([stable_key(item) for item in items])
    folder.mkdir()
    np.save(folder / "keys.npy", np.sort(keys))
    np.save(folder / "rows.npy", np.argsort(keys))
    np.save(folder / "vectors.npy", vectors)
    return VectorFiles(folder), dict(zip(items, vectors, strict=True))


def micros(when: dt.datetime) -> int:
    return (when - EPOCH) // dt.timedelta(microseconds=1)


def expected_rows(
    rows: list[dict[str, Any]], vectors: dict[str, np.ndarray], settings: LifelongSection
) -> dict[str, dict[str, Any]]:
    """By user, from the rule's own words; only the clustering itself is shared with the code."""
    result = {}
    for user in {row["user_id"] for row in rows}:
        observed = [one for row in rows if row["user_id"] == user for one in row["behaviours"] if one["observed_ts"] < END]
        observed.sort(key=lambda one: (one["observed_ts"], one["sample_id"]))
        kept = observed[max(0, len(observed) - settings.max_history) :]
        if len(kept) <= settings.max_representatives:
            cluster = representative = np.arange(len(kept))
        else:
            matrix = np.stack([vectors.get(one["item_id"], np.zeros(6, np.float32)) for one in kept])
            cluster, representative = hierarchical_clusters(matrix, settings.max_representatives, stable_key(user) % 2**64)
        found = []
        for number, chosen in enumerate(representative.tolist()):
            members = [one for one, mine in zip(kept, cluster.tolist(), strict=True) if mine == number]
            lengths = [one["duration_ms"] for one in members if one["duration_ms"] is not None]
            base = kept[chosen]
            shift = np.rint(sum(micros(one["ts"]) - micros(base["ts"]) for one in members) / len(members))
            values = {name: base[name] for name in ("item_id", "author_id", "tags", "feedback")} | {
                "ts": base["ts"] + dt.timedelta(microseconds=int(shift)),
                "play_time_ms": pytest.approx(np.mean([one["play_time_ms"] for one in members])),
                "duration_ms": pytest.approx(np.mean(lengths)) if lengths else None,
                "count": len(members),
            }
            found.append((values["ts"], chosen, values))
        clustered = len(kept) > settings.max_representatives
        result[user] = {
            "representatives": [values for *_, values in sorted(found, key=lambda one: one[:2])],
            "history_length": len(kept),
            "trimmed": len(observed) - len(kept),
            "without_vectors": sum(one["item_id"] not in vectors for one in kept) if clustered else 0,
        }
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("max_history", "max_representatives"), [(1000, 1000), (25, 12), (40, 1)])
def test_a_bucket_is_compressed_by_the_rule(tmp_path: Path, seed: int, max_history: int, max_representatives: int) -> None:
    settings = LifelongSection(max_history=max_history, max_representatives=max_representatives)
    rows = history_rows(seed, ["anna", "bert", "李雷", ""], count=30)
    files, vectors = save_vectors(tmp_path / "vectors", ITEM_IDS[:50])
    twice = [row | {"behaviours": [one | {"feedback": 0} for one in row["behaviours"][:5]]} for row in rows]
    table = pa.Table.from_pylist(rows + twice, schema=HISTORY.schema).select(HISTORY_COLUMNS.names)
    found = compress(table, micros(END), settings, files)
    expected = expected_rows(rows, vectors, settings)
    assert found["user_id"].to_pylist() == sorted(expected, key=str.encode)
    for row in found.to_pylist():
        assert {name: row[name] for name in expected[row["user_id"]]} == expected[row["user_id"]]
        times = [one["ts"] for one in row["representatives"]]
        assert times == sorted(times)


def test_the_rotation_takes_each_bucket_once() -> None:
    days = [DAY + dt.timedelta(days=offset) for offset in range(7)]
    turns = [bucket for day in days for bucket in lifelong.buckets_to_refresh(day, 20, 7, every=False)]
    assert sorted(turns) == list(range(20))
    assert lifelong.buckets_to_refresh(DAY, 4, 7, every=True) == [0, 1, 2, 3]


def test_vectors_are_streamed_to_files_once(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    with pytest.raises(BadInput, match="no vectors of fusion f1; run `onerec fuse`"):
        vector_files(lake, "f1", lake.table_version(ITEM_VECTORS))
    rows = [vector_row(item, [float(number), 1.0]) for number, item in enumerate(ITEM_IDS)]
    write_rows(lake, ITEM_VECTORS, rows[:30])
    write_rows(
        lake, ITEM_VECTORS, [*rows[30:], vector_row("i3", [7.0, 7.0], content="d"), vector_row("i4", [0.0, 0.0], content="b")]
    )
    write_rows(lake, ITEM_VECTORS, [vector_row("i0", [9.0, 9.0], source="f2")])
    files = vector_files(lake, "f1", lake.table_version(ITEM_VECTORS))
    place, found = files.look_up(np.array([stable_key(item) for item in [*ITEM_IDS, "unknown"]]))
    assert found.tolist() == [True] * 60 + [False]
    expected = {item: [float(number), 1.0] for number, item in enumerate(ITEM_IDS)} | {"i3": [7.0, 7.0]}
    assert files.vectors()[place[:60]].tolist() == [expected[item] for item in ITEM_IDS]
    before = (files.folder / "vectors.npy").stat().st_mtime_ns
    vector_files(lake, "f1", lake.table_version(ITEM_VECTORS))
    assert (files.folder / "vectors.npy").stat().st_mtime_ns == before
    assert [path.name for path in files.folder.parent.iterdir()] == [files.folder.name]


def vector_row(item: str, vector: list[float], source: str = "f1", content: str = "c") -> dict[str, Any]:
    return {"item_id": item, "kind": "fused", "source": source, "content_hash": content, "presence_mask": 1, "vector": vector}


def lake_with_history(make_lake: Callable[..., Lake], **settings: Any) -> tuple[Lake, list[dict[str, Any]], str]:
    lake = make_lake(lifelong={"max_representatives": 12, **settings})
    rows = history_rows(1, [f"u{number}" for number in range(12)], count=30)
    rows.append({"user_id": "late", "behaviours": [late_behaviour()], "date": DAY})
    write_rows(lake, HISTORY, rows)
    return lake, rows, publish_fusion(lake, 0)


def late_behaviour() -> dict[str, Any]:
    return {"sample_id": 1, "item_id": "i1", "ts": END, "observed_ts": END, "play_time_ms": 1, "feedback": 0}


def publish_fusion(lake: Lake, seed: int) -> str:
    version = Registry.of(lake).publish("fusion", {"seed": seed}, {}).version
    vectors = np.random.default_rng(seed).normal(size=(50, 6)).astype(np.float32)
    write_rows(
        lake,
        ITEM_VECTORS,
        [vector_row(item, vector.tolist(), source=version) for item, vector in zip(ITEM_IDS[:50], vectors, strict=True)],
    )
    return version


@pytest.mark.slow
def test_the_first_refresh_covers_every_bucket_and_later_ones_a_rotation(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake, rows, fusion = lake_with_history(make_lake, rotation=2)
    report = lifelong.run(spark, lake, DAY).to_json()
    assert report["buckets"] == [0, 1, 2, 3]
    vectors = {row["item_id"]: np.array(row["vector"], np.float32) for row in lake.read(ITEM_VECTORS).to_pylist()}
    expected = expected_rows(rows, vectors, lake.config.lifelong)
    found = {row["user_id"]: row for row in lake.read(PATHWAY_LIFELONG).to_pylist()}
    assert found.keys() == expected.keys() - {"late"}
    for user, row in found.items():
        assert row["representatives"] == expected[user]["representatives"]
        assert row["user_bucket"] == user_bucket(user, 4)
        assert (row["refresh_date"], row["fusion_version"]) == (DAY, fusion)
    assert report["tables"]["pathway_lifelong"] == {
        "rows_in": 13,
        "rows_out": 12,
        "rows_quarantined": 0,
        "rows_dropped": {"nothing_observed_yet": 1},
    }
    assert report["behaviours"] == sum(row["history_length"] for row in expected.values())
    assert report["behaviours_without_vectors"] == sum(row["without_vectors"] for row in expected.values()) > 0

    lifelong.run(spark, lake, DAY)
    assert {row["user_id"]: row for row in lake.read(PATHWAY_LIFELONG).to_pylist()} == found

    next_day = DAY + dt.timedelta(days=1)
    assert lifelong.run(spark, lake, next_day).to_json()["buckets"] == lifelong.buckets_to_refresh(next_day, 4, 2, every=False)
    publish_fusion(lake, 1)
    assert lifelong.run(spark, lake, next_day).to_json()["buckets"] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_day_on_which_no_bucket_has_its_turn_changes_nothing(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake, *_ = lake_with_history(make_lake, rotation=50)
    lifelong.run(spark, lake, DAY)
    before = lake.read(PATHWAY_LIFELONG).sort_by("user_id")
    quiet = next(day for day in (DAY + dt.timedelta(days=back) for back in range(1, 60)) if day.toordinal() % 50 > 3)
    assert lifelong.run(spark, lake, quiet).to_json()["buckets"] == []
    assert lake.read(PATHWAY_LIFELONG).sort_by("user_id").equals(before)


@pytest.mark.slow
def test_without_a_fusion_model_the_command_to_run_is_named(spark: Any, make_lake: Callable[..., Lake]) -> None:
    with pytest.raises(BadInput, match=r"no fusion model yet; run `onerec train-fusion`"):
        lifelong.run(spark, make_lake(), DAY)
