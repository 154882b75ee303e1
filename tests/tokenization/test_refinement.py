"""Joint refinement of the layers, against direct computation."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from tests.tokenization.vector_cases import KINDS, matrices, matrix
from tokenization import residual, vectors
from tokenization.refinement import charge_of, refine, refitted
from tokenization.rq_kmeans import RELAXATION, RQKMeans
from tokenization.vector_source import LocalVectors
from tokenization.vectors import ArrayRows


def error(rows: np.ndarray, codebooks: list[np.ndarray], codes: np.ndarray) -> float:
    summed = sum(codebook.astype(np.float64)[codes[:, layer]] for layer, codebook in enumerate(codebooks))
    return float(((rows.astype(np.float64) - summed) ** 2).sum())


def sums_by_token(rows: np.ndarray, codes: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    sums = [np.zeros((size, rows.shape[1])) for size in sizes]
    for layer, total in enumerate(sums):
        np.add.at(total, codes[:, layer], rows.astype(np.float64))
    return sums


of_any_rows_and_codebooks = given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 999),
)


@settings(max_examples=40, deadline=None)
@of_any_rows_and_codebooks
def test_each_layer_moves_to_the_mean_of_what_the_others_leave(kind, rows, sizes, seed):
    some, random = matrix(kind, rows, 4, seed), np.random.default_rng(seed)
    codebooks = [matrix(kind, size, 4, seed + size) for size in sizes]
    codes = np.stack([random.integers(0, size, rows) for size in sizes], axis=1).astype(np.uint16)
    moved = refitted(codebooks, codes, sums_by_token(some, codes, sizes))
    expected = [codebook.astype(np.float64) for codebook in codebooks]
    for layer in range(len(sizes)):
        others = sum(expected[other][codes[:, other]] for other in range(len(sizes)) if other != layer)
        for token in np.unique(codes[:, layer]):
            expected[layer][token] = (some.astype(np.float64) - others)[codes[:, layer] == token].mean(axis=0)
    scale = float(np.abs(np.concatenate([some, *codebooks])).max())
    for one, other in zip(moved, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)
    assert error(some, moved, codes) <= error(some, codebooks, codes) * (1 + 1e-5) + 1e-9 * scale**2


@settings(max_examples=40, deadline=None)
@of_any_rows_and_codebooks
def test_charged_codes_are_greedy_in_distance_and_charge_and_sums_are_of_distances_alone(kind, rows, sizes, seed):
    some, random = matrix(kind, rows, 4, seed), np.random.default_rng(seed)
    codebooks = [matrix(kind, size, 4, seed + size) for size in sizes]
    spread = float((some.astype(np.float64) ** 2).sum(axis=1).mean())
    charges = [random.normal(size=size) * spread for size in sizes]
    source = LocalVectors(ArrayRows(some))
    sums, codes = source.encode(vectors.scaled(source, source.extent()), codebooks, charges)
    left = some.astype(np.float64)
    for layer, (codebook, charge) in enumerate(zip(codebooks, charges, strict=True)):
        distances = ((left[:, None] - codebook.astype(np.float64)) ** 2).sum(axis=2)
        total = distances + charge
        chosen = np.arange(rows), codes[:, layer]
        assert (total[chosen] <= total.min(axis=1) + 1e-5 * (np.abs(total).max() + spread)).all()
        np.testing.assert_allclose(sums.layers[layer].distance, distances[chosen].sum(), rtol=1e-4, atol=1e-4 * spread)
        left = left - codebook[codes[:, layer]]


@settings(max_examples=25, deadline=None)
@given(
    some=matrices(most_rows=40, most_columns=5),
    sizes=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    told=st.sampled_from(
        [
            {},
            {"relaxation": RELAXATION},
            {"evenness": 0.45, "relaxation": RELAXATION},
            {"evenness": 5.0, "relaxation": 2.5},
        ]
    ),
)
def test_refinement_is_never_worse_and_its_codes_are_those_of_encode(some, sizes, told):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        greedy = RQKMeans(len(sizes), tuple(sizes), refinements=0).fit(some)
    refined = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 6, **told)
    assert (refined.codes == residual.encode(some, refined.codebooks)).all()
    assert refined.inertia[-1] <= greedy.inertia_[-1] * (1 + 1e-9)
    for layer in range(len(sizes)):
        assert len(np.unique(refined.codes[:, layer])) >= len(np.unique(greedy.codes_[:, layer]))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [8, 64])
def test_it_lowers_the_error_of_greedy_codes(dim):
    some = matrix("normal", 3000, dim, 0)
    greedy = RQKMeans(3, 32, refinements=0).fit(some)
    refined = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 10)
    assert refined.inertia[-1] < 0.996 * greedy.inertia_[-1]
    assert [len(np.unique(refined.codes[:, layer])) for layer in range(3)] == [32] * 3
    for depth in (1, 2, 3):
        expected = error(some, refined.codebooks[:depth], refined.codes)
        np.testing.assert_allclose(refined.inertia[depth - 1], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("evenness", "error_at_most", "entropy_gained"), [(0.1, 1.01, 0.1), (0.45, 1.04, 0.2)])
def test_charging_crowded_tokens_ends_with_more_even_ones_and_costs_little_error(evenness, error_at_most, entropy_gained):
    """Rows of very different lengths, whose residuals crowd around the mean."""
    random = np.random.default_rng(0)
    some = matrix("normal", 3000, 24, 0) * random.lognormal(0, 0.7, (3000, 1)).astype(np.float32)
    greedy = RQKMeans(3, 32, refinements=0).fit(some)
    plain = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 12, tolerance=0.0)
    evenly = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 12, evenness=evenness, relaxation=RELAXATION)

    def entropy(codes: np.ndarray) -> float:
        shares = [np.bincount(codes[:, layer], minlength=32) / len(codes) for layer in range(3)]
        return float(np.mean([-(share[share > 0] * np.log(share[share > 0])).sum() for share in shares]))

    assert plain.inertia[-1] < 0.975 * greedy.inertia_[-1]
    assert evenly.inertia[-1] < min(greedy.inertia_[-1], error_at_most * plain.inertia[-1])
    assert entropy(evenly.codes) > entropy(plain.codes) + entropy_gained


def test_the_charge_rises_through_the_first_half_and_is_gone_at_the_last_epoch():
    strengths = [charge_of(epoch, 15, 0.5) for epoch in range(1, 19)]
    assert strengths[:7] == sorted(strengths[:7])
    assert strengths[7:14] == sorted(strengths[7:14], reverse=True)
    assert min(strengths[:14]) > 0 == max(strengths[14:])
    assert max(strengths) < 0.5 / 2
    assert charge_of(1, 1, 0.5) == 0


def test_where_the_last_epoch_is_no_better_than_the_start_a_few_more_follow():
    """A charge far too large scatters the rows of a finished codebook; one plain epoch does not bring them back."""
    some, heard = matrix("normal", 60, 4, 2), []
    codebooks = RQKMeans(2, 24, refinements=200).fit(some).codebooks_
    finished = error(some, codebooks, residual.encode(some, codebooks))
    refined = refine(LocalVectors(ArrayRows(some)), codebooks, 2, evenness=20.0, callback=heard.append)
    assert [told.greedy for told in heard] == [False] + [True] * (len(heard) - 1)
    assert 3 <= len(heard) == refined.epochs <= 5
    assert heard[1].inertia > finished > heard[-1].inertia == refined.inertia[-1]


def test_a_single_epoch_charges_nothing_and_stays_single():
    some = matrix("normal", 200, 4, 0)
    codebooks = RQKMeans(2, 8, refinements=200).fit(some).codebooks_
    assert refine(LocalVectors(ArrayRows(some)), codebooks, 1, evenness=20.0).epochs == 1
    assert refine(LocalVectors(ArrayRows(some)), codebooks, 0, evenness=20.0).epochs == 0


def test_going_further_than_the_means_gets_further_in_as_many_epochs():
    some = matrix("normal", 3000, 24, 0)
    greedy = RQKMeans(3, 32, refinements=0).fit(some)
    plain = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 8, tolerance=0.0)
    further = refine(LocalVectors(ArrayRows(some)), greedy.codebooks_, 8, relaxation=RELAXATION, tolerance=0.0)
    assert further.inertia[-1] < plain.inertia[-1]


def test_it_reads_block_by_block_and_blocks_change_nothing(monkeypatch):
    some = matrix("normal", 900, 6, 0)
    codebooks = RQKMeans(2, 12, refinements=0).fit(some).codebooks_
    whole = refine(LocalVectors(ArrayRows(some)), codebooks, 3)
    monkeypatch.setattr(vectors, "_BLOCK_VALUES", 6 * 100)
    pieces = refine(LocalVectors(ArrayRows(some)), codebooks, 3)
    assert (whole.codes == pieces.codes).all()
    assert whole.inertia == pieces.inertia
    for one, other in zip(whole.codebooks, pieces.codebooks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_stops_once_three_epochs_gain_too_little():
    some = matrix("normal", 500, 4, 0)
    codebooks = RQKMeans(2, 8, refinements=0).fit(some).codebooks_
    assert refine(LocalVectors(ArrayRows(some)), codebooks, 50, tolerance=1.0).epochs == 3
    assert 3 < refine(LocalVectors(ArrayRows(some)), codebooks, 200).epochs < 200
