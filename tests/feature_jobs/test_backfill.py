"""What a backfill refuses, and how it marks what was made from the days that it rebuilds (the rebuilding: test_pathways)."""

import datetime as dt
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from feature_jobs import backfill
from feature_jobs.backfill import backfill_dates, what_depends
from feature_jobs.stale import MAX_STALE_BYTES, STALE_FILE, UNFINISHED, check_finished, clear_stale, mark_stale, read_stale
from onerec.command_line import run
from schemas.config import Config
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.tables import CO_INTERACTION, EVENTS, USER_STATE
from tests.feature_jobs.without_spark import NO_SPARK
from tests.lake_rows import utc, write_rows

DAYS = [dt.date(2026, 1, day) for day in range(1, 13)]


def event(name: str, date: dt.date) -> dict[str, Any]:
    moment = utc(f"{date} 12:00:00")
    return {
        "impression_id": name,
        "request_id": name,
        "user_id": "u",
        "item_id": "i",
        "play_time_ms": 1,
        "request_ts": moment,
        "ts": moment,
        "observed_ts": moment,
        "ingested_at": moment,
        "date": date,
        "landing_date": date,
    }


def test_dates_must_be_in_order_and_have_events(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [event("a", DAYS[1])])
    with pytest.raises(BadInput, match="swap them"):
        backfill_dates(lake, DAYS[1], DAYS[0])
    with pytest.raises(BadInput, match="has no events of these dates"):
        backfill_dates(lake, DAYS[2], DAYS[3])
    with pytest.raises(BadInput, match=f"has no events of {DAYS[0]}; leave that date out"):
        backfill_dates(lake, DAYS[0], DAYS[2])
    assert backfill_dates(lake, DAYS[1], DAYS[1]) == DAYS[1:2]
    empty_by_right = Lake(lake.root, Config.model_validate({"samples": {"gates": {"min_rows": 0}}}))
    assert backfill_dates(empty_by_right, DAYS[0], DAYS[2]) == DAYS[:3]


