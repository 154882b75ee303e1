"""Which centroids may be a row's nearest: float32 or 8-bit products, scanned tile by tile, each with a bound on its error.

Every finder gives a superset of the nearest centroids; ``tokenization.assignment`` decides among them in float64. So all
finders lead to the same labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenization.nearest_kernels import INTEGER_RANGE, MAX_CANDIDATES, OVERFULL, quantise_rows, scan_float32, scan_int8
from tokenization.vectors import FloatArray

ROWS = 512
"""Rows of a block: with a tile of centroids its scores fit a core's cache."""
TILE = 1024
"""Centroids a tile."""
_MOST_LISTED = 8
"""Candidates that a library's own top-k is asked for."""
_UNIT = float(np.finfo(np.float32).eps) / 2


@dataclass(frozen=True)
class Candidates:
    """For each row ``counts`` (n,) candidates (OVERFULL: too many to keep), their indices ``kept`` and lower bounds ``scores``
    (n, most), of which those up to ``limits`` (n,) count."""

    kept: npt.NDArray[np.int32]
    scores: FloatArray
    counts: npt.NDArray[np.int32]
    limits: FloatArray


class Finder(Protocol):
    """Finds candidates; safe to call from several threads, each with at most ``rows`` rows."""

    rows: int

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64]) -> Candidates:
        """Candidates of rows (n, dim) whose norms are ``norms`` (n,)."""
        ...


class Float32Finder:
    """Scores by float32 products of NumPy's BLAS. ``centroids`` (k, dim) float32, ``squares`` (k,) their squared norms."""

    rows = ROWS

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        self._transposed = centroids.T
        self._squares = squares.astype(np.float32)
        self._largest = float(np.sqrt(squares.max()))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64]) -> Candidates:
        """See Finder."""
        unit = _integer_unit(2 * float(norms.max()) * self._largest + self._largest**2)
        found = _Found(len(block), _cut(_float32_slack(block.shape[1], norms, self._largest), unit))
        for start in range(0, len(self._squares), TILE):
            products = block @ self._transposed[:, start : start + TILE]
            scan_float32(products, self._squares, start, unit, *(found.slack, found.best, found.kept, found.scores, found.counts))
        return found.candidates()


class Int8Finder:
    """Scores by 8-bit integer products of PyTorch (VNNI, AMX), each row and centroid with a scale of its own."""

    rows = ROWS

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import torch

        codes, scales, errors, lengths = quantised(centroids)
        self._codes = torch.from_numpy(codes).T
        self._squares = squares.astype(np.float32)
        self._scales = scales
        self._errors, self._lengths = errors, lengths
        self._largest = float(max(np.sqrt(squares.max()), lengths.max()))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64]) -> Candidates:
        """See Finder."""
        import torch

        codes, scales, errors, _ = quantised(block)
        # What float32 rounds while a score and its bound are put together, a few operations on values of at most this size.
        size = 4 * (norms + errors) * self._largest + self._largest**2
        unit = _integer_unit(float(size.max()))
        found = _Found(len(block), _cut(_up(32 * _UNIT * size), unit))
        rows = (np.float32(2) * scales, _up(2 * errors), _up(2 * norms))
        narrow = torch.from_numpy(codes)
        for start in range(0, len(self._squares), TILE):
            tile = slice(start, start + TILE)
            scan_int8(
                torch._int_mm(narrow, self._codes[:, tile]).numpy(),
                *(self._squares, self._scales, self._lengths[tile].max(), self._errors[tile].max()),
                *(start, unit),
                *rows,
                *(found.slack, found.best, found.kept, found.scores, found.counts),
            )
        return found.candidates()


class TorchFinder:
    """Scores by float32 products of PyTorch."""

    rows = ROWS

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import torch

        self._transposed = torch.from_numpy(centroids).T
        self._squares = torch.from_numpy(squares.astype(np.float32))
        self._largest = float(np.sqrt(squares.max()))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64]) -> Candidates:
        """See Finder."""
        import torch

        slack = _float32_slack(block.shape[1], norms, self._largest)
        scores = torch.addmm(self._squares, torch.from_numpy(block), self._transposed, alpha=-2)
        most = min(_MOST_LISTED, scores.shape[1])
        values, places = scores.topk(most, dim=1, largest=False, sorted=True)
        return _listed(values.numpy(), places.numpy(), scores.shape[1], slack)


