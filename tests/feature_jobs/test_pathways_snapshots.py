"""Which snapshots of users a day reads, how they come to their buckets, and lakes from before states held facts."""

import datetime as dt
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.functions import spark_partition_id

from feature_jobs.bucket_files import bucket_files
from feature_jobs.pathways import run_pathways
from feature_jobs.pathways_snapshots import DealtSnapshots, by_bucket, dealt, new_snapshot_dates, users_version
from feature_jobs.samples import run_samples
from feature_jobs.samples_inputs import read_table
from feature_jobs.user_state_facts import FACTS
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import EVENTS, PATHWAY_STATIC, USER_STATE, USERS
from tests.lake_rows import user_bucket, utc, write_rows

DAYS = [dt.date(2026, 1, day) for day in range(1, 11)]


def snapshot(user: str, day: dt.date, gender: str | None = None) -> dict[str, Any]:
    return {"user_id": user, "date": day, "gender": gender}


def test_a_day_reads_the_partitions_that_are_new_since_the_state_it_starts_from(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, USERS, [snapshot("u", DAYS[place]) for place in (0, 1, 2, 5)])
    seen = lake.table_version(USERS)
    # The state of day 3 was made now: it took in what was exported before day 3.
    assert new_snapshot_dates(lake, DAYS[3], seen, seen) == [DAYS[2]], "exported on the day of that state"
    write_rows(lake, USERS, [snapshot("late", DAYS[0]), snapshot("u", DAYS[3])])
    now = lake.table_version(USERS)
    assert new_snapshot_dates(lake, DAYS[4], now, seen) == [DAYS[0], DAYS[3]]
    assert new_snapshot_dates(lake, DAYS[5], now, now) == [], "a day without any"
    assert new_snapshot_dates(lake, DAYS[6], now, now) == [DAYS[5]], "it landed before its day"
    assert new_snapshot_dates(lake, DAYS[5], now, None) == [*DAYS[:4]], "no state says what it has seen"
    assert new_snapshot_dates(lake, DAYS[5], now, now + 1000) == [*DAYS[:4]], "its version is in the log no more"


