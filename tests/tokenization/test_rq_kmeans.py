"""RQ-KMeans: layers, encoding, beam search and decoding, against brute force."""

import itertools
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization import residual
from tokenization.kmeans import KMeans
from tokenization.rq_kmeans import RQKMeans
from tokenization.vectors import BadVectors


def greedy_by_hand(vectors: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    codes = []
    for vector in vectors:
        left, code = vector.copy(), []
        for codebook in codebooks:
            distances = squared_distances(left[None], codebook)[0]
            code.append(int(distances.argmin()))
            left = left - codebook[code[-1]]
        codes.append(code)
    return np.array(codes, np.uint16)


def beam_by_hand(vector: np.ndarray, codebooks: list[np.ndarray], beam: int) -> tuple[int, ...]:
    alive: list[tuple[int, ...]] = [()]
    for depth in range(1, len(codebooks) + 1):
        longer = [(*code, token) for code in alive for token in range(len(codebooks[depth - 1]))]
        errors = {
            code: ((vector.astype(np.float64) - sum(codebooks[layer][token] for layer, token in enumerate(code))) ** 2).sum()
            for code in longer
        }
        alive = sorted(longer, key=lambda code: (errors[code], code))[:beam]
    return alive[0]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(vectors=matrices(most_rows=40, most_columns=6), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_fit_encode_and_decode_agree_on_any_matrix(vectors, sizes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RQKMeans(len(sizes), tuple(sizes)).fit(vectors)
    codes = model.encode(vectors)
    assert codes.dtype == np.uint16
    assert codes.shape == (len(vectors), len(sizes))
    assert (codes == model.codes_).all()
    assert (codes < np.array(sizes)).all()
    assert [codebook.shape for codebook in model.codebooks_] == [(size, vectors.shape[1]) for size in sizes]
    decoded = model.decode(codes)
    summed = sum(codebook[codes[:, layer]].astype(np.float64) for layer, codebook in enumerate(model.codebooks_))
    scale = max(1e-37, float(np.abs(vectors).max()))
    np.testing.assert_allclose(decoded, summed, rtol=1e-5, atol=1e-5 * scale)
    norms = np.linalg.norm(vectors.astype(np.float64) - decoded, axis=1)
    np.testing.assert_allclose(model.residual_norms(vectors, codes), norms, rtol=1e-5, atol=1e-37)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(("normal", "duplicates", "constant column", "huge", "tiny")), seed=st.integers(0, 999))
def test_greedy_encoding_is_that_of_the_definition(kind, seed):
    vectors, codebooks = matrix(kind, 25, 4, seed), [matrix(kind, size, 4, seed + size) for size in (5, 6, 7)]
    assert (residual.encode(vectors, codebooks) == greedy_by_hand(vectors, codebooks)).all()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(("normal", "lattice", "duplicates", "constant column", "huge", "tiny", "zeros")),
    beam=st.integers(2, 12),
    seed=st.integers(0, 999),
)
def test_beam_search_keeps_the_best_prefixes_of_each_depth(kind, beam, seed):
    vectors, codebooks = matrix(kind, 12, 5, seed), [matrix(kind, size, 5, seed + size) for size in (3, 4, 5)]
    found = residual.encode_beam(vectors, codebooks, beam)
    assert [tuple(code) for code in found.tolist()] == [beam_by_hand(vector, codebooks, beam) for vector in vectors]


def test_a_beam_of_everything_is_exhaustive_search_and_one_is_greedy():
    vectors, codebooks = matrix("normal", 30, 4, 0), [matrix("normal", 5, 4, seed) for seed in (1, 2, 3)]
    every = np.array(list(itertools.product(range(5), repeat=3)))
    best = squared_distances(vectors, residual.decode(every, codebooks)).argmin(axis=1)
    assert (residual.encode_beam(vectors, codebooks, 25) == every[best]).all()
    assert (residual.encode_beam(vectors, codebooks, 1) == residual.encode(vectors, codebooks)).all()
    with pytest.raises(ValueError, match="at least 1"):
        residual.encode_beam(vectors, codebooks, 0)


def test_equal_centroids_make_beam_search_choose_the_smaller_code():
    codebooks = [np.ones((3, 2), np.float32), np.zeros((2, 2), np.float32)]
    assert residual.encode_beam(np.ones((1, 2), np.float32), codebooks, 3).tolist() == [[0, 0]]


def test_each_layer_lowers_the_error_and_uses_every_token():
    vectors = matrix("normal", 1500, 12, 0)
    model = RQKMeans(3, (16, 24, 32)).fit(vectors)
    total = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    assert total > model.inertia_[0] > model.inertia_[1] > model.inertia_[2]
    assert [len(np.unique(model.codes_[:, layer])) for layer in range(3)] == [16, 24, 32]
    for depth in (1, 2, 3):
        error = ((vectors.astype(np.float64) - model.decode(model.codes_, depth)) ** 2).sum()
        np.testing.assert_allclose(error, model.inertia_[depth - 1], rtol=1e-4)


def test_a_memory_map_trains_the_same_codebook(tmp_path):
    vectors = matrix("normal", 3000, 8, 0)
    np.save(tmp_path / "v.npy", vectors)
    mapped = RQKMeans(2, 16).fit(np.load(tmp_path / "v.npy", mmap_mode="r"))
    assert all(
        (one == other).all() for one, other in zip(mapped.codebooks_, RQKMeans(2, 16).fit(vectors).codebooks_, strict=True)
    )


def test_a_warm_start_from_its_own_codebooks_hardly_moves():
    vectors = matrix("normal", 2000, 8, 0)
    first = RQKMeans(3, 16, iterations=200, tolerance=0, refinements=0).fit(vectors)
    again = RQKMeans(3, 16, refinements=0, warm_start_codebooks=first.codebooks_).fit(vectors)
    cold = RQKMeans(3, 16, seed=1).fit(vectors)
    assert (again.codes_ != first.codes_).any(axis=1).mean() < 0.01
    assert (cold.codes_ != first.codes_).any(axis=1).mean() > 0.5


def test_a_warm_start_of_refined_codebooks_goes_on_refining_and_fills_dead_tokens():
    vectors = matrix("normal", 2000, 8, 0)
    first = RQKMeans(3, 16, refinements=20).fit(vectors)
    again = RQKMeans(3, 16, refinements=1, warm_start_codebooks=first.codebooks_).fit(vectors)
    assert again.n_iter_ == [0, 0, 0]
    assert (again.codes_ != first.codes_).any(axis=1).mean() < 0.1
    dead = [codebook.copy() for codebook in first.codebooks_]
    dead[1][3] = 1e4
    filled = RQKMeans(3, 16, refinements=1, warm_start_codebooks=dead).fit(vectors)
    assert [len(np.unique(filled.codes_[:, layer])) for layer in range(3)] == [16] * 3
    with pytest.raises(ValueError, match=r"needs \(size, 8\)"):
        RQKMeans(2, 2, warm_start_codebooks=[np.zeros((2, 7))] * 2).fit(vectors)


def test_the_callback_names_the_layer_and_calls_refinement_layer_0():
    heard = []
    RQKMeans(2, 4, iterations=2, tolerance=0, refinements=1).fit(matrix("normal", 100, 3, 0), callback=heard.append)
    assert [(one.layer, one.iteration) for one in heard] == [(1, 1), (1, 2), (2, 1), (2, 2), (0, 1)]
    heard.clear()
    model = RQKMeans(2, 4, iterations=1, refinements=0, balance=(None, 1.2))
    model.fit(matrix("normal", 100, 3, 0), callback=heard.append)
    assert [(one.layer, one.iteration) for one in heard[:3]] == [(1, 1), (2, 1), (2, 1)]
    bounded = [one for one in heard if not one.greedy]
    assert bounded == heard[2:]
    assert min(one.inertia for one in bounded) == pytest.approx(model.inertia_[-1])


def test_only_the_last_of_fifteen_epochs_has_codes_that_encoding_gives():
    heard = []
    RQKMeans(2, 8, iterations=1).fit(matrix("normal", 300, 3, 0), callback=heard.append)
    assert [one.greedy for one in heard if one.layer == 0] == [False] * 14 + [True]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_residuals_that_are_kept_and_residuals_computed_anew_give_one_codebook(dtype, monkeypatch):
    vectors = matrix("normal", 900, 6, 3).astype(dtype)
    monkeypatch.setattr("tokenization.vectors._BLOCK_VALUES", 1000)
    kept = RQKMeans(3, 20, iterations=4, refinements=2).fit(vectors)
    monkeypatch.setattr("tokenization.vector_source._KEPT_VALUES", 0)
    anew = RQKMeans(3, 20, iterations=4, refinements=2).fit(vectors)
    assert all((one == other).all() for one, other in zip(kept.codebooks_, anew.codebooks_, strict=True))
    assert (kept.codes_ == anew.codes_).all()


def test_residual_layers_use_their_tokens_evenly():
    """In many dimensions k-means++ seeds alone leave them uneven."""
    vectors = matrix("normal", 1500, 200, 0)
    evenly = RQKMeans(2, 32, refinements=0).fit(vectors)
    left = vectors - evenly.codebooks_[0][evenly.codes_[:, 0]]
    seeded = KMeans(32, seed=1).fit(left)
    assert np.bincount(evenly.codes_[:, 1]).max() < 0.7 * np.bincount(seeded.labels_).max()
    assert evenly.inertia_[1] < seeded.inertia_


def test_bounded_layers_keep_to_their_bound_and_encoding_stays_the_nearest():
    vectors = np.concatenate([matrix("normal", 400, 6, 0), matrix("normal", 400, 6, 1) * np.float32(0.1)])
    free, bounded = RQKMeans(2, 16).fit(vectors), RQKMeans(2, 16, balance=(1.2, None)).fit(vectors)
    assert np.bincount(free.codes_[:, 0]).max() > 60
    assert np.bincount(bounded.codes_[:, 0]).max() <= 60
    assert (bounded.encode(vectors) == greedy_by_hand(vectors, bounded.codebooks_)).all()
    error = float(((vectors - bounded.decode(bounded.codes_)) ** 2).sum())
    np.testing.assert_allclose(bounded.inertia_[-1], error, rtol=1e-4)


def test_what_a_warm_start_is_told_to_have_changed_is_of_the_bounded_clusters():
    vectors = matrix("normal", 600, 6, 0)
    before = RQKMeans(2, 8).fit(vectors)
    model = RQKMeans(2, 8, warm_start_codebooks=before.codebooks_, balance=1.05).fit(vectors)
    assert model.refresh_.churn == (model.codes_ != before.codes_).any(axis=1).mean() > 0.1
    assert (model.refresh_.fitted.codes == model.codes_).all()
    for one, other in zip(model.refresh_.fitted.codebooks, model.codebooks_, strict=True):
        assert (one == other).all()


def test_with_two_layers_a_beam_is_never_worse_than_greedy_and_with_three_it_may_be():
    worse = {2: 0, 3: 0}
    for seed in range(30):
        vectors = matrix("normal", 200, 3, seed)
        codebooks = [matrix("normal", 6, 3, 100 * seed + layer) for layer in (1, 2, 3)]
        for layers in worse:
            some = codebooks[:layers]
            greedy, beam = residual.encode(vectors, some), residual.encode_beam(vectors, some, 2)
            one, other = (residual.residual_norms(vectors, codes, some) for codes in (greedy, beam))
            worse[layers] += int((other > one * (1 + 1e-5)).sum())
    assert worse[2] == 0
    assert 0 < worse[3] < 0.1 * 30 * 200


def test_a_beam_gives_a_row_the_same_code_in_any_batch():
    vectors, codebooks = matrix("normal", 300, 24, 0), [matrix("normal", 1100, 24, seed) for seed in (1, 2, 3)]
    whole = residual.encode_beam(vectors, codebooks, 4)
    alone = np.concatenate([residual.encode_beam(vectors[row : row + 1], codebooks, 4) for row in range(0, 300, 10)])
    assert (whole[::10] == alone).all()
    assert (residual.encode_beam(vectors[::-1], codebooks, 4)[::-1] == whole).all()


def test_a_warm_start_says_which_tokens_stay_empty():
    vectors = np.repeat(matrix("normal", 5, 3, 0), 4, axis=0)
    start = [matrix("normal", 8, 3, 1), matrix("normal", 4, 3, 2)]
    for how in ({}, {"max_churn": 1.0}):
        with pytest.warns(ConvergenceWarning, match=r"layers of \[8, 4\] tokens, \[5, \d\] of them filled") as heard:
            RQKMeans(2, (8, 4), warm_start_codebooks=start, **how).fit(vectors)
        assert len(heard) == 1
    with pytest.warns(ConvergenceWarning, match="clusters, . of them filled") as heard:
        RQKMeans(2, (8, 4), warm_start_codebooks=start, refinements=0).fit(vectors)
    assert all("clusters" in str(one.message) for one in heard)


def test_an_encoder_gives_the_codes_of_one_call_whatever_its_parts():
    vectors, codebooks = matrix("normal", 900, 24, 0), [matrix("normal", 300, 24, seed) for seed in (1, 2)]
    encoder = residual.Encoder(codebooks, len(vectors))
    whole = residual.encode(vectors, codebooks)
    assert (np.concatenate([encoder(vectors[start : start + 170]) for start in range(0, 900, 170)]) == whole).all()
    with pytest.raises(BadVectors, match="2 columns; the codebook was trained on 24"):
        encoder(np.zeros((1, 2)))


def test_an_arrow_column_is_encoded_like_the_array():
    vectors, codebooks = matrix("normal", 30, 3, 0), [matrix("normal", 4, 3, 1), matrix("normal", 5, 3, 2)]
    flat = [pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), 3) for part in (vectors[:7], vectors[7:])]
    column = pa.chunked_array(flat)
    codes = residual.encode(vectors, codebooks)
    assert (residual.encode(column, codebooks) == codes).all()
    assert (residual.encode_beam(column, codebooks, 3) == residual.encode_beam(vectors, codebooks, 3)).all()
    assert (residual.residual_norms(column, codes, codebooks) == residual.residual_norms(vectors, codes, codebooks)).all()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    vectors=matrices(), layout=st.sampled_from(["fortran", "reversed", "columns", "float64", "float16"]), seed=st.integers(0, 99)
)
@pytest.mark.filterwarnings("ignore:.*of them filled")
def test_layout_and_type_change_no_code(vectors, layout, seed):
    if layout == "float16":
        with np.errstate(over="ignore"):
            vectors = np.where(np.isfinite(vectors.astype(np.float16)), vectors, 1).astype(np.float16).astype(np.float32)
    odd = {
        "fortran": lambda: np.asfortranarray(vectors),
        "reversed": lambda: np.ascontiguousarray(vectors[::-1])[::-1],
        "columns": lambda: np.repeat(vectors, 2, axis=1)[:, ::2],
        "float64": lambda: vectors.astype(np.float64),
        "float16": lambda: vectors.astype(np.float16),
    }[layout]()
    codebooks = [vectors[: 1 + seed % 4] * np.float32(share) for share in (1, 0.5)]
    assert (residual.encode(odd, codebooks) == residual.encode(vectors, codebooks)).all()
    assert (residual.encode_beam(odd, codebooks, 2) == residual.encode_beam(vectors, codebooks, 2)).all()
    one, other = (RQKMeans(2, 3, iterations=2, refinements=2).fit(some) for some in (odd, vectors))
    assert all((a == b).all() for a, b in zip(one.codebooks_, other.codebooks_, strict=True))


