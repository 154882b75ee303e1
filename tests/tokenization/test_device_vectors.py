"""Training in a GPU's memory, against the host's; where there is no GPU, on PyTorch's CPU device.

There the products are PyTorch's too: the kernel, interpreted, is slow, and has tests of its own (``test_device_nearest``).
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.gpu_cases import by_pytorch
from tests.tokenization.vector_cases import KINDS, matrix
from tokenization import device_vectors, kmeans, lloyd, vector_source
from tokenization.assignment import NearestCentroid
from tokenization.cluster_sums import ClusterSums
from tokenization.kmeans import LocalSource
from tokenization.refinement import refitted
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
    monkeypatch.setattr(device_vectors, "device_for", lambda *_: DEVICE)


def assert_equal_sums(found: ClusterSums, expected: ClusterSums):
    for name in SUMS:
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    assert (found.inertia, found.bits, found.most) == (expected.inertia, expected.bits, expected.most)


def sources(vectors):
    return device_vectors.DeviceSource.of(ArrayRows(vectors), DEVICE), LocalSource(ArrayRows(vectors))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_lloyd_from_one_start_ends_with_the_same_centroids(kind):
    vectors = matrix(kind, 200, 7, 3)
    start = vectors[::17]
    found, expected = (lloyd.train(source, len(start), init=start, iterations=6) for source in sources(vectors))
    assert (found.centroids == expected.centroids).all()
    assert (found.labels == expected.labels).all()
    assert (found.inertia, found.n_iter, found.empty) == (expected.inertia, expected.n_iter, expected.empty)


@pytest.mark.slow
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


@pytest.mark.slow
def test_seeding_on_the_device_is_as_good_and_repeats():
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


@pytest.mark.slow
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
    assert isinstance(vector_source.vectors_of(rows, 8, "torch"), device_vectors.DeviceVectors)
    assert isinstance(kmeans.source_of(rows, 8, "torch", None), device_vectors.DeviceSource)
    for backend in ("auto", "float32", "int8", "faiss"):
        assert isinstance(vector_source.vectors_of(rows, 8, backend), LocalVectors)
        assert isinstance(kmeans.source_of(rows, 8, backend, None), LocalSource)


def test_rows_that_do_not_fit_the_free_memory_stay_here_and_that_is_told(monkeypatch):
    rows = ArrayRows(np.zeros((2**20, 64), np.float32))
    card = {"is_available": True, "mem_get_info": (0, 0), "memory_reserved": 0, "memory_allocated": 0}
    for name in card:
        monkeypatch.setattr(torch.cuda, name, lambda name=name: card[name])
    needed = 2**20 * (64 * 14 + 64) + 8192 * 64 * 512 + 2**31
    card["mem_get_info"] = needed, needed
    with pytest.warns(UserWarning, match=r"1048576 vectors of 64 need 3.5 GiB of the GPU's memory and 3.2 are free"):
        assert device_vectors.device_for(rows, 8192) is None
    card["mem_get_info"] = needed * 2, needed * 2
    assert device_vectors.device_for(rows, 8192) == "cuda"
    card |= {"mem_get_info": (needed, needed), "memory_reserved": needed, "memory_allocated": needed // 4}
    assert device_vectors.device_for(rows, 8192) == "cuda", "what PyTorch keeps for later is free"
    card["is_available"] = False
    assert device_vectors.device_for(rows, 8192) is None


def test_a_source_is_gone_when_nobody_holds_it():
    here, _ = sources(matrix("normal", 40, 3, 1))
    here.step(scaled(here, here.extent()), matrix("normal", 5, 3, 2))
    gone = weakref.ref(here)
    gc.disable()
    try:
        del here
        assert gone() is None, "its memory on the card would stay taken until the collector comes"
    finally:
        gc.enable()


def test_rows_in_other_units_are_prepared_anew():
    vectors = matrix("normal", 60, 4, 1)
    here, host = sources(vectors)
    for scale in (0.5, 0.25, 0.5):
        unit = device_vectors.ScaledRows(host, scale, np.zeros(4, np.float32))
        assert_equal_sums(here.step(unit, vectors[:7] * scale).on_host(), host.step(unit, vectors[:7] * scale))


@pytest.mark.slow
def test_neighbours_are_not_looked_for_since_a_device_compares_with_all(monkeypatch):
    monkeypatch.setattr(lloyd, "neighbours_of", lambda *_: pytest.fail("neighbours were looked for"))
    here, _ = sources(matrix("normal", 3000, 2, 1))
    assert lloyd.train(here, 1024, iterations=3, tolerance=0).n_iter == 3


def test_many_rows_that_only_the_host_can_decide_are_asked_of_it_once(monkeypatch):
    asked = []

    class Watched(NearestCentroid):
        def __call__(self, vectors):
            asked.append(len(vectors))
            return super().__call__(vectors)

    monkeypatch.setattr(device_vectors, "NearestCentroid", Watched)
    vectors = np.concatenate([matrix("normal", 8, 3, 1), np.zeros((500, 3), np.float32)])
    monkeypatch.setattr(device_vectors, "_CHUNK_VALUES", 2**20)
    here, host = sources(vectors)
    assert (here.assign(vectors[:6])[1] == host.assign(vectors[:6])[1]).all()
    assert asked == [1]


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), rows=st.integers(1, 60), dim=st.integers(1, 7), seed=st.integers(0, 99))
def test_refinement_moves_centroids_as_on_the_host(kind, rows, dim, seed):
    random, sizes = np.random.default_rng(seed), (6, 1, 4)
    codebooks = [matrix(kind, size, dim, seed + size) for size in sizes]
    codes = np.stack([random.integers(size, size=rows) for size in sizes], axis=1).astype(np.uint16)
    vectors = matrix(kind, rows, dim, seed).astype(np.float64)
    sums = [np.stack([vectors[codes[:, layer] == token].sum(0) for token in range(size)]) for layer, size in enumerate(sizes)]
    here, host = (refitted(codebooks, codes, sums, device) for device in (DEVICE, None))
    largest = max(np.abs(part).max() for part in (*codebooks, vectors))
    for found, expected in zip(here, host, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * largest)


WARM = [matrix("normal", 8, 5, layer) for layer in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "told",
    [
        {"balance": 1.5},
        {"n_init": 2},
        {"warm_start_codebooks": WARM},
        {"warm_start_codebooks": WARM, "refinements": 0},
        {"warm_start_codebooks": WARM, "max_churn": 0.05},
        {"n_layers": 1, "refinements": 2},
    ],
)
def test_every_way_of_training_works_on_the_device(on_device, told):
    vectors = matrix("normal", 400, 5, 7)
    vectors.flags.writeable = False
    whole = {"codebook_size": 8, "iterations": 3, "refinements": 3} | told
    host, here = (RQKMeans(**whole, backend=backend).fit(vectors) for backend in ("float32", "torch"))
    error, expected = here.inertia_[-1], host.inertia_[-1]
    if "warm_start_codebooks" in told:  # no seeds are drawn
        assert error == pytest.approx(expected, rel=1e-6)
        assert (here.codes_ == host.codes_).mean() > 0.99
    assert error <= expected * 1.05


def test_the_callers_precision_of_products_is_as_it_was():
    torch.set_float32_matmul_precision("high")
    try:
        seed_centroids(ArrayRows(matrix("normal", 100, 4, 1)), 8, np.random.default_rng(0), DEVICE)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