@pytest.mark.slow
def test_one_shuffle_gives_each_task_as_many_buckets(spark: Any, make_lake: Callable[..., Lake], monkeypatch: Any) -> None:
    lake = make_lake()
    write_rows(lake, USERS, [snapshot(f"user-{number}", DAYS[0]) for number in range(300)])
    users = read_table(spark, lake, USERS, lake.table_version(USERS))
    for writers, expected in ((1024, 1), (3, 4)):
        monkeypatch.setattr("feature_jobs.pathways_snapshots.WRITERS", writers)
        dealt_rows = by_bucket(users, [DAYS[0]], 12)
        assert dealt_rows._jdf.queryExecution().executedPlan().toString().count("Exchange ") == 1
        parts = dealt_rows.select("user_bucket", spark_partition_id().alias("part")).distinct().collect()
        assert sorted(Counter(row["part"] for row in parts).values()) == [expected] * (12 // expected)


@pytest.mark.slow
def test_each_bucket_gets_the_latest_snapshot_of_each_of_its_users(spark: Any, make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(lake={"user_buckets": 3})
    users = [f"user-{number}-ü" for number in range(40)]
    rows = [snapshot(user, day, f"{user}@{day}") for place, user in enumerate(users) for day in DAYS[: 1 + place % 4]]
    write_rows(lake, USERS, rows)
    with dealt(read_table(spark, lake, USERS, lake.table_version(USERS)), lake, DAYS[:3]) as found:
        assert found is not None
        parts = {bucket: found.read(bucket).to_pylist() for bucket in range(4)}
        folder = found.uri
    for bucket, part in parts.items():
        own = [user for user in sorted(users, key=str.encode) if user_bucket(user, 3) == bucket]
        latest = {user: DAYS[min(users.index(user) % 4, 2)] for user in own}
        assert [(row["user_id"], row["snapshot_date"], row["gender"]) for row in part] == [
            (user, day, f"{user}@{day}") for user, day in latest.items()
        ]
    assert not lake.local_path("cache", folder.rpartition("/")[2]).exists(), "a run leaves nothing in the cache"
    with pytest.raises(BadInput, match=r"missing or not whole; run `onerec pathways` again"):
        DealtSnapshots(folder).read(0)


def test_snapshots_that_were_not_dealt_to_the_end_are_refused_not_taken_for_none(tmp_path: Path) -> None:
    snapshots = DealtSnapshots(str(tmp_path))
    (tmp_path / "user_bucket=1").mkdir()
    for bucket in (0, 1):
        with pytest.raises(BadInput, match=r"missing or not whole; run `onerec pathways` again"):
            snapshots.read(bucket)
    (tmp_path / "_SUCCESS").touch()
    assert [len(snapshots.read(bucket)) for bucket in (0, 1)] == [0, 0], "a bucket without any"


@pytest.mark.slow
def test_a_lake_from_before_states_held_facts_goes_on_and_reads_every_snapshot_once(
    spark: Any, make_lake: Callable[..., Lake]
) -> None:
    lake = make_lake(lake={"user_buckets": 1}, samples={"gates": {"label_rate": {}, "volume_ratio": (0, 1000)}})
    write_rows(lake, USERS, [snapshot("u", DAYS[0], "f"), snapshot("v", DAYS[1], "m")])
    write_old_state(lake, DAYS[2], ["u", "w"])
    read = []
    for day in DAYS[3:5]:
        write_rows(lake, EVENTS, [event(user, day) for user in ("u", "v")])
        run_samples(spark, lake, day)
        read.append(run_pathways(spark, lake, day)["snapshots_read"])
    assert read == [[DAYS[0].isoformat(), DAYS[1].isoformat()], []]
    for day in DAYS[3:5]:
        static = lake.read(PATHWAY_STATIC, filter=pads.field("date") == day).sort_by("user_id")
        assert static["gender"].to_pylist() == ["f", "m"]
    states = lake.read(USER_STATE).sort_by([("date", "ascending"), ("user_id", "ascending")]).to_pylist()
    assert [(row["date"], row["user_id"], row["gender"]) for row in states] == [
        *((DAYS[2], user, None) for user in "uw"),
        *((day, user, gender) for day in DAYS[3:5] for user, gender in (("u", "f"), ("v", "m"), ("w", None))),
    ]
    held = bucket_files(lake, USER_STATE, lake.table_version(USER_STATE), pads.field("date") == DAYS[4])
    assert users_version(held) == lake.table_version(USERS)


def write_old_state(lake: Lake, day: dt.date, users: list[str]) -> None:
    """The table as it was declared before states held facts."""
    schema = pa.schema([column for column in USER_STATE.schema if column.name not in (*FACTS, "users_version")])
    shutil.rmtree(lake.local_path(USER_STATE.name))
    DeltaTable.create(lake.table_uri(USER_STATE), schema, partition_by=list(USER_STATE.partition_by))
    lists: dict[str, Any] = {name: [] for name in ("short", "positive", "pending", "recent_items", "watch_histogram")}
    row = {"active_days": 1, "behaviours": 0, "landings_seen": [day], "date": day, "user_bucket": 0, **lists}
    rows = pa.Table.from_pylist([{"user_id": user, **row} for user in users], schema=schema)
    write_deltalake(lake.table_uri(USER_STATE), rows, mode="append")


def event(user: str, day: dt.date) -> dict[str, Any]:
    moment = utc(f"{day} 12:00:00")
    times = dict.fromkeys(("request_ts", "ts", "observed_ts", "ingested_at"), moment)
    name = f"{user}-{day}"
    ids = {"impression_id": name, "request_id": name, "user_id": user, "item_id": "i"}
    return {**ids, **times, "play_time_ms": 1, "date": day, "landing_date": day}
