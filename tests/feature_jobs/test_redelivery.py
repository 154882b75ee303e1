"""A landing that is delivered again: with the same rows nothing is said; with others, days that took it in are stale."""

import datetime as dt
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.ingest import job
from feature_jobs.ingest.redelivery import TakenIn
from feature_jobs.stale import read_stale
from onerec.command_line import run
from onerec.lake_view import day_status
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.tables import DAILY_SAMPLES, EVENTS, ITEMS
from tests.feature_jobs.without_spark import NO_SPARK, ingest, run_day, run_in_turn
from tests.lake_rows import utc, write_rows

Row = dict[str, Any]
DAYS = [dt.date(2026, 1, day) for day in range(10, 14)]
CONFIG: Row = {
    "lake": {"user_buckets": 3},
    "samples": {"gates": {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}},
}


def event(name: str, date: dt.date, user: str, **values: Any) -> Row:
    return {"impression_id": name, "user_id": user, "item_id": "i", "ts": f"{date}T12:00:00Z", "play_time_ms": 5} | values


def rows_of(landing: dt.date) -> list[Row]:
    """Six users' own rows, and one of them late from the day before."""
    rows = [event(f"{landing}-{number}", landing, f"u{number}") for number in range(6)]
    return [*rows, event(f"late-{landing}", landing - dt.timedelta(days=1), "u1")]


@dataclass(frozen=True)
class World:
    """A landing zone and a lake of which days 10 to 12 were made."""

    root: Path
    lake: Lake

    def deliver(self, landing: dt.date, rows: list[Row]) -> Row:
        """Put the rows into the landing zone, in any order and files, and ingest them."""
        folder = self.root / "events" / f"date={landing}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        rows = random.Random(len(rows)).sample(rows, len(rows))
        for number in range(2):
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[number::2]))
        return ingest(self.lake, str(self.root), landing)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("redelivery")
    world = World(root / "zone", create_lake(str(root / "lake"), Config.model_validate(CONFIG)))
    write_rows(world.lake, ITEMS, [{"item_id": "i", "valid_from": utc("2020-01-01 00:00:00")}])
    with pytest.MonkeyPatch.context() as patch:
        run_in_turn(patch)
        for day in DAYS[:3]:
            assert "redelivered" not in world.deliver(day, rows_of(day))
            run_day(world.lake, day)
    return world


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy, so that each test may change it."""
    run_in_turn(monkeypatch)
    shutil.copytree(made.lake.root, tmp_path / "lake")
    shutil.copytree(made.root, tmp_path / "zone")
    return World(tmp_path / "zone", Lake(str(tmp_path / "lake"), made.lake.config))


@pytest.mark.slow
def test_the_same_rows_again_are_no_news(world: World) -> None:
    for day in DAYS[1:3]:
        assert "redelivered" not in world.deliver(day, rows_of(day)[::-1] + rows_of(day)[:2])
    assert read_stale(world.lake) == {}


def _liked(rows: list[Row]) -> list[Row]:
    return [rows[0] | {"like": True}, *rows[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "dates", "first"),
    [
        pytest.param(_liked, DAYS[1:2], DAYS[1], id="another label"),
        pytest.param(lambda rows: rows[1:], DAYS[1:2], DAYS[1], id="a row less"),
        pytest.param(lambda rows: [row for row in rows if row["user_id"] != "u3"], DAYS[1:2], DAYS[1], id="a user less"),
        pytest.param(lambda rows: [*rows, event("new", DAYS[1], "v")], DAYS[1:2], DAYS[1], id="a row more"),
        pytest.param(lambda rows: [*rows, event("new", DAYS[0], "v")], DAYS[:1], DAYS[1], id="a late row more"),
        pytest.param(lambda rows: rows[:-1], DAYS[:1], DAYS[1], id="the late row less"),
        pytest.param(lambda _: [], DAYS[:2], DAYS[1], id="nothing at all"),
    ],
)
def test_other_rows_mark_what_was_made_from_the_old_ones(
    world: World, changed: Callable[[list[Row]], list[Row]], dates: list[dt.date], first: dt.date
) -> None:
    """Late rows of day 10 in landing 11 went into the state of day 11, and not into the samples of day 10."""
    report = world.deliver(DAYS[1], changed(rows_of(DAYS[1])))["redelivered"]
    assert report["dates"] == [str(date) for date in dates]
    assert report["stale"] == read_stale(world.lake)
    marked = {date: set(steps) for date, steps in report["stale"].items()}
    sampled = {"samples", "pathways"} if DAYS[1] in dates else {"pathways"}
    assert marked == {str(DAYS[1]): sampled, str(DAYS[2]): {"samples", "pathways"}}
    names = ", ".join(map(str, dates))
    assert report["warning"] == (
        f"warning: landing 2026-01-11 was delivered again with other rows of {names}, which had been taken in; run `onerec "
        f"backfill --from {first} --to 2026-01-12` (until then `onerec status` shows these days as stale)"
    )


def test_a_landing_that_nobody_has_taken_in_may_change(world: World) -> None:
    world.deliver(DAYS[3], rows_of(DAYS[3]))
    assert "redelivered" not in world.deliver(DAYS[3], rows_of(DAYS[3])[2:])
    assert world.lake.read(EVENTS).num_rows == 7 * 3 + 5
    assert read_stale(world.lake) == {}


def test_a_run_that_is_killed_before_it_publishes_has_marked_and_the_next_one_says_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(job, "commit_files", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            world.deliver(DAYS[2], _liked(rows_of(DAYS[2])))
    assert set(read_stale(world.lake)) == {str(DAYS[2])}
    assert "redelivered" in world.deliver(DAYS[2], _liked(rows_of(DAYS[2])))
    assert "redelivered" not in world.deliver(DAYS[2], _liked(rows_of(DAYS[2]))), "what is published is compared"


def test_who_takes_the_old_rows_in_while_the_new_ones_come_is_stale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Day 13 is made for the first time, of the old rows, just before the new ones are published: nobody had it until then."""
    world.deliver(DAYS[3], rows_of(DAYS[3]))
    publish = job._publish

    def meanwhile(*arguments: Any) -> None:
        run_day(world.lake, DAYS[3])
        publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_publish", meanwhile)
        report = world.deliver(DAYS[3], _liked(rows_of(DAYS[3])))
    assert report["redelivered"]["stale"] == read_stale(world.lake)
    assert set(read_stale(world.lake)[str(DAYS[3])]) == {"samples", "pathways"}


