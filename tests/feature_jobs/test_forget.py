"""Forgetting removes people from every table, file and log, keeps them out, and can be repeated."""

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, write_deltalake

from feature_jobs import forget, forget_log, forget_shards, rsft, shards
from feature_jobs.bucket_events import sample_ids
from feature_jobs.owned_by_earlier import as_metadata, from_metadata
from feature_jobs.partition_files import PartitionFile, commit_files, commit_notes
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.suppression import SUPPRESSION_FILE, suppressed_users
from schemas.tables import EVENTS, HISTORY, PIPELINE_RUNS, QUARANTINE, Table
from schemas.tables import USERS as USERS_TABLE
from tests.feature_jobs import shard_lake
from tests.feature_jobs.forget_lake import GONE, event, filled
from tests.feature_jobs.shard_lake import DAY, ITEM_IDS, MIDNIGHT
from tests.lake_rows import user_bucket, write_rows

TABLES_OF_USERS = [table for table in forget.personal_tables() if table is not QUARANTINE]


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    return filled(make_lake())


def users_of(lake: Lake, table: Table) -> list[str]:
    return sorted(lake.read(table, columns=["user_id"])["user_id"].to_pylist())


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_file_of_the_tables_holds_their_ids_any_more(lake: Lake) -> None:
    forget.run(lake, ["李雷", "it's me"])
    for table in TABLES_OF_USERS:
        for path in (Path(lake.root) / table.name).rglob("*"):
            if path.is_file():
                assert "李雷".encode() not in path.read_bytes()
                assert b"it's me" not in path.read_bytes()


@pytest.mark.slow
def test_notes_of_commits_survive_the_log(lake: Lake) -> None:
    uri = lake.table_uri(HISTORY)
    row = pa.Table.from_pylist([{"user_id": "x", "behaviours": [], "user_bucket": 0, "date": DAY}], schema=HISTORY.schema)
    for note in ("first", "second", "first"):
        write_deltalake(uri, row, mode="append", commit_properties=CommitProperties(custom_metadata={"userMetadata": note}))
    for _ in range(2):
        forget.run(lake, ["anna"])
        assert list(commit_notes(lake.open_table(HISTORY))) == ["first", "second"]
        assert lake.open_table(HISTORY).metadata().configuration["delta.logRetentionDuration"] == "interval 30 days"
        forget_log._carry_notes(lake, HISTORY)  # and the run is killed there


@pytest.mark.slow
def test_ids_that_are_numbers_are_not_taken_for_other_numbers_of_the_log(lake: Lake) -> None:
    """Buckets, counts and settings are texts in a log, too."""
    users = [str(number) for number in range(60)]
    write_rows(lake, HISTORY, [{"user_id": user, "behaviours": [], "date": DAY} for user in users])
    report = forget.run(lake, users[:51]).to_json()
    assert {counts.get("log_mentions", 0) for counts in report["proof"].values()} == {0}
    assert report["tables"]["history"]["rows_dropped"] == {"forgotten": 51}


@pytest.mark.slow
def test_rewritten_files_say_what_they_hold(lake: Lake) -> None:
    """Their statistics are those of the rows that stayed, and name nobody."""
    write_rows(lake, USERS_TABLE, [{"user_id": user, "date": MIDNIGHT.date()} for user in ("m", "z", "anna", "b")])
    forget.run(lake, ["anna"])
    for table in TABLES_OF_USERS:
        for action in pa.table(lake.open_table(table).get_add_actions(flatten=True)).to_pylist():
            rows = pq.read_table(f"{lake.root}/{table.name}/{unquote(action['path'])}", columns=["user_id"], partitioning=None)
            assert (action["num_records"], action["null_count.user_id"]) == (len(rows), 0), table.name
            assert "anna" not in (action.get("min.user_id"), action.get("max.user_id"))


@pytest.mark.slow
def test_ids_that_files_note_of_their_rows_go_with_them(lake: Lake) -> None:
    """A landing's file notes what an earlier landing has; a file that has nothing else is no more."""
    bucket = user_bucket("anna", 4)
    neighbour = next(f"n{number}" for number in range(99) if user_bucket(f"n{number}", 4) == bucket)
    write_rows(lake, EVENTS, [event(neighbour)])
    known = {user: sample_ids(pa.array([user]), pa.array([f"imp {user}"])).to_numpy()[0] for user in ("anna", neighbour)}
    foreign = 17
    files = []
    for later, ids in enumerate(([known["anna"], known[neighbour], foreign], [known["anna"]])):
        partition = {"date": str(DAY), "landing_date": str(DAY + dt.timedelta(days=1 + later)), "user_bucket": str(bucket)}
        files.append(PartitionFile(lake, EVENTS, partition, as_metadata(np.array(ids), "a file")).close())
    commit_files(lake, EVENTS, files, pads.field("path") == "")
    forget.run(lake, ["anna"])
    noted = []
    for action in pa.table(lake.open_table(EVENTS).get_add_actions(flatten=True)).to_pylist():
        metadata = pq.read_metadata(f"{lake.root}/{EVENTS.name}/{unquote(action['path'])}").metadata
        noted += from_metadata(metadata).tolist()
    assert sorted(noted) == sorted([known[neighbour], foreign])
    assert neighbour in users_of(lake, EVENTS)


