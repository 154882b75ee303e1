"""Joint refinement of residual codebooks: what layer-by-layer training cannot see, each layer fitted to what all others leave.

Epoch: (a) move each layer's centroids towards their members' mean of x − Σ other layers' centroids, the codes fixed; (b) encode
every row greedily. (a) is coordinate descent on a least-squares problem: it never raises the error of the fixed codes. (b) may,
since greedy codes are not the best codes; so codebooks are judged by the error of greedy codes, which are what serving uses, and
the best epoch wins. Two means make the epochs find better codebooks than plain ones do (docs/decisions/refinement.md):

* *over-relaxation*: (a) goes further than the means. The layers' problems hang together, so single steps are short;
* *evenness*: a token costs something where it has more than its share of the rows (the slope of Σ n log n), so that crowded
  tokens are split among neighbours. All rows answer it at once, so a cost that came suddenly would make crowds move to and fro:
  it rises while the codebooks get used to it, and falls to nothing at the last epoch.

(a) needs of the rows only the sums a token, taken while encoding, and how often two tokens meet: one read of the rows an
epoch, whatever their number. The sums are exact (``tokenization.lloyd``).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from tokenization.lloyd import Callback, Iteration
from tokenization.residual import Codes, left_by
from tokenization.vector_source import CodedSums, VectorSource
from tokenization.vectors import FloatArray, ScaledRows, device_of, scaled

SWEEPS = 1
"""Times that (a) goes over the layers; more of them gained nothing on real or clustered vectors."""
_REPAIR_ROUNDS = 5
_PATIENCE = 3
"""Epochs without a charge that may pass without a gain. A first one may well cost what the next ones win back: its greedy codes
were not made for the moved centroids."""
_REMEMBERED = 0.5
"""Share of the previous epochs in the counts that tokens are charged by; without a memory crowds move to and fro."""


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
    evenness: float = 0.0,
    relaxation: float = 1.0,
    tolerance: float = 1e-3,
    callback: Callback | None = None,
) -> Refined:
    """Refine for ``epochs``; without ``relaxation``, stop once _PATIENCE in a row lower the least error by a share of at most
    ``tolerance`` each.

    ``evenness``: a token with e times its share of the rows costs ``charge_of(epoch, epochs, evenness)`` · log e, in mean errors
    of its layer. The last epoch is without; where it is no better than the start, or loses tokens, up to _PATIENCE more such
    ones follow. ``relaxation``: how many times as far as the means centroids go, in every epoch before the last.

    First of all tokens without rows move to where rows are represented badly. Never worse than that start: neither the error
    after the last layer, nor the number of tokens in use on any layer. The callback hears of each epoch as of an iteration of
    layer 0, with the error of its codes; charged ones are not those that encoding gives (``Iteration.greedy``).
    """
    unit = scaled(source, source.extent().checked())
    start, _ = filled(source, unit, encoded(source, unit, list(codebooks)))
    current = best = start
    crowds = [layer.counts.astype(np.float64) for layer in start.sums.layers]
    ran, idle, repaired = 0, 0, 0
    more = _PATIENCE if evenness and epochs > 1 else 0
    for epoch in range(1, epochs + more + 1):
        if epoch > epochs and best is not start:
            break
        clock = time.perf_counter()
        strength = charge_of(epoch, epochs, evenness)
        target = refitted(current.codebooks, current.codes, current.totals(unit), device_of(source))
        moved = target if epoch >= epochs else _relaxed(current.codebooks, target, relaxation)
        if strength:
            current = encoded(source, unit, moved, current.charges(crowds, strength))
            crowds = [
                _REMEMBERED * crowd + (1 - _REMEMBERED) * layer.counts
                for crowd, layer in zip(crowds, current.sums.layers, strict=True)
            ]
        else:
            current, repaired = filled(source, unit, encoded(source, unit, moved))
            better = not current.lost(start) and current.inertia[-1] < best.inertia[-1]
            idle = 0 if better and best.inertia[-1] - current.inertia[-1] > tolerance * best.inertia[-1] else idle + 1
            best = current if better else best
        ran = epoch
        if callback:
            seconds = time.perf_counter() - clock
            callback(Iteration(0, epoch, max(epoch, epochs), current.inertia[-1], repaired, seconds, greedy=not strength))
        if idle == _PATIENCE and relaxation == 1 and epoch < epochs:  # longer steps may well be judged only by where they end
            break
    return Refined(best.codebooks, best.codes, best.inertia, ran)


def charge_of(epoch: int, epochs: int, evenness: float) -> float:
    """The charge's strength in an epoch (from 1): ``evenness`` times what rises to 1 through the first half of the epochs, times
    what falls from 1 to 0 at the last; half of ``evenness``, at most."""
    return evenness * min(1.0, 2 * epoch / (epochs + 1)) * (1 - epoch / epochs) if epoch < epochs else 0.0


def _relaxed(before: Sequence[FloatArray], target: Sequence[FloatArray], relaxation: float) -> list[FloatArray]:
    factor, moved = np.float32(relaxation), []
    for old, new in zip(before, target, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            far = old + factor * (new - old)
        moved.append(np.where(np.isfinite(far), far, new))  # near the end of float32's range
    return moved


def refitted(
    codebooks: Sequence[FloatArray], codes: Codes, sums: Sequence[npt.NDArray[np.float64]], device: str | None = None
) -> list[FloatArray]:
    """(a): codebooks moved, layer after layer, to the best for ``codes`` (n, layers) given the other layers.

    ``sums``: float64 (size, dim) a layer, the sum of the rows x that have each token. Tokens without rows stay. On a ``device``
    the other layers' centroids are added up row by row, here by how often two tokens meet: the same up to float64's rounding.
    """
    wide = [codebook.astype(np.float64) for codebook in codebooks]
    others = _others_on(device, codes) if device else _others_here(codes)
    counts = [np.bincount(codes[:, layer], minlength=len(codebook)) for layer, codebook in enumerate(codebooks)]
    for _ in range(SWEEPS):
        for layer, count in enumerate(counts):
            total = sums[layer].copy()
            for added in others(layer, wide):
                total -= added
            used = count > 0
            wide[layer][used] = total[used] / count[used, None]
    return [codebook.astype(np.float32) for codebook in wide]


_Others = Callable[[int, Sequence[npt.NDArray[np.float64]]], Iterable[npt.NDArray[np.float64]]]
"""Of a layer and all codebooks: sums (size, dim), by the layer's tokens, of the centroids that rows have on other layers."""


