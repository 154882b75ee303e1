"""Runs of one date that meet leave the tables of one of them; readers see a day whole. Commits interleave on purpose here."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from feature_jobs import pathways_commit
from feature_jobs.partition_files import FileReport, PartitionFile, commit_files, data_schema
from feature_jobs.pathways_commit import WRITTEN, commit_day
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import Table

DAY = dt.date(2026, 1, 5)
Files = dict[str, list[FileReport | None]]


def files_of(lake: Lake, run: str, tables: tuple[Table, ...] = WRITTEN) -> Files:
    """What a run has written for the day: in each table one row, whose user is named after the run."""
    written: Files = {table.name: [None] for table in WRITTEN}
    for table in tables:
        file = PartitionFile(lake, table, {"date": DAY.isoformat(), "user_bucket": "0"})
        row = {column.name: blank(column.type) for column in data_schema(table)} | {"user_id": run}
        file.write(pa.Table.from_pylist([row], schema=data_schema(table)))
        written[table.name] = [file.close(), None]
    return written


def blank(kind: pa.DataType) -> Any:
    return [] if pa.types.is_list(kind) else 0 if pa.types.is_integer(kind) else None


def runs_in(lake: Lake) -> list[set[str]]:
    """For each table the runs whose rows it holds."""
    return [set(lake.read(table, columns=["user_id"]).column(0).to_pylist()) for table in WRITTEN]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], None]]], None]:
    """Do something just before the commit of a number, counted over all runs from 0; runs that meet don't wait."""
    monkeypatch.setattr(pathways_commit, "SECONDS_APART", 0)
    commit = pathways_commit.commit_files

    def arrange(meetings: dict[int, Callable[[], None]]) -> None:
        count = iter(range(1000))

        def commit_after_meeting(*arguments: Any) -> None:
            meetings.get(next(count), lambda: None)()
            commit(*arguments)

        monkeypatch.setattr(pathways_commit, "commit_files", commit_after_meeting)

    return arrange


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(WRITTEN)))
def test_a_run_that_meets_another_half_way_ends_with_all_tables_its_own(
    make_lake: Callable[..., Lake], meet: Callable[[dict[int, Callable[[], None]]], None], place: int
) -> None:
    lake = make_lake()
    first, second = (files_of(lake, run) for run in ("first", "second"))
    meet({place: lambda: commit_day(lake, DAY, second)})
    commit_day(lake, DAY, first)
    assert runs_in(lake) == [{"first"}] * len(WRITTEN)


def test_a_run_that_was_overtaken_by_another_leaves_it_alone(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one commits whole after this one's last commit, before it looks whose files are there."""
    lake = make_lake()
    first, second = (files_of(lake, run) for run in ("first", "second"))
    live = pathways_commit._live
    overtaken: list[list[set[str]]] = []

    def live_after_the_other(*arguments: Any) -> tuple[bool, bool]:
        if not overtaken:
            overtaken.append(runs_in(lake))
            commit_day(lake, DAY, second)
        return live(*arguments)

    monkeypatch.setattr(pathways_commit, "_live", live_after_the_other)
    commit_day(lake, DAY, first)
    assert overtaken == [[{"first"}] * len(WRITTEN)]
    assert runs_in(lake) == [{"second"}] * len(WRITTEN)


def test_a_run_without_a_file_for_a_table_empties_it(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    commit_day(lake, DAY, files_of(lake, "first"))
    commit_day(lake, DAY, files_of(lake, "second", WRITTEN[1:]))
    assert runs_in(lake) == [set(), *[{"second"}] * (len(WRITTEN) - 1)]


@pytest.mark.slow
def test_runs_that_never_stop_meeting_say_so(
    make_lake: Callable[..., Lake], meet: Callable[[dict[int, Callable[[], None]]], None]
) -> None:
    lake = make_lake()
    first = files_of(lake, "first")

    def overwrite() -> None:
        other = files_of(lake, "other", WRITTEN[:2])
        for table in WRITTEN[:2]:
            commit_files(lake, table, other[table.name], pads.field("date") == DAY)

    meet(dict.fromkeys(range(4, 50), overwrite))
    with pytest.raises(BadInput, match="keep writing the pathways of 2026-01-05; run this again"):
        commit_day(lake, DAY, first)


@pytest.mark.slow
def test_threads_that_commit_at_once_leave_the_tables_of_one_of_them(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    runs = [files_of(lake, f"run-{number}") for number in range(4)]
    threads = [threading.Thread(target=commit_day, args=(lake, DAY, files)) for files in runs]
    with watched(lake) as observed:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = runs_in(lake)
    assert len(found[0]) == 1
    assert found == [found[0]] * len(WRITTEN)
    assert observed
    assert all(len(rows) <= 1 for rows in observed), "a reader saw rows of two runs in one table"


@contextmanager
def watched(lake: Lake) -> Iterator[list[set[str]]]:
    """Reads the newest version of every table over and over while the block runs; gives what each read found."""
    stop, found = threading.Event(), list[set[str]]()

    def read() -> None:
        while not stop.is_set():
            found.extend(runs_in(lake))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        stop.set()
        reader.join()
