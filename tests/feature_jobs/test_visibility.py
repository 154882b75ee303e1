"""A request sees exactly the behaviours that the system knew by then: weeks of random days against brute force.

These run the pure transforms, so that many ugly days cost seconds; ``test_pathways.py`` runs the jobs on tables.
"""

import datetime as dt
import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.pathways import oldest_landing, taken_in
from schemas.config import Config
from tests.feature_jobs.arrow_days import ArrowDay, ArrowDays
from tests.feature_jobs.reference_pathways import DayResult, Reference, as_behaviour, reconstructed_window
from tests.feature_jobs.ugly_logs import ugly_log

SMALL = {
    "samples": {"user_day_cap": 9, "positive": {"repeat_window": 4}},
    "pathways": {"short_length": 3, "positive_length": 4},
}
FULL: dict[str, Any] = {}
DAYS = {
    "Asia/Shanghai": dt.date(2026, 1, 1),
    "America/New_York": dt.date(2026, 2, 20),
    "Europe/Berlin": dt.date(2026, 10, 14),
    "America/Santiago": dt.date(2026, 8, 26),
    "UTC": dt.date(2026, 6, 1),
}
"""First days; New York's weeks hold the short day of 2026-03-08, Berlin's the long one of 2026-10-25, and Santiago's the day
2026-09-06, which has no midnight."""


def configuration(zone: str, sections: dict[str, Any]) -> Config:
    return Config.model_validate({"lake": {"day_timezone": zone}, **sections})


@pytest.mark.slow
@pytest.mark.parametrize("sections", [SMALL, FULL], ids=["small-windows", "full-windows"])
@pytest.mark.parametrize("zone", DAYS)
def test_every_request_of_every_day_sees_exactly_what_was_known(zone: str, sections: dict[str, Any]) -> None:
    config = configuration(zone, sections)
    log = ugly_log(seed=1, config=config, first=DAYS[zone], days=18, users=13)
    reference, days = Reference(config, log.items), ArrowDays(config, log.items)
    requests = seen_pending = 0
    for day in log.days:
        landed = [row for row in log.events if row["landing_date"] <= day]
        reference.users = days.users = log.snapshots(day)
        made = days.day(day, landed)
        samples = by_user(made.samples.to_pylist())
        wanted = {
            (user, ask): [reference.visible_window(user, own, ask, positive=high) for high in (False, True)]
            for user, own in samples.items()
            for ask in {sample["request_ts"] for sample in own}
        }
        assert windows(made, config) == wanted, day
        requests += len(wanted)
        for start in made.prior.to_pylist():
            asked = {sample["request_ts"] for sample in samples[start["user_id"]]}
            seen_pending += sum(any(entry["observed_ts"] < ask for entry in start["pending"]) for ask in asked)
        reference.day(day, landed)
    assert requests > 200, "the log is too small to prove anything"
    assert seen_pending > 5, "no request saw a behaviour that was pending when its day began"