def test_what_was_made_from_the_days_is_named_and_nothing_else(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    lists = {name: [] for name in ("short", "positive", "pending", "recent_items", "watch_histogram", "landings_seen")}
    write_rows(lake, USER_STATE, [{"user_id": "u", "active_days": 1, "behaviours": 0, "date": day, **lists} for day in DAYS])
    pair = {"kind": "swing", "item_a": "a", "item_b": "b", "score": 1.0, "support": 1}
    write_rows(lake, CO_INTERACTION, [{"date": day, **pair} for day in DAYS])
    for day in (DAYS[0], DAYS[4]):
        lake.local_path("shards", f"date={day}").mkdir(parents=True)
    found = what_depends(lake, DAYS[2], DAYS[3])
    steps: dict[str, list[str]] = {}
    for day, marks in found.items():
        for step in marks:
            steps.setdefault(step, []).append(day)
    assert steps == {
        "pathways": [str(day) for day in DAYS[4:]],
        "co-interaction": [str(day) for day in DAYS[2:10]],  # windows of seven days that hold one of the two
        "shards": [str(DAYS[4])],
        "train": [str(DAYS[4])],
    }


def test_marks_add_up_and_go_one_by_one(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert read_stale(lake) == {}
    mark_stale(lake, {"2026-01-01": {"shards": "one"}, "2026-01-02": {"shards": "two"}})
    mark_stale(lake, {"2026-01-01": {"pathways": "three"}})
    assert read_stale(lake) == {"2026-01-01": {"pathways": "three", "shards": "one"}, "2026-01-02": {"shards": "two"}}
    clear_stale(lake, DAYS[1], "shards")
    clear_stale(lake, DAYS[1], "shards")
    clear_stale(lake, DAYS[0], "shards")
    assert read_stale(lake) == {"2026-01-01": {"pathways": "three"}}
    assert json.loads(lake.local_path(STALE_FILE).read_text()) == read_stale(lake)


def test_marks_of_processes_at_once_all_stay(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    steps = [f"step{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: mark_stale(lake, {str(DAYS[0]): {step: "made before"}}), steps))
        assert set(read_stale(lake)[str(DAYS[0])]) == set(steps)
        list(pool.map(lambda step: clear_stale(lake, DAYS[0], step), steps[1:]))
    assert read_stale(lake) == {str(DAYS[0]): {steps[0]: "made before"}}


def test_a_backfill_that_ends_early_leaves_the_dates_that_it_did_not_rebuild_stale(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes its own mark away, as the real ones do; that of the second day's pathways never comes to it."""
    lake = make_lake()
    write_rows(lake, EVENTS, [event(str(day), day) for day in DAYS[:3]])

    def step(name: str) -> Callable[..., Any]:
        def made(_: Any, of: Lake, date: dt.date, *, every_landing: bool) -> dict[str, Any]:
            assert every_landing
            if (name, date) == ("pathways", DAYS[1]):
                raise KeyboardInterrupt
            clear_stale(of, date, name)
            return {"tables": {}}

        return made

    for name in ("samples", "pathways"):
        monkeypatch.setattr(backfill, f"run_{name}", step(name))
    with pytest.raises(KeyboardInterrupt):
        backfill.run_backfill(NO_SPARK, lake, DAYS[0], DAYS[2])
    left = {date: set(steps) for date, steps in read_stale(lake).items()}
    for finished in (DAYS[0], DAYS[2]):  # the third day was made from what was replaced, by one run
        check_finished(lake, finished)
    with pytest.raises(BadInput, match=f"pathways of {DAYS[1]}: a backfill that rebuilds it has not ended"):
        check_finished(lake, DAYS[1])
    assert left == {str(DAYS[1]): {"pathways"}, str(DAYS[2]): {"samples", "pathways"}}


def test_a_backfill_that_changed_nothing_leaves_no_mark_of_its_own(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [event(str(day), day) for day in DAYS[:2]])
    mark_stale(lake, {str(DAYS[1]): {"samples": "made before"}})

    def refused(*_: Any, **__: Any) -> Any:
        raise GateFailed("too few rows")

    monkeypatch.setattr(backfill, "run_samples", refused)
    with pytest.raises(GateFailed):
        backfill.run_backfill(NO_SPARK, lake, DAYS[0], DAYS[1])
    assert read_stale(lake) == {str(DAYS[1]): {"samples": "made before"}}


def test_another_reason_does_not_hide_that_a_backfill_was_killed(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    mark_stale(lake, {str(DAYS[0]): {"pathways": UNFINISHED}})
    mark_stale(lake, {str(DAYS[0]): {"pathways": "made before another backfill", "shards": "made before it"}})
    assert read_stale(lake) == {str(DAYS[0]): {"pathways": UNFINISHED, "shards": "made before it"}}
    clear_stale(lake, DAYS[0], "pathways")
    assert read_stale(lake) == {str(DAYS[0]): {"shards": "made before it"}}


def test_a_later_day_that_was_made_meanwhile_is_stale(make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [event(str(day), day) for day in DAYS[:1]])
    lists = {name: [] for name in ("short", "positive", "pending", "recent_items", "watch_histogram", "landings_seen")}

    def pathways(_: Any, of: Lake, date: dt.date, *, every_landing: bool) -> dict[str, Any]:
        assert every_landing
        write_rows(of, USER_STATE, [{"user_id": "u", "active_days": 1, "behaviours": 0, "date": DAYS[1], **lists}])
        clear_stale(of, date, "pathways")
        return {"tables": {}}

    def samples(_: Any, of: Lake, date: dt.date, **__: Any) -> dict[str, Any]:
        clear_stale(of, date, "samples")
        return {"tables": {}}

    monkeypatch.setattr(backfill, "run_samples", samples)
    monkeypatch.setattr(backfill, "run_pathways", pathways)
    report = backfill.run_backfill(NO_SPARK, lake, DAYS[0], DAYS[0])
    assert set(report["stale"]) == set(read_stale(lake)) == {str(DAYS[1])}


def test_a_damaged_or_foreign_file_of_marks_is_named(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    for content, found in (("{", "not JSON"), ("[]", "not marks of ours"), (" " * (MAX_STALE_BYTES + 1), "larger than")):
        lake.local_path(STALE_FILE).write_text(content)
        with pytest.raises(BadInput, match=rf"stale\.json: {found}"):
            read_stale(lake)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["backfill", "--from", "2026-01-02", "--to", "2026-01-01", "--dry-run"], "--from 2026-01-02"),
        (["backfill", "--from", "2026-13-02", "--to", "2026-01-01"], "--from '2026-13-02'"),
        (["samples", "--date", "yesterday"], "--date 'yesterday'"),
        (["pathways", "--date", "2026-02-30"], "--date '2026-02-30'"),
        (["samples", "--date", "2026-01-01", "--set", "samples.caps=1"], "samples.caps"),
    ],
)
def test_bad_options_end_in_one_line(
    make_lake: Callable[..., Lake], capfd: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    lake = make_lake()
    assert run([*arguments, "--lake", lake.root]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert named in lines[0]


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    make_lake: Callable[..., Lake], capfd: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake()
    write_rows(lake, EVENTS, [event("a", DAYS[0])])
    lake.local_path("shards", f"date={DAYS[0]}").mkdir(parents=True)
    assert run(["backfill", "--from", str(DAYS[0]), "--to", str(DAYS[0]), "--dry-run", "--json", "--lake", lake.root]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["would_change"]["user_state"] == ["date=2026-01-01"]
    assert report["would_change"]["stale.json"] == ["shards of 2026-01-01", "train of 2026-01-01"]
    assert not lake.local_path(STALE_FILE).exists()
