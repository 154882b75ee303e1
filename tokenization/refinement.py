"""Joint refinement of residual codebooks: what layer-by-layer training cannot see, each layer fitted to what all others leave.

Epoch: (a) encode every row greedily, (b) with these codes fixed, move each layer's centroids to their members' mean of
x − Σ other layers' centroids. (b) is coordinate descent on a least-squares problem: it never raises the error of the fixed
codes. (a) may, since greedy codes are not the best codes; so every epoch is judged by the error of its own greedy codes,
which are what serving uses, and the best epoch wins. The gain comes out of the last layers: the first layer's own error
rises a little, and so do later layers' entropies fall.

(b) needs of the rows only the sums a token, taken while encoding, and how often two tokens meet: one read of the rows an
epoch, whatever their number. The sums are exact (``tokenization.lloyd``).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from tokenization.lloyd import Callback, Iteration
from tokenization.residual import Codes
from tokenization.vector_source import CodedSums, VectorSource
from tokenization.vectors import FloatArray, ScaledRows, scaled

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
    source: VectorSource,
    codebooks: Sequence[FloatArray],
    epochs: int,
    *,
    tolerance: float = 1e-3,
    callback: Callback | None = None,
) -> Refined:
    """Refine for at most ``epochs``; stop once three of them together lower the least error by a share of at most ``tolerance``.

    Never worse than it started: neither the error after the last layer, nor the number of tokens in use on any layer. Tokens
    without rows move to where rows are represented badly, also those that the codebooks came with. The callback hears of each
    epoch as of an iteration of layer 0, with the error of its greedy codes.
    """
    unit = scaled(source, source.extent())
    start, _ = filled(source, unit, encoded(source, unit, list(codebooks)))
    current = best = start
    ran, idle = 0, 0
    for epoch in range(1, epochs + 1):
        clock = time.perf_counter()
        moved = encoded(source, unit, refitted(current.codebooks, current.codes, current.totals(unit)))
        current, repaired = filled(source, unit, moved)
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
class Encoded:
    """Codebooks with what one read of the rows says of them."""

    codebooks: list[FloatArray]
    codes: Codes
    sums: CodedSums

    @property
    def inertia(self) -> list[float]:
        """Sum of squared residuals after each layer."""
        return [layer.distance for layer in self.sums.layers]

    @property
    def used(self) -> list[int]:
        """Tokens with rows, by layer."""
        return [int((layer.counts > 0).sum()) for layer in self.sums.layers]

    def totals(self, unit: ScaledRows) -> list[npt.NDArray[np.float64]]:
        """Sums (size, dim) of the rows by token, in their own units."""
        shift = unit.shift.astype(np.float64)
        return [
            (layer.sums.astype(np.float64) * 2.0**-layer.bits + layer.counts[:, None] * shift) / unit.scale
            for layer in self.sums.layers
        ]

    def empty(self) -> int:
        """Tokens without rows, of all layers."""
        return sum(len(codebook) - used for codebook, used in zip(self.codebooks, self.used, strict=True))

    def lost(self, other: "Encoded") -> bool:
        """Whether some layer uses fewer tokens than ``other``'s."""
        return any(one < before for one, before in zip(self.used, other.used, strict=True))


def encoded(source: VectorSource, unit: ScaledRows, codebooks: list[FloatArray]) -> Encoded:
    sums, codes = source.encode(unit, codebooks)
    return Encoded(codebooks, codes, sums)


def filled(source: VectorSource, unit: ScaledRows, found: Encoded) -> tuple[Encoded, int]:
    """The same with tokens without rows filled, as far as some rounds and the rows' variety allow; and how many were moved."""
    moved = 0
    for _ in range(_REPAIR_ROUNDS):
        worst = found.sums.layers[-1].worst_rows[: found.empty()]
        if not len(worst):
            break
        moved += len(worst)
        found = encoded(source, unit, _repaired(source, found, worst))
    return found, moved


def _repaired(rows: VectorSource, found: Encoded, worst: npt.NDArray[np.int64]) -> list[FloatArray]:
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