def _others_here(codes: Codes) -> _Others:
    def sums(layer: int, wide: Sequence[npt.NDArray[np.float64]]) -> Iterator[npt.NDArray[np.float64]]:
        for other in range(len(wide)):
            if other != layer:
                yield _meetings(codes, layer, other, len(wide[layer]), len(wide[other])) @ wide[other]

    return sums


def _others_on(device: str, codes: Codes) -> _Others:
    import torch

    from tokenization.device_sums import token_sums

    there = torch.from_numpy(codes.astype(np.int64)).to(device)
    return lambda layer, wide: [token_sums(there, layer, wide)]


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

    def charges(self, crowds: Sequence[npt.NDArray[np.float64]], strength: float) -> list[npt.NDArray[np.float64]]:
        """What each token costs (size,) a layer, at ``crowds`` rows a token: ``strength`` times the layer's mean error times the
        logarithm of how many times its share a token has."""
        n = len(self.codes)
        return [
            strength * error / n * np.log((crowd + 1) * (len(crowd) / n))
            for error, crowd in zip(self.inertia, crowds, strict=True)
        ]

    def empty(self) -> int:
        """Tokens without rows, of all layers."""
        return sum(len(codebook) - used for codebook, used in zip(self.codebooks, self.used, strict=True))

    def lost(self, other: "Encoded") -> bool:
        """Whether some layer uses fewer tokens than ``other``'s."""
        return any(one < before for one, before in zip(self.used, other.used, strict=True))


def encoded(
    source: VectorSource,
    unit: ScaledRows,
    codebooks: list[FloatArray],
    charges: Sequence[npt.NDArray[np.float64]] | None = None,
) -> Encoded:
    """One read of the rows; with ``charges``, their codes are greedy in distance and charge together."""
    sums, codes = source.encode(unit, codebooks, charges)
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
        codebook[empty[: len(chosen)]] = left_by(rows.take(chosen), found.codes[chosen], found.codebooks[:layer])
        taken += len(chosen)
    return codebooks