@settings(max_examples=40, deadline=None)
@given(vectors=matrices(), bad=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -1e39, 1e300]), data=st.data())
def test_a_row_that_cannot_be_held_is_named_at_every_door(vectors, bad, data):
    row = data.draw(st.integers(0, len(vectors) - 1))
    some = vectors.astype(np.float64)
    some[row, data.draw(st.integers(0, vectors.shape[1] - 1))] = bad
    codebooks = [vectors[:2], vectors[:1]]
    for door in (
        lambda: residual.encode(some, codebooks),
        lambda: residual.encode_beam(some, codebooks, 2),
        lambda: residual.residual_norms(some, np.zeros((len(some), 2), int), codebooks),
        lambda: KMeans(1, iterations=1).fit(vectors).predict(some),
    ):
        with pytest.raises(BadVectors, match=rf"NaN, infinity or a number beyond 1e\+38 in row {row};"):
            door()
    told = r"column \d+ holds 3e\+38; values beyond 1e\+38" if bad == 3e38 else rf"NaN or infinity \(in float32\) in row {row};"
    for model in (RQKMeans(2, 2), RQKMeans(2, 1, warm_start_codebooks=[vectors[:1]] * 2), KMeans(2), KMeans(2, backend="torch")):
        with pytest.raises(BadVectors, match=told):
            model.fit(some)


