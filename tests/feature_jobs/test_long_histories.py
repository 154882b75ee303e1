"""One user with 100,000 behaviours, through the pure transforms and through the commands, against plain Python."""

import datetime as dt
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.dataset as pads
import pytest

from onerec.command_line import run
from schemas.config import Config
from schemas.lake import Lake, day_start
from schemas.tables import EVENTS, PATHWAY_SHORT, USER_STATE
from tests.feature_jobs.arrow_days import ArrowDays
from tests.feature_jobs.reference_pathways import log_bucket, reconstructed_window, text_hash
from tests.lake_rows import write_rows

Row = dict[str, Any]
FIRST = dt.date(2026, 1, 1)
BEHAVIOURS = 100_000
SETTINGS: dict[str, Any] = {
    "lake": {"day_timezone": "Asia/Shanghai", "user_buckets": 2},
    "samples": {"user_day_cap": BEHAVIOURS, "positive": {"repeat_watch": False, "min_play_ratio": None}},
}


def long_log(days: int, config: Config) -> list[Row]:
    """Events of one user, as many every day; the last plays of a day end on the next."""
    rng = random.Random(days)
    rows = []
    for number in range(BEHAVIOURS):
        day = FIRST + dt.timedelta(days=number % days)
        moment = day_start(day, config).astimezone(dt.UTC) + dt.timedelta(seconds=rng.randrange(86_400))
        play = rng.choice([0, 1_000, 30_000, 3_600_000])
        rows.append(
            {
                **dict.fromkeys(("impression_id", "request_id"), f"n{number}"),
                "user_id": "robot",
                "item_id": f"item-{rng.randrange(3000)}",
                **dict.fromkeys(("request_ts", "ts", "ingested_at"), moment),
                "observed_ts": moment + dt.timedelta(milliseconds=play),
                "play_time_ms": play,
                "duration_ms": rng.choice([5_000, 60_000]),
                "click": play > 0,
                "like": rng.random() < 0.3,
                **dict.fromkeys(("date", "landing_date"), day),
            }
        )
        rows[-1]["place"] = rows[-1]["observed_ts"], text_hash("robot", f"n{number}")
    return rows


def place(row: Row) -> Any:
    """The order of behaviours: (observed_ts, sample_id)."""
    return row["place"]


def expected_state(rows: list[Row], last: dt.date, config: Config) -> Row:
    """The user's state at the end of ``last``, from every event."""
    entered, waiting = [], []
    next_end = day_start(last + dt.timedelta(days=1), config)
    ends = {day: day_start(day + dt.timedelta(days=1), config) for day in {row["date"] for row in rows}}
    for row in rows:
        end = ends[row["date"]]
        if row["observed_ts"] < next_end:
            entered.append((row["date"] if row["observed_ts"] < end else row["date"] + dt.timedelta(days=1), *place(row), row))
        else:
            waiting.append(row)
    known = sorted((row for *_, row in entered), key=place)
    watched = [row for *_, row in sorted(entered, key=lambda entry: entry[:3]) if row["play_time_ms"]]
    cells = Counter((log_bucket(row["duration_ms"], 1.5), log_bucket(row["play_time_ms"], 1.2)) for row in known)
    return {
        "short": [place(row)[1] for row in known[-20:]],
        "positive": [place(row)[1] for row in known if row["like"]][-256:],
        "pending": [place(row)[1] for row in sorted(waiting, key=place)],
        "recent_items": [text_hash(row["item_id"]) for row in watched[-512:]],
        "watch_histogram": [(*cell, count) for cell, count in sorted(cells.items())],
        "behaviours": len(rows),
    }


def state_row(row: Row) -> Row:
    lists = {name: [entry["sample_id"] for entry in row[name]] for name in ("short", "positive", "pending")}
    cells = [(cell["duration_bucket"], cell["play_bucket"], cell["count"]) for cell in row["watch_histogram"]]
    return lists | {"recent_items": row["recent_items"], "watch_histogram": cells, "behaviours": row["behaviours"]}


@pytest.mark.slow
def test_the_state_and_the_windows_of_100_000_behaviours() -> None:
    config = Config.model_validate(SETTINGS)
    rows = long_log(20, config)
    days = ArrowDays(config, [])
    for number in range(20):
        last = FIRST + dt.timedelta(days=number)
        made = days.day(last, [row for row in rows if row["date"] == last])
    assert state_row(days.state.to_pylist()[0]) == expected_state(rows, last, config)
    start, samples = made.prior.to_pylist()[0], made.samples.to_pylist()
    for ask in sorted({sample["request_ts"] for sample in samples})[::1000]:
        exact = sorted((row for row in rows if row["observed_ts"] < ask), key=place)[-20:]
        rebuilt = reconstructed_window(start["short"], start["pending"], samples, ask, 20)
        assert rebuilt == [place(row)[1] for row in exact]


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_the_commands_take_100_000_behaviours_of_one_user(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(**SETTINGS)
    rows = long_log(2, lake.config)
    write_rows(lake, EVENTS, rows)
    for day in (FIRST, FIRST + dt.timedelta(days=1)):
        for step in ("samples", "pathways"):
            assert run([step, "--lake", lake.root, "--date", day.isoformat(), "--json"]) == 0
    (state,) = lake.read(USER_STATE, filter=pads.field("date") == day).to_pylist()
    assert state_row(state) == expected_state(rows, day, lake.config)
    (short,) = lake.read(PATHWAY_SHORT, filter=pads.field("date") == day).to_pylist()
    yesterday = expected_state([row for row in rows if row["date"] == FIRST], FIRST, lake.config)
    assert [entry["sample_id"] for entry in short["behaviours"]] == yesterday["short"]
    assert [entry["sample_id"] for entry in short["pending"]] == yesterday["pending"]
