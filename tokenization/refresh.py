"""A codebook refreshed from its previous version: tokens keep their meaning, and few unchanged items get another code.

A model that knows the old codes goes on from them, so a token is worth keeping even where a fresh training would put it
elsewhere. Three means, each for what the one before cannot reach (docs/decisions/refresh.md):

* *refine, and stop part of the way* (``refreshed``): all layers move together towards what fits the rows of today best under the
  codes that they have, as far as at most ``max_churn`` of the rows change. Clustering the first layer anew would move what
  every later layer stands on. Not to move at all is part of the way too, so the bound can always be kept;
* *match* (``match_tokens``): after a training from scratch, tokens are renumbered so that as many rows as possible keep theirs;
* *turn* (``rotation``): vectors of a retrained fusion model lie in a space turned against the previous one. Distances, and so
  codes, are what they were once the codebooks are turned too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from tokenization.lloyd import Callback, Iteration
from tokenization.refinement import Encoded, Refined, encoded, filled, refitted
from tokenization.residual import Codes
from tokenization.vector_source import VectorSource
from tokenization.vectors import BadVectors, FloatArray, device_of, scaled

STEPS_BACK = 5
"""Halvings of the way: each encodes all rows once, and the last one finds the way to 3 %."""
DENSE_SIZE = 8192
"""Tokens of a layer up to which all pairs of tokens are laid out, in at most 512 MiB; of more, only those that rows have."""


@dataclass(frozen=True)
class Refresh:
    """A refreshed fit. ``churn``: the share of the judged rows whose code is not the one that the previous codebooks give them;
    ``layer_churn``: by layer the share whose token is not. ``share`` of the way from the previous codebooks was gone."""

    fitted: Refined
    churn: float
    layer_churn: list[float]
    share: float


def refreshed(
    source: VectorSource,
    previous: Sequence[FloatArray],
    max_churn: float,
    unchanged: npt.NDArray[np.bool_] | None = None,
    callback: Callback | None = None,
) -> Refresh:
    """``previous`` codebooks moved towards those that fit the rows best, under the codes that ``previous`` gives them
    (``refinement.refitted``): of the parts of the way that were tried the one of least error, while at most ``max_churn`` of the
    ``unchanged`` rows (bool (n,); None: of all) get another code, and no layer uses fewer tokens than before.

    Tokens that no row has go where rows are represented badly, as in a training; should already that change too many codes, the
    answer is ``previous`` itself. The callback hears of each part of the way as of an iteration of layer 0. Raises ValueError
    for a share outside 0 to 1, or ``unchanged`` of another shape or type.
    """
    check_bounds(source.n, max_churn, unchanged)
    unit = scaled(source, source.extent().checked())
    start = encoded(source, unit, list(previous))
    whole, _ = filled(source, unit, start)
    target = refitted(whole.codebooks, whole.codes, whole.totals(unit), device_of(source))
    used = [layer.counts > 0 for layer in start.sums.layers]
    best, low, high, share = judged(start.codes, start, unchanged, 0.0), 0.0, 1.0, 1.0
    for number in range(1, 2 + STEPS_BACK):
        clock = time.perf_counter()
        candidate = encoded(source, unit, _between(previous, target, used, share))
        found = judged(start.codes, candidate, unchanged, share)
        if callback:
            callback(Iteration(0, number, 1 + STEPS_BACK, found.fitted.inertia[-1], 0, time.perf_counter() - clock))
        if found.churn > max_churn or candidate.lost(start):
            high = share
        else:
            low = share
            best = found if found.fitted.inertia[-1] < best.fitted.inertia[-1] else best
        share = (low + high) / 2
        if low == 1:
            break
    return best


def check_bounds(n: int, max_churn: float | None, unchanged: Any) -> None:
    """Raise ValueError unless ``max_churn`` is a share, and ``unchanged`` bool (n,); either may be None."""
    if max_churn is not None and not 0 <= max_churn <= 1:
        raise ValueError(f"max_churn {max_churn}: must be a share, from 0 to 1")
    if unchanged is not None and (np.shape(unchanged) != (n,) or np.asarray(unchanged).dtype != np.bool_):
        found = f"shape {np.shape(unchanged)} of {np.asarray(unchanged).dtype}"
        raise ValueError(f"unchanged: found {found}; needs ({n},) of bool, one for each row")


def judged(before: Codes, found: Encoded | Refined, unchanged: npt.NDArray[np.bool_] | None, share: float = 1.0) -> Refresh:
    """What became of the codes ``before`` (n, layers) of ``unchanged`` rows."""
    rows = slice(None) if unchanged is None else np.flatnonzero(unchanged)
    differs = before[rows] != found.codes[rows]
    whole = float(differs.any(axis=1).mean()) if len(differs) else 0.0
    layers = differs.mean(axis=0).tolist() if len(differs) else [0.0] * before.shape[1]
    epochs = found.epochs if isinstance(found, Refined) else 1
    return Refresh(Refined(found.codebooks, found.codes, found.inertia, epochs), whole, layers, share)


def _between(
    previous: Sequence[FloatArray], target: Sequence[FloatArray], used: Sequence[npt.NDArray[np.bool_]], share: float
) -> list[FloatArray]:
    """Codebooks ``share`` of the way from ``previous`` to ``target``; unused tokens all of it."""
    return [
        np.where(has_rows[:, None], before + np.float32(share) * (after - before), after)
        for before, after, has_rows in zip(previous, target, used, strict=True)
    ]


def match_tokens(before: Codes, after: Codes, sizes: Sequence[int]) -> list[npt.NDArray[np.uint16]]:
    """New numbers of the tokens of ``after``, uint16 (size,) a layer, under which most rows keep their token of ``before``.

    Codes (n, layers) of the same rows. An assignment problem a layer, solved exactly (Jonker and Volgenant's algorithm, of
    scipy): up to DENSE_SIZE tokens over all pairs of them, memory 8 · size² bytes, time up to size³; above over the pairs that
    rows have, memory of the order of n + size, time up to size · (n + size). Which of several equally good numberings is found
    may differ between the two. Raises BadVectors for codes of different shapes.
    """
    if before.shape != after.shape or before.shape[1] != len(sizes):
        raise BadVectors(f"codes of shapes {before.shape} and {after.shape}: needs two of (n, {len(sizes)})")
    numbers = []
    for layer, size in enumerate(sizes):
        pairs, rows = np.unique(after[:, layer].astype(np.int64) * size + before[:, layer], return_counts=True)
        matched = _matched_over_all if size <= DENSE_SIZE else _matched_over_pairs
        numbers.append(matched(pairs, rows, size).astype(np.uint16))
    return numbers


def _matched_over_all(pairs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.integer[Any]]:
    """New numbers (size,) of tokens, given the distinct ``pairs`` (new · size + old) and how many ``rows`` have each."""
    cost = np.zeros((size, size))
    cost.flat[pairs] = -rows
    found: npt.NDArray[np.integer[Any]] = linear_sum_assignment(cost)[1]
    return found


def _matched_over_pairs(pairs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.integer[Any]]:
    """The same without the pairs that no row has; tokens that keep no row get the numbers that are left, in order."""
    new, old = np.divmod(pairs, size)
    tokens = np.arange(size)
    # Beside the numbers each token has a place of its own that keeps no row, so that a matching of all tokens exists. Every one
    # of them has one edge, so a row more on each edge changes no choice; an edge of weight 0 would be none.
    weights = np.concatenate([rows + 1, np.ones(size)])
    edges = csr_matrix((weights, (np.append(new, tokens), np.append(old, size + tokens))), shape=(size, 2 * size))
    token, number = min_weight_full_bipartite_matching(edges, maximize=True)
    numbers = np.empty(size, np.int64)
    numbers[token] = number
    numbers[numbers >= size] = np.setdiff1d(tokens, numbers)
    return numbers


def renumbered(
    codebooks: Sequence[FloatArray], codes: Codes, numbers: Sequence[npt.NDArray[np.uint16]]
) -> tuple[list[FloatArray], Codes]:
    """Codebooks and codes (n, layers) with token t of layer l called ``numbers[l][t]``; they decode to the same vectors.

    Of equal centroids the first is the only one that rows have, and must stay the first. Tokens without rows exchange their
    numbers so that copies of a used one come after it; where too few are left for that, the used one takes that of a copy.
    """
    moved = [np.empty_like(codebook) for codebook in codebooks]
    renamed = np.empty_like(codes)
    for layer, told in enumerate(numbers):
        used = np.bincount(codes[:, layer], minlength=len(told)) > 0
        number = _in_order_where_equal(codebooks[layer], used, told)
        moved[layer][number] = codebooks[layer]
        renamed[:, layer] = number[codes[:, layer]]
    return moved, renamed


def _in_order_where_equal(
    codebook: FloatArray, used: npt.NDArray[np.bool_], numbers: npt.NDArray[np.uint16]
) -> npt.NDArray[np.uint16]:
    """The same numbers (size,), ascending within each set of equal centroids (size, dim); those of ``used`` tokens (size,) stay
    where that is possible."""
    group = np.unique(codebook + np.float32(0), axis=0, return_inverse=True)[1].reshape(-1)
    above = np.full(len(codebook), -1, np.int64)  # what the number of a copy must exceed, by group
    above[group[used]] = numbers[used]
    unused = np.flatnonzero(~used)
    dealt = numbers.copy()
    dealt[unused[np.argsort(above[group[unused]], kind="stable")]] = np.sort(numbers[unused])
    ordered = np.empty_like(numbers)
    ordered[np.argsort(group, kind="stable")] = dealt[np.lexsort([dealt, group])]
    return ordered


@dataclass(frozen=True)
class Rotation:
    """``matrix`` float64 (dim, dim), orthogonal: previous vectors times it lie as near the new ones as they can. ``error``: what
    that leaves, as a share of the new vectors' squared norm (0: the space was only turned)."""

    matrix: npt.NDArray[np.float64]
    error: float

    def __call__(self, codebooks: Sequence[FloatArray]) -> list[FloatArray]:
        """Codebooks (size, dim) of the previous space in the new one."""
        return [(codebook.astype(np.float64) @ self.matrix).astype(np.float32) for codebook in codebooks]


def rotation(before: FloatArray, after: FloatArray) -> Rotation:
    """The turn (reflections allowed) from ``before`` to ``after``: vectors (n, dim) of the same items in two spaces, around the
    origin (Schönemann 1966, the orthogonal Procrustes problem).

    Raises BadVectors for arrays of different shapes, or fewer rows than dimensions, which leave the turn undetermined.
    """
    if before.shape != after.shape or before.ndim != 2:
        raise BadVectors(f"vectors of shapes {before.shape} and {after.shape}: needs the same items in two spaces")
    if len(before) < before.shape[1]:
        raise BadVectors(f"{len(before)} vectors of dimension {before.shape[1]}: too few to tell how the space was turned")
    old, new = before.astype(np.float64), after.astype(np.float64)
    matrix, _ = orthogonal_procrustes(old, new)
    norm = float((new**2).sum())
    return Rotation(matrix, float(((old @ matrix - new) ** 2).sum()) / norm if norm else 0.0)
