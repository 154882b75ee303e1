"""Shards hold exactly the rows of the tables; they appear whole or not at all; damage is named."""

import datetime as dt
import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from feature_jobs import rsft, shard_files, shards
from feature_jobs.partition_files import commit_files
from feature_jobs.shard_records import Inputs, counts_of, user_day_records
from feature_jobs.stale import UNFINISHED, clear_stale, mark_stale
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.shards import USER_DAY, stable_key
from schemas.tables import (
    DAILY_SAMPLES,
    FEEDBACK,
    ITEMS,
    PATHWAY_LIFELONG,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    PIPELINE_RUNS,
)
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, ITEM_IDS, USERS
from tests.lake_rows import user_bucket, write_rows


def micros(when: dt.datetime) -> int:
    return (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def expected_behaviour(row: dict[str, Any]) -> dict[str, Any]:
    """What a record says of one behaviour or sample."""
    feedback = row.get("feedback")
    if feedback is None:
        feedback = sum(row[flag] << bit for bit, flag in enumerate((*FEEDBACK, "positive")))
    duration = row["duration_ms"]
    return {
        "sample_id": row["sample_id"],
        "item_key": stable_key(row["item_id"]),
        "ts": micros(row["ts"]),
        "observed_ts": micros(row["observed_ts"]),
        "play_time_ms": row["play_time_ms"],
        "duration_ms": -1 if duration is None else duration,
        "feedback": feedback,
    }


def expected_records(lake: Lake, date: dt.date = DAY) -> dict[str, dict[str, Any]]:
    """The records of a day by user, built row by row from the tables."""
    of_user: dict[str, dict[str, Any]] = {}
    static = {row["user_id"]: row for row in lake.read(PATHWAY_STATIC).to_pylist() if row["date"] == date}
    short = {row["user_id"]: row for row in lake.read(PATHWAY_SHORT).to_pylist() if row["date"] == date}
    positive = {row["user_id"]: row for row in lake.read(PATHWAY_POSITIVE).to_pylist() if row["date"] == date}
    samples = defaultdict(list)
    for row in lake.read(DAILY_SAMPLES).to_pylist():
        if row["date"] == date:
            samples[row["user_id"]].append(row)
    for user, rows in samples.items():
        rows.sort(key=lambda row: (row["request_ts"], row["request_id"], row["ts"], row["sample_id"]))
        record = {name: static[user][name] for name in static[user] if name in USER_DAY.names}
        record["holdout"] = rows[0]["split"] == "holdout"
        lists = {"short": short[user]["behaviours"], "positive": positive[user]["behaviours"], "pending": short[user]["pending"]}
        for prefix, behaviours in (lists | {"event": rows}).items():
            for name in expected_behaviour(rows[0]):
                record[f"{prefix}_{name}"] = [expected_behaviour(one)[name] for one in behaviours]
        requests = list(dict.fromkeys((row["request_ts"], row["request_id"]) for row in rows))
        first = {key: next(row for row in rows if (row["request_ts"], row["request_id"]) == key) for key in requests}
        sessions = list(dict.fromkeys(first[key]["session_id"] for key in requests))
        record["request_id"] = [key[1] for key in requests]
        record["request_ts"] = [micros(key[0]) for key in requests]
        record["request_session"] = [sessions.index(first[key]["session_id"]) for key in requests]
        record["request_events"] = [sum((row["request_ts"], row["request_id"]) == key for row in rows) for key in requests]
        for name in ("watch_quantile_day", "watch_quantile_user"):
            record[f"event_{name}"] = [
                math.nan if row[name] is None else pa.scalar(row[name], pa.float32()).as_py() for row in rows
            ]
        record["event_target"] = [not row["dislike"] for row in rows]
        of_user[user] = record
    return of_user


def read_day(lake: Lake, date: dt.date = DAY) -> tuple[dict[str, Any], dict[int, pa.Table]]:
    """A day's manifest and its data files by bucket, with plain pyarrow."""
    folder = Path(lake.root) / "shards" / f"date={date}"
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, {file["user_bucket"]: pa.ipc.open_file(folder / file["path"]).read_all() for file in manifest["files"]}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(left: Any, right: Any) -> bool:
    """Equal, NaN included."""
    return repr(left) == repr(right)


def in_memory(lake: Lake) -> Inputs:
    return Inputs(*(lake.read(table) for table in (DAILY_SAMPLES, PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE)))


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    made = make_lake()
    shard_lake.fill(made, seed=1)
    shard_lake.fill_items(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_records_hold_exactly_the_rows_of_the_tables(make_lake: Callable[..., Lake], seed: int) -> None:
    lake = make_lake()
    shard_lake.fill(lake, seed)
    records = user_day_records(in_memory(lake), "here")
    expected = expected_records(lake)
    assert records["user_id"].to_pylist() == sorted(expected, key=str.encode)
    for row in records.to_pylist():
        wanted = expected[row["user_id"]]
        assert {name for name in row if not same(row[name], wanted[name])} == set()
    counts = counts_of(records)
    assert counts["events"] == sum(len(row["event_target"]) for row in expected.values())
    assert counts["requests"] == sum(len(row["request_id"]) for row in expected.values())
    assert counts["targets"] == sum(sum(row["event_target"]) for row in expected.values())


def test_pathways_of_other_samples_are_refused(lake: Lake) -> None:
    inputs = in_memory(lake)
    with pytest.raises(BadInput, match=r"1 users have samples but no pathway_static; run `onerec pathways`"):
        user_day_records(Inputs(inputs.samples, inputs.static.slice(1), inputs.short, inputs.positive), "here")
    fewer = inputs.samples.filter(pa.compute.not_equal(inputs.samples["user_id"], "anna"))
    with pytest.raises(BadInput, match=r"pathway_static has 11 rows for 10 users"):
        user_day_records(Inputs(fewer, inputs.static, inputs.short, inputs.positive), "here")
    with pytest.raises(BadInput, match="disagree on pending"):
        user_day_records(Inputs(inputs.samples, inputs.static, inputs.short, _without_pending(inputs.positive)), "here")


def _without_pending(pathway: pa.Table) -> pa.Table:
    rows = [row | {"pending": []} for row in pathway.to_pylist()]
    return pa.Table.from_pylist(rows, schema=pathway.schema)


def rsft_oracle(events: list[tuple[Any, int]], unit: str, share: float) -> list[bool]:
    """Kept or not, by the rule's own words; an event is (session, play time)."""
    totals: dict[Any, int] = defaultdict(int)
    for session, play in events:
        totals[session] += play
    if unit == "session":
        dropped = {one for one in totals if sum(other <= totals[one] for other in totals.values()) / len(totals) <= share}
        return [session not in dropped for session, _ in events]
    kept = []
    for session, play in events:
        peers = [other for mine, other in events if mine == session]
        kept.append(sum(other <= play for other in peers) / len(peers) > share)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_rsft_masks_match_the_rule(make_lake: Callable[..., Lake], seed: int, share: float) -> None:
    lake = make_lake()
    shard_lake.fill(lake, seed)
    records = user_day_records(in_memory(lake), "here")
    events = []
    for row in records.to_pylist():
        request = [number for number, count in enumerate(row["request_events"]) for _ in range(count)]
        events += [
            ((row["user_id"], row["request_session"][number]), play)
            for number, play in zip(request, row["event_play_time_ms"], strict=True)
        ]
    totals, counts = np.unique(rsft.session_play_times(records), return_counts=True)
    by_session = rsft.keep_by_session(records, rsft.session_cut(totals, counts, share)).tolist()
    assert by_session == rsft_oracle(events, "session", share)
    assert rsft.keep_by_impression(records, share).tolist() == rsft_oracle(events, "impression", share)


@pytest.mark.slow
def test_a_day_is_written_as_the_documentation_says(spark: Any, lake: Lake) -> None:
    codebook = shard_lake.publish_tokens(lake, ITEM_IDS[:5])
    shard_lake.fill_lifelong(lake, DAY - dt.timedelta(days=2), USERS, seed=1)
    newer = [user for user in USERS if user_bucket(user, 4) == user_bucket("anna", 4)]
    shard_lake.fill_lifelong(lake, DAY - dt.timedelta(days=1), newer, seed=2)
    shard_lake.fill_lifelong(lake, DAY, USERS, seed=3)  # of this very day: not before it
    report = shards.run(spark, lake, DAY).to_json()
    manifest, files = read_day(lake)
    expected = expected_records(lake)
    assert all(table.schema.equals(USER_DAY) for table in files.values())
    read = {row["user_id"]: row for table in files.values() for row in table.to_pylist()}
    assert read.keys() == expected.keys()
    assert all(same(read[user][name], expected[user][name]) for user in expected for name in USER_DAY.names)
    assert all(user_bucket(user, 4) == bucket for bucket, table in files.items() for user in table["user_id"].to_pylist())

    targets = [
        key for row in read.values() for key, is_one in zip(row["event_item_key"], row["event_target"], strict=True) if is_one
    ]
    known = {stable_key(item) for item in ITEM_IDS[:5]}
    assert manifest["counts"]["targets_without_tokens"] == sum(key not in known for key in targets) > 0
    assert (manifest["codebook_version"], manifest["codebook_sizes"]) == (codebook, shard_lake.SIZES)
    rows = lake.read(DAILY_SAMPLES).num_rows
    assert report["tables"]["shards"] == {"rows_in": rows, "rows_out": rows, "rows_quarantined": 0, "rows_dropped": {}}

    root = Path(lake.root) / "shards"
    items = pa.ipc.open_file(root / manifest["items"]["path"]).read_all().to_pylist()
    assert [(row["item_key"], row["valid_from"]) for row in items] == sorted(
        (stable_key(row["item_id"]), micros(row["valid_from"])) for row in lake.read(ITEMS).to_pylist()
    )
    for bucket, entry in manifest["lifelong"].items():
        refresh = DAY - dt.timedelta(days=1 if int(bucket) == user_bucket("anna", 4) else 2)
        assert entry["refresh_date"] == refresh.isoformat()
        sidecar = pa.ipc.open_file(root / entry["path"]).read_all().to_pylist()
        table = [
            row
            for row in lake.read(PATHWAY_LIFELONG).to_pylist()
            if row["refresh_date"] == refresh and row["user_bucket"] == int(bucket)
        ]
        assert [row["user_id"] for row in sidecar] == sorted((row["user_id"] for row in table), key=str.encode)
        by_user = {row["user_id"]: row["representatives"] for row in table}
        for row in sidecar:
            kept = by_user[row["user_id"]]
            assert row["item_key"] == [stable_key(one["item_id"]) for one in kept]
            assert row["ts"] == [micros(one["ts"]) for one in kept]
            assert row["duration_ms"] == [-1.0 if one["duration_ms"] is None else one["duration_ms"] for one in kept]
            assert row["count"] == [one["count"] for one in kept]

    before = everything(root)
    shards.run(spark, lake, DAY)
    assert everything(root) == before


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_visible_and_the_next_one_cleans_up(
    spark: Any, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            shards.run(spark, lake, DAY)
    folder = Path(lake.root) / "shards" / f"date={DAY}"
    assert list(folder.glob("*.arrow"))
    assert not (folder / "manifest.json").exists()
    (folder / "bucket=00000-0123456789ab.arrow").write_bytes(b"orphan")
    (folder / ".bucket=00000-x.tmp").write_bytes(b"part")
    shards.run(spark, lake, DAY)
    manifest, _ = read_day(lake)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *(file["path"] for file in manifest["files"])}
    attempts = [row for row in lake.read(PIPELINE_RUNS).to_pylist() if row["step"] == "shards"]
    assert [row["status"] for row in sorted(attempts, key=lambda row: row["attempt"])] == ["failed", "succeeded"]


@pytest.mark.slow
def test_new_tokens_change_the_token_table_only(spark: Any, lake: Lake) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS[:3])
    shards.run(spark, lake, DAY)
    before, _ = read_day(lake)
    codebook = shard_lake.publish_tokens(lake, ITEM_IDS, seed=1)
    shards.retokenise(spark, lake, [DAY])
    after, _ = read_day(lake)
    assert after["codebook_version"] == codebook
    assert after["counts"]["targets_without_tokens"] == 0 < before["counts"]["targets_without_tokens"]
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"codebook_version", "tokens", "counts", "inputs"}
    assert not (Path(lake.root) / "shards" / before["tokens"]["path"]).exists()


