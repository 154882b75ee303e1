"""The jobs on tables, day by day over an ugly log with a short day (New York, 2026-03-08), against the reference."""

import datetime as dt
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
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
    HISTORY,
    ITEMS,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    PIPELINE_RUNS,
    USER_STATE,
    USERS,
    Table,
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


def rows_of(lake: Lake, table: Table, day: dt.date) -> list[Row]:
    rows: list[Row] = lake.read(table, filter=pads.field("date") == day).to_pylist()
    return sorted(rows, key=lambda row: (row["user_id"], row.get("sample_id", 0)))


def all_rows(lake: Lake, table: Table) -> list[Row]:
    rows: list[Row] = lake.read(table).to_pylist()
    return sorted(rows, key=lambda row: (row["date"], row["user_id"], row.get("sample_id", 0)))


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
    taken: Counter[tuple[str, int]] = Counter()
    for day, expected in days.expected.items():
        rows = rows_of(days.lake, HISTORY, day)
        found = {row["user_id"]: row["behaviours"] for row in rows}
        assert found == {user: [as_behaviour(entry) for entry in brought] for user, brought in expected.history.items()}
        taken.update((user, entry["sample_id"]) for user, brought in found.items() for entry in brought)
        counts = days.reports[day][1]["tables"]["history"]
        dropped = {reason: number for reason, number in counts["rows_dropped"].items() if number}
        assert dropped == dict(+expected.late_dropped)
    assert max(taken.values()) == 1, "a behaviour was taken in twice"
    assert sum(report[1]["late_events"] for report in days.reports.values()) > 20, "the log has hardly any late events"


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
    found = {row["user_id"]: row for row in rows_of(days.lake, PATHWAY_STATIC, day)}
    reference = Reference(CONFIG, days.log.items, days.log.users)
    for user in days.expected[day].pathways:
        expected = reference.pathway(user, day)["static"]
        assert {name: found[user][name] for name in SNAPSHOT & expected.keys()} == {
            name: expected[name] for name in SNAPSHOT & expected.keys()
        }


USERS_VERSION = {"users_version"}
SNAPSHOT = {"age_band", "gender", "region", "device", "register_ts", "register_days", "snapshot_date"} | USERS_VERSION


def without(names: set[str], rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


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


_PLACES = ("user_id", "date", "user_bucket", "users_version")


def states(lake: Lake, day: dt.date) -> dict[str, Row]:
    found = {}
    for row in rows_of(lake, USER_STATE, day):
        lists = {name: [entry["sample_id"] for entry in row[name]] for name in ("short", "positive", "pending")}
        cells = [(cell["duration_bucket"], cell["play_bucket"], cell["count"]) for cell in row["watch_histogram"]]
        user = row["user_id"]
        found[user] = {name: value for name, value in row.items() if name not in _PLACES}
        found[user] |= lists | {"watch_histogram": cells}
    return found


def test_a_backfill_rebuilds_its_days_with_late_rows_and_marks_what_depends_on_them(days: Days) -> None:
    first, last = days.log.days[1], days.log.days[2]
    untouched = {table.name: rows_of(days.lake, table, days.log.days[0]) for table in (DAILY_SAMPLES, *WRITTEN)}
    later = {table.name: rows_of(days.lake, table, days.log.days[3]) for table in (DAILY_SAMPLES, *WRITTEN)}
    report = run_backfill(days.spark, days.lake, first, last)
    reference = Reference(CONFIG, days.log.items, days.log.snapshots(days.log.days[0]))
    reference.day(days.log.days[0], [row for row in days.log.events if row["landing_date"] <= days.log.days[0]])
    reference.users = days.log.users
    for day in (first, last):
        expected = reference.day(day, days.log.events, every=True)
        assert {row["sample_id"] for row in rows_of(days.lake, DAILY_SAMPLES, day)} == {
            sample["sample_id"] for sample in expected.samples
        }
        assert states(days.lake, day) == expected.state
    for table in (DAILY_SAMPLES, *WRITTEN):
        assert rows_of(days.lake, table, days.log.days[0]) == untouched[table.name]
        assert rows_of(days.lake, table, days.log.days[3]) == later[table.name]
    assert set(report["stale"]) == {days.log.days[3].isoformat()}
    assert set(report["stale"][days.log.days[3].isoformat()]) == {"samples", "pathways"}
    assert read_stale(days.lake) == report["stale"]
    assert report["tables"]["daily_samples"]["rows_out"] == sum(
        day["tables"]["daily_samples"]["rows_out"] for day in report["days"] if day["step"] == "samples"
    )
    # The day after goes on from the rebuilt state: what the backfill took in early is not taken in again.
    run_samples(days.spark, days.lake, days.log.days[3])
    run_pathways(days.spark, days.lake, days.log.days[3])
    assert states(days.lake, days.log.days[3]) == reference.day(days.log.days[3], days.log.events).state
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


def test_killed_at_any_point_and_run_again_it_leaves_the_tables_of_a_clean_run(spark: Any, days: Days, tmp_path: Path) -> None:
    clean = {table.name: rows_of(days.lake, table, days.log.days[0]) for table in WRITTEN}
    lake = create_lake(str(tmp_path / "lake"), CONFIG)
    write_rows(lake, ITEMS, days.log.items)
    land(lake, days.log, days.log.days[0])
    run_samples(spark, lake, days.log.days[0])
    for point in ("data files written", "half of the tables committed"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, lake.root, days.log.days[0].isoformat(), point],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        committed = [table.name for table in WRITTEN if rows_of(lake, table, days.log.days[0])]
        assert (committed == []) == (point == "data files written")
        assert rows_of(lake, USER_STATE, days.log.days[0]) == [], "the state was published before the rest"
    run_pathways(spark, lake, days.log.days[0])
    for table in WRITTEN:
        assert rows_of(lake, table, days.log.days[0]) == clean[table.name], table.name


KILLED_RUN = """
import datetime as dt, os, signal, sys
from feature_jobs import pathways
from feature_jobs.session import spark_session
from schemas.lake import open_lake
root, date, point = sys.argv[1:]
allowed = 0 if point == "data files written" else 3
from feature_jobs import pathways_commit
commit = pathways_commit.commit_files
def commit_or_die(lake, table, day, files):
    global allowed
    if allowed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    allowed -= 1
    commit(lake, table, day, files)
pathways_commit.commit_files = commit_or_die
pathways.run_pathways(spark_session("local[2]"), open_lake(root), dt.date.fromisoformat(date))
"""
