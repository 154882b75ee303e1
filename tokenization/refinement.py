"""Joint refinement of residual codebooks: what layer-by-layer training cannot see, each layer fitted to what all others leave.

Epoch: (a) encode every row greedily, (b) with these codes fixed, move each layer's centroids to their members' mean of
x − Σ other layers' centroids. (b) is coordinate descent on a least-squares problem: it never raises the error of the fixed
codes. (a) may, since greedy codes are not the best codes; so every epoch is judged by the error of its own greedy codes,
which are what serving uses, and the best epoch wins. The gain comes out of the last layers: the first layer's own error
rises a little, and so do later layers' entropies fall.

(b) needs of the rows only the sums a token, taken while encoding, and how often two tokens meet: one read of the rows an
epoch, whatever their number, sums in float64.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from tokenization.assignment import Backend, NearestCentroid
from tokenization.kmeans import Callback, Iteration
from tokenization.residual import Codes
from tokenization.vectors import FloatArray, Rows, blocks, check_finite

SWEEPS = 1
"""Times that (b) goes over the layers; more of them gained nothing on real or clustered vectors."""
_REPAIR_ROUNDS = 5
_PATIENCE = 3
"""A first epoch may well cost what the next ones win back: its greedy codes were not made for the moved centroids."""


@dataclass(frozen=True)
class Refined:
    """Codebooks (float32, one (size, dim) a layer), their greedy codes (n, layers), the sum of squared residuals after each
    layer, and how many epochs ran (the codebooks may come from an earlier one)."""

    codebooks: list[FloatArray]
    codes: Codes
    inertia: list[float]
    epochs: int


def refine(
    rows: Rows,
    codebooks: Sequence[FloatArray],
    epochs: int,
    *,
    tolerance: float = 1e-3,
    backend: Backend = "auto",
    n_threads: int | None = None,
    callback: Callback | None = None,
) -> Refined:
    """Refine for at most ``epochs``; stop once three of them together lower the least error by a share of at most ``tolerance``.

    Never worse than it started: neither the error after the last layer, nor the number of tokens in use on any layer. Tokens
    without rows move to where rows are represented badly, also those that the codebooks came with. The callback hears of each
    epoch as of an iteration of layer 0, with the error of its greedy codes.
    """
    start, _ = _filled(rows, _encoded(rows, list(codebooks), backend, n_threads), backend, n_threads)
    current = best = start
    ran, idle = 0, 0
    for epoch in range(1, epochs + 1):
        clock = time.perf_counter()
        moved = _encoded(rows, refitted(current.codebooks, current.codes, current.sums), backend, n_threads)
        current, repaired = _filled(rows, moved, backend, n_threads)
        ran = epoch
        if callback:
            callback(Iteration(0, epoch, epochs, current.inertia[-1], repaired, time.perf_counter() - clock))
        better = not current.lost(start) and current.inertia[-1] < best.inertia[-1]
        idle = 0 if better and best.inertia[-1] - current.inertia[-1] > tolerance * best.inertia[-1] else idle + 1
        best = current if better else best
        if idle == _PATIENCE:
            break
    return Refined(best.codebooks, best.codes, best.inertia, ran)


def refitted(codebooks: Sequence[FloatArray], codes: Codes, sums: Sequence[npt.NDArray[np.float64]]) -> list[FloatArray]:
    """(b): codebooks moved, layer after layer, to the best for ``codes`` (n, layers) given the other layers.

    ``sums``: float64 (size, dim) a layer, the sum of the rows x that have each token. Tokens without rows stay.
    """
    wide = [codebook.astype(np.float64) for codebook in codebooks]
    counts = [np.bincount(codes[:, layer], minlength=len(codebook)) for layer, codebook in enumerate(codebooks)]
    for _ in range(SWEEPS):
        for layer, count in enumerate(counts):
            total = sums[layer].copy()
            for other in range(len(wide)):
                if other != layer:
                    total -= _meetings(codes, layer, other, len(count), len(wide[other])) @ wide[other]
            used = count > 0
            wide[layer][used] = total[used] / count[used, None]
    return [codebook.astype(np.float32) for codebook in wide]


def _meetings(codes: Codes, layer: int, other: int, size: int, other_size: int) -> csr_matrix:
    """How many rows have each pair of tokens, (size, other_size)."""
    ones = np.ones(len(codes))
    return csr_matrix((ones, (codes[:, layer].astype(np.int32), codes[:, other].astype(np.int32))), shape=(size, other_size))


@dataclass(frozen=True)
class _Encoded:
    """Codebooks with what one read of the rows says of them."""

    codebooks: list[FloatArray]
    codes: Codes
    inertia: list[float]
    distances: npt.NDArray[np.float64]
    sums: list[npt.NDArray[np.float64]]
    used: list[int]

    def empty(self) -> int:
        """Tokens without rows, of all layers."""
        return sum(len(codebook) - used for codebook, used in zip(self.codebooks, self.used, strict=True))

    def lost(self, other: "_Encoded") -> bool:
        """Whether some layer uses fewer tokens than ``other``'s."""
        return any(one < before for one, before in zip(self.used, other.used, strict=True))


