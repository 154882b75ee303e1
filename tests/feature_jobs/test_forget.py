"""Forgetting removes people from every table, file and log, keeps them out, and can be repeated."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake

from feature_jobs import forget, forget_shards, rsft, shards
from feature_jobs.partition_files import commit_notes
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.suppression import SUPPRESSION_FILE, suppressed_users
from schemas.tables import EVENTS, HISTORY, PIPELINE_RUNS, QUARANTINE, USER_STATE, Table
from schemas.tables import USERS as USERS_TABLE
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, ITEM_IDS, MIDNIGHT, USERS
from tests.lake_rows import write_rows

GONE = ["李雷", "it's me", "anna"]
TABLES_OF_USERS = [table for table in forget.personal_tables() if table is not QUARANTINE]


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    """A lake in which every user has a row in every table."""
    made = make_lake()
    for seed, date in enumerate([DAY - dt.timedelta(days=1), DAY]):
        shard_lake.fill(made, seed=seed, date=date)
    shard_lake.fill_items(made)
    shard_lake.fill_lifelong(made, DAY - dt.timedelta(days=3), USERS, seed=1)
    for users in (USERS[:5], [*USERS[5:], "it's me"]):
        for user in users:
            write_rows(made, EVENTS, [event(user)])
        write_rows(made, USERS_TABLE, [{"user_id": user, "date": DAY} for user in users])
        write_rows(made, HISTORY, [{"user_id": user, "behaviours": [], "date": DAY} for user in users])
        lists = ("short", "positive", "pending", "recent_items", "watch_histogram", "landings_seen")
        empty: dict[str, Any] = {name: [] for name in lists}
        state = empty | {"active_days": 1, "behaviours": 0, "date": DAY}
        write_rows(made, USER_STATE, [state | {"user_id": user} for user in users])
    rejected = [
        json.dumps({"user_id": "anna", "play_time_ms": -1}),
        json.dumps({"user_id": "bert", "item_id": "anna"}),
        json.dumps({"row": {"user_id": "it's me"}}),
        "not JSON, anna,3",
        "not JSON, annabel,3",
        json.dumps({"user_id": "李雷"}, ensure_ascii=False),
    ]
    write_rows(
        made, QUARANTINE, [{"table_name": "events", "date": DAY, "row_json": row, "reasons": ["x: y"]} for row in rejected]
    )
    return made


def event(user: str) -> dict[str, Any]:
    times = dict.fromkeys(("request_ts", "ts", "observed_ts", "ingested_at"), MIDNIGHT)
    ids = {"impression_id": f"imp {user}", "request_id": "r", "user_id": user, "item_id": "i1"}
    return ids | times | {"play_time_ms": 0, "date": DAY, "landing_date": DAY}


def users_of(lake: Lake, table: Table) -> list[str]:
    return sorted(lake.read(table, columns=["user_id"])["user_id"].to_pylist())


def test_every_table_loses_their_rows_and_no_others(lake: Lake) -> None:
    before = {table.name: users_of(lake, table) for table in TABLES_OF_USERS}
    assert all(set(GONE) & set(users) for users in before.values())
    planned = forget.rows_to_forget(lake, GONE)
    report = forget.run(lake, GONE).to_json()
    for table in TABLES_OF_USERS:
        assert users_of(lake, table) == [user for user in before[table.name] if user not in GONE]
        assert report["tables"][table.name]["rows_dropped"] == {"forgotten": planned[table.name]}
        assert report["proof"][table.name]["values"] == len(users_of(lake, table))
    left = {row["row_json"] for row in lake.read(QUARANTINE).to_pylist()}
    assert left == {json.dumps({"user_id": "bert", "item_id": "anna"}), "not JSON, annabel,3"}
    assert planned[QUARANTINE.name] == 4
    assert set(report["proof"]) == {*before, "quarantine", "shards", "cache", "examples"}


def test_no_file_of_the_tables_holds_their_ids_any_more(lake: Lake) -> None:
    forget.run(lake, ["李雷", "it's me"])
    for table in TABLES_OF_USERS:
        for path in (Path(lake.root) / table.name).rglob("*"):
            if path.is_file():
                assert "李雷".encode() not in path.read_bytes()
                assert b"it's me" not in path.read_bytes()


def test_notes_of_commits_survive_the_log(lake: Lake) -> None:
    uri = lake.table_uri(HISTORY)
    row = pa.Table.from_pylist([{"user_id": "x", "behaviours": [], "user_bucket": 0, "date": DAY}], schema=HISTORY.schema)
    for note in ("first", "second", "first"):
        write_deltalake(uri, row, mode="append", commit_properties=CommitProperties(custom_metadata={"userMetadata": note}))
    for _ in range(2):
        forget.run(lake, ["anna"])
        assert list(commit_notes(lake.open_table(HISTORY))) == ["first", "second"]
        assert lake.open_table(HISTORY).metadata().configuration["delta.logRetentionDuration"] == "interval 30 days"


def test_they_stay_out_by_a_list_that_does_not_name_them(lake: Lake) -> None:
    assert "anna" not in suppressed_users(lake)
    forget.run(lake, ["anna"])
    forget.run(lake, ["bert", "anna"])
    listed = suppressed_users(lake)
    assert [user in listed for user in ("anna", "bert", "zoë 🙂")] == [True, True, False]
    assert len(listed.hashes) == 2
    assert set(forget.rows_to_forget(lake, ["anna"]).values()) == {0}, "after the log was cut, too"
    text = (Path(lake.root) / SUPPRESSION_FILE).read_text()
    assert "anna" not in text
    (Path(lake.root) / SUPPRESSION_FILE).write_text(text[:20])
    with pytest.raises(BadInput, match="damaged suppression list"):
        suppressed_users(lake)


@pytest.mark.slow
def test_shards_masks_and_sidecars_lose_their_records(spark: Any, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS[:5])
    for day in (DAY - dt.timedelta(days=1), DAY):
        shards.run(spark, lake, day)
        rsft.run(spark, lake, day)
    root = Path(lake.root) / "shards"
    before = records(root)
    assert {"李雷", "anna"} <= {user for user, *_ in before}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forget_shards, "clean", killed)
        with pytest.raises(KeyboardInterrupt):
            forget.run(lake, GONE)
    report = forget.run(lake, GONE).to_json()
    assert report["proof"]["shards"]["found"] == 0
    assert records(root) == [row for row in before if row[0] not in GONE]
    kept = [path.name for path in root.rglob("*.arrow")]
    for day in (DAY - dt.timedelta(days=1), DAY):
        assert shards.verify(lake, day) > 0
        manifest = json.loads((root / f"date={day}" / "manifest.json").read_text())
        counts = manifest["counts"]
        shards.run(spark, lake, day)  # building the day again from the tables gives the very same files
        assert json.loads((root / f"date={day}" / "manifest.json").read_text())["counts"] == counts
    assert sorted(path.name for path in root.rglob("*.arrow")) == sorted(kept)


def records(root: Path) -> list[tuple[str, str, str]]:
    """User, kind of file and content of every record of the store."""
    found = []
    for path in sorted(root.rglob("*.arrow")):
        table = pa.ipc.open_file(path).read_all()
        if "user_id" in table.schema.names:
            place = f"{path.parent.name}/{path.name.rsplit('-', 1)[0]}"
            found += [(row["user_id"], place, repr(row)) for row in table.to_pylist()]
    return found


def test_the_users_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    with pytest.raises(BadInput, match="no such file"):
        forget.read_users(path)
    path.write_text("\n\r\n")
    with pytest.raises(BadInput, match="holds no user id"):
        forget.read_users(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(BadInput, match="not UTF-8 at byte 2"):
        forget.read_users(path)
    path.write_text("b\r\na b\nb\n", newline="")
    assert forget.read_users(path) == ["b", "a b"]


def test_a_run_is_recorded_without_naming_anyone(lake: Lake) -> None:
    forget.run(lake, GONE)
    rows = lake.read(PIPELINE_RUNS).to_pylist()
    assert {row["step"] for row in rows} == {"forget"}
    assert not any(user in repr(rows) for user in GONE)
