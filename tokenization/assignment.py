"""Nearest centroid of each vector.

``NearestCentroid`` is the one that gives tokens: its answer is the argmin of the distances, as far as float64 tells them
apart (equal centroids and exact ties: the lowest index), whatever the batch, the BLAS kernel or the number of threads, so
that tokenising is a pure function of a vector.
It scores in float32 and sends only the rows whose two best lie within float32's rounding bound through float64.
``lloyd_assigner`` is the fast one inside training, by faiss or PyTorch, right up to float32's rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenization.vectors import FloatArray

Backend = Literal["faiss", "torch"]
Assigner = Callable[[FloatArray], tuple[npt.NDArray[np.int64], FloatArray]]
"""(n, dim) float32 → labels (n,) int64 and squared distances (n,) float32."""

_BLOCK_SCORES = 2**22
_SAFE = (1e-12, 1e12)
"""Norms whose squares and products neither overflow nor lose bits to underflow in float32."""


class NearestCentroid:
    """Exact nearest centroid. ``centroids``: (k, dim) float32."""

    def __init__(self, centroids: FloatArray) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._first = _first_of_equal_rows(self.centroids)
        distinct = self.centroids[self._first]
        self._wide = distinct.astype(np.float64)
        self._distinct: dict[Any, npt.NDArray[Any]] = {np.float32: distinct, np.float64: self._wide}
        self._squares = np.einsum("ij,ij->i", self._wide, self._wide)
        self._largest = float(np.sqrt(self._squares.max()))

    def __call__(self, vectors: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Labels (n,) int64 and squared distances (n,) float64 of float32 vectors (n, dim)."""
        labels = np.empty(len(vectors), np.int64)
        distances = np.empty(len(vectors))
        step = max(1, _BLOCK_SCORES // max(len(self._first), vectors.shape[1]))
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            labels[start : start + step] = self._label(block)
            difference = block.astype(np.float64) - self.centroids[labels[start : start + step]]
            distances[start : start + step] = np.einsum("ij,ij->i", difference, difference)
        return labels, distances

    def _label(self, block: FloatArray) -> npt.NDArray[np.int64]:
        norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
        best = np.zeros(len(block), np.int64)
        low, high = _SAFE
        fits = (norms > low) & (norms < high) if low < self._largest < high else np.zeros(len(block), bool)
        unsure = ~fits
        rows = np.flatnonzero(fits)
        if len(rows):
            best[rows], doubtful, _ = self._score(block if len(rows) == len(block) else block[rows], norms[rows], np.float32)
            unsure[rows[doubtful]] = True
        rows = np.flatnonzero(unsure)
        if len(rows):
            best[rows], doubtful, candidates = self._score(block[rows].astype(np.float64), norms[rows], np.float64)
            for position in np.flatnonzero(doubtful):
                best[rows[position]] = self._closest(block[rows[position]], candidates[position])
        return self._first[best]

    def _score(self, block: npt.NDArray[Any], norms: npt.NDArray[np.float64], kind: Any) -> tuple[Any, Any, Any]:
        """Best centroid, whether another is within the rounding bound, and which ones are (n, distinct)."""
        scores = block @ self._distinct[kind].T
        scores *= kind(-2)
        scores += self._squares.astype(kind)
        best = scores.argmin(axis=1)
        # |error of a score| ≤ u (2 (dim + 2) |x| |c| + 3 |c|²) for any order of summation; a difference of two doubles it
        unit = float(np.finfo(kind).eps) / 2
        bound = 2 * unit * (2 * (block.shape[1] + 2) * norms * self._largest + 3 * self._largest**2)
        limit = scores[np.arange(len(scores)), best].astype(np.float64) + bound
        candidates = scores <= np.nextafter(limit.astype(kind), kind(np.inf))[:, None]
        return best, candidates.sum(axis=1) > 1, candidates

    def _closest(self, vector: FloatArray, candidates: npt.NDArray[np.bool_]) -> int:
        positions = np.flatnonzero(candidates)
        difference = vector.astype(np.float64) - self._wide[positions]
        return int(positions[np.einsum("ij,ij->i", difference, difference).argmin()])


def _first_of_equal_rows(matrix: FloatArray) -> npt.NDArray[np.int64]:
    """Sorted indices of the first of each set of equal rows."""
    whole = np.ascontiguousarray(matrix + np.float32(0))  # −0 and 0 become the same bytes
    keys = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize)))[:, 0]
    return np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)


def lloyd_assigner(centroids: FloatArray, backend: Backend) -> Assigner:
    """The fast assignment of one training iteration. Raises ValueError for a backend that is neither faiss nor torch."""
    if backend == "faiss":
        return _faiss_assigner(centroids)
    if backend == "torch":
        return _torch_assigner(centroids)
    raise ValueError(f"backend {backend!r}: use 'faiss' or 'torch'")


def _faiss_assigner(centroids: FloatArray) -> Assigner:
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)

    def assign(block: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
        distances, labels = index.search(block, 1)
        return labels[:, 0], distances[:, 0]

    return assign


def _torch_assigner(centroids: FloatArray) -> Assigner:
    import torch

    transposed = torch.from_numpy(centroids).T.contiguous()
    squares = (transposed * transposed).sum(0)
    step = max(1, _BLOCK_SCORES // len(centroids))

    def assign(block: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
        labels = np.empty(len(block), np.int64)
        distances = np.empty(len(block), np.float32)
        for start in range(0, len(block), step):
            rows = torch.from_numpy(block[start : start + step])
            scores = torch.addmm(squares, rows, transposed, alpha=-2)
            best = scores.argmin(1, keepdim=True)
            found = scores.gather(1, best)[:, 0] + (rows * rows).sum(1)
            labels[start : start + step] = best[:, 0].numpy()
            distances[start : start + step] = found.clamp_min(0).numpy()
        return labels, distances

    return assign


@contextmanager
def engine_threads(backend: Backend, threads: int | None) -> Iterator[None]:
    """Run with a number of threads of the backend's own pool (None: as the process has it), then restore it."""
    if threads is None:
        yield
        return
    if backend == "faiss":
        import faiss

        get, put = faiss.omp_get_max_threads, faiss.omp_set_num_threads
    else:
        import torch

        get, put = torch.get_num_threads, torch.set_num_threads
    before = get()
    put(threads)
    try:
        yield
    finally:
        put(before)
