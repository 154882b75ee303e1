"""The exact windows against brute force: what a request may see, in which order, and no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.windows import BEHAVIOUR_COLUMNS, History, Ragged, TimeIndex, merged, tail_indices

TIMES = st.integers(0, 6)  # few distinct times, so that ties are common
ENTRIES = st.lists(st.tuples(TIMES, st.integers(0, 50)), max_size=8)


def ragged(lists: list[list[tuple[int, int]]]) -> Ragged:
    """Lists of (observed_ts, sample_id)."""
    flat = [entry for entries in lists for entry in entries]
    columns = {name: np.array([hash((name, entry)) % 1000 for entry in flat], dtype=np.int64) for name in BEHAVIOUR_COLUMNS}
    columns["observed_ts"] = np.array([entry[0] for entry in flat], dtype=np.int64)
    columns["sample_id"] = np.array([entry[1] for entry in flat], dtype=np.int64)
    return Ragged(np.concatenate([[0], np.cumsum([len(entries) for entries in lists])]).astype(np.int64), columns)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(ENTRIES, ENTRIES, ENTRIES), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), TIMES), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_window_is_the_tail_of_what_was_observed_strictly_before(users, asked, length):
    sources = [ragged([user[source] for user in users]) for source in range(3)]
    history = History.of(sources)
    owners = np.array([owner % len(users) for owner, _ in asked])
    times = np.array([time for _, time in asked])

    indices, mask = history.visible_tail(owners, times, length)

    for row, (owner, time) in enumerate(zip(owners, times, strict=True)):
        everything = sorted(entry for source in users[owner] for entry in source)
        expected = [entry for entry in everything if entry[0] < time][-length:]
        columns = history.entries.columns
        found = [(columns["observed_ts"][i], columns["sample_id"][i]) for i in indices[row][mask[row]]]
        assert found == expected
        assert mask[row].tolist() == [False] * (length - len(expected)) + [True] * len(expected)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(TIMES, max_size=5).map(sorted), min_size=1, max_size=5), st.data())
def test_count_before_counts_strictly_earlier_entries_of_the_owner(lists, data):
    offsets = np.concatenate([[0], np.cumsum([len(times) for times in lists])]).astype(np.int64)
    index = TimeIndex.of(offsets, np.array([time for times in lists for time in times], dtype=np.int64))
    owner = data.draw(st.integers(0, len(lists) - 1))
    time = data.draw(st.integers(-1, 8))
    assert index.count_before(np.array([owner]), np.array([time])).tolist() == [sum(t < time for t in lists[owner])]


def test_times_of_any_size_do_not_overflow():
    times = np.array([-(2**62), 0, 2**62])
    index = TimeIndex.of(np.array([0, 3]), times)
    assert index.count_before(np.zeros(3, int), np.array([-(2**62), 1, 2**63 - 1])).tolist() == [0, 2, 3]


def test_equal_times_are_ordered_by_sample_id_across_sources():
    history = merged([ragged([[(5, 9)]]), ragged([[(5, 2), (4, 7)]])])
    assert history.columns["sample_id"].tolist() == [7, 2, 9]


def test_where_keeps_entries_with_their_owner():
    kept = ragged([[(1, 1), (2, 2)], [], [(3, 3)]]).where(np.array([False, True, True]))
    assert kept.offsets.tolist() == [0, 1, 1, 2]
    assert kept.columns["sample_id"].tolist() == [2, 3]


def test_tail_of_a_short_range_is_right_aligned():
    indices, mask = tail_indices(np.array([10, 0]), np.array([12, 5]), 3)
    assert indices.tolist() == [[0, 10, 11], [2, 3, 4]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
