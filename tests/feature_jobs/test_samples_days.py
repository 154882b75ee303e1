"""Days of samples on a lake's tables: gates, robots, odd files and runs at once."""

import datetime as dt
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from feature_jobs.pathways import run_pathways
from feature_jobs.samples import run_samples
from feature_jobs.samples_inputs import published_landings
from feature_jobs.samples_notes import newest_notes
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, EVENTS, HISTORY, ITEMS, PATHWAY_STATIC, PIPELINE_RUNS, USER_STATE
from tests.feature_jobs.reference_pathways import Reference, place
from tests.feature_jobs.sample_rows import DAY, impression
from tests.lake_rows import utc, write_rows

ROOT = Path(__file__).resolve().parent.parent.parent
NEXT = DAY + dt.timedelta(days=1)
Row = dict[str, Any]


@pytest.fixture
def samples_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Row]:
    """``run_samples`` with its tasks one after another in this process instead of Spark's workers."""

    def in_turn(_: None, buckets: Sequence[int], work: Callable[[int], Any]) -> list[Any]:
        return [json.loads(json.dumps(work(bucket))) for bucket in buckets]

    monkeypatch.setattr("feature_jobs.samples.run_by_bucket", in_turn)
    return lambda lake, date=DAY, **options: run_samples(cast(Any, None), lake, date, **options)


def random_day(seed: int, users: int = 12) -> list[Row]:
    """Two landings of a day in no order: repetitions in either, ties, siblings of requests, one robot."""
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        for number in range(60 if user == 3 else rng.randrange(9)):
            at = f"{rng.randrange(24):02}:{rng.choice([0, 30]):02}:00"
            row = impression(
                f"{user}-{number}",
                at,
                user_id=f"u{user}",
                item_id=f"i{rng.randrange(6)}",
                play_time_ms=rng.choice([0, 500, 1000, 30_000]),
                duration_ms=rng.choice([None, 1000, 1500, 60_000]),
                like=rng.random() < 0.2,
            )
            rows.append(row)
            if rng.random() < 0.3:
                rows.append(row | {"play_time_ms": rng.choice([1, 999]), "landing_date": rng.choice([DAY, NEXT])})
    rng.shuffle(rows)
    return rows