def _encoded(rows: Rows, codebooks: list[FloatArray], backend: Backend, n_threads: int | None) -> _Encoded:
    """Greedy codes, as ``residual.encode`` gives them, with errors and sums."""
    layers = [NearestCentroid(codebook, backend, n_threads) for codebook in codebooks]
    codes = np.empty((rows.n, len(layers)), np.uint16)
    inertia, distances = np.zeros(len(layers)), np.zeros(rows.n)
    sums = [np.zeros(codebook.shape) for codebook in codebooks]
    for start, stop, block in blocks(rows):
        check_finite(block, start)
        residual, wide = block.copy(), block.astype(np.float64)
        place = np.arange(len(block) + 1)
        for layer, nearest in enumerate(layers):
            tokens, squared = nearest(residual)
            codes[start:stop, layer] = tokens
            inertia[layer] += squared.sum()
            residual -= nearest.centroids[tokens]
            shape = (len(block), len(nearest.centroids))
            sums[layer] += csr_matrix((np.ones(len(block)), tokens, place), shape=shape).T @ wide
        distances[start:stop] = squared
    used = [len(np.unique(codes[:, layer])) for layer in range(len(layers))]
    return _Encoded(codebooks, codes, inertia.tolist(), distances, sums, used)


def _filled(rows: Rows, found: _Encoded, backend: Backend, n_threads: int | None) -> tuple[_Encoded, int]:
    """The same with tokens without rows filled, as far as some rounds and the rows' variety allow; and how many were moved."""
    moved = 0
    for _ in range(_REPAIR_ROUNDS):
        worst = np.argsort(-found.distances, kind="stable")[: found.empty()]
        worst = worst[found.distances[worst] > 0]
        if not len(worst):
            break
        moved += len(worst)
        found = _encoded(rows, _repaired(rows, found, worst), backend, n_threads)
    return found, moved


def _repaired(rows: Rows, found: _Encoded, worst: npt.NDArray[np.int64]) -> list[FloatArray]:
    """Codebooks with each token that has no rows put where one of the ``worst`` rows lies, the first layer's first."""
    codebooks = [codebook.copy() for codebook in found.codebooks]
    taken = 0
    for layer, codebook in enumerate(codebooks):
        empty = np.flatnonzero(np.bincount(found.codes[:, layer], minlength=len(codebook)) == 0)
        chosen = worst[taken : taken + len(empty)]
        residual = rows.take(chosen).copy()
        for before in range(layer):
            residual -= found.codebooks[before][found.codes[chosen, before]]
        codebook[empty[: len(chosen)]] = residual
        taken += len(chosen)
    return codebooks
