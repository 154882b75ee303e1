"""Lloyd's step: exact sums that no division or order of the rows changes, against plain Python."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import matrix, squared_distances
from tokenization import lloyd, neighbours
from tokenization.cluster_sums import ClusterSums, exact_sum, fraction_bits
from tokenization.kmeans import KMeans, LocalSource, cluster
from tokenization.vectors import ArrayRows


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 1e300, allow_subnormal=True), max_size=50))
def test_distances_are_summed_without_rounding(values):
    expected = sum((Fraction(value) for value in values), Fraction(0)) * 2**1200
    assert exact_sum(np.array(values, float)) == expected


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 60), clusters=st.integers(1, 9), dim=st.integers(1, 11), seed=st.integers(0, 999), data=st.data())
def test_parts_in_any_division_and_order_add_up_to_the_same(rows, clusters, dim, seed, data):
    vectors = matrix("duplicates", rows, dim, seed)
    centroids = matrix("normal", clusters, dim, seed + 1)
    labels = squared_distances(vectors, centroids).argmin(axis=1)

    def summed(edges):
        sums = ClusterSums.none(clusters, dim, fraction_bits(rows))
        sums.add(vectors[edges[0] : edges[1]], labels[edges[0] : edges[1]], centroids, edges[0])
        return sums

    whole = summed((0, rows))
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
    parts = [summed(edges) for edges in itertools.pairwise(cuts)]
    merged = ClusterSums.none(clusters, dim, fraction_bits(rows))
    for place in data.draw(st.permutations(range(len(parts)))):
        merged.merge(parts[place])
    for name in ("sums", "counts", "worst_rows", "worst_distances"):
        assert (getattr(whole, name) == getattr(merged, name)).all()
    assert whole.inertia == merged.inertia
    distances = ((vectors.astype(float) - centroids[labels]) ** 2).sum(axis=1)
    assert whole.distance == pytest.approx(math.fsum(distances), rel=1e-12)
    means = whole.means(centroids)
    for cluster_number in range(clusters):
        members = vectors[labels == cluster_number].astype(float)
        expected = members.mean(axis=0) if len(members) else centroids[cluster_number]
        np.testing.assert_allclose(means[cluster_number], expected, atol=1e-6)
    order = sorted(
        (row for row in range(rows) if distances[row] > 0),
        key=lambda row: (-whole_distance(vectors, centroids, labels, row), row),
    )
    assert whole.worst_rows.tolist() == order[:clusters]


def whole_distance(vectors, centroids, labels, row):
    out = np.empty(1)
    from tokenization.lloyd_kernels import distances_to

    distances_to(vectors[row : row + 1], centroids, labels[row : row + 1], out)
    return out[0]


@pytest.mark.parametrize("near", [True, False])
def test_threads_backends_and_blocks_change_no_bit(near, monkeypatch):
    monkeypatch.setattr(neighbours, "WORTH_IT", 64)
    vectors = matrix("normal", 2500, 12, 5)
    size = 80
    expected = KMeans(size, iterations=9, neighbours=near).fit(vectors)
    monkeypatch.setattr("tokenization.vectors._BLOCK_VALUES", 4096)
    other = KMeans(size, iterations=9, neighbours=near, backend="faiss", n_threads=3).fit(vectors)
    assert (expected.centroids_ == other.centroids_).all()
    assert (expected.labels_ == other.labels_).all()
    assert (expected.inertia_, expected.n_iter_) == (other.inertia_, other.n_iter_)


def test_looking_at_neighbours_costs_no_quality_and_leaves_exact_labels(monkeypatch):
    monkeypatch.setattr(neighbours, "WORTH_IT", 64)
    vectors = matrix("normal", 6000, 16, 7)
    size = 128
    fast, full = (KMeans(size, neighbours=near, tolerance=0).fit(vectors) for near in (True, False))
    assert fast.inertia_ <= full.inertia_ * 1.003
    distances = squared_distances(vectors, fast.centroids_)
    assert (distances[np.arange(6000), fast.labels_] <= distances.min(axis=1) * (1 + 1e-12)).all()


def test_one_iteration_in_five_compares_with_all_centroids_and_the_first_after_a_repair_does(monkeypatch):
    monkeypatch.setattr(neighbours, "WORTH_IT", 2)
    asked = []

    class Watched(LocalSource):
        def step(self, unit, centroids, table=None):
            asked.append(table is None)
            return super().step(unit, centroids, table)

    lloyd.train(Watched(ArrayRows(matrix("normal", 400, 3, 1))), 6, iterations=11, tolerance=0)
    assert asked == [True, False, False, False, False] * 2 + [True]
    asked.clear()
    far = np.full((1, 3), 50, np.float32)
    start = np.concatenate([matrix("normal", 5, 3, 2), far])
    lloyd.train(Watched(ArrayRows(matrix("normal", 400, 3, 1))), 6, iterations=3, tolerance=0, init=start)
    assert asked[:2] == [True, True]


def test_a_seed_decides_everything():
    vectors = matrix("normal", 300, 4, 3)
    first, again, other = (cluster(ArrayRows(vectors), 20, seed=seed, iterations=4) for seed in (1, 1, 2))
    assert (first.centroids == again.centroids).all()
    assert (first.centroids != other.centroids).any()
