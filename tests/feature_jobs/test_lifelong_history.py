"""A base and the days since, merged: compared with a reference that keeps every day's rows and looks at each behaviour."""

import datetime as dt
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.lifelong_history import BASE, DAY, NO_LEAF, Histories, Upto, merge_histories
from tests.feature_jobs.lifelong_lake import DAY as FIRST
from tests.feature_jobs.lifelong_lake import Row, behaviour, end_of, micros

USERS = ["anna", "bert", "李雷", ""]


def upto(day: dt.date, most: int) -> Upto:
    return Upto(day, micros(end_of(day)), most)


def days_of(log: dict[dt.date, list[Row]]) -> list[pa.Table]:
    return [pa.Table.from_pylist(rows, schema=DAY) for rows in log.values()]


def base_of(found: Histories, date: dt.date, leaf: list[int] | None = None) -> pa.Table:
    """The base that a refresh would write, in slices of nothing but users who have behaviours."""
    rows = []
    entries = found.behaviours.to_pylist()
    for number, user in enumerate(found.users.to_pylist()):
        span = slice(found.offsets[number], found.offsets[number + 1])
        landed = [dt.date(1970, 1, 1) + dt.timedelta(days=int(day)) for day in found.landed[span]]
        if entries[span]:
            rows.append(
                {"user_id": user, "behaviours": entries[span], "landed": landed, "refresh_date": date}
                | {"leaf": (leaf or found.leaf.tolist())[span], "joined": 0, "fusion_version": "f"}
            )
    return pa.Table.from_pylist(rows, schema=BASE)


def reference(log: dict[dt.date, list[Row]], day: dt.date, most: int) -> dict[str, list[tuple[int, dt.date]]]:
    """(sample_id, landing day) of each user's history: one row a sample, of its earliest day; the newest ``most`` observed,
    and those not observed by the end of the day."""
    result = {}
    for user in USERS:
        kept: dict[int, tuple[Any, int, dt.date]] = {}
        for landed in sorted(log):
            for row in log[landed]:
                if row["user_id"] == user:
                    for one in row["behaviours"]:
                        kept.setdefault(one["sample_id"], (one["observed_ts"], one["sample_id"], landed))
        entries = sorted(kept.values())
        seen = [entry for entry in entries if entry[0] < end_of(day)]
        waiting = [entry for entry in entries if entry[0] >= end_of(day)]
        chosen = [(sample, landed) for _, sample, landed in seen[max(0, len(seen) - most) :] + waiting]
        if kept:
            result[user] = chosen
    return result


def as_found(found: Histories) -> dict[str, list[tuple[int, dt.date]]]:
    samples = [one["sample_id"] for one in found.behaviours.to_pylist()]
    landed = [dt.date(1970, 1, 1) + dt.timedelta(days=int(day)) for day in found.landed]
    pairs = list(zip(samples, landed, strict=True))
    spans = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return {user: pairs[a:b] for user, (a, b) in zip(found.users.to_pylist(), spans, strict=True)}


def random_log(seed: int, days: int, most: int) -> dict[dt.date, list[Row]]:
    """Some behaviours come again on a later day, some twice a day; some belong to days before (late); some tie in time; some
    users share a sample_id."""
    rng = random.Random(seed)
    log: dict[dt.date, list[Row]] = {}
    told: dict[str, list[Row]] = {user: [] for user in USERS}
    for number in range(days):
        day = FIRST + dt.timedelta(days=number)
        rows = []
        for user in USERS:
            made = [behaviour(rng, day - dt.timedelta(days=rng.choice([0, 0, 0, 2]))) for _ in range(rng.randrange(most))]
            for one in made:
                if told[user] and rng.random() < 0.15:
                    one["observed_ts"] = rng.choice(told[user])["observed_ts"]
                if rng.random() < 0.05:
                    one["sample_id"] = 7
            made = list({one["sample_id"]: one for one in made}.values())
            made = [one for one in made if one["sample_id"] not in {old["sample_id"] for old in told[user]}]
            again = [one for one in told[user] if rng.random() < 0.1]
            told[user] += made
            brought = made + again
            if brought:
                rows.append({"user_id": user, "behaviours": brought + brought[:1], "date": day})
        if rows:
            log[day] = rows
    return log


