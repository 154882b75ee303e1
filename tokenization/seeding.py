"""Initial centroids by k-means++ (Arthur and Vassilvitskii, 2007) on a seeded sample.

The greedy form: several candidates a step, the best are kept. Small codebooks keep one a step; larger ones a group, a 64th of the
codebook at once (above 8,192 centroids less), so that seeding costs 64 passes over the sample and large matrix products, not a
pass a centroid. With four candidates a place k-means from there ends within 1 % of one at a time (256 and 1,024 centroids, ten
iterations); after refinement there is no difference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tokenization.assignment import first_of_equal_rows
from tokenization.threads import one_blas_thread
from tokenization.vectors import FloatArray, Rows, blocks

if TYPE_CHECKING:
    import torch

_STEPS = 64
_CANDIDATES_A_PLACE = 4
_MOST_REACHED = 2**26
"""Distances of a step, from candidates to the sample: 256 MiB."""
_SAMPLE_PER_CENTROID = 16
_SAMPLE_AT_LEAST = 8_192
_ROWS_A_BLOCK = 4096
_NOISE = np.float32(8e-7)


def seed_centroids(rows: Rows, n_clusters: int, random: np.random.Generator, device: str | None = None) -> FloatArray:
    """Initial centroids (n_clusters, dim), each of them a row; distances are computed on ``device`` (None: by NumPy), and round
    as they do there.

    Where fewer rows than ``n_clusters`` are distinct, the distinct ones come first and then repeat.
    """
    if rows.n <= n_clusters:
        return _repeat(_distinct(rows), n_clusters)
    size = min(rows.n, max(_SAMPLE_PER_CENTROID * n_clusters, _SAMPLE_AT_LEAST))
    chosen = np.sort(random.choice(rows.n, size, replace=False)) if size < rows.n else np.arange(rows.n)
    sample = rows.take(chosen)
    reach: _Reach = _HostReach(sample) if device is None else _DeviceReach(sample, device)
    with one_blas_thread():  # on a busy machine BLAS threads wait for each other longer than these small products take
        found = sample[_plus_plus(reach, len(sample), n_clusters, random)]
    if len(found) < n_clusters:  # the sample has too few distinct rows; all rows may have more
        distinct = _distinct(rows)
        if len(distinct) > n_clusters:
            return distinct[np.sort(random.choice(len(distinct), n_clusters, replace=False))]
        return _repeat(distinct, n_clusters)
    return found


class _Reach(Protocol):
    """How far the rows of a sample are from the nearest of the centroids so far, wherever that is computed."""

    def weights(self) -> FloatArray:
        """Squared distance (n,) of each row; equal rows, up to rounding, are at 0."""
        ...

    def add_best(self, drawn: npt.NDArray[np.int64], want: int) -> npt.NDArray[np.int64]:
        """Add the ``want`` of the rows ``drawn`` that, each alone, bring the sample nearest to its centroids; returns them."""
        ...


def _plus_plus(reach: _Reach, rows: int, n_clusters: int, random: np.random.Generator) -> list[int]:
    """Up to ``n_clusters`` of the sample's ``rows``; fewer where every row is already a centroid."""
    group = min(-(-n_clusters // _STEPS), max(1, _MOST_REACHED // (_CANDIDATES_A_PLACE * rows)))
    candidates = 2 + int(np.log(n_clusters)) if group == 1 else _CANDIDATES_A_PLACE
    picked = reach.add_best(random.integers(rows, size=1), 1).tolist()
    while len(picked) < n_clusters:
        want = min(group, n_clusters - len(picked))
        drawn = _draw(reach.weights(), want * candidates, random)
        if not len(drawn):
            break
        picked.extend(reach.add_best(drawn, want).tolist())
    return picked


class _HostReach:
    """By NumPy; ``sample`` (n, dim)."""

    def __init__(self, sample: FloatArray) -> None:
        self._sample = sample
        self._squares = np.einsum("ij,ij->i", sample, sample)
        self._closest = np.full(len(sample), np.inf, np.float32)

    def weights(self) -> FloatArray:
        self._closest[self._closest <= _NOISE * self._squares] = 0
        return self._closest

    def add_best(self, drawn: npt.NDArray[np.int64], want: int) -> npt.NDArray[np.int64]:
        reached = self._reached(self._sample[drawn])
        best = np.argsort(reached.sum(axis=1, dtype=np.float64), kind="stable")[:want]
        self._closest = reached[best].min(axis=0)
        self._closest[drawn[best]] = 0
        return drawn[best]

    def _reached(self, centroids: FloatArray) -> FloatArray:
        """Squared distance (centroids, n) of each row to its closest centroid, were one of ``centroids`` added."""
        norms = np.einsum("ij,ij->i", centroids, centroids)[:, None]
        reached = np.empty((len(centroids), len(self._sample)), np.float32)
        for start in range(0, len(self._sample), _ROWS_A_BLOCK):
            rows = slice(start, start + _ROWS_A_BLOCK)
            distances = centroids @ self._sample[rows].T
            distances *= np.float32(-2)
            distances += self._squares[rows]
            distances += norms
            np.minimum(distances, self._closest[rows], out=reached[:, rows])
        return reached


class _DeviceReach:
    """By PyTorch on ``device``; ``sample`` (n, dim)."""

    def __init__(self, sample: FloatArray, device: str) -> None:
        import torch

        self._sample = torch.from_numpy(sample).to(device)
        self._squares = (self._sample * self._sample).sum(1)
        self._closest = torch.full_like(self._squares, torch.inf)

    def weights(self) -> FloatArray:
        self._closest[self._closest <= float(_NOISE) * self._squares] = 0
        weights: FloatArray = self._closest.cpu().numpy()
        return weights

    def add_best(self, drawn: npt.NDArray[np.int64], want: int) -> npt.NDArray[np.int64]:
        import torch

        places = torch.from_numpy(drawn).to(self._sample.device)
        reached = self._reached(self._sample[places])
        best = torch.argsort(reached.sum(1, dtype=torch.float64), stable=True)[:want]
        self._closest = reached[best].amin(0)
        self._closest[places[best]] = 0
        chosen: npt.NDArray[np.int64] = drawn[best.cpu().numpy()]
        return chosen

    def _reached(self, centroids: "torch.Tensor") -> "torch.Tensor":
        import torch

        with _whole_float32():
            distances = torch.addmm(self._squares, centroids, self._sample.T, alpha=-2)
        distances += (centroids * centroids).sum(1)[:, None]
        return torch.minimum(distances, self._closest, out=distances)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """PyTorch's products in float32, whatever the caller allows them to be: with TF32's noise equal rows would not be at 0."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _draw(weights: FloatArray, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Distinct indices with probability proportional to their weights; fewer where few weights are above 0."""
    cumulative = weights.cumsum(dtype=np.float64)
    if cumulative[-1] <= 0:
        return np.zeros(0, np.int64)
    drawn = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")
    distinct = np.unique(np.minimum(drawn, len(weights) - 1))
    return distinct[weights[distinct] > 0]


def _distinct(rows: Rows) -> FloatArray:
    """The distinct rows, in the order of their first appearance."""
    found: FloatArray = np.zeros((0, rows.dim), np.float32)
    for _, _, block in blocks(rows):
        both = np.concatenate([found, block + np.float32(0)])
        found = both[first_of_equal_rows(both)]
    return found


def _repeat(distinct: FloatArray, n_clusters: int) -> FloatArray:
    return distinct[np.arange(n_clusters) % len(distinct)]