def test_masks_catch_up_with_the_shards_that_have_none(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    root = shard_files.shards_root(lake)
    days = [DAY - dt.timedelta(days=back) for back in range(4, -1, -1)]
    held = (["manifest.json"], ["manifest.json", "targets-rsft.json"], [], ["manifest.json"], [])
    for day, files in zip(days, held, strict=True):
        folder = shard_files.day_folder(root, day.isoformat())
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_text("{}")
    assert rsft.days_to_catch_up(lake, DAY, 7) == [days[0], days[3]], "oldest first; without a shard there is nothing to mask"
    assert rsft.days_to_catch_up(lake, DAY, 3) == [days[3]]
    assert rsft.days_to_catch_up(lake, DAY, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["session", "impression"])
def test_rsft_masks_lie_beside_the_data(spark: Any, make_lake: Callable[..., Lake], unit: str) -> None:
    lake = make_lake(rsft={"unit": unit})
    shard_lake.fill(lake, seed=3)
    shard_lake.publish_tokens(lake, ITEM_IDS)
    shards.run(spark, lake, DAY)
    report = rsft.run(spark, lake, DAY).to_json()
    manifest, data = read_day(lake)
    folder = Path(lake.root) / "shards" / f"date={DAY}"
    masks = json.loads((folder / "targets-rsft.json").read_text())
    kept = 0
    for entry in masks["files"]:
        mask = pa.ipc.open_file(folder / entry["path"]).read_all()
        records = data[entry["user_bucket"]]
        assert mask["user_id"].to_pylist() == records["user_id"].to_pylist()
        for chosen, possible in zip(mask["event_target"].to_pylist(), records["event_target"].to_pylist(), strict=True):
            assert len(chosen) == len(possible)
            assert all(possible[place] for place, is_one in enumerate(chosen) if is_one)
            kept += sum(chosen)
        assert entry["data_sha256"] == next(
            file["sha256"] for file in manifest["files"] if file["user_bucket"] == entry["user_bucket"]
        )
    assert masks["counts"] == {"targets": kept, "dropped": manifest["counts"]["targets"] - kept}
    assert masks["counts"] == masks["counts_by_unit"][unit] == report["counts_by_unit"][unit]
    assert masks["counts_by_unit"]["session"] != masks["counts_by_unit"]["impression"]

    mask_path = folder / masks["files"][0]["path"]
    write_rows(lake, DAILY_SAMPLES, _one_more_event(lake))
    shards.run(spark, lake, DAY)
    assert not mask_path.exists()
    assert not (folder / "targets-rsft.json").exists()


def _one_more_event(lake: Lake) -> list[dict[str, Any]]:
    row = lake.read(DAILY_SAMPLES).slice(0, 1).to_pylist()[0]
    return [row | {"impression_id": "one more", "sample_id": row["sample_id"] ^ 1}]


@pytest.mark.slow
def test_verification_names_the_damaged_file(spark: Any, lake: Lake) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS)
    shard_lake.fill_lifelong(lake, DAY - dt.timedelta(days=2), USERS, seed=1)
    shards.run(spark, lake, DAY)
    rsft.run(spark, lake, DAY)
    named = {
        path
        for manifest in shard_files.manifests(Path(lake.root) / "shards")
        for path in shard_files.named_files(Path(lake.root) / "shards", manifest)
    }
    assert shards.verify(lake, DAY) == len(named)
    for path in named:
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(BadInput, match=path.name):
            shards.verify(lake, DAY)
        path.write_bytes(whole)


