"""The jobs on tables, day by day over an ugly log with a short day (New York, 2026-03-08), against the reference."""

import datetime as dt
from collections import Counter, defaultdict
from typing import Any

import pytest

from feature_jobs.backfill import run_backfill
from feature_jobs.pathways import run_pathways
from feature_jobs.pathways_commit import WRITTEN
from feature_jobs.samples import run_samples
from feature_jobs.stale import read_stale
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake, create_lake
from schemas.tables import (
    DAILY_SAMPLES,
    EVENTS,
    ITEMS,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    PIPELINE_RUNS,
    USERS,
)
from tests.feature_jobs.day_rows import (
    SNAPSHOT,
    USERS_VERSION,
    all_rows,
    as_behaviours,
    history,
    rows_of,
    states,
    taken_in,
    watched,
    without,
)
from tests.feature_jobs.reference_pathways import DayResult, Reference, as_behaviour, reconstructed_window
from tests.feature_jobs.ugly_logs import Log, ugly_log
from tests.lake_rows import write_rows

pytestmark = pytest.mark.slow
FIRST = dt.date(2026, 3, 6)
CONFIG = Config.model_validate(
    {
        "lake": {"day_timezone": "America/New_York", "user_buckets": 3},
        "samples": {"user_day_cap": 9, "holdout_share": 0.3, "positive": {"repeat_window": 4}},
        "pathways": {"short_length": 4, "positive_length": 6},
    }
)
Row = dict[str, Any]


def land(lake: Lake, log: Log, day: dt.date) -> None:
    for table, rows in ((EVENTS, log.events), (USERS, log.users)):
        write_rows(lake, table, [row for row in rows if row["landing_date"] == day])


class Days:
    """A lake whose days were run one by one, what the reference expects of each, and the steps' reports."""

    def __init__(self, spark: Any, lake: Lake, log: Log) -> None:
        self.spark, self.lake, self.log = spark, lake, log
        self.expected: dict[dt.date, DayResult] = {}
        self.reports: dict[dt.date, tuple[Row, Row]] = {}
        self.wrong_windows: list[Any] = []
        self.requests = 0
        reference = Reference(CONFIG, log.items)
        for day in log.days:
            land(lake, log, day)
            reference.users = log.snapshots(day)
            self.reports[day] = run_samples(spark, lake, day), run_pathways(spark, lake, day)
            self._check_windows(reference, day)
            self.expected[day] = reference.day(day, [row for row in log.events if row["landing_date"] <= day])

    def _check_windows(self, reference: Reference, day: dt.date) -> None:
        samples = defaultdict(list)
        for sample in rows_of(self.lake, DAILY_SAMPLES, day):
            samples[sample["user_id"]].append(sample)
        for table, length in ((PATHWAY_SHORT, 4), (PATHWAY_POSITIVE, 6)):
            high = table is PATHWAY_POSITIVE
            for start in rows_of(self.lake, table, day):
                own = samples[start["user_id"]]
                shown = [sample for sample in own if sample["positive"] or not high]
                for request_ts in {sample["request_ts"] for sample in own}:
                    self.requests += 1
                    rebuilt = reconstructed_window(start["behaviours"], start["pending"], shown, request_ts, length)
                    exact = reference.visible_window(start["user_id"], own, request_ts, positive=high)
                    if rebuilt != exact:
                        self.wrong_windows.append((day, table.name, start["user_id"], request_ts))


