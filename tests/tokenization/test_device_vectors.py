"""Training in a GPU's memory, against the host's; where there is no GPU, on PyTorch's CPU device.

There the products are PyTorch's too: the kernel, interpreted, is slow, and has tests of its own (``test_fused``).
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.gpu_cases import by_pytorch
from tests.tokenization.vector_cases import KINDS, matrix
from tokenization import device_vectors, kmeans, lloyd, vector_source
from tokenization.cluster_sums import ClusterSums
from tokenization.kmeans import LocalSource
from tokenization.rq_kmeans import RQKMeans
from tokenization.seeding import seed_centroids
from tokenization.vector_source import LocalVectors
from tokenization.vectors import ArrayRows, BadVectors, scaled

nearest_triton = pytest.importorskip(
    "tokenization.nearest_triton", reason="needs Triton, which PyTorch's CUDA builds for Linux bring", exc_type=ImportError
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SUMS = ("sums", "counts", "worst_rows", "worst_distances")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(device_vectors, "_CHUNK_VALUES", 300)
    if DEVICE == "cpu":
        monkeypatch.setattr(nearest_triton, "nearest_two", by_pytorch)


@pytest.fixture
def on_device(monkeypatch):
    """The backend ``torch`` trains on the device."""
    monkeypatch.setattr(device_vectors, "device_for", lambda _: DEVICE)


def assert_equal_sums(found: ClusterSums, expected: ClusterSums):
    for name in SUMS:
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    assert (found.inertia, found.bits, found.most) == (expected.inertia, expected.bits, expected.most)


def sources(vectors):
    return device_vectors.DeviceSource.of(ArrayRows(vectors), DEVICE), LocalSource(ArrayRows(vectors))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 90),
    dim=st.integers(1, 19),
    size=st.integers(1, 30),
    seed=st.integers(0, 999),
)
def test_a_step_adds_up_to_the_same_integers(kind, rows, dim, size, seed):
    here, host = sources(matrix(kind, rows, dim, seed))
    extent = host.extent()
    assert (here.extent().low == extent.low).all()
    assert (here.extent().high == extent.high).all()
    unit = scaled(host, extent)
    centroids = seed_centroids(unit, size, np.random.default_rng(seed))
    centroids = centroids + np.float32(0.1) * matrix("lattice", size, dim, seed)
    found, expected = here.step(scaled(here, extent), centroids), host.step(unit, centroids)
    assert_equal_sums(found.on_host(), expected)
    assert (found.means(centroids) == expected.means(centroids)).all()
    assert (found.worst_rows == expected.worst_rows).all()
    assert found.distance == expected.distance
    (there, labels), (sums, exactly) = (source.assign(unit.back(centroids)) for source in (here, host))
    assert (labels == exactly).all()
    assert_equal_sums(there.on_host(), sums)


@pytest.mark.parametrize("kind", KINDS)
def test_lloyd_from_one_start_ends_with_the_same_centroids(kind):
    vectors = matrix(kind, 200, 7, 3)
    start = vectors[::17]
    found, expected = (lloyd.train(source, len(start), init=start, iterations=6) for source in sources(vectors))
    assert (found.centroids == expected.centroids).all()
    assert (found.labels == expected.labels).all()
    assert (found.inertia, found.n_iter, found.empty) == (expected.inertia, expected.n_iter, expected.empty)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS), rows=st.integers(2, 60), dim=st.integers(1, 11), charging=st.booleans(), seed=st.integers(0, 99)
)
def test_codes_residuals_and_their_sums_are_the_same(kind, rows, dim, charging, seed):
    vectors = matrix(kind, rows, dim, seed)
    codebooks = [matrix(kind, size, dim, seed + size) for size in (6, 4, 3)]
    random = np.random.default_rng(seed)
    spread = float(np.square(vectors, dtype=np.float64).mean())
    charges = [random.uniform(-spread, spread, len(codebook)) for codebook in codebooks] if charging else None
    here, host = device_vectors.DeviceVectors.of(ArrayRows(vectors), DEVICE), LocalVectors(ArrayRows(vectors))
    unit = scaled(host, host.extent())
    (sums, codes), (expected, exactly) = (source.encode(unit, codebooks, charges) for source in (here, host))
    assert (codes == exactly).all()
    for found, layer in zip(sums.layers, expected.layers, strict=True):
        assert_equal_sums(found, layer)
    for layers in range(4):
        left, right = (source.residuals(codebooks[:layers], codes) for source in (here, host))
        assert (left.block(0, rows) == right.block(0, rows)).all()
        assert (left.take(np.array([rows - 1, 0])) == right.take(np.array([rows - 1, 0]))).all()
    assert (here.block(0, rows) == vectors).all(), "the vectors themselves stay as they are"


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**140])
def test_scaling_beyond_float32_is_that_of_the_host(scale):
    vectors = matrix("normal", 20, 3, 1)
    here, host = sources(vectors)
    unit = device_vectors.ScaledRows(host, scale, np.full(3, 0.25, np.float32))
    with np.errstate(over="ignore"):
        assert (here.scaled_by(unit, slice(2, 9)).cpu().numpy() == unit.block(2, 9)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(bad):
    vectors = matrix("normal", 30, 4, 1)
    vectors[[7, 29], 2] = bad
    with pytest.raises(BadVectors, match="row 7, 29"):
        sources(vectors)[0].extent()


def test_seeding_on_the_device_is_as_good_and_repeats(monkeypatch):
    vectors = matrix("normal", 3000, 6, 2)

    def reached(device, seed):
        seeds = seed_centroids(ArrayRows(vectors), 200, np.random.default_rng(seed), device)
        assert len(np.unique(seeds, axis=0)) == 200
        nearest = np.array([((seeds - row) ** 2).sum(1).min() for row in vectors])
        return nearest.mean(), seeds

    costs = [(reached(DEVICE, seed)[0], reached(None, seed)[0]) for seed in range(5)]
    here, host = np.mean(costs, axis=0)
    assert here <= host * 1.02
    assert (reached(DEVICE, 1)[1] == reached(DEVICE, 1)[1]).all()
    few = np.repeat(vectors[:5], 100, axis=0)
    assert len(np.unique(seed_centroids(ArrayRows(few), 20, np.random.default_rng(0), DEVICE), axis=0)) == 5


def test_a_whole_training_is_as_good_as_the_hosts_and_repeats(on_device):
    vectors = matrix("normal", 900, 6, 2)
    told = {"codebook_size": 16, "iterations": 4, "refinements": 4}
    host = RQKMeans(**told).fit(vectors)
    here, again = (RQKMeans(backend="torch", **told).fit(vectors) for _ in range(2))
    assert here.inertia_[-1] <= host.inertia_[-1] * 1.03
    assert (here.codes_ == here.encode(vectors)).all()
    assert (here.codes_ == again.codes_).all()
    assert all((one == other).all() for one, other in zip(here.codebooks_, again.codebooks_, strict=True))


def test_the_backend_torch_trains_on_the_device_and_the_others_here(on_device):
    rows = ArrayRows(matrix("normal", 10, 2, 1))
    assert isinstance(vector_source.vectors_of(rows, "torch"), device_vectors.DeviceVectors)
    assert isinstance(kmeans.source_of(rows, "torch", None), device_vectors.DeviceSource)
    for backend in ("auto", "float32", "int8", "faiss"):
        assert isinstance(vector_source.vectors_of(rows, backend), LocalVectors)
        assert isinstance(kmeans.source_of(rows, backend, None), LocalSource)


def test_rows_that_do_not_fit_the_free_memory_stay_here(monkeypatch):
    rows = ArrayRows(np.zeros((2**20, 64), np.float32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    needed = rows.n * rows.dim * 14 + device_vectors._WORK_BYTES
    for free, device in ((needed, None), (needed * 1.2, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert device_vectors.device_for(rows) == device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_vectors.device_for(rows) is None
