"""Refreshes done again, killed, met by a backfill or another program: what the tables hold afterwards."""

import random
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from feature_jobs import lifelong, lifelong_bucket
from feature_jobs.lifelong_bucket import refresh_bucket
from feature_jobs.stale import mark_stale
from schemas.errors import BadInput
from schemas.tables import HISTORY, HISTORY_BASE, PATHWAY_LIFELONG
from tests.feature_jobs import lifelong_lake
from tests.feature_jobs.lifelong_lake import (
    DAY,
    MakeLake,
    after,
    bases,
    behaviour,
    check,
    clustered,
    end_of,
    made,
    pathways,
    publish_fusion,
    refresh,
    rewrite_day,
    tables,
    total,
    waiting_days,
    write_days,
)


@pytest.mark.slow
@pytest.mark.parametrize("weeks", [1, 3])
def test_a_refresh_done_again_leaves_the_same_tables(make_lake: MakeLake, weeks: int) -> None:
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    for week in range(weeks):
        write_days(lake, 7 * week, 7 * week + 6, most=4)
        refresh(lake, after(7 * week + 6), fusion)
    once = tables(lake)
    refresh(lake, after(7 * weeks - 1), fusion)
    assert tables(lake) == once
    if weeks > 1:  # an older date, too
        refresh(lake, after(6), fusion)
        assert tables(lake) == once


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_ends_before_either_commit_and_is_done_again(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed before the representatives are published, or between them and the bases."""
    lakes = [made(make_lake, name) for name in ("clean", "other")]
    for lake in lakes:
        fusion = publish_fusion(lake, 0)
        write_days(lake, 0, 6, most=6)
        refresh(lake, after(6), fusion)
        write_days(lake, 7, 13, most=3)
    clean, killed = lakes
    refresh(clean, after(13), fusion)
    commits = []

    def commit(*arguments: Any, **named: Any) -> None:
        commits.append(arguments[1])
        if len(commits) == stop:
            raise KeyboardInterrupt
        real(*arguments, **named)

    real = lifelong.commit_files
    with monkeypatch.context() as patch:
        patch.setattr(lifelong, "commit_files", commit)
        with pytest.raises(KeyboardInterrupt):
            refresh(killed, after(13), fusion)
    assert commits == [PATHWAY_LIFELONG, HISTORY][:stop]
    refresh(killed, after(13), fusion)
    assert tables(killed) == tables(clean)


def test_a_day_that_changes_while_it_is_folded_stops_the_run(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    write_days(lake, 0, 1)

    def meanwhile(turn: Any, bucket: int) -> Any:
        report = refresh_bucket(turn, bucket)
        if bucket == 0:
            write_days(lake, 0, 0, most=3)
        return report

    monkeypatch.setattr(lifelong_lake, "refresh_bucket", meanwhile)
    with pytest.raises(BadInput, match="another process wrote partitions that this run had read"):
        refresh(lake, after(1), fusion)
    assert bases(lake) == {}
    assert lake.read(PATHWAY_LIFELONG).num_rows == 0
    monkeypatch.undo()
    refresh(lake, after(1), fusion)
    check(lake, after(1), fusion)


def test_a_refresh_older_than_the_base_is_stopped_too(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It folds no day, so that it writes no base; its representatives would be of the days before."""
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    rows = write_days(lake, 0, 6, most=8)
    refresh(lake, after(6), fusion)
    write_days(lake, 7, 13, most=4)
    refresh(lake, after(13), fusion)
    once = pathways(lake, after(6))
    day = [row for row in rows if row["date"] == after(2)]
    rewrite_day(lake, after(2), day)
    mark_stale(lake, {after(6).isoformat(): {"lifelong": "it compresses history"}})

    def meanwhile(turn: Any, bucket: int) -> Any:
        report = refresh_bucket(turn, bucket)
        if bucket == 0:
            rewrite_day(lake, after(2), [row | {"behaviours": row["behaviours"][1:]} for row in day])
        return report

    monkeypatch.setattr(lifelong_lake, "refresh_bucket", meanwhile)
    with pytest.raises(BadInput, match="another process wrote partitions that this run had read"):
        refresh(lake, after(6), fusion)
    assert pathways(lake, after(6)) == once


def test_a_backfill_of_folded_days_is_taken_in_at_the_next_turn(make_lake: MakeLake) -> None:
    """What the day lost goes, what it gained comes, what it kept keeps its cluster; whom it changed gets new representatives."""
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    rows = write_days(lake, 0, 6, most=8)
    refresh(lake, after(6), fusion)
    before = bases(lake)
    rng = random.Random(4)
    old = [row for row in rows if row["date"] == after(2)]
    new = [row | {"behaviours": [*row["behaviours"][1:], behaviour(rng, after(2))]} for row in old]
    rewrite_day(lake, after(2), new)
    mark_stale(lake, {after(6).isoformat(): {"lifelong": "it compresses history"}})
    refresh(lake, after(6), fusion)
    assert waiting_days(lake) == []
    expected = {one["sample_id"] for row in rows if row["date"] != after(2) for one in row["behaviours"]}
    expected |= {one["sample_id"] for row in new for one in row["behaviours"]}
    held = bases(lake)
    assert {one["sample_id"] for row in held.values() for one in row["entries"]} == expected
    check(lake, after(6), fusion)
    leaf = {one["sample_id"]: one["leaf"] for row in before.values() for one in row["entries"]}
    for user in clustered(lake) - {row["user_id"] for row in old}:
        assert [one["leaf"] for one in held[user]["entries"]] == [leaf[one["sample_id"]] for one in held[user]["entries"]]


@pytest.mark.slow
def test_a_stale_refresh_older_than_the_base_is_made_from_scratch(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    rows = write_days(lake, 0, 6, most=8)
    refresh(lake, after(6), fusion)
    rows += write_days(lake, 7, 13, most=8)
    refresh(lake, after(13), fusion)
    base = bases(lake)
    old = [row for row in rows if row["date"] == after(2)]
    new = [row | {"behaviours": row["behaviours"][1:]} for row in old]
    rewrite_day(lake, after(2), new)
    mark_stale(lake, {after(6).isoformat(): {"lifelong": "it compresses history"}})
    reports = refresh(lake, after(6), fusion)
    assert bases(lake) == base
    assert total(reports, "kept") == 0
    lengths: dict[str, int] = {}
    for row in [row for row in rows if row["date"] <= after(6) and row["date"] != after(2)] + new:
        seen = [one for one in row["behaviours"] if one["observed_ts"] < end_of(after(6))]
        lengths[row["user_id"]] = lengths.get(row["user_id"], 0) + len(seen)
    found = pathways(lake, after(6))
    assert {user: row["history_length"] for user, row in found.items()} == {
        user: length for user, length in lengths.items() if length
    }
    assert waiting_days(lake) == [after(2)]  # for the next turn


def test_someone_forgotten_between_two_refreshes_stays_forgotten(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    write_days(lake, 0, 6, most=8)
    refresh(lake, after(6), fusion)
    before = pathways(lake, after(6))
    gone = sorted(before)[2]
    for table in (HISTORY, PATHWAY_LIFELONG):
        lake.open_table(table).delete(f"user_id = '{gone}'")
    refresh(lake, after(7), fusion)
    found = pathways(lake, after(7))
    assert found.keys() == before.keys() - {gone}
    assert gone not in bases(lake)
    check(lake, after(7), fusion, kept=clustered(lake))


@pytest.mark.slow
def test_a_base_that_another_program_wrote_in_another_order(make_lake: MakeLake) -> None:
    """Users out of order, in two files: read whole and sorted."""
    lakes = [made(make_lake, name) for name in ("clean", "other")]
    for lake in lakes:
        fusion = publish_fusion(lake, 0)
        write_days(lake, 0, 6, most=8)
        refresh(lake, after(6), fusion)
    rows = lakes[1].read(HISTORY)
    assert set(rows["date"].to_pylist()) == {HISTORY_BASE}
    shuffled = rows.take(pc.sort_indices(rows, [("user_id", "descending")]))
    write_deltalake(lakes[1].table_uri(HISTORY), shuffled.slice(0, 5), mode="overwrite")
    write_deltalake(lakes[1].table_uri(HISTORY), shuffled.slice(5), mode="append")
    for lake in lakes:
        write_days(lake, 7, 13, most=4)
        refresh(lake, after(13), fusion)
    assert tables(lakes[0]) == tables(lakes[1])


@pytest.mark.slow
def test_memory_follows_neither_users_nor_days(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users read a few at a time give the same tables as all at once, and the base has a row group for each few."""
    lakes = [made(make_lake, name) for name in ("clean", "other")]
    many = [f"u{number:03d}" for number in range(90)]
    for lake, ahead in zip(lakes, (3, 1000), strict=True):
        monkeypatch.setattr(lifelong_bucket, "_USERS_AHEAD", ahead)
        fusion = publish_fusion(lake, 0)
        write_days(lake, 0, 3, most=8, users=many)
        refresh(lake, after(3), fusion)
        write_days(lake, 4, 7, most=8, users=many)
        refresh(lake, after(7), fusion)
    assert tables(lakes[0]) == tables(lakes[1])
    paths = [uri.removeprefix("file://") for uri in lakes[0].open_table(HISTORY).file_uris()]
    assert sum(pq.ParquetFile(path).num_row_groups for path in paths) > 12


def test_a_damaged_file_is_named(make_lake: MakeLake) -> None:
    lake = made(make_lake)
    fusion = publish_fusion(lake, 0)
    write_days(lake, 0, 0)
    path = lake.open_table(HISTORY).file_uris()[0].removeprefix("file://")
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(BadInput, match="missing or damaged"):
        refresh(lake, DAY, fusion)
