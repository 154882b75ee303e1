"""Clusters under a cap, against the optimal assignment."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization.balance import balance_clusters, balanced_labels, cap_of
from tokenization.vectors import ArrayRows, BadVectors


def best_total(vectors: np.ndarray, centroids: np.ndarray, cap: int) -> float:
    """The least total under the cap: an assignment problem with each centroid's column repeated cap times."""
    costs = np.repeat(squared_distances(vectors, centroids), cap, axis=1)
    rows, columns = linear_sum_assignment(costs)
    return float(costs[rows, columns].sum())


@settings(max_examples=60, deadline=None)
@given(vectors=matrices(most_rows=40, most_columns=5), k=st.integers(1, 20), spare=st.integers(0, 4), seed=st.integers(0, 99))
def test_no_cluster_goes_over_its_cap_and_every_row_has_one(vectors, k, spare, seed):
    centroids = vectors[np.random.default_rng(seed).integers(0, len(vectors), k)]
    cap = -(-len(vectors) // k) + spare
    found = balanced_labels(ArrayRows(vectors), centroids, cap)
    assert found.labels.dtype == np.int32
    assert (found.labels >= 0).all()
    assert np.bincount(found.labels, minlength=k).max() <= cap
    chosen = squared_distances(vectors, centroids)[np.arange(len(vectors)), found.labels]
    np.testing.assert_allclose(found.distances, chosen, rtol=1e-9)
    best = best_total(vectors, centroids, cap)
    assert found.total >= best * (1 - 1e-9)
    assert found.lower_bound <= best * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 60), k=st.integers(2, 30), balance=st.floats(1, 2), seed=st.integers(0, 999))
def test_the_total_is_within_the_tolerance_of_the_best(n, k, balance, seed):
    vectors, centroids = matrix("normal", n, 3, seed), matrix("normal", k, 3, seed + 1)
    cap = cap_of(balance, n, k)
    found = balanced_labels(ArrayRows(vectors), centroids, cap)
    best = best_total(vectors, centroids, cap)
    assert best * (1 - 1e-9) <= found.total <= best * 1.01


def test_a_finer_tolerance_is_kept():
    """Of two places at a distance of 100 and one at 101, 101.4 or 101.8, the last is the first row's: with another row there the
    total is 1.0013 times as large."""
    vectors = np.array([[0, 0], [0, -0.02], [0, -0.04]], np.float32)
    centroids = np.array([[10, 0], [-10, 0], [0, 10.05]], np.float32)
    found = balanced_labels(ArrayRows(vectors), centroids, 1, tolerance=0.001)
    assert found.labels[0] == 2
    assert found.total <= best_total(vectors, centroids, 1) * 1.001
    assert found.bids < 20 * len(vectors), "ε grew"


def test_without_need_every_row_keeps_its_nearest():
    vectors, centroids = matrix("normal", 500, 6, 0), matrix("normal", 20, 6, 1)
    found = balanced_labels(ArrayRows(vectors), centroids, 500)
    assert (found.labels == squared_distances(vectors, centroids).argmin(axis=1)).all()
    assert found.total == pytest.approx(found.nearest)
    assert found.bids == 500


def test_those_who_would_lose_most_stay():
    """One place at 0: row 1 has an alternative near by, rows 0 and 2 have none."""
    vectors, centroids = np.array([[0.0], [1.0], [-1.0]], np.float32), np.array([[0.0], [2.5]], np.float32)
    assert balanced_labels(ArrayRows(vectors), centroids, 2).labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("balance", [1.0, 1.5])
def test_operations_grow_with_the_rows_and_not_faster(balance):
    """A tenth of the rows crowd around one centroid in fifty; counts, not times."""
    counts = []
    for n in (1000, 2000, 4000, 8000):
        random = np.random.default_rng(0)
        centroids = random.normal(size=(50, 8)).astype(np.float32)
        near = np.where(random.random(n) < 0.1, 0, random.integers(0, 50, n))
        vectors = (centroids[near] + 0.7 * random.normal(size=(n, 8))).astype(np.float32)
        found = balanced_labels(ArrayRows(vectors), centroids, cap_of(balance, n, 50))
        assert found.total <= found.lower_bound * 1.01 + 1e-9
        counts.append((found.bids + found.looks) / n)
    assert counts[-1] <= 1.3 * counts[0]


def test_equal_rows_are_divided_and_it_ends():
    vectors = np.concatenate([np.zeros((900, 4), np.float32), matrix("normal", 100, 4, 0)])
    centroids = np.concatenate([np.zeros((1, 4), np.float32), matrix("normal", 19, 4, 1)])
    found = balanced_labels(ArrayRows(vectors), centroids, cap_of(1, 1000, 20))
    assert np.bincount(found.labels, minlength=20).tolist() == [50] * 20
    assert found.total <= 1.1 * found.lower_bound


def test_lloyd_under_a_cap_lowers_the_total_and_is_deterministic():
    vectors = matrix("normal", 800, 5, 0)
    start = vectors[:16]
    cap = cap_of(1.2, 800, 16)
    before = balanced_labels(ArrayRows(vectors), start, cap).total
    one, again = (balance_clusters(ArrayRows(vectors), start, cap) for _ in range(2))
    assert one.assignment.total < before
    assert one.centroids.tobytes() == again.centroids.tobytes()
    assert (one.assignment.labels == again.assignment.labels).all()
    assert np.bincount(one.assignment.labels).max() <= cap
    assert (balanced_labels(ArrayRows(vectors), one.centroids, cap).labels == one.assignment.labels).all()


def test_what_cannot_be_is_refused():
    rows = ArrayRows(matrix("normal", 10, 2, 0))
    with pytest.raises(ValueError, match="3 clusters of at most 3 cannot hold 10 rows"):
        balanced_labels(rows, matrix("normal", 3, 2, 1), 3)
    with pytest.raises(ValueError, match=r"balance 0.9: must be at least 1"):
        cap_of(0.9, 10, 3)
    with pytest.raises(ValueError, match="must be above 0"):
        balanced_labels(rows, matrix("normal", 3, 2, 1), 4, tolerance=0)
    bad = rows.matrix.copy()
    bad[4] = np.nan
    with pytest.raises(BadVectors, match="row 4"):
        balanced_labels(ArrayRows(bad), matrix("normal", 3, 2, 1), 4)