def folded(log: dict[dt.date, list[Row]], most: int, turns: list[dt.date]) -> tuple[Histories, list[int]]:
    """The histories after refreshes on these days, each taking in the days since; what each dropped."""
    base, done = BASE.empty_table(), FIRST - dt.timedelta(days=1)
    dropped = []
    for turn in turns:
        since = {day: rows for day, rows in log.items() if done < day <= turn}
        found = merge_histories(base, days_of(since), sorted(since), upto(turn, most))
        assert found.rows_in == len(found.behaviours) + sum(found.dropped.values())
        dropped.append(found.dropped["over_max_history"])
        base, done = base_of(found, turn), turn
    return found, dropped


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), days=st.integers(1, 6), most=st.integers(1, 12), cuts=st.sets(st.integers(0, 5)))
def test_days_folded_in_turns_equal_all_days_at_once(seed: int, days: int, most: int, cuts: set[int]) -> None:
    log = random_log(seed, days, most=8)
    last = FIRST + dt.timedelta(days=days - 1)
    turns = [FIRST + dt.timedelta(days=cut) for cut in sorted(cuts) if cut < days - 1] + [last]
    for max_history in (10**6, most):
        found, _ = folded(log, max_history, turns)
        if max_history > 10**5:
            assert as_found(found) == reference(log, last, max_history)
        newest = {user: [sample for sample, _ in entries] for user, entries in as_found(found).items()}
        expected = {user: [sample for sample, _ in entries] for user, entries in reference(log, last, max_history).items()}
        assert newest == expected


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), days=st.integers(2, 5), again=st.sets(st.integers(0, 4), min_size=1))
def test_a_day_written_anew_replaces_what_the_base_took_of_it(seed: int, days: int, again: set[int]) -> None:
    """A backfill of days that a base holds already gives the history of the new rows, and says whom it changed."""
    log = random_log(seed, days, most=6)
    last = FIRST + dt.timedelta(days=days - 1)
    at_first, _ = folded(log, 10**6, [last])
    leaf = list(range(len(at_first.behaviours)))
    base = base_of(at_first, last, leaf)
    rng = random.Random(seed)
    rebuilt: dict[dt.date, list[Row]] = {}
    for number in again:
        day = FIRST + dt.timedelta(days=number)
        if day in log:
            kept = [
                row | {"behaviours": [one for one in row["behaviours"] if rng.random() < 0.7] + [behaviour(rng, day)]}
                for row in log[day]
            ]
            rebuilt[day] = kept
    found = merge_histories(base, days_of(rebuilt), sorted(rebuilt), upto(last, 10**6))
    # what was a duplicate of an earlier day is in no base, so it does not come back when that day loses it
    first_day = {(user, sample): landed for user, entries in as_found(at_first).items() for sample, landed in entries}
    told = {
        day: [
            row | {"behaviours": [one for one in row["behaviours"] if first_day.get((row["user_id"], one["sample_id"])) == day]}
            for row in rows
        ]
        for day, rows in log.items()
    }
    expected = reference(told | rebuilt, last, 10**6)
    assert {user: entries for user, entries in as_found(found).items() if entries} == {
        user: entries for user, entries in expected.items() if entries
    }
    leaf_of = dict(zip([pair for pairs in as_found(at_first).items() for pair in _keys(*pairs)], leaf, strict=True))
    for pair, number in zip([pair for pairs in as_found(found).items() for pair in _keys(*pairs)], found.leaf, strict=True):
        assert number == leaf_of.get(pair, NO_LEAF)
    before, after = as_found(at_first), as_found(found)
    for user, changed in zip(found.users.to_pylist(), found.changed.tolist(), strict=True):
        lost = set(before.get(user, [])) - set(after.get(user, []))
        assert changed or not lost


def _keys(user: str, entries: list[tuple[int, dt.date]]) -> list[tuple[str, int]]:
    return [(user, sample) for sample, _ in entries]


def test_an_unchanged_day_written_again_changes_nothing_but_is_seen() -> None:
    log = random_log(3, 3, most=6)
    last = max(log)
    at_first, _ = folded(log, 10**6, [last])
    found = merge_histories(base_of(at_first, last), days_of({last: log[last]}), [last], upto(last, 10**6))
    assert as_found(found) == as_found(at_first)
    touched = {row["user_id"] for row in log[last]}
    assert {user for user, changed in zip(found.users.to_pylist(), found.changed, strict=True) if changed} <= touched


def test_what_landed_after_the_date_is_left_out() -> None:
    log = random_log(1, 4, most=6)
    days = sorted(log)
    at_last, _ = folded(log, 10**6, [days[-1]])
    found = merge_histories(base_of(at_last, days[-1]), [], [], upto(days[1], 10**6))
    early = {day: rows for day, rows in log.items() if day <= days[1]}
    assert {user: entries for user, entries in as_found(found).items() if entries} == reference(early, days[1], 10**6)


@pytest.mark.parametrize("year", [1, 9999])
def test_times_that_lie_millennia_apart_are_sorted_too(year: int) -> None:
    log = random_log(5, 3, most=6)
    rows = next(iter(log.values()))
    rows[0]["behaviours"][0] = rows[0]["behaviours"][0] | {"observed_ts": dt.datetime(year, 6, 1, tzinfo=dt.UTC), "sample_id": 1}
    rows[0]["behaviours"].pop()
    found, _ = folded(log, 10**6, [max(log)])
    assert as_found(found) == reference(log, max(log), 10**6)


def test_nobody_has_no_history() -> None:
    found = merge_histories(BASE.empty_table(), [], [], upto(FIRST, 5))
    assert (len(found.users), len(found.behaviours), found.offsets.tolist()) == (0, 0, [0])


def test_the_order_of_rows_and_days_does_not_matter() -> None:
    log = random_log(8, 4, most=6)
    expected, _ = folded(log, 10**6, [max(log)])
    shuffle: Callable[[list[Any]], list[Any]] = lambda rows: random.Random(0).sample(rows, len(rows))  # noqa: E731
    mixed = {day: shuffle(log[day]) for day in shuffle(list(log))}
    found = merge_histories(BASE.empty_table(), days_of(mixed), sorted(mixed), upto(max(log), 10**6))
    assert as_found(found) == as_found(expected)
    assert found.behaviours.to_pylist() == expected.behaviours.to_pylist()
