"""Hierarchical clusters: a partition into few enough parts, tighter than chance and close to flat k-means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.lifelong_clusters import hierarchical_clusters, parts_that_fit


def histories(seed: int, count: int, distinct: int, dim: int = 8) -> np.ndarray:
    """Unit vectors of items around a few topics, items repeated."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(4, dim))
    items = topics[rng.integers(4, size=distinct)] + 0.2 * rng.normal(size=(distinct, dim))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return items[rng.integers(distinct, size=count)].astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 400),
    distinct=st.integers(1, 400),
    leaves=st.integers(1, 80),
    dim=st.sampled_from([2, 8, 200]),
)
def test_properties(seed: int, count: int, distinct: int, leaves: int, dim: int) -> None:
    vectors = histories(seed, count, distinct, dim)
    cluster = hierarchical_clusters(vectors, leaves, seed)
    assert np.array_equal(cluster, hierarchical_clusters(vectors, leaves, seed))
    assert len(cluster) == count
    parts = sorted(set(cluster.tolist()))
    assert parts == list(range(len(parts)))
    assert len(parts) <= leaves or count <= leaves


@pytest.mark.parametrize(("count", "leaves"), [(50, 50), (51, 50), (400, 100), (3000, 200), (3000, 2000), (9000, 40)])
def test_room_is_used_up_when_all_vectors_differ(count: int, leaves: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    assert len(set(hierarchical_clusters(vectors, leaves, 0).tolist())) == min(count, leaves)


def test_equal_vectors_are_one_cluster() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    cluster = hierarchical_clusters(vectors, 10, 0)
    assert len({(a, b) for a, b in zip(cluster.tolist(), [0] * 40 + [1] * 40 + [2] * 40, strict=True)}) == 3
    assert len(set(cluster.tolist())) == 3


def test_a_few_that_differ_among_many_equal_ones_are_found() -> None:
    """Centres of large leaves are sought on some members only; if those are all alike, the others still count."""
    vectors = np.tile(np.eye(8, dtype=np.float32)[0], (5000, 1))
    vectors[4321] = np.eye(8, dtype=np.float32)[1]
    cluster = hierarchical_clusters(vectors, 3, 0)
    assert (cluster == cluster[4321]).sum() == 1


def test_the_number_of_parts_is_the_cube_root() -> None:
    sizes = np.array([1000, 999, 28, 27, 8, 7, 2])
    chosen, parts = parts_that_fit(np.arange(7), sizes, 100)
    assert parts.tolist() == [10, 9, 3, 3, 2, 2, 2]
    chosen, parts = parts_that_fit(np.arange(7), sizes, 12)
    assert chosen.tolist() == [0, 1]
    assert (parts - 1).sum() == 12


def test_clusters_are_tighter_than_chance() -> None:
    vectors = histories(1, 2000, 2000)

    def spread(cluster: np.ndarray) -> float:
        return sum(((vectors[cluster == n] - vectors[cluster == n].mean(axis=0)) ** 2).sum() for n in range(cluster.max() + 1))

    cluster = hierarchical_clusters(vectors, 100, 0)
    shuffled = np.random.default_rng(0).permutation(cluster)
    assert spread(cluster) < 0.2 * spread(shuffled)
    # and within reach of flat k-means, which looks at all clusters at once
    centres = vectors[np.random.default_rng(0).choice(len(vectors), 100, replace=False)]
    for _ in range(20):
        flat = ((vectors[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.stack([vectors[flat == n].mean(axis=0) if (flat == n).any() else centres[n] for n in range(100)])
    assert spread(cluster) < 1.3 * spread(np.unique(flat, return_inverse=True)[1])
