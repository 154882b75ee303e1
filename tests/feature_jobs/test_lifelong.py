"""The lifelong step in Spark: which buckets a day refreshes, what it reports, and the vectors as mapped files."""

import datetime as dt
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from feature_jobs import lifelong
from feature_jobs.lifelong_vectors import vector_files
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.shards import stable_key
from schemas.tables import HISTORY, ITEM_VECTORS, PATHWAY_LIFELONG
from tests.feature_jobs.lifelong_lake import (
    DAY,
    ITEM_IDS,
    bases,
    day_rows,
    end_of,
    expected_representatives,
    pathways,
    publish_fusion,
    refresh,
    tables,
    vector_row,
    vectors_of,
    waiting_days,
)
from tests.lake_rows import user_bucket, write_rows

USERS = [f"u{number}" for number in range(12)]


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
    place = files.rows_of(np.array([stable_key(item) for item in [*ITEM_IDS, "unknown"]]))
    assert (place >= 0).tolist() == [True] * 60 + [False]
    expected = {item: [float(number), 1.0] for number, item in enumerate(ITEM_IDS)} | {"i3": [7.0, 7.0]}
    items = files.vectors()
    assert items.take(place).tolist() == [*(expected[item] for item in ITEM_IDS), [0.0, 0.0]]
    assert items.squares(place).tolist() == [*(expected[item][0] ** 2 + expected[item][1] ** 2 for item in ITEM_IDS), 0.0]
    before = (files.folder / "vectors.npy").stat().st_mtime_ns
    vector_files(lake, "f1", lake.table_version(ITEM_VECTORS))
    assert (files.folder / "vectors.npy").stat().st_mtime_ns == before
    assert [path.name for path in files.folder.parent.iterdir()] == [files.folder.name]


def test_vectors_in_use_stay_while_a_run_of_another_fusion_begins(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, ITEM_VECTORS, [vector_row("i0", [1.0, 2.0]), vector_row("i0", [9.0, 9.0], source="f2")])
    version = lake.table_version(ITEM_VECTORS)
    older = vector_files(lake, "f1", version)
    write_rows(lake, ITEM_VECTORS, [vector_row("i1", [5.0, 5.0])])
    newer = vector_files(lake, "f1", lake.table_version(ITEM_VECTORS))
    key = np.array([stable_key("i0")])
    for files in (older, newer, vector_files(lake, "f2", version)):
        assert files.rows_of(key).min() >= 0
    assert older.vectors().take(older.rows_of(key)).tolist() == [[1.0, 2.0]]
    for path in [older.folder, *older.folder.iterdir()]:
        os.utime(path, (0, 0))
    assert vector_files(lake, "f1", lake.table_version(ITEM_VECTORS)) == newer
    for use in (older.vectors, lambda: older.rows_of(key)):
        with pytest.raises(BadInput, match="this folder of the cache was removed while it was in use; run the step again"):
            use()
    assert newer.rows_of(key).min() >= 0


def lake_with_history(make_lake: Callable[..., Lake], name: str = "lake", **settings: Any) -> tuple[Lake, str]:
    lake = make_lake(name, lifelong={"max_representatives": 12, **settings})
    for back in range(3):
        write_rows(lake, HISTORY, day_rows(back, USERS, DAY - dt.timedelta(days=back), most=20))
    write_rows(lake, HISTORY, [{"user_id": "late", "behaviours": [late_behaviour()], "date": DAY}])
    return lake, publish_fusion(lake, 0)


def late_behaviour() -> dict[str, Any]:
    return {"sample_id": 1, "item_id": "i1", "ts": end_of(DAY), "observed_ts": end_of(DAY), "play_time_ms": 1, "feedback": 0}


@pytest.mark.slow
def test_the_first_refresh_covers_every_bucket_and_later_ones_a_rotation(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake, fusion = lake_with_history(make_lake, rotation=2)
    report = lifelong.run(spark, lake, DAY).to_json()
    assert report["buckets"] == [0, 1, 2, 3]
    vectors, held, found = vectors_of(lake, fusion), bases(lake), pathways(lake, DAY)
    assert found.keys() == held.keys() - {"late"}
    for user, row in found.items():
        assert row["representatives"] == expected_representatives(held[user], vectors, DAY, 12)
        assert row["user_bucket"] == user_bucket(user, 4)
        assert (row["refresh_date"], row["fusion_version"]) == (DAY, fusion)
    assert report["tables"]["pathway_lifelong"] == {
        "rows_in": len(held),
        "rows_out": len(found),
        "rows_quarantined": 0,
        "rows_dropped": {"nothing_observed_yet": 1},
    }
    behaviours = sum(len(row["entries"]) for row in held.values())
    assert report["tables"]["history"]["rows_in"] == report["tables"]["history"]["rows_out"] == behaviours
    assert report["behaviours"] == sum(row["history_length"] for row in found.values())
    assert report["users_from_scratch"] == sum(row["fusion_version"] is not None for row in held.values()) > 0

    once = tables(lake)
    lifelong.run(spark, lake, DAY)
    assert tables(lake) == once

    next_day = DAY + dt.timedelta(days=1)
    write_rows(lake, HISTORY, day_rows(9, USERS, next_day, most=20))
    turn = lifelong.run(spark, lake, next_day).to_json()["buckets"]
    assert turn == lifelong.buckets_to_refresh(next_day, 4, 2, every=False)
    assert {row["user_bucket"] for row in pathways(lake, next_day).values()} == set(turn)
    assert waiting_days(lake) == [next_day]  # in the other buckets
    publish_fusion(lake, 1)
    assert lifelong.run(spark, lake, next_day).to_json()["buckets"] == [0, 1, 2, 3]
    assert waiting_days(lake) == []


@pytest.mark.slow
def test_spark_and_one_process_write_the_same(spark: Any, make_lake: Callable[..., Lake]) -> None:
    """Deterministic for a seed, wherever a task runs."""
    lakes = [lake_with_history(make_lake, name) for name in ("spark", "process")]
    lifelong.run(spark, lakes[0][0], DAY)
    refresh(lakes[1][0], DAY, lakes[1][1])
    found = [pathways(lake, DAY) for lake, _ in lakes]
    assert {user: row["representatives"] for user, row in found[0].items()} == {
        user: row["representatives"] for user, row in found[1].items()
    }


@pytest.mark.slow
def test_a_day_on_which_no_bucket_has_its_turn_changes_nothing(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake, _ = lake_with_history(make_lake, rotation=50)
    lifelong.run(spark, lake, DAY)
    before = lake.read(PATHWAY_LIFELONG).sort_by("user_id")
    quiet = next(day for day in (DAY + dt.timedelta(days=back) for back in range(1, 60)) if day.toordinal() % 50 > 3)
    assert lifelong.run(spark, lake, quiet).to_json()["buckets"] == []
    assert lake.read(PATHWAY_LIFELONG).sort_by("user_id").equals(before)


@pytest.mark.slow
def test_without_a_fusion_model_the_command_to_run_is_named(spark: Any, make_lake: Callable[..., Lake]) -> None:
    with pytest.raises(BadInput, match=r"no fusion model yet; run `onerec train-fusion`"):
        lifelong.run(spark, make_lake(), DAY)
