"""A refreshed codebook: few unchanged rows change their code, and matched tokens keep as many as any numbering could."""

import tracemalloc
from itertools import permutations
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import KINDS, matrix
from tokenization import refresh, residual
from tokenization.refresh import match_tokens, refreshed, renumbered, rotation
from tokenization.rq_kmeans import RQKMeans
from tokenization.vector_source import LocalVectors
from tokenization.vectors import ArrayRows, BadVectors


def clustered(rows: int, clusters: int, dim: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = random.normal(size=(clusters, dim))
    return (centers[random.integers(0, clusters, rows)] + 0.35 * random.normal(size=(rows, dim))).astype(np.float32)


def changed(before: np.ndarray, after: np.ndarray) -> float:
    return float((before != after).any(axis=1).mean())


def error(rows: np.ndarray, codebooks: list[np.ndarray], codes: np.ndarray) -> float:
    return float(((rows.astype(np.float64) - residual.decode(codes, codebooks)) ** 2).sum())


@pytest.mark.slow
def test_five_percent_of_new_items_change_less_than_five_percent_of_the_old_ones() -> None:
    vectors = clustered(4000, 60, 12, 0)
    known = np.arange(4000) < 3800
    before = RQKMeans(3, 24, iterations=10).fit(vectors[known])
    cold = RQKMeans(3, 24, iterations=10).fit(vectors)
    refreshed = RQKMeans(3, 24, warm_start_codebooks=before.codebooks_, max_churn=0.05).fit(vectors, unchanged=known)
    share = changed(before.codes_, refreshed.codes_[known])
    assert share == refreshed.refresh_.churn <= 0.05 < changed(before.codes_, cold.codes_[known])
    # New vectors are served better than by the codebook that did not know them.
    frozen = before.encode(vectors)
    assert refreshed.inertia_[-1] < error(vectors, before.codebooks_, frozen)
    assert (refreshed.encode(vectors) == refreshed.codes_).all()


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(2, 60),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    max_churn=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
def test_the_bound_is_kept_whatever_the_vectors_and_error_and_codes_are_those_of_encode(
    kind: str, rows: int, sizes: list[int], max_churn: float, seed: int
) -> None:
    some, random = matrix(kind, rows, 4, seed), np.random.default_rng(seed)
    previous = [matrix(kind, size, 4, seed + size) for size in sizes]
    unchanged = random.random(rows) < 0.8
    found = refreshed(LocalVectors(ArrayRows(some)), previous, max_churn, unchanged)
    codes = residual.encode(some, found.fitted.codebooks)
    assert (codes == found.fitted.codes).all()
    frozen = residual.encode(some, previous)
    expected = changed(frozen[unchanged], codes[unchanged]) if unchanged.any() else 0.0
    assert found.churn == pytest.approx(expected)
    assert expected <= max_churn
    layers = (frozen[unchanged] != codes[unchanged]).mean(axis=0) if unchanged.any() else np.zeros(len(sizes))
    np.testing.assert_allclose(found.layer_churn, layers)
    assert found.fitted.inertia[-1] <= error(some, previous, frozen) * (1 + 1e-5)
    for layer in range(len(sizes)):
        assert len(np.unique(codes[:, layer])) >= len(np.unique(frozen[:, layer]))


def test_a_bound_of_zero_gives_the_previous_codebooks_back() -> None:
    vectors = clustered(500, 9, 5, 1)
    before = RQKMeans(2, 8, iterations=3).fit(vectors[:400])
    again = RQKMeans(2, 8, warm_start_codebooks=before.codebooks_, max_churn=0.0).fit(vectors)
    assert (again.encode(vectors) == before.encode(vectors)).all()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 30), size=st.integers(1, 5), dense_size=st.sampled_from([0, 5]), seed=st.integers(0, 999))