class FaissFinder:
    """Scores by faiss's flat index."""

    rows = ROWS

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import faiss

        self._index = faiss.IndexFlatL2(centroids.shape[1])
        self._index.add(centroids)
        self._largest = float(np.sqrt(squares.max()))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64]) -> Candidates:
        """See Finder."""
        # faiss adds |x|² too, which costs more rounding.
        slack = _float32_slack(block.shape[1], norms, self._largest, norms**2)
        most = min(_MOST_LISTED, self._index.ntotal)
        values, places = self._index.search(block, most)
        return _listed(values, places, self._index.ntotal, slack)


def _float32_slack(
    dim: int, norms: npt.NDArray[np.float64], largest: float, added: npt.NDArray[np.float64] | float = 0.0
) -> FloatArray:
    """How far apart two float32 scores |c|² − 2 x·c may lie whose true order is the other one.

    |error of a score| ≤ u (2 (dim + 2) |x| |c| + 3 |c|²) for any order of summation; a difference of two doubles it. A scan
    computes a score twice, perhaps fused differently, and once as an integer: the 6 in place of 2 allows for that. ``added`` is
    what else is summed.
    """
    return _up(6 * _UNIT * (2 * (dim + 2) * norms * largest + (dim + 3) * (largest**2 * (3 / (dim + 3)) + added)))


def _listed(values: FloatArray, places: npt.NDArray[Any], among: int, slack: FloatArray) -> Candidates:
    """Candidates of sorted lists (n, most) of a row's smallest scores; a list that may go on past its end is overfull."""
    most = values.shape[1]
    limits = values[:, 0] + slack
    counts = (values <= limits[:, None]).sum(axis=1).astype(np.int32)
    if most < among:
        counts[counts == most] = OVERFULL
    return Candidates(places.astype(np.int32), values, counts, limits)


class _Found:
    def __init__(self, rows: int, slack: FloatArray) -> None:
        self.slack = slack
        self.best = np.full(rows, np.inf, np.float32)
        self.kept = np.empty((rows, MAX_CANDIDATES), np.int32)
        self.scores = np.empty((rows, MAX_CANDIDATES), np.float32)
        self.counts = np.zeros(rows, np.int32)

    def candidates(self) -> Candidates:
        return Candidates(self.kept, self.scores, self.counts, self.best + self.slack)


def quantised(
    matrix: FloatArray,
) -> tuple[npt.NDArray[np.int8], FloatArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows as 8-bit codes (n, dim) times a scale (n,); the norms (n,) of what that leaves of a row, and of what it is."""
    codes = np.empty(matrix.shape, np.int8)
    scales = np.empty(len(matrix), np.float32)
    errors, lengths = np.empty(len(matrix)), np.empty(len(matrix))
    quantise_rows(matrix, codes, scales, errors, lengths)
    return codes, scales, errors, lengths


def _integer_unit(largest: float) -> np.float32:
    """Scores up to ``largest`` times this stay inside INTEGER_RANGE."""
    return np.float32(INTEGER_RANGE / largest) if largest > 0 else np.float32(1)


def _cut(slack: FloatArray, unit: np.float32) -> FloatArray:
    """``slack`` (n,) and what cutting scores to integers may add. The unit is of the block's longest row, so for rows that are
    some thousand times shorter it is more than all rounding."""
    return _up(slack.astype(np.float64) + 2 / float(unit))


def _up(values: Any) -> FloatArray:
    """The smallest float32 numbers that are no smaller."""
    rounded = np.asarray(values).astype(np.float32)
    larger: FloatArray = np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return larger


def torch_finder(centroids: FloatArray, squares: npt.NDArray[np.float64]) -> Finder:
    """PyTorch's: fused on a GPU, else on the CPU."""
    import torch

    if torch.cuda.is_available():
        from tokenization.fused import FusedFinder

        return FusedFinder(centroids, squares)
    return TorchFinder(centroids, squares)


FINDERS: dict[str, Callable[[FloatArray, npt.NDArray[np.float64]], Finder]] = {
    "float32": Float32Finder,
    "int8": Int8Finder,
    "torch": torch_finder,
    "faiss": FaissFinder,
}
"""By the backend's name; each is made of centroids (k, dim) and their squared norms (k,)."""
