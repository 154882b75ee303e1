"""The nearest centroid, against brute force in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import KINDS, matrices, matrix, nearly_equal_lengths, square, squared_distances
from tokenization import arithmetic, candidates
from tokenization.assignment import BACKENDS, NearestCentroid
from tokenization.candidates import WIDEST_INT8, FaissFinder, Float32Finder, Int8Finder, TorchFinder, quantised
from tokenization.nearest_kernels import OVERFULL
from tokenization.scratch import Scratch
from tokenization.shortlist import Shortlist


@settings(max_examples=150, deadline=None)
@given(vectors=matrices(), kind=st.sampled_from(KINDS), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_no_centroid_is_nearer_than_the_chosen_one(vectors, kind, size, seed):
    centroids = matrix(kind, size, vectors.shape[1], seed)
    labels = NearestCentroid(centroids)(vectors)
    expected = squared_distances(vectors, centroids)
    chosen = expected[np.arange(len(vectors)), labels]
    assert (chosen <= expected.min(axis=1) * (1 + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 80), size=st.integers(1, 60), dim=st.integers(1, 4), seed=st.integers(0, 999))
def test_exact_ties_go_to_the_lowest_index(rows, size, dim, seed):
    vectors, centroids = matrix("lattice", rows, dim, seed), matrix("lattice", size, dim, seed + 1)
    assert (NearestCentroid(centroids)(vectors) == squared_distances(vectors, centroids).argmin(axis=1)).all()


def test_equal_centroids_answer_with_the_first():
    centroids = np.array([[1, 0], [0, 0], [0, 0], [-0.0, 0]], np.float32)
    assert NearestCentroid(centroids)(np.zeros((3, 2), np.float32)).tolist() == [1, 1, 1]


def test_a_row_gets_the_same_label_in_any_batch():
    vectors, centroids = matrix("normal", 3000, 96, 1), matrix("normal", 500, 96, 2)
    nearest = NearestCentroid(centroids)
    whole = nearest(vectors)
    pieces = np.concatenate([nearest(vectors[start : start + 7]) for start in range(0, 700, 7)])
    assert (whole[:700] == pieces).all()
    assert (nearest(vectors[::-1].copy())[::-1] == whole).all()


def test_near_ties_that_float32_cannot_tell_are_decided_exactly():
    direction = matrix("normal", 1, 256, 3)[0]
    centroids = np.stack([direction * np.float32(1 + step * 1e-6) for step in range(40)])
    vectors = direction * np.linspace(0.99999, 1.00005, 200, dtype=np.float32)[:, None]
    expected = squared_distances(vectors, centroids)
    assert (NearestCentroid(centroids)(vectors) == expected.argmin(axis=1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["float32", "int8"])
@pytest.mark.parametrize("longest", [1, 3e3, 1e4, 1e6])
def test_a_long_row_does_not_coarsen_the_scores_of_those_beside_it(backend, longest):
    """Near ties of centroids that lie far apart in the list, in one block with a row many times as long."""
    random = np.random.default_rng(5)
    half = random.normal(size=(100, 2)) * 0.1 + [1, 0]
    centroids = np.concatenate([half, half + random.normal(size=half.shape) * 1e-4]).astype(np.float32)
    place = random.integers(0, 100, 511)
    between = (centroids[place].astype(np.float64) + centroids[place + 100]) / 2
    rows = np.concatenate([between + random.normal(size=between.shape) * 1e-7, [[longest, 0]]]).astype(np.float32)
    expected = squared_distances(rows, centroids)
    labels = NearestCentroid(centroids, backend)(rows)
    assert (labels == expected.argmin(axis=1)).all()


def test_rows_too_wide_for_8_bit_products_are_compared_in_float32():
    for dim in (WIDEST_INT8, WIDEST_INT8 + 1, 140_000):  # beyond the first, sums of 127 · 127 leave 32 bits
        centroids = np.stack([np.ones(dim, np.float32), np.zeros(dim, np.float32)])
        assert NearestCentroid(centroids, "int8")(np.ones((3, dim), np.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(vectors=matrices(), kind=st.sampled_from(KINDS), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_every_backend_gives_the_same_labels(backend, vectors, kind, size, seed):
    centroids = matrix(kind, size, vectors.shape[1], seed)
    assert (NearestCentroid(centroids, backend)(vectors) == NearestCentroid(centroids, "float32")(vectors)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("times", [1e6, 1e9, 1e11])
def test_rows_very_many_times_as_long_as_the_centroids_have_one_label(backend, times):
    """float32 scores tell apart what float64 differences cannot; which of them decides must not depend on the backend."""
    vectors, centroids = matrix("normal", 300, 16, 1), matrix("normal", 90, 16, 2) / np.float32(times)
    assert (NearestCentroid(centroids, backend)(vectors) == NearestCentroid(centroids, "float32")(vectors)).all()


@pytest.mark.parametrize("seed", [193, 469, 487, 527, 574, 608, 1423])
def test_a_very_long_row_has_one_label_alone_and_among_others(seed):
    """Which of two near centroids float64 scores keep depends on how they are summed; what float64 decides must not.

    The gap between the two scores is what rounding may be, to a thousandth; these seeds tell the two sums apart.
    """
    random = np.random.default_rng(seed)
    gap = random.uniform(0.9, 1.1)
    rows = (random.standard_normal((41, 64)) * 1e8).astype(np.float32)
    centroids = random.standard_normal((6, 64)).astype(np.float32)
    centroids[:, 0] = 0
    wide = centroids.astype(np.float64)
    centroids[5] = centroids[np.argmin((wide**2).sum(axis=1)[:5] - 2 * (rows[:1].astype(np.float64) @ wide[:5].T)[0])]
    longest = np.sqrt((centroids.astype(np.float64) ** 2).sum(axis=1).max())
    bound = 2**-52 * (2 * 66 * np.linalg.norm(rows[0].astype(np.float64)) * longest)
    centroids[5, 0] = np.float32(gap * bound / (2 * rows[0, 0]))
    nearest = NearestCentroid(centroids)
    assert nearest(rows[:1])[0] == nearest(rows)[0]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "size", "dim"), [(1500, 2100, 96), (700, 1024, 40), (600, 1500, 260)])
def test_tiles_threads_and_backends_agree_with_brute_force(backend, threads, rows, size, dim):
    vectors, centroids = matrix("normal", rows, dim, 4), matrix("normal", size, dim, 5) / np.float32(3)
    wide = vectors.astype(np.float64)
    expected = (centroids.astype(np.float64) ** 2).sum(axis=1) - 2 * wide @ centroids.T.astype(np.float64)
    labels = NearestCentroid(centroids, backend, threads)(vectors)
    assert (labels == expected.argmin(axis=1)).all()


@pytest.mark.parametrize("finder", [Float32Finder, Int8Finder, TorchFinder, FaissFinder])
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 1100), dim=st.integers(1, 70), seed=st.integers(0, 999))
def test_the_nearest_centroid_is_always_a_candidate(finder, rows, size, dim, seed):
    """What makes every arithmetic exact: a bound that the true answer never leaves."""
    random = np.random.default_rng(seed)
    vectors = (random.normal(size=(rows, dim)) * 10.0 ** random.integers(-3, 4)).astype(np.float32)
    centroids = (random.normal(size=(size, dim)) * 10.0 ** random.integers(-3, 4, (size, 1))).astype(np.float32)
    squares = (centroids.astype(np.float64) ** 2).sum(axis=1)
    found = finder(centroids, squares)(vectors, np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1)), Scratch())
    nearest = squared_distances(vectors, centroids).argmin(axis=1)
    for row in np.flatnonzero(found.counts != OVERFULL):
        inside = found.scores[row, : found.counts[row]] <= found.limits[row]
        assert nearest[row] in found.kept[row, : found.counts[row]][inside]


@pytest.mark.parametrize("finder", [Float32Finder, Int8Finder, TorchFinder, FaissFinder])
def test_rows_beside_their_centroids_have_hardly_another_candidate(finder):
    """Centroids of length 1, at right angles or opposite, and rows 0.3 from theirs: any other's score is larger by 1.1 at least,
    and 8 bits of 64 columns leave no more than 0.4 in question, float32 much less."""
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(64, 64)))[0]
    centroids = np.concatenate([axes, -axes]).astype(np.float32)
    nearest = random.integers(0, 128, 400)
    off = random.normal(size=(400, 64))
    vectors = (centroids[nearest] + 0.3 * off / np.linalg.norm(off, axis=1, keepdims=True)).astype(np.float32)
    squares = (centroids.astype(np.float64) ** 2).sum(axis=1)
    found = finder(centroids, squares)(vectors, np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1)), Scratch())
    certain = np.flatnonzero(found.counts != OVERFULL)
    assert len(certain) >= 396
    assert np.median(found.counts[certain]) <= 2
    for row in certain:
        assert nearest[row] in found.kept[row, : found.counts[row]]


@pytest.mark.parametrize(("dim", "gap"), [(376, 20), (1024, 60), (4096, 250)])
def test_centroids_whose_squared_lengths_float64_cannot_tell_are_told_apart(dim, gap):
    centroids = nearly_equal_lengths(dim, gap)
    assert square(centroids[1]) < square(centroids[0])
    for row in (np.zeros((1, dim + 8), np.float32), np.eye(1, dim + 8, dim + 7, dtype=np.float32) * np.float32(-1.5e-12)):
        assert NearestCentroid(centroids)(row).tolist() == [1]
        assert Shortlist(centroids)(row[:, None].astype(np.float64), 1).token.tolist() == [[1]]


def test_a_zero_row_is_decided_like_any_other_and_does_not_hold_up_those_beside_it(monkeypatch):
    vectors, centroids = matrix("normal", 600, 8, 1), matrix("normal", 20, 8, 2)
    vectors[::50] = 0
    exactly, whole = [], NearestCentroid._in_float64
    monkeypatch.setattr(
        NearestCentroid, "_in_float64", lambda self, block, norms: exactly.append(len(block)) or whole(self, block, norms)
    )
    assert (NearestCentroid(centroids)(vectors) == squared_distances(vectors, centroids).argmin(axis=1)).all()
    assert sum(exactly) == 12


@settings(max_examples=60, deadline=None)
@given(vectors=matrices())
def test_eight_bit_codes_leave_no_more_than_they_say(vectors):
    codes, scales, errors, lengths = quantised(vectors)
    restored = codes.astype(np.float64) * scales[:, None]
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= 127
    assert (np.sqrt(((vectors - restored) ** 2).sum(axis=1)) <= errors).all()
    assert (np.sqrt((restored**2).sum(axis=1)) <= lengths).all()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'float32', 'torch', 'faiss'"):
        NearestCentroid(np.zeros((1, 1), np.float32), "magic")


def test_a_processor_without_a_unit_for_integers_takes_float32(monkeypatch):
    monkeypatch.setattr(arithmetic, "integer_unit", lambda: None)
    assert arithmetic.fastest.__wrapped__() == "float32"


def test_auto_takes_eight_bits_where_they_are_fastest_and_the_work_is_worth_it(monkeypatch):
    """Whatever this processor has: the labels are those of brute force either way."""
    monkeypatch.setattr(arithmetic, "fastest", lambda: "int8")
    vectors, centroids = matrix("normal", 700, 16, 1), matrix("normal", 64, 16, 2)
    made = []
    for kind, finder in candidates.FINDERS.items():
        monkeypatch.setitem(candidates.FINDERS, kind, lambda *told, k=kind, find=finder: made.append(k) or find(*told))
    expected = squared_distances(vectors, centroids).argmin(axis=1)
    worth = arithmetic.WORTH_INTEGERS // centroids.size
    for rows, kind in ((worth, "int8"), (worth - 1, "float32")):
        made.clear()
        assert (NearestCentroid(centroids, rows=rows)(vectors) == expected).all()
        assert made == [kind]
        assert arithmetic.described("auto", rows * centroids.size).startswith("8-bit" if kind == "int8" else "float32")
    assert arithmetic.described("faiss", 2**40) == "candidates by faiss, decided in float64"


def test_faiss_searches_on_the_card_where_its_gpu_build_finds_one(monkeypatch):
    """With a stand-in for that build, whose card is the processor: one search at a time, on the card's index, the same labels."""
    import faiss

    searches, inside = [], []

    class OnCard:
        def __init__(self, index):
            self.index, self.ntotal = index, index.ntotal

        def search(self, block, most):
            inside.append(len(block))
            assert len(inside) == 1
            found = self.index.search(block, most)
            searches.append(inside.pop())
            return found

    made = []
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: made.append("memory") or "memory", raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *told: OnCard(told[2]), raising=False)
    candidates._faiss_card.cache_clear()
    vectors, centroids = matrix("normal", 9000, 64, 1), matrix("normal", 300, 64, 2)
    try:
        for _ in range(2):
            found = NearestCentroid(centroids, "faiss", 3)(vectors)
    finally:
        candidates._faiss_card.cache_clear()
    assert (found == NearestCentroid(centroids, "float32")(vectors)).all()
    assert sum(searches) == 2 * 9000
    assert made == ["memory"], "taken once"
