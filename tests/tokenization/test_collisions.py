"""Ranks of items that share a code."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.collisions import rank_within_code

ITEMS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.text("ab1", max_size=3), st.sampled_from([0.0, 0.5, 1.5])),
    unique_by=lambda row: row[2],
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(ITEMS, st.randoms())
def test_the_best_described_comes_first_then_the_smaller_id_in_any_order_of_rows(items, random):
    random.shuffle(items)
    codes = np.array([row[:2] for row in items], np.uint16).reshape(-1, 2)
    ranks = rank_within_code(codes, [row[2] for row in items], [row[3] for row in items])
    assert ranks.dtype == np.int32
    for place, row in enumerate(items):
        ahead = [other for other in items if other[:2] == row[:2] and (other[3], other[2]) < (row[3], row[2])]
        assert ranks[place] == len(ahead)