@pytest.mark.slow
def test_what_is_missing_is_said(spark: Any, lake: Lake) -> None:
    with pytest.raises(BadInput, match="no token set is published"):
        shards.run(spark, lake, DAY)
    shard_lake.publish_tokens(lake, ITEM_IDS)
    newcomer = lake.read(DAILY_SAMPLES).slice(0, 1).to_pylist()[0] | {
        "user_id": "newcomer",
        "user_bucket": user_bucket("newcomer", 4),
    }
    write_rows(lake, DAILY_SAMPLES, [newcomer])
    with pytest.raises(BadInput, match=r"1 users have samples but no pathway_static"):
        shards.run(spark, lake, DAY)
    with pytest.raises(BadInput, match=r"no samples of 2026-01-06; run `onerec samples"):
        shards.run(spark, lake, DAY + dt.timedelta(days=1))
    with pytest.raises(BadInput, match="no shard of this day"):
        rsft.run(spark, lake, DAY)


@pytest.mark.slow
def test_a_day_that_a_backfill_has_not_finished_or_changes_meanwhile_is_no_shard(
    spark: Any, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS)
    mark_stale(lake, {str(DAY): {"pathways": UNFINISHED}})
    with pytest.raises(BadInput, match=f"pathways of {DAY}: a backfill that rebuilds it has not ended"):
        shards.run(spark, lake, DAY)
    clear_stale(lake, DAY, "pathways")
    build = shards._build

    def meanwhile(*arguments: Any) -> Any:
        built = build(*arguments)
        rows = lake.read(PATHWAY_SHORT).to_pylist()
        commit_files(lake, PATHWAY_SHORT, [], pads.field("date") == DAY)
        write_rows(lake, PATHWAY_SHORT, rows)
        return built

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_build", meanwhile)
        with pytest.raises(BadInput, match=r"pathway_short: another process wrote partitions that this run had read"):
            shards.run(spark, lake, DAY)
    assert not (shard_files.day_folder(shard_files.shards_root(lake), str(DAY)) / shard_files.MANIFEST).exists()
    shards.run(spark, lake, DAY)


@pytest.mark.slow
def test_catching_up_builds_what_has_samples_and_no_manifest(spark: Any, lake: Lake) -> None:
    shard_lake.publish_tokens(lake, ITEM_IDS)
    day_before = DAY - dt.timedelta(days=1)
    shard_lake.fill(lake, seed=2, date=day_before)
    later = DAY + dt.timedelta(days=2)
    assert shards.days_to_catch_up(lake, later, 7) == [day_before, DAY]
    shards.run(spark, lake, DAY)
    assert shards.days_to_catch_up(lake, later, 7) == [day_before]
    assert shards.days_to_catch_up(lake, later, 2) == []
