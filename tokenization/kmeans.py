"""k-means (Lloyd's algorithm) in scikit-learn's estimator convention, on rows that need not fit in memory."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from tokenization.assignment import Backend, NearestCentroid
from tokenization.seeding import seed_centroids
from tokenization.vectors import ArrayRows, BadVectors, FloatArray, Rows, ScaledRows, blocks, check_finite, scaled

_REPAIR_ROUNDS = 20


@dataclass(frozen=True)
class Iteration:
    """What a callback is told after each iteration: counts from 1; ``inertia`` is of the centroids it started from."""

    layer: int
    iteration: int
    iterations: int
    inertia: float
    repaired: int
    seconds: float


Callback = Callable[[Iteration], None]


@dataclass(frozen=True)
class Clustering:
    """A finished clustering: centroids (k, dim) float32, labels (n,) int32, sum of squared distances."""

    centroids: FloatArray
    labels: npt.NDArray[np.int32]
    inertia: float
    n_iter: int


class KMeans(ClusterMixin, BaseEstimator):
    """k-means with k-means++ seeding and repair of empty clusters; deterministic for a seed on one machine.

    Parameters: ``n_clusters``; ``iterations``, at most; ``seed``; ``backend`` of the assignment, which changes no result
    (``tokenization.assignment``); ``init``, "k-means++" or an array (n_clusters, dim) to start from; ``tolerance``, stop once
    an iteration lowers the inertia by a smaller share than this; ``n_init``, keep the best of several seedings;
    ``n_threads`` (None: one a core).

    Attributes: ``centroids_`` float32 (n_clusters, dim), ``labels_`` int32 (n,), ``inertia_`` float (squared units of X),
    ``n_iter_``. ``predict`` of the training rows gives ``labels_``: both are exact (``tokenization.assignment``).

    Where fewer rows than clusters are distinct, every distinct row becomes a centroid; the remaining centroids repeat
    them and stay empty, since of equal centroids the first wins, and a ``ConvergenceWarning`` says so.
    Float16, float32 and float64 of any layout are accepted and computed in float32; X may be a memory map, read in blocks.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        iterations: int = 25,
        seed: int = 0,
        backend: Backend = "auto",
        init: Literal["k-means++"] | npt.ArrayLike = "k-means++",
        tolerance: float = 1e-5,
        n_init: int = 1,
        n_threads: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.iterations = iterations
        self.seed = seed
        self.backend = backend
        self.init = init
        self.tolerance = tolerance
        self.n_init = n_init
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> "KMeans":  # noqa: ARG002
        """Cluster the rows of X (n, dim). Raises BadVectors (a ValueError) naming rows with NaN or infinity."""
        matrix = _validated(self, X, reset=True)
        result = cluster(
            ArrayRows(matrix),
            self.n_clusters,
            iterations=self.iterations,
            seed=self.seed,
            backend=self.backend,
            init=None if isinstance(self.init, str) and self.init == "k-means++" else self.init,
            tolerance=self.tolerance,
            n_init=self.n_init,
            n_threads=self.n_threads,
            callback=callback,
        )
        self.centroids_ = result.centroids
        self.labels_ = result.labels
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        return self

    def predict(self, X: Any) -> npt.NDArray[np.int32]:
        """Label (n,) int32 of the nearest centroid of each row of X (n, dim)."""
        check_is_fitted(self)
        labels, _ = _assign_exactly(ArrayRows(_validated(self, X, reset=False)), self.centroids_, self.backend, self.n_threads)
        return labels


def _validated(estimator: Any, X: Any, *, reset: bool) -> npt.NDArray[Any]:
    """scikit-learn's checks but for finiteness, which is checked block by block with row numbers."""
    kinds = [np.float64, np.float32, np.float16]
    matrix: npt.NDArray[Any] = validate_data(estimator, X, reset=reset, dtype=kinds, ensure_all_finite=False)
    return matrix