def files_of(lake: Lake) -> list[Path]:
    return list(lake.local_path(DAILY_SAMPLES.name).rglob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_day_of_two_landings_in_no_order_is_what_the_reference_finds(
    make_lake: Callable[..., Lake], samples_of: Callable[..., Row], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_jobs.samples_slices.SLICE_ROWS", 7)
    monkeypatch.setattr("feature_jobs.samples_slices.BATCH_ROWS", 5)
    lake = make_lake(lake={"user_buckets": 3}, samples={"user_day_cap": 20, "gates": {"label_rate": {}}})
    items = [
        {"item_id": f"i{number}", "valid_from": utc("2026-01-01 06:00"), "duration_ms": 1000 * number or None, "tags": ["t"]}
        for number in range(5)
    ]
    rows = random_day(seed)
    write_rows(lake, ITEMS, items)
    for landing in (DAY, NEXT):
        write_rows(lake, EVENTS, [row for row in rows if row["landing_date"] == landing])
    items = [{"author_id": None, "category": None} | item for item in items]
    expected, dropped = Reference(lake.config, items, []).samples(DAY, rows, every=True)
    report = samples_of(lake, every_landing=True)
    found = lake.read(DAILY_SAMPLES).to_pylist()
    key = lambda row: (row["user_id"], row["sample_id"])  # noqa: E731
    assert sorted(found, key=key) == sorted(({name: row[name] for name in found[0]} for row in expected), key=key)
    counts = report["tables"]["daily_samples"]
    assert (counts["rows_out"], Counter(counts["rows_dropped"])) == (len(expected), dropped)
    assert dropped["over_the_cap"] > 0
    assert (report["users"], report["items"]) == tuple(len({row[name] for row in expected}) for name in ("user_id", "item_id"))
    assert newest_notes(lake.open_table(DAILY_SAMPLES))[DAY].coverage == {"users": report["users"], "items": report["items"]}


def test_a_file_holds_its_bucket_in_the_order_of_users_and_requests(
    make_lake: Callable[..., Lake], samples_of: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_jobs.samples_slices.SLICE_ROWS", 7)
    lake = make_lake(lake={"user_buckets": 1}, samples={"gates": {"label_rate": {}}})
    write_rows(lake, EVENTS, random_day(0))
    samples_of(lake, every_landing=True)
    rows = lake.read(DAILY_SAMPLES).to_pylist()
    assert len(files_of(lake)) == 1
    assert rows == sorted(rows, key=lambda row: (row["user_id"], row["request_ts"], row["ts"], row["sample_id"]))


def test_a_gate_that_says_no_leaves_neither_rows_nor_files_nor_the_folder_of_the_run(
    make_lake: Callable[..., Lake], samples_of: Callable[..., Row]
) -> None:
    lake = make_lake(samples={"gates": {"label_rate": {"like": [0.9, 1.0]}}})
    write_rows(lake, EVENTS, random_day(1))
    with pytest.raises(GateFailed, match=r"label rate of like is 0\.\d+, outside 0\.9 … 1"):
        samples_of(lake)
    assert (len(lake.read(DAILY_SAMPLES)), files_of(lake)) == (0, [])
    assert list(lake.local_path("cache").glob("samples-*")) == []
    assert lake.read(PIPELINE_RUNS)["status"].to_pylist() == ["gate"]
    assert published_landings(lake, DAY, lake.table_version(DAILY_SAMPLES)) is None


def test_a_day_that_lost_most_users_and_items_is_stopped_though_it_has_as_many_rows(
    make_lake: Callable[..., Lake], samples_of: Callable[..., Row]
) -> None:
    lake = make_lake(samples={"gates": {"label_rate": {}, "volume_min_days": 1}})
    days = [DAY, NEXT]
    for day, users in zip(days, (8, 2), strict=True):
        at: Row = {"date": day, "landing_date": day}
        rows = [impression(f"{day}-{n}", user_id=f"u{n % users}", item_id=f"i{n % users}", **at) for n in range(16)]
        write_rows(lake, EVENTS, rows)
    samples_of(lake, days[0])
    write_rows(
        lake,
        USER_STATE,
        [
            {"user_id": "u0", "date": DAY, "active_days": 1, "behaviours": 0, "landings_seen": [DAY]}
            | {name: [] for name in ("short", "positive", "pending", "recent_items", "watch_histogram")}
        ],
    )
    with pytest.raises(GateFailed, match=r"user_ratio is 0\.25, outside 0\.5 … 2; item_ratio is 0\.25") as said:
        samples_of(lake, days[1])
    assert "volume_ratio" not in str(said.value)


def test_buckets_without_events_have_no_file_and_a_day_without_any_no_commit(
    make_lake: Callable[..., Lake], samples_of: Callable[..., Row]
) -> None:
    lake = make_lake(lake={"user_buckets": 50}, samples={"gates": {"min_rows": 0, "label_rate": {}}})
    before = lake.table_version(DAILY_SAMPLES)
    assert samples_of(lake)["tables"]["daily_samples"]["rows_out"] == 0
    assert lake.table_version(DAILY_SAMPLES) == before
    write_rows(lake, EVENTS, [impression("a"), impression("b", user_id="v")])
    samples_of(lake)
    assert len(files_of(lake)) == 2
    assert sorted(lake.read(DAILY_SAMPLES)["impression_id"].to_pylist()) == ["a", "b"]


def test_a_day_without_events_says_what_to_run(make_lake: Callable[..., Lake], samples_of: Callable[..., Row]) -> None:
    with pytest.raises(BadInput, match=r"no events of 2026-01-01; run `onerec ingest --date 2026-01-01` first"):
        samples_of(make_lake())


def test_a_day_run_again_replaces_itself(make_lake: Callable[..., Lake], samples_of: Callable[..., Row]) -> None:
    lake = make_lake(samples={"gates": {"label_rate": {}}})
    write_rows(lake, EVENTS, random_day(2))
    samples_of(lake)
    first = lake.read(DAILY_SAMPLES)
    samples_of(lake)
    again = lake.read(DAILY_SAMPLES)
    assert again.sort_by([("user_id", "ascending"), ("sample_id", "ascending")]) == first.sort_by(
        [("user_id", "ascending"), ("sample_id", "ascending")]
    )


@pytest.mark.slow
def test_spark_tasks_write_what_the_same_tasks_write_in_turn(
    spark: Any, make_lake: Callable[..., Lake], samples_of: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for name in ("in turn", "spark"):
        lake = make_lake(name, samples={"gates": {"label_rate": {}}, "user_day_cap": 20})
        write_rows(lake, EVENTS, random_day(3, users=40))
        if name == "spark":
            monkeypatch.undo()
            run_samples(spark, lake, DAY)
        else:
            samples_of(lake)
        tables.append(lake.read(DAILY_SAMPLES).sort_by([("user_id", "ascending"), ("sample_id", "ascending")]))
    assert tables[0] == tables[1]
    by_spark = spark.read.format("delta").load(lake.table_uri(DAILY_SAMPLES))
    assert by_spark.count() == len(tables[0]), "Spark reads what the tasks wrote"


@pytest.mark.slow
def test_a_damaged_file_of_events_is_named_in_one_line(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [impression("a")])
    (damaged,) = lake.local_path(EVENTS.name).rglob("*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(BadInput, match=rf"{damaged.name}: missing or damaged"):
        run_samples(spark, lake, DAY)


@pytest.mark.slow
def test_a_day_made_by_several_runs_at_once_is_the_day_of_one_of_them(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [impression(str(number), click=True) for number in range(20)])

    def attempt(_: int) -> str:
        try:
            return str(run_samples(spark, lake, DAY)["tables"]["daily_samples"]["rows_out"])
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(4)))
    assert "20" in results
    assert all(result == "20" or "other processes keep writing it" in result for result in results)
    assert len(set(lake.read(DAILY_SAMPLES)["sample_id"].to_pylist())) == len(lake.read(DAILY_SAMPLES)) == 20
    assert published_landings(lake, DAY, lake.table_version(DAILY_SAMPLES)) == [DAY]
    assert list(lake.local_path("cache").glob("samples-*")) == []


@pytest.mark.slow
def test_two_commands_for_one_date_at_once_leave_the_day_once(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(samples={"gates": {"label_rate": {}}})
    write_rows(lake, EVENTS, random_day(4, users=30))
    command = [sys.executable, "-m", "onerec", "samples", "--lake", lake.root, "--date", DAY.isoformat(), "--json"]
    environment = os.environ | {"ONEREC_SPARK_MASTER": "local[1]", "ONEREC_SPARK_MEMORY": "900m"}
    runs = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    reports = [json.loads(run.communicate(timeout=240)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    (rows,) = {report["tables"]["daily_samples"]["rows_out"] for report in reports}
    found = lake.read(DAILY_SAMPLES)
    assert len(found) == len(set(zip(*(found[name].to_pylist() for name in ("user_id", "sample_id")), strict=True))) == rows


@pytest.mark.slow
def test_a_lake_of_one_user_and_a_day_that_is_empty_by_right(spark: Any, make_lake: Callable[..., Lake]) -> None:
    """Most buckets are empty, and on the second day all of them: the state goes on, Spark reads what the tasks wrote."""
    lake = make_lake(samples={"gates": {"min_rows": 0, "volume_ratio": [0, 5], "max_null_share": {}, "label_rate": {}}})
    write_rows(lake, EVENTS, [impression(str(number), play_time_ms=number) for number in range(4)])
    for day in (DAY, NEXT):
        run_samples(spark, lake, day)
        run_pathways(spark, lake, day)
    state = spark.read.format("delta").load(lake.table_uri(USER_STATE)).orderBy("date").toPandas()
    assert state["behaviours"].tolist() == [4, 4]
    assert state["active_days"].tolist() == [1, 2]
    assert [len(short) for short in state["short"]] == [4, 4]
    history = spark.read.format("delta").load(lake.table_uri(HISTORY)).collect()
    assert [[entry.play_time_ms for entry in row.behaviours] for row in history] == [
        [sample["play_time_ms"] for sample in sorted(lake.read(DAILY_SAMPLES).to_pylist(), key=place)]
    ]
    assert len(lake.read(PATHWAY_STATIC)) == 1, "nobody was active on the second day"
