"""Clusters kept up to date: the same sums as from scratch, few enough leaves, and an error close to that from scratch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.lifelong_clusters import hierarchical_clusters
from feature_jobs.lifelong_leaves import LeafSums, assigned, cheapest_merges, representatives, update_leaves
from feature_jobs.lifelong_users import error_ratio
from feature_jobs.lifelong_vectors import ItemVectors


def made_items(seed: int, count: int, dim: int = 8, topics: int = 6, spread: float = 0.6) -> ItemVectors:
    """Unit vectors of items around some topics: item i is of topic i mod ``topics``."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(topics, dim))[np.arange(count) % topics] + spread * rng.normal(size=(count, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return ItemVectors(vectors, (vectors**2).sum(axis=1))


def brute_sums(items: ItemVectors, rows: np.ndarray, leaf: np.ndarray, leaves: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, vector sums and within-cluster errors, leaf by leaf in double precision."""
    points = np.array([items.matrix[row] if row >= 0 else np.zeros(items.matrix.shape[1]) for row in rows], np.float64)
    parts = [points[leaf == number] for number in range(leaves)]
    sums = np.stack([part.sum(axis=0) if len(part) else np.zeros(items.matrix.shape[1]) for part in parts])
    errors = np.array([((part - part.mean(axis=0)) ** 2).sum() if len(part) else 0.0 for part in parts])
    return np.array([len(part) for part in parts]), sums, errors


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), old=st.integers(1, 200), new=st.integers(0, 60), leaves=st.integers(1, 30))
def test_sums_kept_equal_sums_from_scratch(seed: int, old: int, new: int, leaves: int) -> None:
    rng = np.random.default_rng(seed)
    items = made_items(seed, 40)
    rows = rng.integers(-1, 40, size=old + new)
    leaf = np.concatenate([np.arange(min(old, leaves)), rng.integers(min(old, leaves), size=old + new)])[: old + new]
    count = int(leaf[:old].max()) + 1
    leaf[old:] %= count
    kept = LeafSums.of(items, rows[:old], leaf[:old], count).plus(LeafSums.of(items, rows[old:], leaf[old:], count))
    counts, sums, errors = brute_sums(items, rows, leaf, count)
    assert kept.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(kept.sums, sums, atol=1e-4)
    np.testing.assert_allclose(kept.errors(), errors, atol=1e-3)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    old=st.integers(1, 150),
    new=st.integers(0, 80),
    most=st.integers(1, 40),
    lost=st.floats(0, 0.9),
    distinct=st.integers(1, 60),
)
def test_an_update_is_a_partition_into_few_enough_leaves(
    seed: int, old: int, new: int, most: int, lost: float, distinct: int
) -> None:
    """Whatever was lost (trimmed, forgotten) or is new, items without a vector included."""
    rng = np.random.default_rng(seed)
    items = made_items(seed, distinct)
    before = rng.integers(-1, distinct, size=old)
    leaf = hierarchical_clusters(items.take(before), most, seed) if old > most else np.unique(before, return_inverse=True)[1]
    stays = rng.random(old) >= lost
    stays[rng.integers(old)] = True
    rows = np.concatenate([before[stays], rng.integers(-1, distinct, size=new)])
    leaf = np.concatenate([leaf[stays], np.full(new, -1)])
    found = update_leaves(items, rows, leaf, most, seed)
    assert np.array_equal(found, update_leaves(items, rows, leaf, most, seed))
    parts = sorted(set(found.tolist()))
    assert parts == list(range(len(parts)))
    assert len(parts) <= most
    if len(set(rows.tolist())) <= most:
        assert brute_sums(items, rows, found, len(parts))[2].sum() < 1e-4  # each item has a leaf of its own


def test_a_new_behaviour_joins_its_items_leaf_or_the_nearest() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.2, 0.9]], np.float32)
    items = ItemVectors(vectors, (vectors**2).sum(axis=1))
    rows, leaf = np.array([0, 1, 2]), np.array([0, 1, 1])  # item 2 was put beside item 1
    sums = LeafSums.of(items, rows, leaf, 2)
    assert assigned(items, np.array([2, 3, 0, 3]), rows, leaf, sums).tolist() == [1, 1, 0, 1]


def test_the_nearest_leaves_are_merged_first_and_each_once() -> None:
    points = np.array([[0.0], [0.1], [5.0], [5.3], [9.0]], np.float32)
    items = ItemVectors(points, (points**2).sum(axis=1))
    into, gone, cost = cheapest_merges(LeafSums.of(items, np.arange(5), np.arange(5), 5))
    assert [{a, b} for a, b in zip(into.tolist(), gone.tolist(), strict=True)] == [{0, 1}, {2, 3}]
    np.testing.assert_allclose(cost, [0.1**2 / 2, 0.3**2 / 2], rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_an_overfull_leaf_is_split_and_near_ones_are_merged(seed: int) -> None:
    """A history whose interest moves to a new topic gives that topic leaves of its own."""
    items = made_items(seed, 600, topics=2)
    first, second = np.arange(0, 600, 2), np.arange(1, 600, 2)
    rows, found = first, hierarchical_clusters(items.take(first), 50, seed)
    for part in np.array_split(second, 6):
        rows = np.concatenate([rows, part])
        found = update_leaves(items, rows, np.concatenate([found, np.full(len(part), -1)]), 50, seed)
    assert len(set(found[len(first) :].tolist())) > 10
    assert len(set(found.tolist())) == 50
    scratch = hierarchical_clusters(items.take(rows), 50, seed)
    assert error_ratio(items, rows, found, scratch) < 1.2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300), leaves=st.integers(1, 60))
def test_a_representative_is_the_member_nearest_the_mean(seed: int, count: int, leaves: int) -> None:
    rng = np.random.default_rng(seed)
    items = made_items(seed, 50)
    rows = rng.integers(-1, 50, size=count)
    leaf = np.unique(rng.integers(leaves, size=count), return_inverse=True)[1]
    points = items.take(rows).astype(np.float64)
    for number, chosen in enumerate(representatives(items, rows, leaf).tolist()):
        members = np.flatnonzero(leaf == number)
        distance = ((points[members] - points[members].mean(axis=0)) ** 2).sum(axis=1)
        near = members[distance <= distance.min() + 1e-5]
        assert chosen in near
        if len(members) == 2:
            assert chosen == members[0]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "weekly"), [(600, 60), (1000, 40), (450, 60)])
def test_the_error_stays_near_that_from_scratch_over_many_refreshes(start: int, weekly: int) -> None:
    """Half a year of drifting interest, without one clustering from scratch: at most 1.1 times the error (decisions/lifelong)."""
    rng = np.random.default_rng(start)
    items = made_items(0, 6000, dim=32, topics=40)
    most = 250
    taste = rng.dirichlet(np.full(40, 0.2))

    def drawn(count: int) -> np.ndarray:
        return rng.choice(40, size=count, p=taste) + 40 * (150 * rng.random(count) ** 2).astype(np.int64)

    rows = drawn(start)
    leaf = hierarchical_clusters(items.take(rows), most, 0)
    ratios = []
    for week in range(26):
        taste = 0.8 * taste + 0.2 * rng.dirichlet(np.full(40, 0.2))
        rows = np.concatenate([rows, drawn(weekly)])
        leaf = update_leaves(items, rows, np.concatenate([leaf, np.full(weekly, -1)]), most, week)
        ratios.append(error_ratio(items, rows, leaf, hierarchical_clusters(items.take(rows), most, week)))
    assert max(ratios) < 1.1, ratios
