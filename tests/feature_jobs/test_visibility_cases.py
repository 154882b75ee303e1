"""What a request sees, case by case: a log, a request, and the window that its reader must rebuild, in plain sight.

Impressions are written (name, request, plays for, lands): ``a`` of request 10:00 that is watched for ten minutes and lands
on its own day. Moments are hours:minutes of days counted from 0, in the lake's time zone. The random logs of
``test_visibility.py`` hold all of this at once; here each rule stands alone.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.config import Config
from schemas.lake import day_start
from tests.feature_jobs.arrow_days import ArrowDays
from tests.feature_jobs.reference_pathways import Reference, reconstructed_window, text_hash

Row = dict[str, Any]
UTC_DAY = dt.date(2026, 6, 1)
SHORT_DAY, LONG_DAY = dt.date(2026, 3, 8), dt.date(2026, 11, 1)
"""New York's days of 23 and of 25 hours."""


@dataclass(frozen=True)
class Shown:
    """An impression: its request (day, hours since the day's start), seconds watched, and what is unusual about it."""

    name: str
    day: int
    hour: float
    watched: float = 0
    late: int = 0
    request: str | None = None


@dataclass(frozen=True)
class Case:
    """A user's log, and by request (day, hour) the impressions that it must see, oldest first."""

    rule: str
    log: list[Shown]
    seen: dict[tuple[int, float], str]
    first: dt.date = UTC_DAY
    zone: str = "UTC"


