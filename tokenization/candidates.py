"""Which centroids may be a row's nearest: float32 or 8-bit products, scanned tile by tile, each with a bound on its error.

Every finder gives a superset of the nearest centroids; ``tokenization.assignment`` decides among them in float64. So all
finders lead to the same labels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenization.nearest_kernels import INTEGER_RANGE, MAX_CANDIDATES, OVERFULL, begin, quantise_rows, scan_float32, scan_int8
from tokenization.scratch import Scratch
from tokenization.vectors import FloatArray

TILE = 1024
"""Centroids a tile."""
_SCORES = 2**19
"""Scores of a tile and a block of rows that a core's cache holds."""
_ROWS = (512, 4096)
"""Fewest and most rows of a block: few centroids leave room for many rows, which share the cost of a call."""
_MOST_LISTED = 8
"""Candidates that a library's own top-k is asked for."""
_UNIT = float(np.finfo(np.float32).eps) / 2
WIDEST_INT8 = (2**31 - 1) // 127**2
"""Columns up to which a product of two rows of 8-bit codes fits into 32 bits."""


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

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:
        """Candidates of rows (n, dim) whose norms are ``norms`` (n,); they may lie in ``memory``."""
        ...


class Float32Finder:
    """Scores by float32 products of NumPy's BLAS. ``centroids`` (k, dim) float32, ``squares`` (k,) their squared norms."""

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        self._transposed = centroids.T
        self._squares = squares.astype(np.float32)
        self._largest = float(np.sqrt(squares.max()))
        self.rows = _rows_a_block(len(centroids))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:
        """See Finder."""
        unit = _integer_unit(2 * float(norms.max()) * self._largest + self._largest**2)
        found = _Found(memory, len(block))
        per_norm, fixed = float32_bound(block.shape[1], self._largest)
        begin(norms, per_norm, fixed + 2 / float(unit), found.slack, found.best, found.counts)
        for start in range(0, len(self._squares), TILE):
            tile = self._transposed[:, start : start + TILE]
            products = memory.array("products", (len(block), tile.shape[1]), np.float32)
            np.matmul(block, tile, out=products)
            scan_float32(products, self._squares, start, unit, *(found.slack, found.best, found.kept, found.scores, found.counts))
        return found.candidates()


class Int8Finder:
    """Scores by 8-bit integer products of PyTorch (VNNI, AMX), each row and centroid with a scale of its own."""

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import torch

        codes, scales, errors, lengths = quantised(centroids)
        self._codes = torch.from_numpy(codes).T
        self._squares = squares.astype(np.float32)
        self._scales = scales
        self._errors, self._lengths = errors, lengths
        self._largest = float(max(np.sqrt(squares.max()), lengths.max()))
        self.rows = _rows_a_block(len(centroids))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:
        """See Finder."""
        import torch

        codes, scales, errors, _ = quantised(block)
        # What float32 rounds while a score and its bound are put together, a few operations on values of at most this size.
        size = 4 * (norms + errors) * self._largest + self._largest**2
        unit = _integer_unit(float(size.max()))
        found = _Found(memory, len(block))
        begin(size, 32 * _UNIT, 2 / float(unit), found.slack, found.best, found.counts)
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

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import torch

        self._transposed = torch.from_numpy(centroids).T
        self._squares = torch.from_numpy(squares.astype(np.float32))
        self._largest = float(np.sqrt(squares.max()))
        self.rows = _rows_a_block(len(centroids))

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:  # noqa: ARG002
        """See Finder."""
        import torch

        slack = _float32_slack(block.shape[1], norms, self._largest)
        scores = torch.addmm(self._squares, torch.from_numpy(block), self._transposed, alpha=-2)
        most = min(_MOST_LISTED, scores.shape[1])
        values, places = scores.topk(most, dim=1, largest=False, sorted=True)
        return _listed(values.numpy(), places.numpy(), scores.shape[1], slack)