def cluster(
    rows: Rows,
    n_clusters: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    backend: Backend = "auto",
    init: npt.ArrayLike | None = None,
    tolerance: float = 1e-5,
    n_init: int = 1,
    n_threads: int | None = None,
    layer: int = 1,
    callback: Callback | None = None,
) -> Clustering:
    """k-means of ``rows``; the arguments are those of ``KMeans``. ``layer`` only goes to the callback.

    Raises BadVectors for bad rows and ValueError for a parameter out of range.
    """
    if n_clusters < 1 or iterations < 1 or n_init < 1 or tolerance < 0:
        raise ValueError("n_clusters, iterations and n_init must be at least 1, tolerance at least 0")
    if rows.n < 1:
        raise BadVectors("vectors: found 0 rows; k-means needs at least 1")
    unit = scaled(rows)
    best: Clustering | None = None
    for run in range(n_init if init is None else 1):
        if init is None:
            start = seed_centroids(unit, n_clusters, np.random.default_rng([seed, run]))
        else:
            start = unit.forward(_checked_init(init, n_clusters, rows.dim))
        centroids, n_iter = _lloyd(unit, start, iterations, backend, n_threads, tolerance, layer, callback)
        found = _finish(rows, unit, centroids, n_iter, backend, n_threads)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def _lloyd(
    rows: ScaledRows,
    centroids: FloatArray,
    iterations: int,
    backend: Backend,
    n_threads: int | None,
    tolerance: float,
    layer: int,
    callback: Callback | None,
) -> tuple[FloatArray, int]:
    """Lloyd's iterations in scaled units; returns the centroids and how many iterations ran."""
    before = np.inf
    for iteration in range(1, iterations + 1):
        clock = time.perf_counter()
        assign = NearestCentroid(centroids, backend, n_threads)
        sums = np.zeros(centroids.shape)
        counts = np.zeros(len(centroids), np.int64)
        distances = np.empty(rows.n, np.float32)
        for start, stop, block in blocks(rows):
            labels, distances[start:stop] = assign(block)
            members = csr_matrix((np.ones(len(labels)), labels, np.arange(len(labels) + 1)), shape=(len(labels), len(centroids)))
            sums += members.T @ block.astype(np.float64)
            counts += np.bincount(labels, minlength=len(centroids))
        inertia = float(distances.sum(dtype=np.float64))
        filled = counts > 0
        centroids = centroids.copy()
        centroids[filled] = sums[filled] / counts[filled, None]
        empty = np.flatnonzero(~filled)
        repaired = _move_to_farthest(rows, centroids, empty, distances)
        if callback:
            size = inertia / rows.scale**2
            callback(Iteration(layer, iteration, iterations, size, repaired, time.perf_counter() - clock))
        if iteration > 1 and not repaired and before - inertia <= tolerance * before:
            return centroids, iteration
        before = inertia
    return centroids, iterations


def _move_to_farthest(rows: Rows, centroids: FloatArray, empty: npt.NDArray[np.int64], distances: npt.NDArray[Any]) -> int:
    """Put each empty centroid on a different row, the worst represented first (ties: the first row); returns how many."""
    if not len(empty):
        return 0
    worst = np.argsort(-distances, kind="stable")[: len(empty)]
    worst = worst[distances[worst] > 0]
    centroids[empty[: len(worst)]] = rows.take(worst)
    return len(worst)


def _finish(
    rows: Rows, unit: ScaledRows, centroids: FloatArray, n_iter: int, backend: Backend, n_threads: int | None
) -> Clustering:
    """Exact labels in the rows' own units; clusters that the last update emptied are filled once more."""
    final = unit.back(centroids)
    for _ in range(_REPAIR_ROUNDS):
        labels, distances = _assign_exactly(rows, final, backend, n_threads)
        empty = np.flatnonzero(np.bincount(labels, minlength=len(final)) == 0)
        if not _move_to_farthest(rows, final, empty, distances):
            break
    else:
        labels, distances = _assign_exactly(rows, final, backend, n_threads)
    if len(empty):
        filled = len(final) - len(empty)
        message = f"{len(final)} clusters, {filled} of them filled: the rows hold fewer distinct vectors than clusters"
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
    return Clustering(final, labels, float(distances.sum(dtype=np.float64)), n_iter)


def _assign_exactly(
    rows: Rows, centroids: FloatArray, backend: Backend, n_threads: int | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    nearest = NearestCentroid(centroids, backend, n_threads)
    labels, distances = np.empty(rows.n, np.int32), np.empty(rows.n)
    for start, stop, block in blocks(rows):
        check_finite(block, start)
        labels[start:stop], distances[start:stop] = nearest(block)
    return labels, distances


def _checked_init(init: npt.ArrayLike, n_clusters: int, dim: int) -> FloatArray:
    start = np.ascontiguousarray(init, dtype=np.float32)
    if start.shape != (n_clusters, dim):
        raise ValueError(f"init has shape {start.shape}; needs ({n_clusters}, {dim})")
    check_finite(start)
    return start