SECOND = 1 / 3600
CASES = [
    Case("no history: nothing", [Shown("a", 0, 10)], {(0, 10): ""}),
    Case("one behaviour", [Shown("a", 0, 10), Shown("b", 0, 11)], {(0, 11): "a"}),
    Case(
        "a play that ends after the next request is not seen by it",
        [Shown("a", 0, 10, 600), Shown("b", 0, 10 + 300 * SECOND), Shown("c", 0, 10 + 601 * SECOND)],
        {(0, 10 + 300 * SECOND): "", (0, 10 + 601 * SECOND): "ba"},
    ),
    Case(
        "what was complete at the very moment of the request is not seen",
        [Shown("a", 0, 10, 60), Shown("b", 0, 10 + 60 * SECOND)],
        {(0, 10 + 60 * SECOND): ""},
    ),
    Case(
        "a play that ends after midnight waits, and is seen by the request after its end",
        [Shown("a", 0, 23.99, 600), Shown("b", 1, 0.05), Shown("c", 1, 0.5)],
        {(1, 0.05): "", (1, 0.5): "ba"},
    ),
    Case(
        "a play of two days waits through the day between",
        [Shown("a", 0, 23, 2 * 86_400), Shown("b", 1, 12), Shown("c", 2, 12), Shown("d", 2, 23.5)],
        {(1, 12): "", (2, 12): "b", (2, 23.5): "bca"},
    ),
    Case(
        "siblings of one request never see each other",
        [Shown("a", 0, 10, 0, request="r"), Shown("b", 0, 10, 1, request="r"), Shown("c", 0, 11)],
        {(0, 10): "", (0, 11): "ab"},
    ),
    Case(
        "absent for weeks and back",
        [Shown("a", 0, 10), Shown("b", 0, 11), Shown("c", 30, 10)],
        {(30, 10): "ab"},
    ),
    Case(
        "a late row is seen from the day after its landing, in the place of its time",
        [Shown("a", 0, 9), Shown("b", 0, 10, late=2), Shown("c", 0, 11), Shown("d", 1, 9), Shown("e", 2, 9), Shown("f", 3, 9)],
        {(0, 11): "a", (1, 9): "ac", (2, 9): "acd", (3, 9): "abcde"},
    ),
    Case(
        "a row that comes again, late and with other values, changes nothing",
        [Shown("a", 0, 9, 5), Shown("a", 0, 9, 500, late=1), Shown("b", 1, 9), Shown("c", 2, 9)],
        {(1, 9): "a", (2, 9): "ab"},
    ),
    Case(
        "the short day ends after 23 hours",
        [Shown("a", 0, 22.9, 600), Shown("b", 1, 0.01), Shown("c", 1, 1)],
        {(1, 0.01): "", (1, 1): "ba"},
        SHORT_DAY,
        "America/New_York",
    ),
    Case(
        "the long day has a request in its 25th hour",
        [Shown("a", 0, 23.5), Shown("b", 0, 24.5), Shown("c", 1, 0.1)],
        {(0, 24.5): "a", (1, 0.1): "ab"},
        LONG_DAY,
        "America/New_York",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_request_sees(case: Case) -> None:
    config = Config.model_validate({"lake": {"day_timezone": case.zone}})
    events = [event(shown, case, config) for shown in case.log]
    found = {moment: window(moment, case, config, events) for moment in case.seen}
    assert found == case.seen


def window(moment: tuple[int, float], case: Case, config: Config, events: list[Row]) -> str:
    """Names of the impressions in the window that a reader rebuilds for a request of the case's log."""
    days = ArrowDays(config, [])
    for number in range(moment[0] + 1):
        day = case.first + dt.timedelta(days=number)
        made = days.day(day, [row for row in events if row["landing_date"] <= day])
    start = made.prior.to_pylist()[0]
    rebuilt = reconstructed_window(start["short"], start["pending"], made.samples.to_pylist(), instant(moment, case, config), 20)
    names = {text_hash("u", shown.name): shown.name for shown in case.log}
    return "".join(names[sample] for sample in rebuilt)


def instant(moment: tuple[int, float], case: Case, config: Config) -> dt.datetime:
    start = day_start(case.first + dt.timedelta(days=moment[0]), config).astimezone(dt.UTC)
    return start + dt.timedelta(seconds=round(moment[1] * 3600))


def event(shown: Shown, case: Case, config: Config) -> Row:
    at = instant((shown.day, shown.hour), case, config)
    day = case.first + dt.timedelta(days=shown.day)
    assert day_start(day, config) <= at < day_start(day + dt.timedelta(days=1), config), "the request is not of its day"
    return {
        "impression_id": shown.name,
        "request_id": shown.request or shown.name,
        "user_id": "u",
        "item_id": "i",
        "request_ts": at,
        "ts": at,
        "observed_ts": at + dt.timedelta(seconds=shown.watched),
        "play_time_ms": round(shown.watched * 1000),
        "date": day,
        "landing_date": day + dt.timedelta(days=shown.late),
    }


def test_ties_at_one_microsecond_stand_in_the_order_of_their_sample_ids() -> None:
    names = [f"n{number}" for number in range(8)]
    case = Case("", [*(Shown(name, 0, 10) for name in names), Shown("z", 1, 9)], {})
    config = Config()
    days = ArrowDays(config, [])
    for number in range(2):
        made = days.day(UTC_DAY + dt.timedelta(days=number), [event(shown, case, config) for shown in case.log])
    held = [entry["sample_id"] for entry in made.prior.to_pylist()[0]["short"]]
    assert held == sorted(text_hash("u", name) for name in names)


def test_a_behaviour_keeps_the_attributes_of_its_item_at_its_request_also_when_it_lands_after_a_change() -> None:
    case, config = Case("", [], {}), Config()
    versions = [
        item(case, config, hour, author, deleted)
        for hour, author, deleted in ((1, "first", False), (12, "second", False), (18, "gone", True))
    ]
    log = [Shown("a", 0, 0.5), Shown("b", 0, 10), Shown("c", 0, 13, late=1), Shown("d", 0, 20, late=2), Shown("e", 3, 9)]
    days = ArrowDays(config, versions)
    for number in range(4):
        day = UTC_DAY + dt.timedelta(days=number)
        rows = [event(shown, case, config) for shown in log]
        made = days.day(day, [row for row in rows if row["landing_date"] <= day])
    assert [entry["author_id"] for entry in made.prior.to_pylist()[0]["short"]] == [None, "first", "second", "gone"]


def item(case: Case, config: Config, hour: float, author: str, deleted: bool) -> Row:
    valid_from = instant((0, hour), case, config)
    rest = {"category": None, "tags": None, "duration_ms": None, "deleted": deleted}
    return {"item_id": "i", "valid_from": valid_from, "author_id": author, **rest}


def test_a_snapshot_counts_from_the_day_after_its_own_also_when_it_landed_late() -> None:
    case, config = Case("", [], {}), Config()
    log = [event(Shown(f"n{day}", day, 9), case, config) for day in range(6)]
    exported = {0: "18-24", 2: "25-34", 3: "35-44"}
    lands = {0: 0, 2: 4, 3: 3}  # the one of day 2 comes after a newer one: nobody sees it
    days, reference = ArrowDays(config, []), Reference(config, [])
    found = []
    for number in range(6):
        day = UTC_DAY + dt.timedelta(days=number)
        landed = [
            {"user_id": "u", "date": UTC_DAY + dt.timedelta(days=export), "age_band": band}
            for export, band in exported.items()
            if lands[export] <= number
        ]
        reference.users = days.users = landed
        made = days.day(day, [row for row in log if row["landing_date"] <= day])
        found.append(made.static.to_pylist()[0]["age_band"])
        assert found[-1] == reference.pathway("u", day)["static"]["age_band"]
    assert found == [None, "18-24", "18-24", "18-24", "35-44", "35-44"]
