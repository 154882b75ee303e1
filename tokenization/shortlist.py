"""The several best tokens of each row: one step of beam search, or, of a single prefix, the c nearest centroids.

Exact as ``tokenization.assignment`` is: float32 products keep every token within their bound of the last place, and
float64 differences decide among those, so the answer depends on the row alone, not on the batch, the BLAS kernel or
the number of threads. The prefixes × tokens scores exist tile by tile only.

Shapes: N rows, P prefixes, D columns, K tokens.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenization.scratch import Scratch, scratch
from tokenization.threads import one_blas_thread, threads_or_cores
from tokenization.vectors import FloatArray

_TILE = 1024
_ROWS = 256
_SPARE = 64
"""Candidates that a row may have beyond the places asked for."""
_WIDE_SCORES = 2**20
_SAFE = (1e-12, 1e12)
"""Largest lengths whose squares and products neither overflow nor lose bits to underflow in float32."""
_THREADED_PRODUCTS = 2**26


@dataclass(frozen=True)
class Best:
    """For each row, ascending by error (ties: the smaller prefix, then token): ``prefix`` and ``token`` (N, keep) int64,
    squared ``errors`` (N, keep) float64."""

    prefix: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    errors: npt.NDArray[np.float64]


class Shortlist:
    """Exact search for several tokens among ``centroids`` (K, D) float32; ``threads``: at most so many (None: one a core)."""

    def __init__(self, centroids: FloatArray, threads: int | None = None) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._wide_KD = self.centroids.astype(np.float64)
        self._square_K = np.einsum("kd,kd->k", self._wide_KD, self._wide_KD)
        with np.errstate(over="ignore"):  # beyond _SAFE they are not used
            self._narrow_K = self._square_K.astype(np.float32)
        self._largest = float(np.sqrt(self._square_K.max()))
        self._threads = threads_or_cores(threads)

    def __call__(self, residual_NPD: npt.NDArray[np.float64], keep: int) -> Best:
        """The ``keep`` pairs (prefix, token) of smallest |r − c|² for float64 residuals (N, P, D), at most all P · K."""
        count, prefixes, dim = residual_NPD.shape
        keep = min(keep, prefixes * len(self.centroids))
        chosen, errors = np.empty((count, keep, 2), np.int64), np.empty((count, keep))
        step = max(1, _ROWS // prefixes)

        def search(start: int) -> None:
            rows = slice(start, start + step)
            with scratch() as memory:
                self._search(residual_NPD[rows], chosen[rows], errors[rows], memory)

        starts = range(0, count, step)
        threads = min(self._threads, len(starts))
        if threads < 2 or count * prefixes * dim * len(self.centroids) < _THREADED_PRODUCTS:
            for start in starts:
                search(start)
        else:
            with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
                list(pool.map(search, starts))
        return Best(chosen[:, :, 0], chosen[:, :, 1], errors)

    def _search(
        self,
        residual_NPD: npt.NDArray[np.float64],
        chosen: npt.NDArray[np.int64],
        errors: npt.NDArray[np.float64],
        memory: Scratch,
    ) -> None:
        from tokenization import shortlist_kernels

        residual_NPD = np.ascontiguousarray(residual_NPD)
        count, keep = errors.shape
        square_NP = np.einsum("npd,npd->np", residual_NPD, residual_NPD)
        longest_N = np.sqrt(square_NP.max(axis=1))
        size_N = np.maximum(longest_N, self._largest)
        safe = (size_N > _SAFE[0]) & (size_N < _SAFE[1]) & (self._largest < _SAFE[1])
        offset_NP = np.where(safe[:, None], square_NP - square_NP.min(axis=1, keepdims=True), 0).astype(np.float32)
        slack_N = np.zeros(count, np.float32)
        best = np.full((count, keep), np.inf, np.float32)
        kept = memory.array("kept pairs", (count, keep + _SPARE, 2), np.int32)
        scores = memory.array("scores", (count, keep + _SPARE), np.float32)
        counts = np.where(safe, 0, shortlist_kernels.OVERFULL).astype(np.int32)
        if safe.any():
            slack_N = self._slack(np.where(safe, longest_N, 0), np.finfo(np.float32)).astype(np.float32)
            narrow_NPD = np.where(safe[:, None, None], residual_NPD, 0).astype(np.float32)
            for prefix in range(residual_NPD.shape[1]):
                block_ND, offset_N = np.ascontiguousarray(narrow_NPD[:, prefix]), np.ascontiguousarray(offset_NP[:, prefix])
                for first in range(0, len(self.centroids), _TILE):
                    tile = self.centroids[first : first + _TILE]
                    products = memory.array("products", (count, len(tile)), np.float32)
                    np.matmul(block_ND, tile.T, out=products)
                    found = (slack_N, best, kept, scores, counts)
                    shortlist_kernels.scan(products, self._narrow_K, offset_N, first, prefix, *found)
        limits = best[:, -1] + slack_N
        shortlist_kernels.decide(residual_NPD, self.centroids, limits, kept, scores, counts, chosen, errors)
        for row in np.flatnonzero(counts == shortlist_kernels.OVERFULL):
            self._search_in_float64(residual_NPD[row], float(longest_N[row]), chosen[row], errors[row])

    def _search_in_float64(
        self, residual_PD: npt.NDArray[np.float64], longest: float, chosen: npt.NDArray[np.int64], errors: npt.NDArray[np.float64]
    ) -> None:
        """One row that float32 cannot vouch for, tile by tile of prefixes."""
        from tokenization import shortlist_kernels

        slack, keep = float(self._slack(np.array(longest), np.finfo(np.float64))), len(errors)
        kept, scores = np.empty((0, 2), np.int32), np.empty(0)
        step = max(1, _WIDE_SCORES // len(self.centroids))
        for first in range(0, len(residual_PD), step):
            part_PD = residual_PD[first : first + step]
            score_PK = np.einsum("pd,pd->p", part_PD, part_PD)[:, None] + (self._square_K - 2 * part_PD @ self._wide_KD.T)
            prefix, token = np.divmod(np.arange(score_PK.size), len(self.centroids))
            kept = np.concatenate([kept, np.stack([first + prefix, token], axis=1).astype(np.int32)])
            scores = np.concatenate([scores, score_PK.ravel()])
            last = np.partition(scores, keep - 1)[keep - 1] if len(scores) >= keep else np.inf
            near = scores <= last + slack
            kept, scores = kept[near], scores[near]
        # The same types as above: the same machine code sums in the same order.
        limits, scores_NM = np.zeros(1, np.float32), np.zeros((1, len(kept)), np.float32)
        found = (kept[None], scores_NM, np.array([len(kept)], np.int32), chosen[None], errors[None])
        shortlist_kernels.decide(residual_PD[None], self.centroids, limits, *found)

    def _slack(self, longest: npt.NDArray[np.float64], kind: np.finfo) -> npt.NDArray[np.float64]:
        """How far apart two scores may lie whose true order is the other one.

        A score rounds by at most u (2 (D + 4) |r| |c| + 4 |c|² + 4 |r|²): the product in any order of summation, the
        residual and the offset rounded to float32, three additions. A difference of two doubles it; a scan computes a score
        twice, perhaps fused differently, hence 6 in place of 2. In float64 |c|² and |r|² are sums too, of D terms.
        """
        unit = float(kind.eps) / 2
        dim = self.centroids.shape[1]
        squared = dim + 4 if kind.dtype == np.float64 else 4
        bound: npt.NDArray[np.float64] = (
            6 * unit * (2 * (dim + 4) * longest * self._largest + squared * (self._largest**2 + longest**2))
        )
        return np.nextafter(bound.astype(kind.dtype), kind.dtype.type(np.inf)).astype(np.float64)