@pytest.mark.slow
def test_days_made_anew_are_no_longer_stale(world: World) -> None:
    world.deliver(DAYS[1], _liked(rows_of(DAYS[1])))
    for day in DAYS[1:3]:
        run_day(world.lake, day)
    assert read_stale(world.lake) == {}
    liked = world.lake.read(DAILY_SAMPLES, columns=["date", "like"]).to_pylist()
    assert [row["date"] for row in liked if row["like"]] == [DAYS[1]]


def test_the_command_warns_in_one_line_and_status_shows_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("feature_jobs.session.spark_session", lambda _: NO_SPARK)
    command = ["ingest", "--lake", world.lake.root, "--landing", str(world.root), "--date", str(DAYS[2]), "--json"]
    assert run(command) == 0
    quiet = capsys.readouterr()
    assert "warning" not in quiet.err + quiet.out
    path = world.root / "events" / f"date={DAYS[2]}" / "0.jsonl"
    path.write_text(path.read_text().replace('"play_time_ms": 5', '"play_time_ms": 6'))
    assert run(command) == 0
    told = capsys.readouterr()
    assert len(told.err.strip().splitlines()) == 1
    assert "run `onerec backfill --from 2026-01-12 --to 2026-01-12`" in told.err
    assert json.loads(told.out)["redelivered"]["stale"] == read_stale(world.lake)
    statuses, _ = day_status(world.lake, DAYS[2])
    assert {status.step for status in statuses if status.state == "stale"} == {"samples", "pathways"}


def test_rows_that_a_later_landing_had_left_to_it_are_told_and_come_back(world: World) -> None:
    """Landing 12 repeats two rows of landing 11, which is then delivered again without one of them: no landing has it then."""
    twice = rows_of(DAYS[1])[:2]
    world.deliver(DAYS[2], [*rows_of(DAYS[2]), *twice])
    report = world.deliver(DAYS[1], rows_of(DAYS[1])[1:])
    assert report["orphaned"]["rows"] == {str(DAYS[2]): 1}
    assert report["orphaned"]["warning"] == (
        "warning: landing 2026-01-11 was delivered again without rows that later landings had brought too (1 of landing "
        "2026-01-12); no landing has them now: run `onerec ingest --date 2026-01-12` again (until then `onerec status` shows it "
        "as stale)"
    )
    assert "ingest it again" in read_stale(world.lake)[str(DAYS[2])]["ingest"]
    assert _landings_of(world, twice) == {twice[1]["impression_id"]: DAYS[1]}
    assert "orphaned" not in world.deliver(DAYS[2], [*rows_of(DAYS[2]), *twice])
    assert "ingest" not in read_stale(world.lake)[str(DAYS[2])]
    assert _landings_of(world, twice) == {twice[0]["impression_id"]: DAYS[2], twice[1]["impression_id"]: DAYS[1]}


def test_a_landing_that_comes_again_empty_leaves_what_later_ones_repeat_to_them(world: World) -> None:
    world.deliver(DAYS[2], [*rows_of(DAYS[2]), *rows_of(DAYS[1])[:4]])
    assert world.deliver(DAYS[1], [])["orphaned"]["rows"] == {str(DAYS[2]): 4}


def test_a_landing_killed_before_its_rows_go_has_marked_who_repeats_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deliver(DAYS[2], [*rows_of(DAYS[2]), *rows_of(DAYS[1])[:2]])
    with monkeypatch.context() as patch:
        patch.setattr(job, "commit_files", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            world.deliver(DAYS[1], rows_of(DAYS[1])[2:])
    assert "ingest" in read_stale(world.lake)[str(DAYS[2])]


def _landings_of(world: World, rows: list[Row]) -> dict[str, dt.date]:
    """The landing under which each of these impressions is in ``events``, of those that are."""
    events = world.lake.read(EVENTS, columns=["impression_id", "landing_date"]).to_pylist()
    names = {row["impression_id"] for row in rows}
    return {row["impression_id"]: row["landing_date"] for row in events if row["impression_id"] in names}


def test_a_date_was_taken_in_by_its_samples_or_by_the_first_state_that_had_seen_the_landing() -> None:
    taken = TakenIn(frozenset(DAYS[1:2]), frozenset(DAYS[1:4]))
    assert [taken.since(date) for date in DAYS] == [DAYS[1], DAYS[1], DAYS[2], DAYS[3]]
    assert TakenIn(frozenset(), frozenset(DAYS[:1])).since(DAYS[1]) is None
