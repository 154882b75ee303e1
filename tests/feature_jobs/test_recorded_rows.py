"""What a step is said to have read is counted apart from what it made of it, so a row that gets lost stops the step."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from feature_jobs import forget, pathways_bucket, samples_bucket
from feature_jobs.bucket_files import recorded_rows
from feature_jobs.partition_files import PartitionFile, commit_files, data_schema
from feature_jobs.pathways_commit import WRITTEN
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK
from tests.feature_jobs.sample_rows import DAY, impression
from tests.feature_jobs.without_spark import run_day, run_in_turn
from tests.lake_rows import write_rows

NEXT = DAY + dt.timedelta(days=1)
MakeLake = Callable[..., Lake]


@pytest.fixture(autouse=True)
def _without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_turn(monkeypatch)


@pytest.fixture
def lake(make_lake: MakeLake) -> Lake:
    """A day of nine events, three of which the cap cuts, and a late one."""
    lake = make_lake(lake={"user_buckets": 2}, samples={"user_day_cap": 3, "gates": {"label_rate": {}}})
    shown = [impression(f"{user}{number}", "10:00:00", user_id=user) for user in "ab" for number in range(3)]
    shown += [impression(f"robot{number}", "10:00:00", user_id="robot") for number in range(6)]
    write_rows(lake, EVENTS, shown)
    write_rows(lake, EVENTS, [impression("late", "11:00:00", user_id="new") | {"landing_date": NEXT}])
    write_rows(lake, EVENTS, [impression("next", "11:00:00", user_id="a") | {"date": NEXT, "landing_date": NEXT}])
    return lake


def test_rows_are_counted_by_the_log_and_by_the_footers_of_files_it_has_no_count_of(lake: Lake) -> None:
    date = pads.field("date")
    version = lake.table_version(EVENTS)
    assert [recorded_rows(lake, EVENTS, version, where) for where in (date == DAY, date == NEXT, pads.scalar(False))] == [
        13,
        1,
        0,
    ]
    file = PartitionFile(lake, EVENTS, {"date": str(NEXT), "landing_date": str(NEXT), "user_bucket": "0"})
    rows = [dict.fromkeys(FEEDBACK, False) | impression(str(number), "12:00:00") for number in range(5)]
    file.write(pa.Table.from_pylist(rows, schema=data_schema(EVENTS)))
    report = file.close()
    assert report is not None
    commit_files(lake, EVENTS, [report | {"statistics": "{}"}], pads.scalar(False))
    assert recorded_rows(lake, EVENTS, lake.table_version(EVENTS), pads.scalar(True)) == 19
    assert recorded_rows(lake, EVENTS, version, pads.scalar(True)) == 14
    lake.local_path(EVENTS.name, report["path"]).unlink()
    with pytest.raises(BadInput, match="missing or damaged"):
        recorded_rows(lake, EVENTS, lake.table_version(EVENTS), pads.scalar(True))


@pytest.mark.slow
def test_days_balance_with_what_the_logs_say_there_was(lake: Lake) -> None:
    first, second = run_day(lake, DAY), run_day(lake, NEXT)
    assert first["daily_samples"] == _counts(12, 9, over_the_cap=3)
    assert first["history"] == _counts(9, 9)
    assert first["user_state"] == _counts(3, 3)
    assert second["daily_samples"] == _counts(1, 1)
    assert second["history"] == _counts(2, 2, duplicate=0)
    assert second["user_state"] == _counts(4, 4), "three of the day before, and the late one's"


def _counts(rows_in: int, rows_out: int, **dropped: int) -> dict[str, Any]:
    return {"rows_in": rows_in, "rows_out": rows_out, "rows_quarantined": 0, "rows_dropped": dropped}


def test_samples_that_lose_a_row_publish_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = samples_bucket.read_event_slices

    def less(*arguments: Any) -> Iterator[pa.Table]:
        yield from (events.slice(1) for events in slices(*arguments))

    monkeypatch.setattr(samples_bucket, "read_event_slices", less)
    with pytest.raises(RuntimeError, match=r"daily_samples: 12 rows in, 1[01] accounted for"):
        run_day(lake, DAY)
    assert lake.read(DAILY_SAMPLES).num_rows == 0
    assert not list(lake.local_path(DAILY_SAMPLES.name).rglob("*.parquet"))


def test_pathways_that_lose_a_behaviour_publish_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_rows = pathways_bucket.fresh_rows
    monkeypatch.setattr(pathways_bucket, "fresh_rows", lambda rows: fresh_rows(rows.slice(1)))
    _stopped(lake, DAY, r"history: 9 rows in, [78] accounted for")


@pytest.mark.slow
def test_pathways_that_lose_a_user_publish_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    run_day(lake, DAY)
    slices = pathways_bucket.state_slices
    monkeypatch.setattr(
        pathways_bucket, "state_slices", lambda *arguments: ((rows.slice(1), last) for rows, last in slices(*arguments))
    )
    _stopped(lake, NEXT, r"user_state: [45] rows in, [23] accounted for")


def _stopped(lake: Lake, date: dt.date, why: str) -> None:
    before = [lake.table_version(table) for table in WRITTEN]
    with pytest.raises(RuntimeError, match=why):
        run_day(lake, date)
    assert [lake.table_version(table) for table in WRITTEN] == before


def test_forgetting_that_would_lose_a_row_changes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = forget.rewrite
    monkeypatch.setattr(
        forget, "rewrite", lambda *arguments: (report := rewrite(*arguments)) | {"removed": max(report["removed"] - 1, 0)}
    )
    with pytest.raises(RuntimeError, match="events: 14 rows in, 13 accounted for"):
        forget.run(lake, ["robot"])
    assert lake.read(EVENTS).num_rows == 14
