"""Landings too old to be told from new ones: how many days events may be late can change without taking any in twice."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from feature_jobs.pathways import oldest_landing
from schemas.lake import Lake
from schemas.tables import ITEMS, USER_STATE
from tests.feature_jobs.without_spark import ingest, run_day, run_in_turn
from tests.lake_rows import utc, write_rows

DAYS = [dt.date(2026, 1, day) for day in range(10, 17)]
SAMPLES = {"gates": {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}}


@pytest.fixture
def lake(make_lake: Callable[..., Lake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """All days have landed, with an event of one user each."""
    run_in_turn(monkeypatch)
    made = make_lake(lake={"user_buckets": 1}, samples=SAMPLES, ingest={"max_late_days": 1})
    write_rows(made, ITEMS, [{"item_id": "i", "valid_from": utc("2020-01-01 00:00:00")}])
    for day in DAYS:
        folder = tmp_path / "zone" / "events" / f"date={day}"
        folder.mkdir(parents=True)
        row = {"impression_id": str(day), "user_id": "u", "item_id": "i", "ts": f"{day}T12:00:00Z", "play_time_ms": 5}
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        ingest(made, str(tmp_path / "zone"), day)
    return made


def late_by(lake: Lake, days: int) -> Lake:
    """The same lake, where an event may be so many days late."""
    section = lake.config.ingest.model_copy(update={"max_late_days": days})
    return Lake(lake.root, lake.config.model_copy(update={"ingest": section}))


def behaviours(lake: Lake, day: dt.date) -> int:
    [row] = lake.read(USER_STATE, filter=pads.field("date") == day).to_pylist()
    return row["behaviours"]


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [[1, 1, 1, 1, 1, 1, 30], [30, 30, 1, 1, 1, 1, 30], [1, 1, 30, 1, 1, 30, 30]])
def test_no_behaviour_is_taken_in_twice_when_events_may_be_later_than_before(lake: Lake, allowed: list[int]) -> None:
    for number, (day, days) in enumerate(zip(DAYS, allowed, strict=True), start=1):
        run_day(late_by(lake, days), day)
        assert behaviours(lake, day) == number


def test_a_state_that_does_not_say_what_it_forgot_leaves_it_to_the_setting() -> None:
    assert oldest_landing(DAYS[-1], None, 3) == DAYS[0]
    assert oldest_landing(DAYS[-1], DAYS[3], 3) == DAYS[3]
    assert oldest_landing(DAYS[-1], dt.date(2020, 1, 1), 3) == DAYS[0]
