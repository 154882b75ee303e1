"""The training sample: every stratum in proportion, and mostly the same items as the catalogue grows."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tokenization.sampling import stratified_sample


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_size_and_proportion(strata: list[str | None], size: int, seed: int) -> None:
    ids = [f"i{n}" for n in range(len(strata))]
    chosen = stratified_sample(ids, strata, size, seed).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(size, len(strata))
    taken, there = Counter(strata[row] for row in chosen), Counter(strata)
    for stratum, count in there.items():
        exact = count * len(chosen) / len(strata)
        assert abs(taken[stratum] - exact) < 1


@given(st.permutations(range(30)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    strata = [("x", "y", None)[n % 3] for n in range(30)]
    expected = set(stratified_sample([f"i{n}" for n in range(30)], strata, 12, 0).tolist())
    shuffled = stratified_sample([f"i{n}" for n in order], [strata[n] for n in order], 12, 0)
    assert {order[row] for row in shuffled.tolist()} == expected


def test_a_growing_catalogue_keeps_most_of_its_sample() -> None:
    small = {f"i{row}" for row in stratified_sample([f"i{n}" for n in range(1000)], ["x"] * 1000, 100, 0).tolist()}
    large = {f"i{row}" for row in stratified_sample([f"i{n}" for n in range(1050)], ["x"] * 1050, 100, 0).tolist()}
    assert len(small & large) >= 85
    other = {f"i{row}" for row in stratified_sample([f"i{n}" for n in range(1000)], ["x"] * 1000, 100, 1).tolist()}
    assert len(small & other) < 40
