"""k-means (Lloyd's algorithm) in scikit-learn's estimator convention, on rows that need not fit in memory."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from tokenization import lloyd
from tokenization.assignment import Backend, NearestCentroid
from tokenization.cluster_sums import ClusterSums, fraction_bits
from tokenization.lloyd import Callback, Source, add_assigned
from tokenization.neighbours import LastLabels, NearestNeighbour
from tokenization.progress import progress_bar
from tokenization.threads import threads_or_cores
from tokenization.vectors import (
    BadVectors,
    Extent,
    FloatArray,
    Rows,
    RowsOver,
    ScaledRows,
    as_rows,
    blocks,
    check_vectors,
    is_arrow,
)


@dataclass(frozen=True)
class Clustering:
    """A finished clustering: centroids (k, dim) float32, labels (n,) int32, sum of squared distances."""

    centroids: FloatArray
    labels: npt.NDArray[np.int32]
    inertia: float
    n_iter: int


class KMeans(ClusterMixin, BaseEstimator):
    """k-means with k-means++ seeding and repair of empty clusters, a pure function of rows and seed (``tokenization.lloyd``).

    Parameters: ``n_clusters``; ``iterations``, at most; ``seed``; ``backend`` of the assignment, which changes no label
    (``tokenization.assignment``; with ``torch`` training stays on a GPU where there is one, and seeds there:
    ``tokenization.device_vectors``); ``init``, "k-means++" or an array (n_clusters, dim) to start from; ``tolerance``, stop
    once an iteration lowers the inertia by a smaller share than this; ``n_init``, keep the best of several seedings;
    ``n_threads`` (None: one a core); ``neighbours``, compare most of the time with the neighbours of a row's last centroid
    only (``tokenization.neighbours``; False: every iteration is a full one); ``verbose``, a progress bar on standard error.

    Attributes: ``centroids_`` float32 (n_clusters, dim), ``labels_`` int32 (n,), ``inertia_`` float (squared units of X),
    ``n_iter_``. ``predict`` of the training rows gives ``labels_``: both are exact (``tokenization.assignment``).

    Where fewer rows than clusters are distinct, every distinct row becomes a centroid; the remaining centroids repeat
    them and stay empty, since of equal centroids the first wins, and a ``ConvergenceWarning`` says so.
    Float16, float32 and float64 of any layout are accepted and computed in float32. X may be a memory map, or an Arrow column of
    fixed-size lists (also of a memory-mapped IPC file): both are read in blocks and never loaded whole.
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
        neighbours: bool = True,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.iterations = iterations
        self.seed = seed
        self.backend = backend
        self.init = init
        self.tolerance = tolerance
        self.n_init = n_init
        self.n_threads = n_threads
        self.neighbours = neighbours
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> "KMeans":  # noqa: ARG002
        """Cluster the rows of X (n, dim). Raises BadVectors (a ValueError) naming rows with NaN or infinity,
        or a column with values beyond 1e38."""
        rows = rows_of(self, X, reset=True)
        with progress_bar(self.iterations, enabled=self.verbose) as bar:
            result = self._clustered(rows, lloyd.all_of(callback, bar))
        self.centroids_ = result.centroids
        self.labels_ = result.labels
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        return self

    def _clustered(self, rows: Rows, callback: Callback) -> Clustering:
        return cluster(
            rows,
            self.n_clusters,
            iterations=self.iterations,
            seed=self.seed,
            backend=self.backend,
            init=None if isinstance(self.init, str) and self.init == "k-means++" else self.init,
            tolerance=self.tolerance,
            n_init=self.n_init,
            n_threads=self.n_threads,
            neighbours=self.neighbours,
            callback=callback,
        )

    def predict(self, X: Any) -> npt.NDArray[np.int32]:
        """Label (n,) int32 of the nearest centroid of each row of X (n, dim)."""
        check_is_fitted(self)
        rows = rows_of(self, X, reset=False)
        nearest = NearestCentroid(self.centroids_, self.backend, self.n_threads, rows.n)
        labels = np.empty(rows.n, np.int32)
        for start, stop, block in blocks(rows):
            check_vectors(block, start)
            labels[start:stop] = nearest(block)
        return labels


