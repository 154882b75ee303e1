"""Rows of a lake's tables as tests of samples and pathways compare them, by day, and a reader beside a run."""

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.dataset as pads

from schemas.lake import Lake
from schemas.tables import HISTORY, USER_STATE, Table
from tests.feature_jobs.reference_pathways import as_behaviour

Row = dict[str, Any]


def rows_of(lake: Lake, table: Table, day: dt.date) -> list[Row]:
    """A table's rows of a day, by user and sample."""
    rows: list[Row] = lake.read(table, filter=pads.field("date") == day).to_pylist()
    return sorted(rows, key=lambda row: (row["user_id"], row.get("sample_id", 0)))


def all_rows(lake: Lake, table: Table) -> list[Row]:
    """A table's rows, by day, user and sample."""
    rows: list[Row] = lake.read(table).to_pylist()
    return sorted(rows, key=lambda row: (row["date"], row["user_id"], row.get("sample_id", 0)))


USERS_VERSION = {"users_version"}
SNAPSHOT = {"age_band", "gender", "region", "device", "register_ts", "register_days", "snapshot_date"} | USERS_VERSION
"""Columns that come from snapshots of users."""


def without(names: set[str], rows: list[Row]) -> list[Row]:
    """Rows without some columns."""
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


_PLACES = ("user_id", "date", "user_bucket", "users_version", "landings_from")


def states(lake: Lake, day: dt.date) -> dict[str, Row]:
    """``user_state`` of a day as the reference gives it: sample ids for behaviours, tuples for histogram cells."""
    found = {}
    for row in rows_of(lake, USER_STATE, day):
        lists = {name: [entry["sample_id"] for entry in row[name]] for name in ("short", "positive", "pending")}
        cells = [(cell["duration_bucket"], cell["play_bucket"], cell["count"]) for cell in row["watch_histogram"]]
        user = row["user_id"]
        found[user] = {name: value for name, value in row.items() if name not in _PLACES}
        found[user] |= lists | {"watch_histogram": cells}
    return found


def history(lake: Lake, day: dt.date) -> dict[str, list[Row]]:
    """What a day's landing brought, by user."""
    return {row["user_id"]: row["behaviours"] for row in rows_of(lake, HISTORY, day)}


def as_behaviours(brought: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The reference's ``history`` as the table holds it."""
    return {user: [as_behaviour(entry) for entry in entries] for user, entries in brought.items()}


def taken_in(lake: Lake, dates: list[dt.date]) -> list[tuple[str, int]]:
    """Every behaviour that history holds (user, sample), once for each day that it is in."""
    return [
        (user, entry["sample_id"]) for day in dates for user, behaviours in history(lake, day).items() for entry in behaviours
    ]


@contextmanager
def watched(lake: Lake, tables: tuple[Table, ...], day: dt.date) -> Iterator[list[tuple[str, list[Row]]]]:
    """Reads the newest version of the tables' day over and over while the block runs; gives what each read found."""
    stop, found = threading.Event(), list[tuple[str, list[Row]]]()

    def read() -> None:
        while not stop.is_set():
            found.extend((table.name, rows_of(lake, table, day)) for table in tables)
            stop.wait(0.2)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        stop.set()
        reader.join()
