"""Hierarchical clusters: a partition into few enough parts, each represented by its member nearest the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.lifelong_clusters import hierarchical_clusters


def histories(seed: int, count: int, distinct: int, dim: int = 8) -> np.ndarray:
    """Unit vectors of items around a few topics, items repeated."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(4, dim))
    items = topics[rng.integers(4, size=distinct)] + 0.2 * rng.normal(size=(distinct, dim))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return items[rng.integers(distinct, size=count)].astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 400), distinct=st.integers(1, 400), leaves=st.integers(1, 80))
def test_properties(seed: int, count: int, distinct: int, leaves: int) -> None:
    vectors = histories(seed, count, distinct)
    cluster, representative = hierarchical_clusters(vectors, leaves, seed)
    again = hierarchical_clusters(vectors, leaves, seed)
    assert np.array_equal(cluster, again[0])
    assert np.array_equal(representative, again[1])
    assert len(cluster) == count
    assert len(representative) <= leaves or count <= leaves
    assert sorted(set(cluster.tolist())) == list(range(len(representative)))
    earliest = [int(np.flatnonzero(cluster == number)[0]) for number in range(len(representative))]
    assert earliest == sorted(earliest)
    for number, chosen in enumerate(representative.tolist()):
        members = np.flatnonzero(cluster == number)
        distance = ((vectors[members] - vectors[members].mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1)
        assert chosen == members[distance.argmin()]


@pytest.mark.parametrize(("count", "leaves"), [(50, 50), (51, 50), (400, 100), (3000, 200), (3000, 2000)])
def test_room_is_used_up_when_all_vectors_differ(count: int, leaves: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    _, representative = hierarchical_clusters(vectors, leaves, 0)
    assert len(representative) == min(count, leaves)


def test_equal_vectors_are_one_cluster() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    cluster, representative = hierarchical_clusters(vectors, 10, 0)
    assert representative.tolist() == [0, 40, 80]
    assert cluster.tolist() == [0] * 40 + [1] * 40 + [2] * 40


def test_clusters_are_tighter_than_chance() -> None:
    vectors = histories(1, 2000, 2000)

    def spread(cluster: np.ndarray) -> float:
        return sum(((vectors[cluster == n] - vectors[cluster == n].mean(axis=0)) ** 2).sum() for n in range(cluster.max() + 1))

    cluster, _ = hierarchical_clusters(vectors, 100, 0)
    shuffled = np.random.default_rng(0).permutation(cluster)
    assert spread(cluster) < 0.2 * spread(shuffled)
    # and within reach of flat k-means, which looks at all clusters at once
    centres = vectors[np.random.default_rng(0).choice(len(vectors), 100, replace=False)]
    for _ in range(20):
        flat = ((vectors[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.stack([vectors[flat == n].mean(axis=0) if (flat == n).any() else centres[n] for n in range(100)])
    assert spread(cluster) < 1.3 * spread(np.unique(flat, return_inverse=True)[1])