def by_user(samples: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for sample in samples:
        grouped[sample["user_id"]].append(sample)
    return dict(grouped)


def windows(made: ArrowDay, config: Config) -> dict[tuple[str, dt.datetime], list[list[int]]]:
    """For each user and request of a day, the short and the positive window that a reader rebuilds."""
    samples, found = by_user(made.samples.to_pylist()), {}
    for start in made.prior.to_pylist():
        own = samples[start["user_id"]]
        for ask in {sample["request_ts"] for sample in own}:
            found[start["user_id"], ask] = [
                reconstructed_window(start["short"], start["pending"], own, ask, config.pathways.short_length),
                reconstructed_window(
                    start["positive"],
                    [entry for entry in start["pending"] if entry["feedback"] >> 8 & 1],
                    [sample for sample in own if sample["positive"]],
                    ask,
                    config.pathways.positive_length,
                ),
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_states_and_samples_of_weeks_equal_the_reference(seed: int) -> None:
    zone = list(DAYS)[seed % len(DAYS)]
    config = configuration(zone, SMALL if seed % 2 else FULL)
    log = ugly_log(seed=100 + seed, config=config, first=DAYS[zone], days=12, users=8)
    reference, days = Reference(config, log.items), ArrowDays(config, log.items)
    for day in log.days:
        landed = [row for row in log.events if row["landing_date"] <= day]
        reference.users = days.users = log.snapshots(day)
        expected = reference.day(day, landed)
        made = days.day(day, landed)
        check_rows(made, expected)
        assert states(days) == expected.state


def check_rows(made: ArrowDay, expected: DayResult) -> None:
    """A day's samples and static pathways are those of the reference, every column."""
    names = [name for name in made.samples.column_names if name not in ("dropped", "item_version_missing")]
    found = {(row["user_id"], row["sample_id"]): row for row in made.samples.select(names).to_pylist()}
    wanted = {(row["user_id"], row["sample_id"]): {name: row.get(name) for name in names} for row in expected.samples}
    assert found == wanted
    static = {row.pop("user_id"): row for row in made.static.to_pylist()}
    assert static == {user: pathway["static"] for user, pathway in expected.pathways.items()}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    zone=st.sampled_from(list(DAYS)),
    small=st.booleans(),
    users=st.integers(1, 4),
    special=st.booleans(),
)
def test_any_few_days_equal_the_reference(rng: random.Random, zone: str, small: bool, users: int, special: bool) -> None:
    config = configuration(zone, SMALL if small else FULL)
    log = ugly_log(rng, config=config, first=DAYS[zone] + dt.timedelta(days=9), days=5, users=users, special=special)
    reference, days = Reference(config, log.items), ArrowDays(config, log.items)
    for day in log.days:
        landed = [row for row in log.events if row["landing_date"] <= day]
        reference.users = days.users = log.snapshots(day)
        wanted = {
            (user, ask): [reference.visible_window(user, own, ask, positive=high) for high in (False, True)]
            for user, own in by_user(reference.samples(day, landed)[0]).items()
            for ask in {sample["request_ts"] for sample in own}
        }
        expected = reference.day(day, landed)
        made = days.day(day, landed)
        assert windows(made, config) == wanted
        check_rows(made, expected)
        assert states(days) == expected.state


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_backfilled_stretch_counts_late_rows_once_and_the_days_after_go_on_from_it(seed: int) -> None:
    config = configuration("Asia/Shanghai", SMALL)
    log = ugly_log(seed=200 + seed, config=config, first=DAYS["Asia/Shanghai"], days=9, users=8)
    reference, days = Reference(config, log.items), ArrowDays(config, log.items)
    for number, day in enumerate(log.days):
        backfilled = 3 <= number <= 5  # these days see every landing; the others only those up to their own
        landed = [row for row in log.events if backfilled or number > 5 or row["landing_date"] <= day]
        reference.users = days.users = log.users if number >= 3 else log.snapshots(day)
        expected = reference.day(day, landed, every=backfilled)
        days.day(day, landed, every=backfilled)
        assert states(days) == expected.state
    taken = sum(state["behaviours"] for state in states(days).values())
    impressions = {(row["user_id"], row["impression_id"]) for row in log.events}
    assert taken <= len(impressions), "an impression was taken in twice"


@pytest.mark.slow
def test_days_taken_one_by_one_equal_one_backfill_on_the_same_landings_but_for_when_late_rows_came() -> None:
    config = configuration("UTC", FULL | {"samples": {"positive": {"repeat_watch": False}}})
    log = ugly_log(seed=5, config=config, first=DAYS["UTC"], days=8, users=8)
    daily, whole = ArrowDays(config, log.items), ArrowDays(config, log.items, log.users)
    for day in log.days:
        daily.users = log.snapshots(day)
        daily.day(day, [row for row in log.events if row["landing_date"] <= day])
        whole.day(day, log.events, every=True)
    for user, state in states(daily).items():
        for name in state.keys() - {"recent_items"}:
            assert state[name] == states(whole)[user][name], (user, name)


def states(days: ArrowDays) -> dict[str, dict[str, Any]]:
    """Users' states as the reference gives them: sample ids for behaviours, tuples for histogram cells."""
    found = {}
    for row in days.state.to_pylist():
        lists = {name: [entry["sample_id"] for entry in row[name]] for name in ("short", "positive", "pending")}
        cells = [(cell["duration_bucket"], cell["play_bucket"], cell["count"]) for cell in row["watch_histogram"]]
        user = row.pop("user_id")
        del row["users_version"], row["landings_from"]
        found[user] = row | lists | {"watch_histogram": cells}
    return found


def test_a_behaviour_carries_its_attributes_and_feedback_bits() -> None:
    config = configuration("UTC", FULL)
    log = ugly_log(seed=6, config=config, first=DAYS["UTC"], days=2, users=8)
    days, reference = ArrowDays(config, log.items), Reference(config, log.items, log.users)
    for day in log.days:
        days.day(day, log.events)
        reference.day(day, log.events)
    for row in days.state.to_pylist():
        by_id = {entry["sample_id"]: as_behaviour(entry) for entry in reference.taken[row["user_id"]]}
        for entry in row["short"] + row["positive"] + row["pending"]:
            assert entry == by_id[entry["sample_id"]]


@pytest.mark.parametrize("every", [False, True])
def test_every_event_is_taken_in_once_whatever_order_landings_come_in(every: bool) -> None:
    d = [dt.date(2026, 1, day) for day in range(1, 8)]
    # Landing 3 was ingested late: the state of day 4 had seen landings 1, 2 and 4.
    partitions = {(d[0], d[0]), (d[0], d[2]), (d[2], d[2]), (d[3], d[3]), (d[4], d[4]), (d[2], d[4]), (d[4], d[5])}
    oldest = oldest_landing(d[4], None, 30)
    seen, late = taken_in(d[4], partitions, {d[0], d[1], d[3]}, {d[4], d[5]} if every else {d[4]}, oldest, every=every)
    assert late == {(d[0], d[2]), (d[2], d[2]), (d[2], d[4])}
    assert seen == d[:6] if every else d[:5]


def test_a_forgotten_landing_is_not_taken_in_again() -> None:
    day = dt.date(2026, 6, 1)
    old, recent = day - dt.timedelta(days=61), day - dt.timedelta(days=60)
    seen, late = taken_in(
        day, {(old, old), (recent, recent), (day, day)}, {old}, {day}, oldest_landing(day, None, 30), every=False
    )
    assert seen == [recent, day]
    assert late == {(recent, recent)}
