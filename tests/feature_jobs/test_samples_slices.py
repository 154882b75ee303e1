"""Whole users in slices, from files in any order; keys packed into one integer sort as they would one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs import samples_slices, user_state_files
from feature_jobs.bucket_files import BucketFiles
from feature_jobs.samples_arrays import encoded_users, order_by
from feature_jobs.samples_labels import STATE_COLUMNS
from feature_jobs.samples_slices import ActiveState, event_slices
from feature_jobs.user_state import STATE

SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("n", pa.int64()), ("part", pa.int32()), ("new", pa.int64())]
)
users = st.sampled_from(["", "a", "b", "ü", "物", "a very long name of a user", "c", "d"])
files = st.lists(st.tuples(st.booleans(), st.lists(users, max_size=12)), max_size=3)


def written(folder: Path, dealt: list[tuple[bool, list[str]]]) -> tuple[BucketFiles, list[dict[str, Any]]]:
    """Files of these users' rows, each in user order or as given, and all their rows."""
    rows, names, partitions = [], [], {}
    for part, (in_order, owners) in enumerate(dealt):
        mine = [
            {"user_id": user, "item_id": f"i{number % 3}", "n": 100 * part + number}
            for number, user in enumerate(sorted(owners, key=str.encode) if in_order else owners)
        ]
        name = f"part-{part}.parquet"
        table = pa.Table.from_pylist(mine, schema=pa.schema([SCHEMA.field(name) for name in ("user_id", "item_id", "n")]))
        pq.write_table(table, folder / name, row_group_size=4)
        names.append(name)
        partitions[name] = {"part": part}
        rows += [row | {"part": part, "new": None} for row in mine]
    return BucketFiles(str(folder), {0: tuple(names)}, partitions), rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.mark.slow
@settings(deadline=None)  # each example writes files
@given(files, st.integers(1, 9), st.integers(1, 5))
def test_slices_hold_every_row_once_whole_users_in_order_and_no_more_rows_than_they_may(
    folder: Path, dealt: list[tuple[bool, list[str]]], rows_at_once: int, batch: int
) -> None:
    stored, rows = written(folder, dealt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_slices, "SLICE_ROWS", rows_at_once)
        patch.setattr(samples_slices, "BATCH_ROWS", batch)
        slices = [part.to_pylist() for part in event_slices(stored, 0, SCHEMA)]
    found = [row for part in slices for row in part]
    assert sorted(found, key=lambda row: row["n"]) == sorted(rows, key=lambda row: row["n"])
    who = [sorted({row["user_id"] for row in part}, key=str.encode) for part in slices]
    assert [user for names in who for user in names] == sorted({row["user_id"] for row in rows}, key=str.encode)
    assert all(len(part) <= rows_at_once or len(names) == 1 for part, names in zip(slices, who, strict=True))


@pytest.mark.slow
@settings(deadline=None)  # each example writes files
@given(st.sets(users), st.booleans(), st.lists(st.sets(users, min_size=1), max_size=4), st.integers(1, 4))
def test_the_state_beside_the_slices_is_that_of_their_users(
    folder: Path, known: set[str], in_order: bool, asked: list[set[str]], at_once: int
) -> None:
    order = sorted(known, key=str.encode, reverse=not in_order)
    rows = [{"user_id": user, "recent_items": [number]} for number, user in enumerate(order)]
    pq.write_table(pa.Table.from_pylist(rows, schema=STATE), folder / "state.parquet")
    stored = BucketFiles(str(folder), {0: ("state.parquet",)}, {"state.parquet": {}})
    everyone = sorted({user for group in asked for user in group}, key=str.encode)
    groups = [everyone[start : start + 2] for start in range(0, len(everyone), 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_state_files, "USERS_AT_ONCE", at_once)
        state = ActiveState(stored, 0)
        for group in groups:
            found = state.of(pa.array(group))
            assert found.column_names == list(STATE_COLUMNS)
            expected = [(row["user_id"], row["recent_items"]) for row in rows if row["user_id"] in group]
            assert sorted((row["user_id"], row["recent_items"]) for row in found.to_pylist()) == sorted(expected)


whole = st.integers(-(2**63), 2**63 - 1)
keys = st.one_of(st.integers(0, 2), st.integers(-5, 10**6), whole)


@given(st.integers(1, 5).flatmap(lambda width: st.lists(st.tuples(*[keys] * width), max_size=30)))
def test_keys_sort_as_tuples_do_and_equal_rows_keep_their_order(rows: list[tuple[int, ...]]) -> None:
    width = len(rows[0]) if rows else 1
    columns = [np.array([row[number] for row in rows], np.int64) for number in range(width)]
    assert order_by(*columns).tolist() == sorted(range(len(rows)), key=lambda place: rows[place])


@given(st.lists(users, max_size=20), st.integers(0, 3), st.booleans())
def test_users_are_coded_in_byte_order(names: list[str], skipped: int, as_dictionary: bool) -> None:
    column = pa.chunked_array([pa.array(names[:7], pa.string()), pa.array(names[7:], pa.string())])
    column = (column.dictionary_encode() if as_dictionary else column).slice(skipped)
    distinct, code = encoded_users(column)
    assert distinct.to_pylist() == sorted(distinct.to_pylist(), key=str.encode)
    assert distinct.take(pa.array(code)).to_pylist() == names[skipped:]