class FaissFinder:
    """Scores by faiss's flat index; on the first GPU where faiss's GPU build finds one."""

    def __init__(self, centroids: FloatArray, squares: npt.NDArray[np.float64]) -> None:
        import faiss

        self._index: Any = faiss.IndexFlatL2(centroids.shape[1])
        self._index.add(centroids)
        self._largest = float(np.sqrt(squares.max()))
        self.rows = _rows_a_block(len(centroids))
        self._turn: AbstractContextManager[Any] = nullcontext()
        if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
            memory, self._turn = _faiss_card()
            with self._turn:
                self._index = faiss.index_cpu_to_gpu(memory, 0, self._index)

    def __call__(self, block: FloatArray, norms: npt.NDArray[np.float64], memory: Scratch) -> Candidates:  # noqa: ARG002
        """See Finder."""
        # faiss adds |x|² too, which costs more rounding.
        slack = _float32_slack(block.shape[1], norms, self._largest, norms**2)
        most = min(_MOST_LISTED, self._index.ntotal)
        with self._turn:
            values, places = self._index.search(block, most)
        return _listed(values, places, self._index.ntotal, slack)


@lru_cache(maxsize=1)
def _faiss_card() -> tuple[Any, Lock]:
    """faiss's working memory on the card, which serves one search at a time, and whose turn it is."""
    import faiss

    return faiss.StandardGpuResources(), Lock()


def _rows_a_block(centroids: int) -> int:
    fewest, most = _ROWS
    return min(max(_SCORES // min(centroids, TILE), fewest), most)


def float32_bound(dim: int, largest: float) -> tuple[float, float]:
    """How far apart two float32 scores |c|² − 2 x·c may lie whose true order is the other one: a share of |x|, and what is added.

    |error of a score| ≤ u (2 (dim + 2) |x| |c| + 3 |c|²) for any order of summation; a difference of two doubles it. A scan
    computes a score twice, perhaps fused differently, and once as an integer: the 6 in place of 2 allows for that.
    """
    return 12 * _UNIT * (dim + 2) * largest, 18 * _UNIT * largest**2


def _float32_slack(
    dim: int, norms: npt.NDArray[np.float64], largest: float, added: npt.NDArray[np.float64] | float = 0.0
) -> FloatArray:
    """``float32_bound`` of each row; ``added`` is what else is summed."""
    per_norm, fixed = float32_bound(dim, largest)
    return _up(per_norm * norms + fixed + 6 * _UNIT * (dim + 3) * added)


def _listed(values: FloatArray, places: npt.NDArray[Any], among: int, slack: FloatArray) -> Candidates:
    """Candidates of sorted lists (n, most) of a row's smallest scores; a list that may go on past its end is overfull."""
    most = values.shape[1]
    limits = values[:, 0] + slack
    counts = (values <= limits[:, None]).sum(axis=1).astype(np.int32)
    if most < among:
        counts[counts == most] = OVERFULL
    return Candidates(places.astype(np.int32), values, counts, limits)


class _Found:
    """Of a block of rows: what ``nearest_kernels.begin`` fills and a scan of tiles carries on."""

    def __init__(self, memory: Scratch, rows: int) -> None:
        self.slack = memory.array("slack", (rows,), np.float32)
        self.best = memory.array("best", (rows,), np.float32)
        self.counts = memory.array("counts", (rows,), np.int32)
        self.kept = memory.array("kept", (rows, MAX_CANDIDATES), np.int32)
        self.scores = memory.array("scores", (rows, MAX_CANDIDATES), np.float32)

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
    """Scores up to ``largest`` times this stay inside INTEGER_RANGE.

    Cutting a score to an integer adds up to one over it: for rows some thousand times shorter than the longest of their block,
    more than all rounding.
    """
    return np.float32(INTEGER_RANGE / largest) if largest > 0 else np.float32(1)


def _up(values: Any) -> FloatArray:
    """The smallest float32 numbers that are no smaller."""
    rounded = np.asarray(values).astype(np.float32)
    larger: FloatArray = np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return larger


def int8_finder(centroids: FloatArray, squares: npt.NDArray[np.float64]) -> Finder:
    """8-bit, or float32 where the rows are wider than WIDEST_INT8."""
    return (Int8Finder if centroids.shape[1] <= WIDEST_INT8 else Float32Finder)(centroids, squares)


def torch_finder(centroids: FloatArray, squares: npt.NDArray[np.float64]) -> Finder:
    """PyTorch's: fused on a GPU, else on the CPU."""
    import torch

    if torch.cuda.is_available():
        from tokenization.device_nearest import FusedFinder

        return FusedFinder(centroids, squares)
    return TorchFinder(centroids, squares)


FINDERS: dict[str, Callable[[FloatArray, npt.NDArray[np.float64]], Finder]] = {
    "float32": Float32Finder,
    "int8": int8_finder,
    "torch": torch_finder,
    "faiss": FaissFinder,
}
"""By the backend's name; each is made of centroids (k, dim) and their squared norms (k,)."""