def test_what_a_layer_leaves_of_the_largest_vectors_may_lie_beyond_what_vectors_may_hold():
    vectors = np.full((20, 3), 9.5e37, np.float32)
    vectors[::3] *= -1
    vectors += matrix("normal", 20, 3, 0) * np.float32(1e36)
    model = RQKMeans(2, (1, 4)).fit(vectors)
    assert np.abs(model.codebooks_[1]).max() > 1e38
    assert (model.encode(vectors) == model.codes_).all()
    assert np.isfinite(model.residual_norms(vectors, model.codes_)).all()
    again = RQKMeans(2, (1, 4), warm_start_codebooks=model.codebooks_, refinements=1).fit(vectors)
    assert (again.codes_ == model.codes_).mean() > 0.9


def test_it_clones_and_transforms():
    model = RQKMeans(2, (4, 5), seed=3)
    assert clone(model).get_params()["codebook_size"] == (4, 5)
    vectors = matrix("normal", 50, 3, 0)
    assert (model.fit_transform(vectors) == model.encode(vectors)).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RQKMeans(3, (4, 4)), "one size for each of the 3 layers"),
        (RQKMeans(1, 65537), "between 1 and 65536"),
        (RQKMeans(2, 4, refinements=-1), "at least 0"),
        (RQKMeans(2, 4, evenness=float("nan")), "evenness from 0 to 1"),
        (RQKMeans(2, 4, balance=(1.5,)), "one for each of the 2 layers"),
        (RQKMeans(2, 4, balance=0.5), "balance 0.5: must be at least 1"),
        (RQKMeans(2, 4, warm_start_codebooks=[np.zeros((4, 3)), np.zeros((5, 3))]), r"sizes \[4, 5\]; needs \[4, 4\]"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(matrix("normal", 20, 3, 0))


def test_bad_vectors_and_codes_are_named():
    codebooks = [matrix("normal", 4, 3, 0), matrix("normal", 5, 3, 1)]
    with pytest.raises(BadVectors, match="2 columns; the codebook was trained on 3"):
        residual.encode(np.zeros((1, 2), np.float32), codebooks)
    with pytest.raises(BadVectors, match="row 1;"):
        residual.encode(np.array([[0, 0, 0], [0, np.nan, 0]]), codebooks)
    with pytest.raises(BadVectors, match=r"row 1 is \[0, 5\]"):
        residual.decode(np.array([[3, 4], [0, 5]]), codebooks)
    with pytest.raises(BadVectors, match=r"needs \(n, 2\) integers"):
        residual.decode(np.zeros((1, 3), int), codebooks)
    with pytest.raises(BadVectors, match="found 1 codes for 2 vectors"):
        residual.residual_norms(np.zeros((2, 3)), np.zeros((1, 2), int), codebooks)