@pytest.mark.slow
def test_files_of_killed_runs_go_if_they_hold_them(lake: Lake) -> None:
    bucket = {"date": DAY.isoformat(), "user_bucket": str(user_bucket("anna", 4))}
    other = next(user for user in shard_lake.USERS if user_bucket(user, 4) != user_bucket("anna", 4))
    reports = {}
    for users in (["anna", "zoë"], ["nobody"]):
        file = PartitionFile(lake, HISTORY, bucket)
        file.write(
            pa.table({"user_id": users, "behaviours": pa.array([[]] * len(users), HISTORY.schema.field("behaviours").type)})
        )
        reports[users[0]] = (file.close() or {})["path"]
    folder = Path(lake.root) / HISTORY.name
    broken = Path(reports["anna"]).with_name("half-written.parquet")
    elsewhere = Path(reports["anna"].replace(f"user_bucket={bucket['user_bucket']}", f"user_bucket={user_bucket(other, 4)}"))
    for path in (broken, elsewhere.with_name("half-written.parquet")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"PAR1")
    report = forget.run(lake, ["anna"]).to_json()
    assert report["proof"]["history"]["other_files"] == 2, (
        "those that are nothing of hers stay, a run may be about to commit them"
    )
    assert (folder / reports["nobody"]).exists()
    assert not (folder / reports["anna"]).exists()
    assert not (folder / broken).exists()


@pytest.mark.slow
def test_what_a_commit_left_that_was_killed_goes_if_it_names_them(lake: Lake) -> None:
    """Under the names that Spark and delta-rs write entries by before they take their own; whole, and cut off."""
    log = Path(lake.root) / USERS_TABLE.name / "_delta_log"
    entry = next(path for path in sorted(log.glob("*.json")) if "anna" in path.read_text())
    names = (f".{entry.name}.0f0e.tmp", f"{entry.stem}.json#1", "_commit_0f0e.json.tmp")
    for name in names:
        (log / name).write_text(entry.read_text()[: None if name.startswith(".") else entry.read_text().index("anna") + 6])
    checkpoint = log / ".00000000000000000002.checkpoint.parquet.0f0e.tmp"
    checkpoint.write_bytes(b"PAR1 compressed")
    (log / "_commit_1.json.tmp").write_text("of somebody else")
    report = forget.run(lake, ["anna"]).to_json()
    assert report["proof"][USERS_TABLE.name]["log_mentions"] == 0
    assert not any((log / name).exists() for name in names)
    assert not checkpoint.exists(), "nobody can tell whom it names"
    assert (log / "_commit_1.json.tmp").exists(), "it may be about to be renamed"


@pytest.mark.slow
def test_a_lake_on_an_object_store_has_no_shards_and_no_examples(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lake, "is_local", False)
    monkeypatch.setattr(Lake, "local_path", lambda *_: pytest.fail("there is no local path"))
    proof = forget.run(lake, ["anna"]).to_json()["proof"]
    assert proof["shards"] == proof["examples"] == {"files": 0, "values": 0, "found": 0}
    assert "anna" not in lake.read(HISTORY)["user_id"].to_pylist()


@pytest.mark.slow
def test_what_lies_beside_the_tables_goes_too(lake: Lake) -> None:
    cache, training = Path(lake.root) / "cache", Path(lake.root) / "training" / "pretrain"
    for name, user in (("snapshots-1", "anna"), ("snapshots-2", "bert")):
        (cache / name / "user_bucket=1").mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [user]}), cache / name / "user_bucket=1" / "part.parquet")
    training.mkdir(parents=True)
    shown = {"stage": "pretrain", "date": DAY.isoformat(), "users": [{"user_id": "anna"}, {"user_id": "bert"}]}
    (training / "examples.json").write_text(json.dumps(shown))
    (training / "examples.json.0f.tmp").write_text('{"users": [{"user_id": "anna"')  # of an evaluation that was killed
    report = forget.run(lake, ["anna"]).to_json()
    assert [path.name for path in cache.iterdir()] == ["snapshots-2"]
    assert [path.name for path in training.iterdir()] == ["examples.json"]
    assert json.loads((training / "examples.json").read_text()) == shown | {"users": [{"user_id": "bert"}]}
    assert (report["cached_folders_removed"], report["examples_removed"]) == (1, 1)
    assert report["proof"]["examples"] == {"files": 1, "values": 1, "found": 0}
    published = Registry.of(lake).publish("release", {}, {"examples.json": json.dumps(shown).encode()}).folder
    with pytest.raises(BadInput, match=re.escape(f"{published}/examples.json: a published model shows some of these people")):
        forget.run(lake, ["anna"])


@pytest.mark.slow
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
    path.write_bytes("\ufeffanna\n bert \n \u00a0\n".encode())
    assert forget.read_users(path) == ["anna", " bert ", "bert"]


@pytest.mark.slow
def test_a_run_is_recorded_without_naming_anyone(lake: Lake) -> None:
    forget.run(lake, GONE)
    rows = lake.read(PIPELINE_RUNS).to_pylist()
    assert {row["step"] for row in rows} == {"forget"}
    assert not any(user in repr(rows) for user in GONE)
