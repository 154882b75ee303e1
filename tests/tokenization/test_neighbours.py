"""Comparing with the neighbours of the last centroid only: exact among these, and right while the nearest is one of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization import neighbours
from tokenization.kmeans import LocalSource
from tokenization.neighbours import NearestNeighbour, neighbours_of
from tokenization.vectors import ArrayRows, scaled


def table_of(centroids):
    """``neighbours_of``, however few the centroids."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(neighbours, "WORTH_IT", 1)
        return neighbours_of(centroids, rows=neighbours.ROWS_A_CENTROID * len(centroids))


def nearest_neighbour(centroids, threads=None):
    return NearestNeighbour(centroids, table_of(centroids), threads)


def brute_force(vectors, centroids, last, most):
    """The nearest of the ``most`` centroids nearest to the last one, by differences in float64."""
    near = np.sort(squared_distances(centroids, centroids).argsort(axis=1, kind="stable")[:, :most], axis=1)[last]
    distances = np.take_along_axis(squared_distances(vectors, centroids), near, axis=1)
    return near[np.arange(len(vectors)), distances.argmin(axis=1)]


@settings(max_examples=60, deadline=None)
@given(vectors=matrices(), size=st.integers(1, 60), seed=st.integers(0, 999), threads=st.integers(1, 3))
def test_the_nearest_of_the_neighbours_is_that_of_brute_force(vectors, size, seed, threads):
    centroids = matrix("normal", size, vectors.shape[1], seed)
    last = np.random.default_rng(seed).integers(size, size=len(vectors)).astype(np.int32)
    expected = brute_force(vectors, centroids, last, neighbours.NEIGHBOURS)
    assert (nearest_neighbour(centroids, threads)(vectors, last) == expected).all()


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_rows_far_shorter_or_longer_than_centroids_and_exact_ties_are_decided_as_well(size):
    directions = np.eye(40, dtype=np.float32)
    centroids = np.concatenate([directions, -directions]) * np.float32(size)
    vectors = np.concatenate([np.zeros((1, 40)), matrix("normal", 200, 40, 1), 1e-25 * matrix("normal", 50, 40, 2)])
    vectors = vectors.astype(np.float32)
    last = np.arange(len(vectors), dtype=np.int32) % len(centroids)
    found = nearest_neighbour(centroids)(vectors, last)
    assert (found == brute_force(vectors, centroids, last, neighbours.NEIGHBOURS)).all()
    assert found[0] == 0  # a zero row is as far from each: the lowest index of the neighbours


def test_many_rows_go_to_threads_and_equal_one_thread():
    vectors, centroids = matrix("normal", 9000, 8, 1), matrix("normal", 100, 8, 2)
    last = np.random.default_rng(0).integers(100, size=9000).astype(np.int32)
    assert (nearest_neighbour(centroids, 3)(vectors, last) == nearest_neighbour(centroids, 1)(vectors, last)).all()


def test_steps_follow_moved_centroids_from_the_labels_of_the_step_before():
    vectors, centroids = matrix("normal", 400, 6, 1), matrix("normal", 200, 6, 2)
    source = LocalSource(ArrayRows(vectors))
    unit = scaled(source, source.extent())
    source.step(unit, unit.forward(centroids))
    first = source.last.labels.copy()
    assert (first == squared_distances(vectors, centroids).argmin(axis=1)).all()
    moved = centroids + matrix("normal", 200, 6, 3) * np.float32(0.3)
    sums = source.step(unit, unit.forward(moved), table_of(moved))
    expected = brute_force(vectors, moved, first, neighbours.NEIGHBOURS)
    assert (source.last.labels == expected).all()
    assert (sums.counts == np.bincount(expected, minlength=200)).all()
    assert (expected != squared_distances(vectors, moved).argmin(axis=1)).any()  # the case is not trivial


def test_few_centroids_or_few_rows_have_no_table():
    size = neighbours.WORTH_IT
    rows = neighbours.ROWS_A_CENTROID * size
    centroids = matrix("normal", size, 3, 1)
    assert neighbours_of(centroids[:-1], rows) is None
    assert neighbours_of(centroids, rows - 1) is None
    assert neighbours_of(centroids, rows).shape == (size, neighbours.NEIGHBOURS)


def test_labels_of_the_step_before_are_needed():
    with pytest.raises(ValueError, match="found 0 labels for 5 rows"):
        nearest_neighbour(matrix("normal", 40, 3, 1))(matrix("normal", 5, 3, 2), np.empty(0, np.int32))
