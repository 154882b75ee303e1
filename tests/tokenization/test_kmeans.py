"""k-means: convention, quality, repair, awkward input, against NumPy and scikit-learn."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from schemas.errors import BadInput
from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization.kmeans import KMeans
from tokenization.rq_kmeans import RQKMeans
from tokenization.seeding import seed_centroids
from tokenization.vectors import ArrayRows


def blobs(rows: int = 2000, dim: int = 8, centres: int = 20, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    middle = random.normal(size=(centres, dim)) * 4
    return (middle[random.integers(0, centres, rows)] + random.normal(size=(rows, dim))).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(vectors=matrices(), clusters=st.integers(1, 30), seed=st.integers(0, 99))
def test_any_matrix_is_clustered_and_every_distinct_vector_can_have_a_cluster(vectors, clusters, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(clusters, seed=seed).fit(vectors)
    assert model.centroids_.shape == (clusters, vectors.shape[1])
    assert model.centroids_.dtype == np.float32
    assert np.isfinite(model.centroids_).all()
    assert model.labels_.shape == (len(vectors),)
    assert model.labels_.dtype == np.int32
    assert (model.predict(vectors) == model.labels_).all()
    distances = squared_distances(vectors, model.centroids_)
    chosen = distances[np.arange(len(vectors)), model.labels_]
    assert (chosen <= distances.min(axis=1) * (1 + 1e-12)).all()
    np.testing.assert_allclose(model.inertia_, chosen.sum(), rtol=1e-5, atol=1e-37)
    distinct = len(np.unique(vectors, axis=0))
    if distinct <= clusters:
        assert model.inertia_ <= 1e-9 * max(1e-30, float((vectors.astype(np.float64) ** 2).sum()))


def test_centroids_are_the_means_of_their_members_once_converged():
    vectors = blobs()
    model = KMeans(20, iterations=300, tolerance=0).fit(vectors)
    means = np.stack([vectors[model.labels_ == label].mean(axis=0) for label in range(20)])
    np.testing.assert_allclose(model.centroids_, means, atol=1e-4)


def test_one_iteration_is_one_lloyd_step():
    vectors = blobs(400, 5)
    start = vectors[:12]
    model = KMeans(12, init=start, iterations=1).fit(vectors)
    labels = squared_distances(vectors, start).argmin(axis=1)
    means = np.stack([vectors[labels == label].mean(axis=0) for label in range(12)])
    np.testing.assert_allclose(model.centroids_, means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_inertia_is_near_that_of_scikit_learn(backend):
    vectors = blobs(3000, 16, 40)
    ours = KMeans(40, iterations=100, backend=backend).fit(vectors).inertia_
    theirs = min(SklearnKMeans(40, n_init=1, random_state=seed, max_iter=100).fit(vectors).inertia_ for seed in range(3))
    assert ours <= theirs * 1.05


@pytest.mark.slow
def test_many_clusters_are_seeded_in_groups_as_well_as_scikit_learn_does():
    vectors = blobs(6000, 8, 900)
    ours = KMeans(600, iterations=10).fit(vectors)
    theirs = SklearnKMeans(600, n_init=1, random_state=0, max_iter=10).fit(vectors)
    assert ours.inertia_ <= theirs.inertia_ * 1.05
    assert len(np.unique(ours.labels_)) == 600


def test_more_seedings_are_never_worse():
    vectors = blobs(500, 4, 10)
    assert KMeans(10, n_init=5).fit(vectors).inertia_ <= KMeans(10).fit(vectors).inertia_


def test_a_seed_gives_one_answer_and_another_seed_another():
    vectors = blobs()
    one, again, other = (KMeans(30, seed=seed, iterations=3).fit(vectors) for seed in (1, 1, 2))
    assert one.centroids_.tobytes() == again.centroids_.tobytes()
    assert (one.labels_ == again.labels_).all()
    assert one.centroids_.tobytes() != other.centroids_.tobytes()


def test_empty_clusters_are_filled():
    vectors = blobs(300, 3, 5)
    start = np.concatenate([vectors[:2], np.full((6, 3), 1e4, np.float32)])
    model = KMeans(8, init=start).fit(vectors)
    assert len(np.unique(model.labels_)) == 8


def test_fewer_distinct_vectors_than_clusters_are_said_and_repeated():
    vectors = np.repeat(np.array([[1, 2], [3, 4]], np.float32), 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="4 clusters, 2 of them filled"):
        model = KMeans(4).fit(vectors)
    assert sorted(map(tuple, np.unique(model.centroids_, axis=0).tolist())) == [(1, 2), (3, 4)]
    assert model.inertia_ == 0
    assert model.labels_.max() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(value):
    vectors = blobs(100, 3)
    vectors[[7, 41], 1] = value
    for error in (ValueError, BadInput):
        with pytest.raises(error, match="row 7, 41; remove or mend"):
            KMeans(4).fit(vectors)
    with pytest.raises(ValueError, match="row 7, 41"):
        KMeans(4).fit(blobs(100, 3)).predict(vectors)


def test_numbers_beyond_float32_are_named():
    vectors = blobs(20, 3).astype(np.float64)
    vectors[3, 0] = 1e300
    with pytest.raises(ValueError, match=r"in float32\) in row 3"):
        KMeans(2).fit(vectors)


def test_float16_float64_lists_and_any_layout_are_accepted():
    vectors = blobs(200, 6).astype(np.float16)
    expected = KMeans(5).fit(vectors.astype(np.float32))
    wide = np.zeros((200, 12), np.float32)
    wide[:, ::2] = vectors
    for other in (vectors, vectors.astype(np.float64), np.asfortranarray(vectors), wide[:, ::2], vectors.tolist()):
        assert (KMeans(5).fit(other).labels_ == expected.labels_).all()


def test_a_memory_map_is_clustered_like_the_array_and_never_written(tmp_path):
    vectors = blobs(5000, 4)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert KMeans(9).fit(mapped).centroids_.tobytes() == KMeans(9).fit(vectors).centroids_.tobytes()


def test_the_estimator_follows_the_convention():
    model = KMeans(3, seed=5, tolerance=0.1)
    assert model.get_params()["seed"] == 5
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert model.set_params(n_clusters=4).n_clusters == 4
    with pytest.raises(NotFittedError):
        model.predict(blobs(10, 2))
    fitted = model.fit(blobs(50, 2))
    assert fitted is model
    assert fitted.n_features_in_ == 2
    with pytest.raises(ValueError, match="features"):
        model.predict(blobs(10, 3))
    assert (KMeans(3).fit_predict(blobs(50, 2)) == KMeans(3).fit(blobs(50, 2)).labels_).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [KMeans(3), RQKMeans(2, 4)], ids=lambda estimator: type(estimator).__name__)
def test_scikit_learns_own_checks_pass(estimator):
    done = check_estimator(estimator, on_fail=None)
    assert [one["check_name"] for one in done if one["status"] == "failed"] == []
    assert sum(one["status"] == "passed" for one in done) > 35


@pytest.mark.parametrize("parameters", [{"n_clusters": 0}, {"iterations": 0}, {"n_init": 0}, {"tolerance": -1}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValueError, match="at least"):
        KMeans(**parameters).fit(blobs(20, 2))


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"needs \(3, 2\)"):
        KMeans(3, init=np.zeros((2, 2))).fit(blobs(20, 2))


def test_the_callback_hears_falling_inertia():
    heard = []
    KMeans(10, iterations=6, tolerance=0).fit(blobs(), callback=heard.append)
    assert [one.iteration for one in heard] == list(range(1, len(heard) + 1))
    values = [one.inertia for one in heard]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_seeds_are_distinct_rows():
    vectors = matrix("duplicates", 400, 4, 1)
    seeds = seed_centroids(ArrayRows(vectors), 60, np.random.default_rng(0))
    rows = {row.tobytes() for row in vectors}
    assert all(seed.tobytes() in rows for seed in seeds)
    assert len(np.unique(seeds, axis=0)) == 60
