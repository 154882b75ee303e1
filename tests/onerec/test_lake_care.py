"""What a lake says of itself, and what its retention drops."""

import datetime as dt
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from deltalake import CommitProperties

from feature_jobs.samples_notes import samples_note
from feature_jobs.stale import UNFINISHED, mark_stale
from onerec import lake_care
from onerec.command_line import run
from onerec.lake_care import states_for_stale_days, user_state_days_to_drop, vacuum_lake
from onerec.lake_view import costs, day_status
from schemas.config import RetentionSection
from schemas.errors import GateFailed
from schemas.lake import write_atomically
from schemas.lake_folders import CHECKPOINT_KEPT_HOURS, WORK_KEPT_HOURS
from schemas.runs import TableCounts, step_run
from schemas.tables import DAILY_SAMPLES, EVENTS, USER_STATE
from tests.aged_folders import aged_folder
from tests.lake_rows import write_rows

DAY = dt.date(2026, 1, 4)


def state_row(day):
    return {
        "user_id": "u", "short": [], "positive": [], "pending": [], "recent_items": [], "watch_histogram": [],
        "active_days": 1, "behaviours": 0, "landings_seen": [], "date": day,
    }  # fmt: skip


def test_state_keeps_the_last_days_and_weekly_checkpoints():
    days = [dt.date(2026, 1, 1) + dt.timedelta(days=number) for number in range(40)]
    retention = RetentionSection(user_state_days=3, user_state_checkpoint_weekday=6, user_state_checkpoints=2)
    kept = set(days) - set(user_state_days_to_drop(days, retention))
    assert kept == {dt.date(2026, 2, 7), dt.date(2026, 2, 8), dt.date(2026, 2, 9), dt.date(2026, 2, 1)}
    assert user_state_days_to_drop([], retention) == []


def test_a_state_that_a_stale_day_is_built_from_stays(make_lake):
    """A backfill of old days goes from state to state, and may take longer than the time until the next vacuum."""
    lake = make_lake(retention={"user_state_days": 1, "user_state_checkpoints": 1})
    days = [dt.date(2026, 1, 5) + dt.timedelta(days=number) for number in range(6)]
    for day in days:
        write_rows(lake, USER_STATE, [state_row(day)])
    made_before = {f"2026-01-{day:02}": {"samples": "x", "pathways": "x"} for day in (9, 10, 11)}
    mark_stale(lake, {"2026-01-07": {"pathways": UNFINISHED}, "2026-01-06": {"shards": "x"}} | made_before)
    report = vacuum_lake(lake, dry_run=False)
    assert sorted(lake.read(USER_STATE)["date"].to_pylist()) == [days[1], days[3], days[5]]
    assert report["user_state_days_kept_for_stale"] == ["2026-01-06", "2026-01-08"], "later ones a backfill makes itself"


def test_a_backfill_that_is_under_way_finds_each_state_that_it_left():
    marks = {f"2026-01-{day:02}": {"samples": UNFINISHED, "pathways": UNFINISHED} for day in (13, 14)}
    marks["2026-01-15"] = {"samples": "made before it"}
    assert states_for_stale_days(marks) == {dt.date(2026, 1, 12), dt.date(2026, 1, 13)}


def test_vacuum_drops_what_the_retention_says_and_a_rehearsal_nothing(make_lake, capfd):
    lake = make_lake(retention={"user_state_days": 1, "user_state_checkpoints": 1})
    for number in range(4):
        write_rows(lake, USER_STATE, [state_row(dt.date(2026, 1, 5) + dt.timedelta(days=number))])
    assert run(["lake", "vacuum", "--lake", lake.root, "--dry-run", "--json"]) == 0
    assert lake.read(USER_STATE).num_rows == 4
    assert run(["lake", "vacuum", "--lake", lake.root]) == 0
    assert lake.read(USER_STATE)["date"].to_pylist() == [dt.date(2026, 1, 8)]
    assert "2026-01-05, 2026-01-06, 2026-01-07" in capfd.readouterr().out


