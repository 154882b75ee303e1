"""Several best tokens of a row, against brute force in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import KINDS, matrix
from tokenization import shortlist_kernels
from tokenization.shortlist import Shortlist


def by_hand(residuals: np.ndarray, centroids: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, keep) numbers prefix · k + token, and errors, of the best by (error, number)."""
    errors = ((residuals[:, :, None, :] - centroids.astype(np.float64)) ** 2).sum(axis=3).reshape(len(residuals), -1)
    order = np.argsort(errors, axis=1, kind="stable")[:, :keep]
    return order, np.take_along_axis(errors, order, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    others=st.sampled_from(KINDS),
    rows=st.integers(1, 12),
    prefixes=st.integers(1, 4),
    size=st.integers(1, 50),
    keep=st.integers(1, 30),
    seed=st.integers(0, 999),
)
def test_no_pair_that_is_left_out_is_better(kind, others, rows, prefixes, size, keep, seed):
    residuals = matrix(kind, rows * prefixes, 4, seed).reshape(rows, prefixes, 4).astype(np.float64)
    centroids = matrix(others, size, 4, seed + 1)
    found = Shortlist(centroids)(residuals, keep)
    _, expected = by_hand(residuals, centroids, keep)
    np.testing.assert_allclose(found.errors, expected, rtol=1e-12)
    left = residuals[np.arange(rows)[:, None], found.prefix] - centroids[found.token]
    np.testing.assert_allclose((left**2).sum(axis=2), expected, rtol=1e-12)
    numbers = np.sort(found.prefix * size + found.token, axis=1)
    assert (np.diff(numbers, axis=1) > 0).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 10),
    prefixes=st.integers(1, 4),
    size=st.integers(1, 150),
    keep=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_exact_ties_go_to_the_smaller_prefix_and_token(rows, prefixes, size, keep, seed):
    """On a lattice of few points, more tokens tie than are kept as candidates."""
    residuals = matrix("lattice", rows * prefixes, 1, seed).reshape(rows, prefixes, 1).astype(np.float64)
    centroids = matrix("lattice", size, 1, seed + 1)
    found = Shortlist(centroids)(residuals, keep)
    assert (found.prefix * size + found.token == by_hand(residuals, centroids, keep)[0]).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_and_threads_agree_with_brute_force(threads):
    residuals = matrix("normal", 1500, 24, 0).reshape(500, 3, 24).astype(np.float64)
    centroids = matrix("normal", 2100, 24, 1)
    found = Shortlist(centroids, threads)(residuals, 7)
    some = slice(100, 120)
    assert (found.prefix[some] * 2100 + found.token[some] == by_hand(residuals[some], centroids, 7)[0]).all()
    alone = Shortlist(centroids, 1)(residuals[111:112], 7)
    assert (alone.token[0] == found.token[111]).all()
    assert alone.errors.tobytes() == found.errors[111:112].tobytes()


def test_rows_that_float32_cannot_vouch_for_are_decided_like_the_others(monkeypatch):
    residuals = matrix("normal", 60, 9, 0).reshape(20, 3, 9).astype(np.float64)
    centroids = matrix("normal", 40, 9, 1)
    usual = Shortlist(centroids)(residuals, 5)

    def refuse(products, squares, offsets, first, prefix, slack, best, kept, scores, counts):
        counts[:] = shortlist_kernels.OVERFULL

    monkeypatch.setattr(shortlist_kernels, "scan", refuse)
    other = Shortlist(centroids)(residuals, 5)
    assert usual.errors.tobytes() == other.errors.tobytes()
    assert (usual.token == other.token).all()
    assert (usual.prefix == other.prefix).all()