@pytest.fixture(scope="module")
def days(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Days:
    lake = create_lake(str(tmp_path_factory.mktemp("days") / "lake"), CONFIG)
    log = ugly_log(seed=7, config=CONFIG, first=FIRST, days=4, users=40)
    write_rows(lake, ITEMS, log.items)
    return Days(spark, lake, log)


def test_every_request_sees_exactly_what_was_known(days: Days) -> None:
    assert days.requests > 300
    assert days.wrong_windows == []


def test_samples_equal_the_reference(days: Days) -> None:
    for day, expected in days.expected.items():
        names = DAILY_SAMPLES.schema.names
        wanted = [{name: sample.get(name) for name in names} for sample in expected.samples]
        assert rows_of(days.lake, DAILY_SAMPLES, day) == sorted(wanted, key=lambda row: (row["user_id"], row["sample_id"]))
        counts = days.reports[day][0]["tables"]["daily_samples"]
        assert counts["rows_dropped"] == dict(expected.dropped)


def test_pathways_hold_what_was_known_when_the_day_began(days: Days) -> None:
    for day, expected in days.expected.items():
        static = {row.pop("user_id"): row for row in rows_of(days.lake, PATHWAY_STATIC, day)}
        assert static.keys() == expected.pathways.keys()
        for user, row in static.items():
            assert {name: row[name] for name in expected.pathways[user]["static"]} == expected.pathways[user]["static"]
        for table, window in ((PATHWAY_SHORT, "short"), (PATHWAY_POSITIVE, "positive")):
            rows = rows_of(days.lake, table, day)
            assert {row["user_id"] for row in rows} == expected.pathways.keys()
            for row in rows:
                pathway = expected.pathways[row["user_id"]]
                pending = [entry for entry in pathway["pending"] if entry["positive"] or window == "short"]
                assert row["behaviours"] == [as_behaviour(entry) for entry in pathway[window]]
                assert row["pending"] == [as_behaviour(entry) for entry in pending]


def test_state_holds_every_user_at_the_end_of_the_day(days: Days) -> None:
    for day, expected in days.expected.items():
        assert states(days.lake, day) == expected.state


def test_history_holds_what_each_landing_brought_and_counts_it(days: Days) -> None:
    for day, expected in days.expected.items():
        assert history(days.lake, day) == as_behaviours(expected.history)
        counts = days.reports[day][1]["tables"]["history"]
        dropped = {reason: number for reason, number in counts["rows_dropped"].items() if number}
        assert dropped == dict(+expected.late_dropped)
    assert max(Counter(taken_in(days.lake, days.log.days)).values()) == 1, "a behaviour was taken in twice"
    brought = [entry for day in days.log.days for entries in history(days.lake, day).values() for entry in entries]
    assert {bit for entry in brought for bit in range(9) if entry["feedback"] >> bit & 1} == set(range(9))
    assert sum(report[1]["late_events"] for report in days.reports.values()) > 20, "the log has hardly any late events"


def test_samples_of_unknown_items_and_users_without_a_snapshot_are_counted(days: Days) -> None:
    unknown, bare = Counter[dt.date](), Counter[dt.date]()
    for day, expected in days.expected.items():
        for sample in expected.samples:
            versions = [item["valid_from"] for item in days.log.items if item["item_id"] == sample["item_id"]]
            unknown[day] += not any(valid_from < sample["request_ts"] for valid_from in versions)
        bare[day] = sum(pathway["static"]["snapshot_date"] is None for pathway in expected.pathways.values())
        samples, pathways = days.reports[day]
        assert samples["items_without_a_version"] == unknown[day], day
        assert pathways["users_without_snapshot"] == bare[day], day
    assert 0 < unknown.total() < sum(len(expected.samples) for expected in days.expected.values())
    assert 0 < bare.total() < sum(len(expected.pathways) for expected in days.expected.values())


def test_a_day_run_again_leaves_the_same_tables(days: Days) -> None:
    tables = (DAILY_SAMPLES, *WRITTEN)
    before = {table.name: all_rows(days.lake, table) for table in tables}
    run_samples(days.spark, days.lake, days.log.days[-1])
    run_pathways(days.spark, days.lake, days.log.days[-1])
    for table in tables:
        assert without(USERS_VERSION, all_rows(days.lake, table)) == without(USERS_VERSION, before[table.name]), table.name


def test_an_earlier_day_run_again_takes_in_no_later_landing_but_snapshots_that_were_late(days: Days) -> None:
    tables = (DAILY_SAMPLES, *WRITTEN)
    day = days.log.days[1]
    before = {table.name: rows_of(days.lake, table, day) for table in tables}
    run_samples(days.spark, days.lake, day)
    run_pathways(days.spark, days.lake, day)
    for table in tables:
        known = {row["user_id"] for row in before[table.name]}  # others have a snapshot that was late, and nothing else
        found = [row for row in rows_of(days.lake, table, day) if row["user_id"] in known or row["behaviours"]]
        assert without(SNAPSHOT, found) == without(SNAPSHOT, before[table.name]), table.name
    static = {row["user_id"]: row for row in rows_of(days.lake, PATHWAY_STATIC, day)}
    reference = Reference(CONFIG, days.log.items, days.log.users)
    for user in days.expected[day].pathways:
        expected = reference.pathway(user, day)["static"]
        assert {name: static[user][name] for name in SNAPSHOT & expected.keys()} == {
            name: expected[name] for name in SNAPSHOT & expected.keys()
        }


def test_only_snapshots_that_the_state_has_not_seen_are_read(days: Days) -> None:
    read_on = []
    for number, day in enumerate(days.log.days):
        landed = {row["date"] for row in days.log.users if row["landing_date"] == day}
        new = {date for date in landed | {day - dt.timedelta(days=1)} if date < day}
        read = {dt.date.fromisoformat(date) for date in days.reports[day][1]["snapshots_read"]}
        had = {row["date"] for row in days.log.snapshots(day)}
        assert read == (new if number else {date for date in had if date < day}) & had
        read_on.append(len(read))
    assert max(read_on[1:]) > 1, "no snapshot was late"


def test_a_backfill_rebuilds_its_days_with_late_rows_and_marks_what_depends_on_them(days: Days) -> None:
    first, last = days.log.days[1], days.log.days[2]
    tables = (DAILY_SAMPLES, *WRITTEN)
    before = {(table.name, day): rows_of(days.lake, table, day) for table in tables for day in days.log.days}
    with watched(days.lake, tables, first) as observed:
        report = run_backfill(days.spark, days.lake, first, last)
    for table in tables:
        states_seen = [rows for name, rows in observed if name == table.name]
        ends = [before[table.name, first], rows_of(days.lake, table, first)]
        assert all(rows in ends for rows in states_seen), f"a reader saw half a day of {table.name}"
        assert ends[0] in states_seen
    reference = Reference(CONFIG, days.log.items, days.log.snapshots(days.log.days[0]))
    reference.day(days.log.days[0], [row for row in days.log.events if row["landing_date"] <= days.log.days[0]])
    reference.users = days.log.users
    for day in (first, last):
        expected = reference.day(day, days.log.events, every=True)
        names = DAILY_SAMPLES.schema.names
        wanted = [{name: sample.get(name) for name in names} for sample in expected.samples]  # attributes of their time
        assert rows_of(days.lake, DAILY_SAMPLES, day) == sorted(wanted, key=lambda row: (row["user_id"], row["sample_id"]))
        assert states(days.lake, day) == expected.state
        assert history(days.lake, day) == as_behaviours(expected.history)
    for table in tables:
        for day in (days.log.days[0], days.log.days[3]):
            assert rows_of(days.lake, table, day) == before[table.name, day]
    assert set(report["stale"]) == {days.log.days[3].isoformat()}
    assert set(report["stale"][days.log.days[3].isoformat()]) == {"samples", "pathways"}
    assert read_stale(days.lake) == report["stale"]
    assert report["tables"]["daily_samples"]["rows_out"] == sum(
        day["tables"]["daily_samples"]["rows_out"] for day in report["days"] if day["step"] == "samples"
    )
    # Until the days after are rebuilt too, history holds what was late twice: where the backfill put it, and where it landed.
    stale = Counter(taken_in(days.lake, days.log.days))
    assert max(stale.values()) == 2
    # Rebuilt, the day after goes on from the new state: what the backfill took in early is not taken in again.
    run_samples(days.spark, days.lake, days.log.days[3])
    run_pathways(days.spark, days.lake, days.log.days[3])
    expected = reference.day(days.log.days[3], days.log.events)
    assert states(days.lake, days.log.days[3]) == expected.state
    assert history(days.lake, days.log.days[3]) == as_behaviours(expected.history)
    rebuilt = Counter(taken_in(days.lake, days.log.days))
    assert max(rebuilt.values()) == 1
    assert rebuilt.keys() == {(user, entry["sample_id"]) for user, taken in reference.taken.items() for entry in taken}
    assert read_stale(days.lake) == {}


def test_a_day_without_samples_or_without_the_state_before_it_says_what_to_run(spark: Any, days: Days) -> None:
    after = days.log.days[-1] + dt.timedelta(days=1)
    with pytest.raises(BadInput, match=rf"onerec samples --date {after}"):
        run_pathways(spark, days.lake, after)
    much_later = after + dt.timedelta(days=3)
    for step in (run_samples, run_pathways):
        with pytest.raises(BadInput, match=rf"no state of .* run `onerec samples` and `onerec pathways` for --date {after} to"):
            step(spark, days.lake, much_later)
    runs = days.lake.read(PIPELINE_RUNS).to_pylist()
    assert [row["status"] for row in runs if row["date"] == much_later] == ["failed", "failed"]
