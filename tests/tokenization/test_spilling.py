"""Where the items of over-full codes go, against a loop over items in plain Python."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import nearly_equal_lengths, square
from tokenization.collisions import over_cap
from tokenization.residual import encode, residual_norms
from tokenization.spilling import spill, spread
from tokenization.vectors import BadVectors

GRID = st.integers(-4, 4)
"""Small whole numbers, whose distances float64 has exactly: ties are real ties."""


@st.composite
def catalogues(draw):
    """Codebooks of 1 to 3 layers, and vectors of which many are equal, with unicode ids."""
    dim = draw(st.integers(1, 2))
    point = st.lists(GRID, min_size=dim, max_size=dim)
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    codebooks = [np.array(draw(st.lists(point, min_size=size, max_size=size)), np.float32) for size in sizes]
    ids = draw(st.lists(st.text("aé√𝔸漢", min_size=1, max_size=3), unique=True, max_size=24))
    vectors = np.array(draw(st.lists(point, min_size=len(ids), max_size=len(ids))), np.float32).reshape(-1, dim)
    kept = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return codebooks, ids, vectors, kept


def spread_by_hand(codebooks, ids, vectors, codes, cap, max_error, kept):
    last = codebooks[-1].astype(np.float64)
    left = vectors.astype(np.float64)
    for layer, codebook in enumerate(codebooks[:-1]):
        left = left - codebook[codes[:, layer]]
    norms = residual_norms(vectors, codes, codebooks)
    members = {}
    for row in sorted(range(len(ids)), key=lambda row: (not kept[row], norms[row], ids[row])):
        members.setdefault(tuple(codes[row]), []).append(row)
    leaving = [row for rows in members.values() for place, row in enumerate(rows) if place >= cap and not kept[row]]
    held = Counter(tuple(codes[row]) for row in range(len(ids)) if row not in leaving)
    found = [tuple(code) for code in codes.tolist()]
    for row in sorted(leaving, key=lambda row: (norms[row], ids[row])):
        prefix = found[row][:-1]
        squared = {token: ((left[row] - last[token]) ** 2).sum() for token in range(len(last)) if held[*prefix, token] < cap}
        if squared:
            token = min(squared, key=lambda token: (squared[token], token))
            own = ((left[row] - last[found[row][-1]]) ** 2).sum()
            if max_error is None or squared[token] <= (1 + max_error) ** 2 * own:
                found[row] = (*prefix, token)
                held[found[row]] += 1
    return found


@settings(max_examples=80, deadline=None)
@given(catalogues(), st.integers(1, 3), st.sampled_from([None, 0.0, 0.5, 3.0]), st.randoms(use_true_random=False))
def test_items_go_where_a_plain_loop_sends_them_in_any_order_of_rows(case, cap, max_error, random):
    codebooks, ids, vectors, kept = case
    order = random.sample(range(len(ids)), len(ids))
    ids, vectors, kept = [ids[row] for row in order], vectors[order], [kept[row] for row in order]
    codes = encode(vectors, codebooks) if ids else np.zeros((0, len(codebooks)), np.uint16)
    for row in range(len(ids)):  # what is kept need not be what encoding would give today
        if kept[row]:
            codes[row] = [random.randrange(len(codebook)) for codebook in codebooks]
    found = spread(vectors, codes, ids, codebooks, cap, max_error, kept)
    assert found.dtype == np.uint16
    assert [tuple(code) for code in found.tolist()] == spread_by_hand(codebooks, ids, vectors, codes, cap, max_error, kept)
    assert (found[:, :-1] == codes[:, :-1]).all()


def test_blocks_prefixes_and_parts_do_not_matter(monkeypatch):
    random = np.random.default_rng(0)
    codebooks = [random.standard_normal((size, 8)).astype(np.float32) for size in (3, 4, 16)]
    vectors = random.standard_normal((600, 8)).astype(np.float32)
    codes, ids = encode(vectors, codebooks), np.arange(600)
    whole = spread(vectors, codes, ids, codebooks, 2)
    assert over_cap(whole, 2) >= 600 - 2 * 3 * 4 * 16  # more items than the codes have room for
    monkeypatch.setattr("tokenization.spilling._BLOCK_SCORES", 50)
    assert (spread(vectors, codes, ids, codebooks, 2) == whole).all()
    for prefix in np.unique(codes[:, :-1], axis=0):
        here = (codes[:, :-1] == prefix).all(axis=1)
        assert (spread(vectors[here], codes[here], ids[here], codebooks, 2) == whole[here]).all()


def test_spreading_again_moves_nobody_and_new_items_move_alone():
    random = np.random.default_rng(1)
    codebooks = [random.standard_normal((size, 6)).astype(np.float32) for size in (4, 64)]
    vectors = random.standard_normal((260, 6)).astype(np.float32)
    ids, codes = np.arange(260), encode(vectors, codebooks)
    old = np.arange(260) < 200
    codes[old] = spread(vectors[old], codes[old], ids[old], codebooks, 1)
    first = spread(vectors, codes, ids, codebooks, 1, kept=old)
    assert (first[old] == codes[old]).all()
    assert (spread(vectors, first, ids, codebooks, 1, kept=np.ones(260, bool)) == first).all()


def test_a_repeated_centroid_takes_items_at_no_cost():
    codebook = np.array([[0.0], [5.0], [0.0]], np.float32)
    vectors = np.zeros((3, 1), np.float32)
    assert spread(vectors, encode(vectors, [codebook]), ["b", "a", "c"], [codebook], 1, max_error=0.0).tolist() == [[2], [0], [0]]


@pytest.mark.parametrize(("dim", "gap"), [(376, 20), (1024, 60), (4096, 250)])
def test_tokens_whose_squared_lengths_float64_cannot_tell_are_told_apart(dim, gap):
    """As encoding does: the smallest score may be that of a token which is not the nearest."""
    codebook = nearly_equal_lengths(dim, gap)
    codebook = np.concatenate([codebook, codebook[:1] * np.float32(1.01)])
    assert square(codebook[1]) < square(codebook[0])
    vector, own, full = np.zeros((1, dim + 8), np.float32), np.array([[2]]), np.array([[2]])
    assert spill(vector, own, ["a"], [1.0], [codebook], full, [1], cap=1).tolist() == [[1]]


def test_misuse_is_said():
    codebook = np.zeros((2, 1), np.float32)
    held = np.zeros((0, 1), int)
    with pytest.raises(BadVectors, match="1 codes for 2 vectors"):
        spill(np.zeros((2, 1)), [[0]], [1], [0.0], [codebook], held, [], 1)
    with pytest.raises(BadVectors, match="NaN"):
        spill(np.array([[np.nan]]), [[0]], [1], [0.0], [codebook], held, [], 1)
    with pytest.raises(BadVectors, match="must lie below"):
        spill(np.zeros((1, 1)), [[2]], [1], [0.0], [codebook], held, [], 1)
