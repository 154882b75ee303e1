"""Nearest centroid of each vector: the one assignment of training and tokenising.

Its answer is the argmin of the distances, as far as float64 tells them apart (equal centroids and exact ties: the lowest
index), whatever the batch, the arithmetic, the BLAS kernel or the number of threads. So tokenising is a pure function of a
vector, and k-means one of its rows. A finder (``tokenization.candidates``) scores in float32, in 8-bit integers or
on a GPU and keeps every centroid within its bound of the best; of several, float64 differences decide. Rows that no finder
can vouch for (norms near the ends of float32's range, more candidates than are kept) are scored in float64.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from tokenization import arithmetic
from tokenization.scratch import scratch
from tokenization.threads import one_thread_each, threads_or_cores
from tokenization.vectors import FloatArray

if TYPE_CHECKING:
    from tokenization.candidates import Finder

Backend = Literal["auto", "int8", "float32", "torch", "faiss"]
"""``auto``: 8-bit products where the processor has a unit for them, else float32; the others by name. ``torch`` and ``faiss``
score with that library, in float32 on the CPU; on a GPU where there is one (``torch``: ``tokenization.device_nearest``;
``faiss``: in float32, with its GPU build)."""
BACKENDS: tuple[str, ...] = ("auto", "int8", "float32", "torch", "faiss")

_ROWS = 512
"""Rows of a block that no finder looks at, and the fewest that are worth a thread."""
_WIDE_SCORES = 2**22
_THREADED_PRODUCTS = 2**26
"""Below so many products threads cost more than they save."""
SAFE_NORMS = (1e-12, 1e12)
"""Norms whose squares and products neither overflow nor lose bits to underflow in float32."""
LONGEST_ROW = 1e7
"""A row so many times as long as all centroids: float64 differences may not tell apart what float32 scores do."""


class NearestCentroid:
    """Exact nearest centroid. ``centroids``: (k, dim) float32; ``threads``: at most so many (None: one a core); ``rows``: how
    many all calls together are about, from which ``auto`` chooses (None: each call by itself).

    Raises ValueError for a backend that is not one of BACKENDS.
    """

    def __init__(
        self, centroids: FloatArray, backend: Backend = "auto", threads: int | None = None, rows: int | None = None
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: use one of {', '.join(map(repr, BACKENDS))}")
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._first = first_of_equal_rows(self.centroids)
        self._distinct = self.centroids[self._first]
        self._wide = self._distinct.astype(np.float64)
        self._squares = np.einsum("ij,ij->i", self._wide, self._wide)
        self._largest = float(np.sqrt(self._squares.max()))
        self._threads = threads_or_cores(threads)
        self._backend = backend
        self._rows = rows
        self._finders: dict[str, Finder] = {}
        if rows is not None:  # before any thread asks for it
            self._finder(rows * self.centroids.size)

    def __call__(self, vectors: FloatArray) -> npt.NDArray[np.int64]:
        """Labels (n,) of float32 vectors (n, dim)."""
        block = np.ascontiguousarray(vectors, dtype=np.float32)
        find = self._finder((self._rows or len(block)) * block.shape[1] * len(self._distinct))
        labels = np.empty(len(block), np.int64)
        step = min(find.rows, max(-(-len(block) // self._threads), _ROWS)) if find else _ROWS

        def assign(start: int) -> None:
            rows = slice(start, start + step)
            self._assign(find, block[rows], labels[rows])

        starts = range(0, len(block), step)
        threads = min(self._threads, len(starts))
        if threads < 2 or block.size * len(self._distinct) < _THREADED_PRODUCTS:
            for start in starts:
                assign(start)
        else:
            # A thread multiplies and scans a block of its own: threads inside one product would wait for each other.
            with one_thread_each(), ThreadPoolExecutor(threads) as pool:
                list(pool.map(assign, starts))
        return self._first[labels]

    def _finder(self, products: int) -> "Finder | None":
        """What scores that many products; None where float32 cannot hold them."""
        if not SAFE_NORMS[0] < self._largest < SAFE_NORMS[1]:
            return None
        kind = arithmetic.chosen(self._backend, products)
        if kind not in self._finders:
            from tokenization import candidates

            self._finders[kind] = candidates.FINDERS[kind](self._distinct, self._squares)
        return self._finders[kind]

    def _assign(self, find: "Finder | None", block: FloatArray, labels: npt.NDArray[np.int64]) -> None:
        """Fill in labels (of distinct centroids) of some rows."""
        from tokenization.nearest_kernels import norms_of

        norms = np.empty(len(block))
        norms_of(block, norms)
        low, high = SAFE_NORMS
        safe = (norms > low) & (norms < min(high, LONGEST_ROW * self._largest))
        labels[:] = -1
        if find and safe.all():
            self._decide(find, block, norms, labels)
        elif find and safe.any():  # what a row equal to its centroid leaves is 0, so such blocks are common
            rows = np.flatnonzero(safe)
            some = np.empty(len(rows), np.int64)
            self._decide(find, block[rows], norms[rows], some)
            labels[rows] = some
        left = np.flatnonzero(labels < 0)
        step = max(1, _WIDE_SCORES // max(len(self._distinct), block.shape[1]))
        for start in range(0, len(left), step):
            rows = left[start : start + step]
            labels[rows] = self._in_float64(block[rows].astype(np.float64), norms[rows])

    def _decide(self, find: "Finder", block: FloatArray, norms: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> None:
        """The same by a finder's candidates, for rows whose norms it can take; label −1 where it has none."""
        from tokenization.nearest_kernels import decide

        with scratch() as memory:
            found = find(block, norms, memory)
            decide(block, self._distinct, found.limits, found.kept, found.scores, found.counts, labels)

    def _in_float64(self, block: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        from tokenization.nearest_kernels import nearest_listed

        scores = block @ self._wide.T
        scores *= -2
        scores += self._squares
        limit = np.nextafter(scores.min(axis=1) + float64_bound(block.shape[1], norms, self._largest), np.inf)
        labels = np.zeros(len(block), np.int64)
        for row, near in enumerate(scores <= limit[:, None]):
            nearest_listed(block[row : row + 1], self._wide, np.flatnonzero(near)[None], labels[row : row + 1])
        return labels


def float64_bound(dim: int, norms: npt.NDArray[np.float64], largest: float) -> npt.NDArray[np.float64]:
    """How far apart two float64 scores |c|² − 2 x·c may lie (n,) whose order is not that of the squared differences that decide.

    Of rows x with ``norms`` (n,) and centroids of norms up to ``largest``, both of ``dim`` columns, summed in any order.
    """
    unit = float(np.finfo(np.float64).eps) / 2
    scores = 2 * unit * (2 * (dim + 2) * norms * largest + (dim + 3) * largest**2)  # |c|² is a sum too
    differences = 4 * unit * (dim + 3) * (norms**2 + largest**2)  # and what decides is sums of squares
    return scores + differences


def first_of_equal_rows(matrix: FloatArray) -> npt.NDArray[np.int64]:
    """Sorted indices (distinct,) of the first of each set of equal rows of (n, dim)."""
    whole = np.ascontiguousarray(matrix + np.float32(0))  # −0 and 0 become the same bytes
    odd = np.random.default_rng(0).integers(2**63, size=whole.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.einsum("ij,j->i", whole.view(np.uint32), odd)  # equal rows have equal ones
    if len(np.unique(hashes)) == len(whole):
        return np.arange(len(whole), dtype=np.int64)
    keys = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize)))[:, 0]
    return np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)
