"""The files of a simulated landing zone: as docs/landing-zone.md says, and agreeing with the truth beside them."""

import datetime as dt
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onerec.simulate.arrivals import BROKEN_KINDS
from onerec.simulate.event_rows import UNKNOWN_ITEM
from onerec.simulate.parameters import Parameters
from schemas.tables import EVENTS, FEEDBACK, ITEMS, USERS
from tests.onerec.simulated import contents, read_lines, read_rows, write_world

WORLD = Parameters(users=250, items=150, days=3, media=False, broken_share=0.02, late_share=0.04, duplicate_share=0.03)
DATES = [date.isoformat() for date in WORLD.dates]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return root, write_world(WORLD, root)


def sound_events(root: Path, date: str) -> list[dict]:
    """Rows of a landing that nothing is wrong with, found without the truth."""
    return [
        row
        for row in read_rows(root / "events" / f"date={date}")
        if "user_id" in row
        and row["item_id"] != UNKNOWN_ITEM
        and row["ts"] != "yesterday"
        and isinstance(row["play_time_ms"], int)
        and 0 <= row["play_time_ms"] < 10**12
        and row["duration_ms"] > 0
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    small = Parameters(users=30, items=40, days=2)
    write_world(small, tmp_path / "one")
    write_world(small, tmp_path / "two")
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    write_world(Parameters(users=30, items=40, days=2, seed=1), tmp_path / "three")
    three = contents(tmp_path / "three")
    events = [name for name in one if name.startswith("events")]
    assert events
    assert all(one[name] != three.get(name) for name in events)


@pytest.mark.slow
def test_late_duplicate_and_broken_rows_are_as_many_as_the_truth_says(world):
    root, truth = world
    first_seen: dict[str, str] = {}
    for date in DATES:
        lines = read_lines(root / "events" / f"date={date}")
        assert len(lines) == truth[date, "rows"]
        sound = sound_events(root, date)
        broken = sum(truth[date, f"broken_{kind}"] for kind in BROKEN_KINDS["jsonl"])
        assert len(lines) - len(sound) == broken
        again = Counter()
        for row in sound:
            before = first_seen.setdefault(row["impression_id"], date)
            if before != date:
                again["later"] += 1
        here = Counter(row["impression_id"] for row in sound)
        fresh = {name for name in here if first_seen[name] == date}
        assert len(fresh) == truth[date, "impressions"]
        same = sum(here[name] - 1 for name in here)
        assert same == truth[date, "duplicate_same_landing"]
        assert again["later"] == truth[date, "duplicate_later_landing"]
        own_day = {row["impression_id"]: row["request_ts"][:10] for row in sound}
        late = sum(own_day[name] < date for name in fresh)
        assert late == truth[date, "late"]
        assert all(dt.date.fromisoformat(day) >= dt.date.fromisoformat(date) - dt.timedelta(days=2) for day in own_day.values())


def test_each_kind_of_damage_is_there_as_often_as_the_truth_says(world):
    root, truth = world
    rows = [row for date in DATES for row in read_rows(root / "events" / f"date={date}")]
    lines = sum(len(read_lines(root / "events" / f"date={date}")) for date in DATES)
    play = [row["play_time_ms"] for row in rows]
    found = {
        "negative_play_time": sum(isinstance(value, int) and value < 0 for value in play),
        "time_no_timestamp": sum(row["ts"] == "yesterday" for row in rows),
        "unknown_item": sum(row["item_id"] == UNKNOWN_ITEM for row in rows),
        "missing_user": sum("user_id" not in row for row in rows),
        "play_time_out_of_range": sum(isinstance(value, int) and value >= 10**12 for value in play),
        "play_time_no_number": sum(isinstance(value, str) for value in play),
        "duration_zero": sum(row["duration_ms"] == 0 for row in rows),
        "not_json": lines - len(rows),
    }
    assert found == {kind: sum(truth[date, f"broken_{kind}"] for date in DATES) for kind in BROKEN_KINDS["jsonl"]}
    assert min(found.values()) > 0


def test_shares_are_near_what_was_asked_for(world):
    _, truth = world
    total = Counter()
    for (_, kind), rows in truth.items():
        total[kind.split("_")[0]] += rows
    rows = total["rows"] + truth[DATES[1], "not_arrived"] + truth[DATES[2], "not_arrived"]
    assert total["broken"] / rows == pytest.approx(0.02, rel=0.2)
    late = total["late"] + sum(truth[date, "not_arrived"] for date in DATES)
    assert late / rows == pytest.approx(0.04 + 0.03 * 0.15, rel=0.2)  # with doubles that have not arrived yet
    assert total["duplicate"] / rows == pytest.approx(0.03, rel=0.25)


def test_sound_events_are_what_the_lake_declares(world):
    root, _ = world
    declared = set(EVENTS.schema.names) - {"ingested_at", "date", "landing_date", "user_bucket"}
    born: dict[str, str] = {}
    for date in DATES:
        for row in read_rows(root / "items" / f"date={date}"):
            born.setdefault(row["item_id"], row["valid_from"])
    for date in DATES:
        for row in sound_events(root, date):
            assert set(row) - {"observed_ts"} == declared - {"observed_ts"}
            request, shown = (dt.datetime.fromisoformat(row[name]) for name in ("request_ts", "ts"))
            assert request < shown
            observed = dt.datetime.fromisoformat(row["observed_ts"]) if "observed_ts" in row else None
            assert observed is None or observed > shown + dt.timedelta(milliseconds=row["play_time_ms"])
            assert dt.datetime.fromisoformat(born[row["item_id"]]) < request
            assert all(isinstance(row[name], bool) for name in FEEDBACK)


def test_items_are_born_change_and_die_in_their_days_landing(world):
    root, truth = world
    versions = Counter()
    for date in DATES:
        rows = read_rows(root / "items" / f"date={date}")
        assert len(rows) == truth[date, "item_versions"]
        for row in rows:
            assert set(row) == set(ITEMS.schema.names)
            assert row["valid_from"][:10] == date or (date == DATES[0] and row["valid_from"][:10] < date)
            versions["deleted" if row["deleted"] else "changed" if row["valid_from"] != row["upload_ts"] else "born"] += 1
    assert versions["born"] == WORLD.all_items
    assert versions["changed"] > 0
    assert versions["deleted"] > 0


def test_a_changed_item_has_another_title_and_the_same_length(tmp_path):
    root = tmp_path
    write_world(Parameters(users=2, items=400, days=3, media=False, events_per_day=1), root)
    by_item: dict[str, list[dict]] = {}
    for date in DATES:
        for row in read_rows(root / "items" / f"date={date}"):
            by_item.setdefault(row["item_id"], []).append(row)
    pairs = [(rows[0], rows[1]) for rows in by_item.values() if len(rows) > 1 and not rows[1]["deleted"]]
    assert len(pairs) > 5
    assert all(old["duration_ms"] == new["duration_ms"] and old["valid_from"] < new["valid_from"] for old, new in pairs)
    assert sum(old["title"] != new["title"] for old, new in pairs) > 0.8 * len(pairs)


def test_user_snapshots_are_of_the_day_before_and_miss_some_users(world):
    root, truth = world
    seen, active = [], []
    for date in DATES:
        rows = read_rows(root / "users" / f"date={date}")
        before = (dt.date.fromisoformat(date) - dt.timedelta(days=1)).isoformat()
        assert len(rows) == truth[date, "user_snapshots"]
        assert all(row["date"] == before and row["register_ts"][:10] <= before for row in rows)
        assert set(rows[0]) == set(USERS.schema.names)
        seen.append({row["user_id"]: row for row in rows})
        active.append({row["user_id"] for row in sound_events(root, date) if row["request_ts"][:10] == date})
    missing = sum(len(users - set(snapshot)) for users, snapshot in zip(active, seen, strict=True))
    assert 0 < missing < 0.1 * sum(map(len, active))
    assert any(seen[0][user]["device"] != row["device"] for user, row in seen[2].items() if user in seen[0])


def test_texts_are_not_ascii_alone(world):
    root, _ = world
    captions = [row["caption"] for row in read_rows(root / "items" / f"date={DATES[0]}")]
    assert all(not caption.isascii() for caption in captions)


@pytest.mark.slow
def test_parquet_events_say_the_same(tmp_path):
    json_world = Parameters(users=60, items=60, days=1, media=False, broken_share=0)
    parquet_world = Parameters(users=60, items=60, days=1, media=False, broken_share=0, format="parquet")
    write_world(json_world, tmp_path / "json")
    truth = write_world(parquet_world, tmp_path / "parquet")
    rows = read_rows(tmp_path / "json" / "events" / "date=2026-01-01")
    table = pq.read_table(tmp_path / "parquet" / "events" / "date=2026-01-01" / "part-00000.parquet", partitioning=None)
    for name in table.schema.names:
        assert table.schema.field(name).type == EVENTS.schema.field(name).type, name
    typed = table.to_pylist()
    assert len(typed) == len(rows) == truth["2026-01-01", "rows"]
    for row, other in zip(rows, typed, strict=True):
        for name in ("request_ts", "ts", "observed_ts"):
            row[name] = dt.datetime.fromisoformat(row[name]) if name in row else None
        assert row == other
    users = pq.read_table(tmp_path / "parquet" / "users" / "date=2026-01-01" / "part-00000.parquet", partitioning=None)
    assert [(field.name, field.type) for field in users.schema] == [(field.name, field.type) for field in USERS.schema]


def test_broken_parquet_rows_are_counted_by_kind(tmp_path):
    truth = write_world(Parameters(users=150, items=60, days=1, media=False, broken_share=0.1, format="parquet"), tmp_path)
    rows = [
        row
        for file in (tmp_path / "events" / "date=2026-01-01").iterdir()
        for row in pq.read_table(file, partitioning=None).to_pylist()
    ]
    found = {
        "negative_play_time": sum(row["play_time_ms"] < 0 for row in rows),
        "missing_time": sum(row["ts"] is None for row in rows),
        "unknown_item": sum(row["item_id"] == UNKNOWN_ITEM for row in rows),
        "missing_user": sum(row["user_id"] is None for row in rows),
        "play_time_out_of_range": sum(row["play_time_ms"] >= 10**12 for row in rows),
        "duration_zero": sum(row["duration_ms"] == 0 for row in rows),
    }
    assert found == {kind: truth["2026-01-01", f"broken_{kind}"] for kind in BROKEN_KINDS["parquet"]}
    assert min(found.values()) > 0


def test_the_truth_names_every_item_and_every_users_taste(world):
    root, _ = world
    items = pq.read_table(root / "truth" / "items")
    assert items.num_rows == WORLD.all_items
    assert set(items.column("topic").to_pylist()) <= set(range(12))
    for date in DATES:
        tastes = pq.read_table(root / "truth" / "users" / f"date={date}", partitioning=None)
        assert tastes.num_rows == WORLD.users
        assert sum(tastes.column("taste")[0].as_py()) == pytest.approx(1, abs=1e-5)