def rows_of(estimator: Any, X: Any, *, reset: bool) -> Rows:
    """X as rows, after scikit-learn's checks: an array, a memory map, or an Arrow column of fixed-size lists.

    Only finiteness is left to be checked, block by block with row numbers.
    """
    if not is_arrow(X):
        return as_rows(_validated(estimator, X, reset=reset))
    rows = as_rows(X)
    if reset:
        estimator.n_features_in_ = rows.dim
    elif rows.dim != estimator.n_features_in_:
        raise BadVectors(
            f"vectors: found {rows.dim} features; {type(estimator).__name__} was trained on {estimator.n_features_in_}"
        )
    return rows


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
    neighbours: bool = True,
    layer: int = 1,
    callback: Callback | None = None,
) -> Clustering:
    """k-means of ``rows``; the arguments are those of ``KMeans``. ``layer`` only goes to the callback.

    Raises BadVectors for bad rows and ValueError for a parameter out of range.
    """
    return cluster_source(
        source_of(rows, n_clusters, backend, n_threads),
        n_clusters,
        iterations=iterations,
        seed=seed,
        init=init,
        tolerance=tolerance,
        n_init=n_init,
        n_threads=n_threads,
        neighbours=neighbours,
        layer=layer,
        callback=callback,
    )


def source_of(rows: Rows, n_clusters: int, backend: Backend, n_threads: int | None) -> Source[npt.NDArray[np.int32]]:
    """Rows where they are summed over: on a GPU where the backend is ``torch`` and there is one that holds them, else here."""
    if backend == "torch":
        from tokenization.device_vectors import DeviceSource, device_for

        if device := device_for(rows, n_clusters):
            return DeviceSource.of(rows, device)
    return LocalSource(rows, backend, n_threads)


def cluster_source(source: Source[npt.NDArray[np.int32]], n_clusters: int, **how: Any) -> Clustering:
    """k-means of rows wherever they lie; ``how`` is what ``lloyd.train`` takes."""
    found = lloyd.train(source, n_clusters, **how)
    if found.empty:
        filled = n_clusters - found.empty
        message = f"{n_clusters} clusters, {filled} of them filled: the rows hold fewer distinct vectors than clusters"
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
    return Clustering(found.centroids, found.labels, found.inertia, found.n_iter)


@dataclass(frozen=True)
class LocalSource(RowsOver):
    """Rows summed over in this process (``lloyd.Source``); labels are an array (n,) int32. The rows may be a part, from
    ``first_row``, of ``of_rows`` in all; ``last`` are the labels of the step before."""

    backend: Backend = "auto"
    n_threads: int | None = None
    first_row: int = 0
    of_rows: int | None = None
    last: LastLabels = field(default_factory=LastLabels)

    def extent(self) -> Extent:
        """Of all rows."""
        return Extent.of(self.rows, self.first_row)

    def step(self, unit: ScaledRows, centroids: FloatArray, neighbours: npt.NDArray[np.int32] | None = None) -> ClusterSums:
        """Of all rows, in scaled units."""
        sums = ClusterSums.none(len(centroids), self.dim, fraction_bits(self.of_rows or self.n))
        if neighbours is None:
            self.last.labels = self._add(sums, unit, centroids)
            return sums
        nearest, labels = NearestNeighbour(centroids, neighbours, self.n_threads), self.last.labels
        for start, stop, block in blocks(unit):
            found = nearest(block, labels[start:stop])
            sums.add(block, found, centroids, self.first_row + start, self._threads)
            labels[start:stop] = found
        return sums

    def assign(self, centroids: FloatArray) -> tuple[ClusterSums, npt.NDArray[np.int32]]:
        """Of all rows, in their own units; and their labels."""
        sums = ClusterSums.none(len(centroids), 0, 0)
        return sums, self._add(sums, self.rows, centroids)

    def _add(self, sums: ClusterSums, rows: Rows, centroids: FloatArray) -> npt.NDArray[np.int32]:
        nearest = NearestCentroid(centroids, self.backend, self.n_threads, self.of_rows or self.n)
        return add_assigned(sums, rows, nearest, self.first_row, self._threads)

    @property
    def _threads(self) -> int:
        return threads_or_cores(self.n_threads)