def aged(path: Path, hours: float) -> Path:
    """The file (made, if it is not there), last written some hours ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"x")
    moment = time.time() - 3600 * hours
    os.utime(path, (moment, moment))
    return path


def test_vacuum_removes_files_that_nobody_needs_once_they_are_old(make_lake):
    lake = make_lake(retention={"user_state_days": 1, "user_state_checkpoints": 1, "file_hours": 24})
    for number in range(2):
        write_rows(lake, USER_STATE, [state_row(dt.date(2026, 1, 5) + dt.timedelta(days=number))])
    version = lake.table_version(USER_STATE)
    live = [aged(Path(uri), 100) for uri in lake.open_table(USER_STATE).file_uris()]
    root = Path(lake.root)
    partition = live[0].parent
    old = [
        aged(partition / "part-of-a-killed-run.parquet", 25),
        aged(root / "cache" / ".staging-1" / "deep" / "file", 25),
        aged(root / "registry" / "release" / ".staging-2" / "release.json", 25),
        aged(root / "stale.json.0f.tmp", 25),
    ]
    young = [
        aged(partition / "part-of-a-running-run.parquet", 23),
        aged(root / "cache" / ".staging-3" / "file", 23),
        aged(root / "cache" / "items-0" / "complete", 1000),
        aged(root / "suppression.json", 1000),
    ]
    aged(root / "cache" / ".staging-3" / "older", 1000)
    assert vacuum_lake(lake, dry_run=True)["leftovers"] == 3, "two folders and a file"
    assert all(path.exists() for path in (*old, *young, *live))
    report = vacuum_lake(lake, dry_run=False)
    assert report["files"][USER_STATE.name] == 1
    assert [path for path in old if path.exists()] == []
    assert [path for path in young if not path.exists()] == []
    assert lake.read(USER_STATE)["date"].to_pylist() == [dt.date(2026, 1, 6)]
    assert lake.read(USER_STATE, version=version).num_rows == 2, "who reads the version before still can, for a day"


def test_vacuum_removes_what_killed_runs_worked_with_but_neither_a_live_runs_folder_nor_a_checkpoint_of_this_week(make_lake):
    lake = make_lake(retention={"file_hours": 1})
    work, checkpoints = Path(lake.root, "work"), Path(lake.root, "checkpoints")
    old = [
        aged_folder(work / "embed-1", WORK_KEPT_HOURS + 1, "known/a.parquet"),
        aged_folder(work / "no-step-of-ours", WORK_KEPT_HOURS + 1),
        aged_folder(work / ".staging-1", 2, "fused/a.parquet"),
        aged_folder(checkpoints / "fusion-1-scratch", CHECKPOINT_KEPT_HOURS + 1, "checkpoint.safetensors"),
    ]
    young = [
        aged_folder(work / "embed-2", WORK_KEPT_HOURS - 1, "known/a.parquet"),
        aged_folder(work / "embed-3", WORK_KEPT_HOURS + 1, "known/a.parquet", "outcomes/a.parquet"),
        aged_folder(checkpoints / "fusion-2-scratch", CHECKPOINT_KEPT_HOURS - 1, "checkpoint.safetensors"),
    ]
    aged(young[1] / "outcomes" / "b.parquet", 0)
    assert vacuum_lake(lake, dry_run=True)["leftovers"] == len(old)
    assert all(path.exists() for path in (*old, *young))
    assert vacuum_lake(lake, dry_run=False)["leftovers"] == len(old)
    assert [path.exists() for path in old] == [False] * len(old)
    assert [path.exists() for path in young] == [True] * len(young)


def test_vacuum_keeps_them_as_long_as_the_retention_says(make_lake):
    lake = make_lake(retention={"file_hours": 1000})
    folders = [aged_folder(Path(lake.root, name), 999, "file") for name in ("work/embed-1", "checkpoints/fusion-1-scratch")]
    assert vacuum_lake(lake, dry_run=False)["leftovers"] == 0
    assert all(folder.exists() for folder in folders)


def test_two_that_clean_at_once_are_no_error(make_lake, monkeypatch):
    lake = make_lake(retention={"file_hours": 1})
    for number in range(2):
        aged_folder(Path(lake.root, "work", f"embed-{number}"), WORK_KEPT_HOURS + 1, "file")
    found = lake_care._abandoned

    def removed_meanwhile(*how):
        folders = found(*how)
        shutil.rmtree(Path(lake.root, "work", "embed-0"))
        return folders

    monkeypatch.setattr(lake_care, "_abandoned", removed_meanwhile)
    vacuum_lake(lake, dry_run=False)
    assert list(Path(lake.root, "work").iterdir()) == []


def test_status_tells_done_failed_stale_missing_and_late(make_lake):
    lake = make_lake()
    with step_run(lake, "samples", DAY):
        pass
    with step_run(lake, "pathways", DAY):
        pass
    with pytest.raises(GateFailed), step_run(lake, "ingest", DAY):
        raise GateFailed("half of the rows are bad")
    write_atomically(lake.uri("stale.json"), json.dumps({DAY.isoformat(): {"pathways": "backfilled"}}).encode())
    moment = dt.datetime(2026, 1, 4, 12, tzinfo=dt.UTC)
    late = {
        "impression_id": "i", "request_id": "r", "user_id": "u", "item_id": "x", "request_ts": moment, "ts": moment,
        "observed_ts": moment, "ingested_at": moment, "play_time_ms": 0, "date": DAY, "landing_date": DAY + dt.timedelta(days=1),
    }  # fmt: skip
    write_rows(lake, EVENTS, [late])
    statuses, late_events = day_status(lake, DAY)
    found = {status.step: (status.state, status.detail) for status in statuses}
    assert found["samples"] == ("late", f"1 events landed since; `onerec backfill --from {DAY} --to {DAY}` takes them in")
    assert found["pathways"] == ("stale", "backfilled")
    assert found["ingest"] == ("failed", "half of the rows are bad")
    assert found["shards"][0] == "missing"
    assert late_events == 1
    backfilled = [DAY, DAY + dt.timedelta(days=1)]
    note = CommitProperties(custom_metadata={"userMetadata": samples_note(DAY, backfilled)})
    lake.open_table(DAILY_SAMPLES).alter.set_table_properties({"delta.checkpointInterval": "50"}, commit_properties=note)
    statuses, late_events = day_status(lake, DAY)
    assert late_events == 0, "its samples were made again with that landing"
    assert {status.step: status.state for status in statuses}["samples"] == "done"


def test_cost_scales_the_median_run_from_the_lakes_day_to_the_target():
    def row(run_id, seconds, rows_in, step="ingest", table="events", status="succeeded"):
        return {"run_id": run_id, "step": step, "date": DAY, "status": status, "seconds": seconds, "rows_in": rows_in,
                "table_name": table}  # fmt: skip

    rows = [
        row("a", 36, 100), row("a", 36, 10, table="items"), row("b", 72, 100), row("c", 360, 100),
        row("d", 1, 100, status="failed"), row("e", 18, 7, step="lifelong", table="pathway_lifelong"),
    ]  # fmt: skip
    ingest, lifelong = costs(rows, cores=2, target_rows=1000, core_hour_price=3)
    assert ingest["runs"] == 3
    assert ingest["core_hours"] == pytest.approx(72 * 2 / 3600)
    assert ingest["core_hours_at_target"] == pytest.approx(0.4)
    assert ingest["price_at_target"] == pytest.approx(1.2)
    assert lifelong["core_hours_at_target"] == pytest.approx(0.1), "by the day's impressions, whatever unit the step keeps"
    (alone,) = costs(rows[-1:], cores=2, target_rows=1000, core_hour_price=3)
    assert alone["core_hours_at_target"] is None


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "core_hour: cheap", "core_hour: -1", "- 1", "core_hour: .inf"])
def test_prices_that_are_none_are_named(make_lake, tmp_path, capfd, text):
    prices = tmp_path / "prices.yaml"
    prices.write_text(text)
    lake = make_lake()
    assert run(["cost", "--lake", lake.root, "--prices", str(prices)]) == 2
    assert "prices.yaml" in capfd.readouterr().err
    with step_run(lake, "ingest", DAY) as step:
        step.table(EVENTS, TableCounts(10, 10))
    prices.write_text("core_hour: 0.04")
    assert run(["cost", "--lake", lake.root, "--prices", str(prices), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"][0]["rows"] == 10
