"""The nearest centroid, against brute force in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import KINDS, matrices, matrix, squared_distances
from tokenization.assignment import NearestCentroid, engine_threads, lloyd_assigner


@settings(max_examples=150, deadline=None)
@given(vectors=matrices(), kind=st.sampled_from(KINDS), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_no_centroid_is_nearer_than_the_chosen_one(vectors, kind, size, seed):
    centroids = matrix(kind, size, vectors.shape[1], seed)
    labels, distances = NearestCentroid(centroids)(vectors)
    expected = squared_distances(vectors, centroids)
    chosen = expected[np.arange(len(vectors)), labels]
    assert (chosen <= expected.min(axis=1) * (1 + 1e-12)).all()
    np.testing.assert_allclose(distances, chosen, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 80), size=st.integers(1, 60), dim=st.integers(1, 4), seed=st.integers(0, 999))
def test_exact_ties_go_to_the_lowest_index(rows, size, dim, seed):
    vectors, centroids = matrix("lattice", rows, dim, seed), matrix("lattice", size, dim, seed + 1)
    assert (NearestCentroid(centroids)(vectors)[0] == squared_distances(vectors, centroids).argmin(axis=1)).all()


def test_equal_centroids_answer_with_the_first():
    centroids = np.array([[1, 0], [0, 0], [0, 0], [-0.0, 0]], np.float32)
    assert NearestCentroid(centroids)(np.zeros((3, 2), np.float32))[0].tolist() == [1, 1, 1]


def test_a_row_gets_the_same_label_in_any_batch():
    vectors, centroids = matrix("normal", 3000, 96, 1), matrix("normal", 500, 96, 2)
    nearest = NearestCentroid(centroids)
    whole = nearest(vectors)[0]
    pieces = np.concatenate([nearest(vectors[start : start + 7])[0] for start in range(0, 700, 7)])
    assert (whole[:700] == pieces).all()
    assert (nearest(vectors[::-1].copy())[0][::-1] == whole).all()


def test_near_ties_that_float32_cannot_tell_are_decided_exactly():
    direction = matrix("normal", 1, 256, 3)[0]
    centroids = np.stack([direction * np.float32(1 + step * 1e-6) for step in range(40)])
    vectors = direction * np.linspace(0.99999, 1.00005, 200, dtype=np.float32)[:, None]
    expected = squared_distances(vectors, centroids)
    assert (NearestCentroid(centroids)(vectors)[0] == expected.argmin(axis=1)).all()


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_the_training_assignment_is_right_up_to_rounding(backend):
    vectors, centroids = matrix("normal", 500, 24, 4), matrix("normal", 37, 24, 5)
    labels, distances = lloyd_assigner(centroids, backend)(vectors)
    expected = squared_distances(vectors, centroids)
    np.testing.assert_allclose(expected[np.arange(500), labels], expected.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-4)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'faiss' or 'torch'"):
        lloyd_assigner(np.zeros((1, 1), np.float32), "magic")


def test_threads_are_put_back():
    import faiss

    before = faiss.omp_get_max_threads()
    with engine_threads("faiss", 1):
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before