def test_no_other_numbering_keeps_more_tokens(rows: int, size: int, dense_size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    before, after = (random.integers(0, size, (rows, 2)).astype(np.uint16) for _ in range(2))
    with mock.patch.object(refresh, "DENSE_SIZE", dense_size):
        numbers = match_tokens(before, after, [size, size])
    for layer, number in enumerate(numbers):
        assert sorted(number) == list(range(size))
        kept = [(np.array(one)[after[:, layer]] == before[:, layer]).sum() for one in permutations(range(size))]
        assert (number[after[:, layer]] == before[:, layer]).sum() == max(kept)


def test_matching_very_many_tokens_takes_memory_of_the_rows_and_not_of_all_pairs_of_tokens() -> None:
    size, random = 16_384, np.random.default_rng(7)
    shuffle = random.permutation(size)
    before = random.integers(0, size, 3 * size)
    after = np.where(random.random(len(before)) < 0.9, shuffle[before], random.integers(0, size, len(before)))
    tracemalloc.start()
    (number,) = match_tokens(before[:, None].astype(np.uint16), after[:, None].astype(np.uint16), [size])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**25
    assert (np.sort(number) == np.arange(size)).all()
    assert (number[after] == before).sum() >= (np.argsort(shuffle)[after] == before).sum()


def test_renumbered_codebooks_decode_to_the_same_vectors_and_undo_a_shuffle() -> None:
    vectors, random = clustered(600, 12, 6, 2), np.random.default_rng(3)
    model = RQKMeans(2, (9, 7), iterations=3).fit(vectors)
    shuffled, codes = renumbered(model.codebooks_, model.codes_, [random.permutation(9), random.permutation(7)])
    assert (residual.encode(vectors, shuffled) == codes).all()
    np.testing.assert_array_equal(residual.decode(codes, shuffled), model.decode(model.codes_))
    codebooks, again = renumbered(shuffled, codes, match_tokens(model.codes_, codes, [9, 7]))
    assert (again == model.codes_).all()
    for one, other in zip(codebooks, model.codebooks_, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    data=st.data(),
)
@pytest.mark.filterwarnings("ignore:.*of them filled")  # there are often fewer distinct rows than tokens
def test_a_renumbered_codebook_encodes_as_its_codes_say_also_where_tokens_are_dead_copies(
    kind: str, rows: int, sizes: list[int], data: st.DataObject
) -> None:
    some = matrix(kind, rows, 3, data.draw(st.integers(0, 999)))
    model = RQKMeans(len(sizes), tuple(sizes), iterations=2).fit(some)
    numbers = [np.array(data.draw(st.permutations(range(size))), np.uint16) for size in sizes]
    codebooks, codes = renumbered(model.codebooks_, model.codes_, numbers)
    for one, other in zip(codebooks, model.codebooks_, strict=True):
        np.testing.assert_array_equal(np.sort(one, axis=0), np.sort(other, axis=0))
    again = residual.encode(some, codebooks)
    np.testing.assert_array_equal(residual.decode(codes, codebooks), model.decode(model.codes_))
    if kind != "lattice":  # there a row may be as near to two different centroids, of which the first wins
        np.testing.assert_array_equal(again, codes)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_used_tokens_keep_their_numbers_wherever_their_copies_find_higher_ones(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    group = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    codebook = group[:, None].astype(np.float32) * np.float32(-1)  # 0 and −0 are equal too
    first = np.array([token == np.flatnonzero(group == group[token])[0] for token in range(size)])
    used = first & np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    codes = np.flatnonzero(used).astype(np.uint16)[:, None]
    numbers = np.array(data.draw(st.permutations(range(size))), np.uint16)
    [moved], renamed = renumbered([codebook], codes, [numbers])
    np.testing.assert_array_equal(np.sort(moved[:, 0]), np.sort(codebook[:, 0]))
    for token, number in zip(codes[:, 0], renamed[:, 0], strict=True):
        assert number == np.flatnonzero(moved[:, 0] == codebook[token, 0])[0]  # so encoding gives it
    unused = np.flatnonzero(~used)
    possible = any(
        all(
            number > numbers[token]
            for copy, number in zip(unused, dealt, strict=True)
            for token in np.flatnonzero(used & (group == group[copy]))
        )
        for dealt in permutations(numbers[unused].tolist())
    )
    if possible:
        np.testing.assert_array_equal(renamed[:, 0], numbers[codes[:, 0]])


def test_a_turned_space_keeps_its_codes() -> None:
    vectors, random = clustered(900, 20, 8, 4), np.random.default_rng(5)
    model = RQKMeans(3, 16, iterations=5).fit(vectors)
    turn, _ = np.linalg.qr(random.normal(size=(8, 8)))
    turned = (vectors @ turn).astype(np.float32)
    found = rotation(vectors[:300], turned[:300])
    assert found.error < 1e-10
    np.testing.assert_allclose(found.matrix, turn, atol=1e-5)
    assert changed(model.codes_, residual.encode(turned, found(model.codebooks_))) < 0.01
    assert rotation(vectors, random.normal(size=vectors.shape).astype(np.float32)).error > 0.5


def test_what_cannot_be_done_is_one_line() -> None:
    vectors = clustered(40, 4, 5, 6)
    with pytest.raises(BadVectors, match="4 vectors of dimension 5: too few"):
        rotation(vectors[:4], vectors[:4])
    with pytest.raises(BadVectors, match="same items in two spaces"):
        rotation(vectors, vectors[:, :4])
    with pytest.raises(BadVectors, match=r"needs two of \(n, 2\)"):
        match_tokens(np.zeros((3, 2), np.uint16), np.zeros((4, 2), np.uint16), [2, 2])
    books = RQKMeans(2, 4, iterations=2).fit(vectors).codebooks_
    with pytest.raises(ValueError, match=r"max_churn 1\.5: must be a share"):
        RQKMeans(2, 4, warm_start_codebooks=books, max_churn=1.5).fit(vectors)
    for unchanged in (np.ones(10, bool), np.ones(50, bool), np.arange(40), np.ones((40, 1), bool)):
        for model in (RQKMeans(2, 4, warm_start_codebooks=books, max_churn=0.1), RQKMeans(2, 4, warm_start_codebooks=books)):
            with pytest.raises(ValueError, match=r"unchanged: found shape .*; needs \(40,\) of bool"):
                model.fit(vectors, unchanged=unchanged)
    with pytest.raises(ValueError, match="max_churn 5: must be a share"):
        RQKMeans(2, 4, max_churn=5).fit(vectors)
    with pytest.raises(ValueError, match="max_churn and balance"):
        RQKMeans(2, 4, warm_start_codebooks=books, max_churn=0.1, balance=1.5).fit(vectors)
