"""The arithmetic below ``user_state`` against plain Python, and reading it in slices."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs import user_state_files
from feature_jobs.bucket_files import BucketFiles, bucket_files
from feature_jobs.user_state import STATE
from feature_jobs.user_state_arrays import BEHAVIOURS, behaviour_order, ranges
from feature_jobs.user_state_facts import FACTS, PROFILE, latest_facts, latest_of_each
from feature_jobs.user_state_files import state_of, state_slices
from feature_jobs.user_state_windows import Arrivals, Lists, only_positive, window
from schemas.config import SamplesSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import POSITIVE_BIT, USER_STATE
from tests.lake_rows import write_rows

DAY = dt.date(2026, 1, 5)
LISTS: dict[str, Any] = {
    name: [] for name in ("short", "positive", "pending", "recent_items", "watch_histogram", "landings_seen")
}
moments = st.one_of(st.integers(0, 5), st.integers(-(2**62), 2**62))
behaviours = st.tuples(st.integers(0, 4), moments, st.integers(-3, 3))
shown = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(0, 511)), max_size=30, unique=True)


@given(st.lists(behaviours, max_size=30))
def test_behaviours_are_ordered_by_owner_then_time_then_sample(rows: list[tuple[int, int, int]]) -> None:
    order = behaviour_order(*(np.array([row[place] for row in rows], np.int64) for place in range(3)))
    assert [rows[place] for place in order] == sorted(rows)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), max_size=20))
def test_ranges_follow_each_other(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[place] for pair in pairs], np.int64) for place in range(2))
    assert ranges(starts, lengths).tolist() == [start + step for start, length in pairs for step in range(length)]


@pytest.mark.slow
@given(shown, shown, st.integers(1, 6))
def test_a_window_is_the_tail_of_what_was_there_and_what_is_added(
    before: list[tuple[int, int, int]], added: list[tuple[int, int, int]], limit: int
) -> None:
    kept = [sorted(row for row in before if row[0] == owner)[-limit:] for owner in range(5)]
    old = Lists.of(lists_of_rows(kept), np.arange(5), 5)
    added = sorted(added)
    arrivals = Arrivals.of(np.array([row[0] for row in added], np.int64), lists_of_rows([added]).flatten(), SamplesSection())
    found = window(old, arrivals, limit).to_pylist()
    for owner in range(5):
        wanted = sorted([*kept[owner], *(row for row in added if row[0] == owner)], key=lambda row: row[1:])[-limit:]
        assert found[owner] == lists_of_rows([wanted]).to_pylist()[0]


def lists_of_rows(lists: list[list[tuple[int, int, int]]]) -> pa.ListArray:
    """(owner, observed, sample id) as behaviours."""
    rows = [
        [
            {"sample_id": sample, "item_id": "i", "observed_ts": observed, "play_time_ms": 1, "feedback": sample}
            for _, observed, sample in entries
        ]
        for entries in lists
    ]
    return pa.array(rows, BEHAVIOURS)


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(0, 511), max_size=4)), max_size=6))
def test_only_positive_behaviours_stay(feedback: list[list[int] | None]) -> None:
    rows = [None if bits is None else [{"feedback": value} for value in bits] for bits in feedback]
    found = only_positive(pa.array(rows, BEHAVIOURS)).to_pylist()
    assert [[entry["feedback"] for entry in entries] for entries in found] == [
        [value for value in bits or [] if value >> POSITIVE_BIT & 1] for bits in feedback
    ]


snapshots = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 4), st.sampled_from([None, "x", "y"])))


@given(snapshots, snapshots)
def test_the_facts_of_the_latest_snapshot_hold_and_of_one_date_the_newer_export(
    held: dict[str, tuple[int, str | None]], new: dict[str, tuple[int, str | None]]
) -> None:
    users = sorted({*held, *new, "nobody"})
    found = latest_facts(profiles(held), profiles(new), pa.array(users, pa.string()))
    for place, user in enumerate(users):
        known = [facts for facts in (held.get(user), new.get(user)) if facts is not None]
        latest = max(reversed(known), key=lambda facts: facts[0], default=None)
        assert found["gender"][place].as_py() == (latest[1] if latest else None)
        assert found["snapshot_date"][place].as_py() == (DAY + dt.timedelta(days=latest[0]) if latest else None)
        assert found.keys() == set(FACTS)


def profiles(facts: dict[str, tuple[int, str | None]]) -> pa.Table:
    rows = [
        {"user_id": user, "snapshot_date": DAY + dt.timedelta(days=days), "gender": gender}
        for user, (days, gender) in sorted(facts.items())
    ]
    return pa.Table.from_pylist(rows, schema=PROFILE)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=12, unique=True))
def test_of_each_user_the_latest_snapshot_is_left(pairs: list[tuple[str, int]]) -> None:
    rows = [{"user_id": user, "snapshot_date": DAY + dt.timedelta(days=days)} for user, days in pairs]
    found = latest_of_each(pa.Table.from_pylist(rows, schema=PROFILE)).to_pylist()
    wanted = {user: max(days for name, days in pairs if name == user) for user, _ in sorted(pairs)}
    assert [(row["user_id"], (row["snapshot_date"] - DAY).days) for row in found] == list(wanted.items())


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_state_files, "USERS_AT_ONCE", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("users", ["", "a", "abc", "abcdefgh", "hgfedcba"])
def test_state_comes_in_slices_of_users_in_order_whoever_wrote_it(make_lake: Callable[..., Lake], users: str) -> None:
    files = written(make_lake(lake={"user_buckets": 1}), users)
    slices = list(state_slices(files, 0, STATE.names))
    assert [row for part, _ in slices for row in part["user_id"].to_pylist()] == sorted(users)
    assert [last for _, last in slices] == [*(part["user_id"][-1].as_py() for part, _ in slices[:-1]), None]
    assert all(len(part) <= 3 for part, _ in slices)
    chosen = state_of(files, 0, pa.array(["b", "z", "a"]), ("user_id", "pending"))
    assert chosen["user_id"].to_pylist() == sorted({"a", "b"} & set(users))


def written(lake: Lake, users: str) -> BucketFiles:
    rows = [{"user_id": user, "active_days": 1, "behaviours": 0, "date": DAY, **LISTS} for user in users]
    if rows:
        write_rows(lake, USER_STATE, rows)
    return bucket_files(lake, USER_STATE, lake.table_version(USER_STATE), pads.field("date") == DAY)


def test_a_damaged_file_of_state_is_named(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(lake={"user_buckets": 1})
    files = written(lake, "abc")
    path = lake.local_path(USER_STATE.name, files.paths[0][0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=f"{path.name}: missing or damaged"):
        list(state_slices(files, 0, STATE.names))


def test_columns_that_an_old_file_lacks_are_null(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(lake={"user_buckets": 1})
    files = written(lake, "abc")
    path = lake.local_path(USER_STATE.name, files.paths[0][0])
    pq.write_table(pq.ParquetFile(path).read().drop_columns([*FACTS, "users_version"]), path)
    ((rows, _),) = state_slices(files, 0, STATE.names)
    assert rows.schema.names == STATE.names
    assert all(rows[name].null_count == 3 for name in (*FACTS, "users_version"))
