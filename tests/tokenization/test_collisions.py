"""Items that share a code: ranks, who leaves, and suffixes."""

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.collisions import collision_figures, over_cap, over_full, rank_within_code, suffixes

ITEMS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.text("ab1", max_size=3), st.sampled_from([0.0, 0.5, 1.5])),
    unique_by=lambda row: row[2],
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(ITEMS, st.randoms())
def test_the_best_described_comes_first_then_the_smaller_id_in_any_order_of_rows(items, random):
    random.shuffle(items)
    codes = np.array([row[:2] for row in items], np.uint16).reshape(-1, 2)
    ranks = rank_within_code(codes, [row[2] for row in items], [row[3] for row in items])
    assert ranks.dtype == np.int32
    for place, row in enumerate(items):
        ahead = [other for other in items if other[:2] == row[:2] and (other[3], other[2]) < (row[3], row[2])]
        assert ranks[place] == len(ahead)


@settings(max_examples=50, deadline=None)
@given(ITEMS, st.integers(1, 3), st.randoms())
def test_those_after_the_first_cap_leave_and_never_one_that_is_kept(items, cap, random):
    random.shuffle(items)
    kept = [random.random() < 0.4 for _ in items]
    codes = np.array([row[:2] for row in items], np.uint16).reshape(-1, 2)
    leaving = over_full(codes, [row[2] for row in items], [row[3] for row in items], cap, kept)
    for place, row in enumerate(items):
        same = [(not kept[other], items[other][3], items[other][2]) for other in range(len(items)) if items[other][:2] == row[:2]]
        ahead = sum(key < (not kept[place], row[3], row[2]) for key in same)
        assert leaving[place] == (ahead >= cap and not kept[place])


@settings(max_examples=50, deadline=None)
@given(ITEMS, st.randoms())
def test_a_suffix_is_the_smallest_that_is_free_and_an_earlier_one_stays(items, random):
    random.shuffle(items)
    codes = np.array([row[:2] for row in items], np.uint16).reshape(-1, 2)
    ids, norms = [row[2] for row in items], [row[3] for row in items]
    assert (suffixes(codes, ids, norms) == rank_within_code(codes, ids, norms)).all()

    present, taken = [-1] * len(items), defaultdict(set)
    for place, row in enumerate(items):
        number = random.randrange(6)
        if random.random() < 0.5 and number not in taken[row[:2]]:
            present[place] = number
            taken[row[:2]].add(number)
    expected = list(present)
    for place in sorted(range(len(items)), key=lambda place: (norms[place], ids[place])):
        if expected[place] < 0:
            code = items[place][:2]
            expected[place] = next(number for number in range(len(items)) if number not in taken[code])
            taken[code].add(expected[place])
    assert suffixes(codes, ids, norms, present).tolist() == expected


def test_figures_of_collisions():
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2], [1, 1]])
    assert collision_figures(codes) == {"collision_share": 0.6, "largest_bucket": 3}
    assert [over_cap(codes, cap) for cap in (1, 2, 3)] == [2, 1, 0]
    assert collision_figures(codes[:0]) == {"collision_share": 0.0, "largest_bucket": 0}
