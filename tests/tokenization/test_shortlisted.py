"""Comparing with the nearest few centroids only: right while they hold the nearest one, and exact at every full comparison."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization.shortlisted import LISTED, Shortlists
from tokenization.vectors import ArrayRows


def labels_of(compare, vectors, centroids):
    labels = np.full(len(vectors), -1)

    def visit(first, block, found):
        assert (vectors[first : first + len(block)] == block).all()
        labels[first : first + len(block)] = found

    compare(ArrayRows(vectors), centroids, visit)
    return labels


@settings(max_examples=40, deadline=None)
@given(vectors=matrices(), size=st.integers(LISTED, 60), seed=st.integers(0, 999))
def test_a_full_comparison_labels_as_brute_force_does_and_a_listed_one_repeats_it(vectors, size, seed):
    centroids = matrix("normal", size, vectors.shape[1], seed)
    expected = squared_distances(vectors, centroids)
    lists = Shortlists()
    full = labels_of(lists.compare_all, vectors, centroids)
    chosen = expected[np.arange(len(vectors)), full]
    assert (chosen <= expected.min(axis=1) * (1 + 1e-12)).all()
    assert (labels_of(lists.compare_listed, vectors, centroids) == full).all()


def test_moved_centroids_are_followed_inside_a_list_and_nowhere_else():
    vectors = matrix("normal", 300, 6, 1)
    centroids = matrix("normal", 200, 6, 2)
    lists = Shortlists()
    labels_of(lists.compare_all, vectors, centroids)
    order = squared_distances(vectors, centroids).argsort(axis=1, kind="stable")[:, :LISTED]
    moved = centroids + matrix("normal", 200, 6, 3) * np.float32(0.3)
    distances = squared_distances(vectors, moved)
    inside = np.take_along_axis(distances, order, axis=1).argmin(axis=1)
    expected = order[np.arange(len(vectors)), inside]
    assert (labels_of(lists.compare_listed, vectors, moved) == expected).all()
    assert (expected != distances.argmin(axis=1)).any()  # the case is not trivial
