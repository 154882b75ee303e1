"""Files that tasks write and one commit names: any reader finds their rows, by any column."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from feature_jobs.partition_files import PartitionFile, commit_files
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import EVENTS, HISTORY
from tests.lake_rows import utc

DAY = dt.date(2026, 1, 1)
WHOLE = pads.scalar(True)


def events(lake: Lake, plays: list[int]) -> Any:
    """A file with one event for each play time."""
    moment = utc("2026-01-01 12:00:00")
    rows = [
        {
            **{name: f"{name}{number}" for name in ("impression_id", "request_id", "user_id", "item_id")},
            **dict.fromkeys(("request_ts", "ts", "observed_ts", "ingested_at"), moment),
            **{field.name: False for field in EVENTS.schema if pa.types.is_boolean(field.type)},
            "play_time_ms": play,
        }
        for number, play in enumerate(plays)
    ]
    file = PartitionFile(lake, EVENTS, {"date": str(DAY), "landing_date": str(DAY), "user_bucket": "0"})
    schema = pa.schema([field for field in EVENTS.schema if field.name not in EVENTS.partition_by])
    file.write(pa.Table.from_pylist(rows, schema=schema))
    return file.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition",
    [
        pads.field("play_time_ms") >= 5,
        pads.field("user_id") == "user_id1",
        pads.field("ts") < utc("2027-01-01 00:00:00"),
        pads.field("session_id").is_null(),
        pads.field("date") == DAY,
    ],
)
def test_a_filter_by_any_column_finds_the_rows(make_lake: Callable[..., Lake], condition: pads.Expression) -> None:
    lake = make_lake()
    commit_files(lake, EVENTS, [events(lake, [1, 5, 9])], WHOLE)
    expected = lake.read(EVENTS).filter(condition).num_rows
    assert expected > 0
    assert lake.dataset(EVENTS).count_rows(filter=condition) == expected
    assert lake.read(EVENTS, columns=["user_id"], filter=condition).num_rows == expected


def test_of_two_commits_of_one_day_the_later_files_stay(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    first, second = events(lake, [1]), events(lake, [2, 3])
    commit_files(lake, EVENTS, [first], pads.field("date") == DAY)
    commit_files(lake, EVENTS, [second], pads.field("date") == DAY)
    assert sorted(lake.read(EVENTS)["play_time_ms"].to_pylist()) == [2, 3]


def test_what_was_computed_from_other_files_is_not_committed(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    version = lake.table_version(EVENTS)
    commit_files(lake, EVENTS, [events(lake, [1])], pads.field("date") == DAY)
    with pytest.raises(BadInput, match="run it again"):
        commit_files(lake, EVENTS, [events(lake, [2])], pads.field("date") == dt.date(2026, 1, 2), read=(version, WHOLE))
    assert lake.read(EVENTS)["play_time_ms"].to_pylist() == [1]


def test_nothing_to_add_or_remove_is_no_commit(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    version = lake.table_version(HISTORY)
    commit_files(lake, HISTORY, [None], WHOLE)
    assert lake.table_version(HISTORY) == version
