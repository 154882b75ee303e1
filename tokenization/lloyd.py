"""Lloyd's algorithm as a pure function of the rows and the seed, wherever the rows lie.

Everything that is summed over rows is summed exactly (``tokenization.cluster_sums``), so blocks, threads, parts of a distributed
job and their order change no bit of the centroids, of the inertia or of the iteration that the stopping rule ends at.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tokenization.assignment import NearestCentroid
from tokenization.cluster_sums import ClusterSums
from tokenization.neighbours import EVERY, neighbours_of
from tokenization.seeding import seed_centroids
from tokenization.vectors import BadVectors, Extent, FloatArray, Rows, ScaledRows, blocks, check_finite, device_of, scaled

_REPAIR_ROUNDS = 20

Labels = TypeVar("Labels")
L_co = TypeVar("L_co", covariant=True)


@dataclass(frozen=True)
class Iteration:
    """What a callback is told after each iteration: counts from 1; ``inertia`` is of the centroids it started from.

    Layer 0 are epochs that all layers are refined in; ``inertia`` is of the centroids they end with then. Not ``greedy``: it is
    of codes that something else than the distance had a say in: a charge in an epoch, a bound on clusters in a layer.
    """

    layer: int
    iteration: int
    iterations: int
    inertia: float
    repaired: int
    seconds: float
    greedy: bool = True


Callback = Callable[[Iteration], None]


def all_of(*callbacks: Callback | None) -> Callback:
    """One callback that tells several."""
    told = [callback for callback in callbacks if callback]

    def tell(iteration: Iteration) -> None:
        for callback in told:
            callback(iteration)

    return tell


def add_assigned(
    sums: ClusterSums, rows: Rows, nearest: NearestCentroid, first_row: int = 0, threads: int = 1
) -> npt.NDArray[np.int32]:
    """Assign rows (which are finite) and add them to ``sums``; returns their labels (n,)."""
    labels = np.empty(rows.n, np.int32)
    for start, stop, block in blocks(rows):
        found = nearest(block)
        sums.add(block, found, nearest.centroids, first_row + start, threads)
        labels[start:stop] = found
    return labels


class Sums(Protocol):
    """What Lloyd's step asks of the sums over all rows; the fields of ``ClusterSums``, wherever they are added up."""

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows (k,) of each cluster."""
        ...

    @property
    def worst_rows(self) -> npt.NDArray[np.int64]:
        """The rows farthest from their centroids, at most k, farthest first."""
        ...

    @property
    def distance(self) -> float:
        """The inertia."""
        ...

    def means(self, centroids: FloatArray) -> FloatArray:
        """The centroids (k, dim) moved to the means of their rows."""
        ...


class Source(Rows, Protocol[L_co]):
    """Rows that can be summed over: in this process (``kmeans.LocalSource``), on its GPU (``device_vectors.DeviceSource``) or by
    the workers of a pipeline."""

    def extent(self) -> Extent:
        """Of all rows. Raises BadVectors for rows that are not finite."""
        ...

    def step(self, unit: ScaledRows, centroids: FloatArray, neighbours: npt.NDArray[np.int32] | None = None) -> Sums:
        """Of all rows, in the units of ``unit``, as are the centroids; with ``neighbours`` (``neighbours_of``) only those of
        the label that the step before gave a row are looked at."""
        ...

    def assign(self, centroids: FloatArray) -> tuple[Sums, L_co]:
        """Of all rows in their own units, without coordinates; and the labels, or where they lie."""
        ...


@dataclass(frozen=True)
class Trained(Generic[Labels]):
    """Centroids (k, dim) float32 in the rows' units, labels, inertia, iterations run, centroids left without a row."""

    centroids: FloatArray
    labels: Labels
    inertia: float
    n_iter: int
    empty: int


def train(
    source: Source[Labels],
    n_clusters: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    init: npt.ArrayLike | None = None,
    tolerance: float = 1e-5,
    n_init: int = 1,
    n_threads: int | None = None,
    neighbours: bool = True,
    layer: int = 1,
    callback: Callback | None = None,
) -> Trained[Labels]:
    """k-means of a source's rows; the arguments are those of ``kmeans.cluster``."""
    if n_clusters < 1 or iterations < 1 or n_init < 1 or tolerance < 0:
        raise ValueError("n_clusters, iterations and n_init must be at least 1, tolerance at least 0")
    if source.n < 1:
        raise BadVectors("vectors: found 0 rows; k-means needs at least 1")
    extent = source.extent()
    unit = scaled(source, extent.checked() if layer == 1 else extent)  # what a layer leaves may lie beyond what vectors may hold
    best: Trained[Labels] | None = None
    for run in range(n_init if init is None else 1):
        if init is None:
            start = seed_centroids(unit, n_clusters, np.random.default_rng([seed, run]), device_of(source))
        else:
            start = unit.forward(_checked_init(init, n_clusters, source.dim))
        # Matrix products are cheap on a device, and neighbours would be found on the host.
        every = EVERY if neighbours and device_of(source) is None else 1
        centroids, n_iter = _iterate(source, unit, start, iterations, tolerance, every, n_threads, layer, callback)
        found = _finish(source, unit.back(centroids), n_iter)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def _iterate(
    source: Source[Any],
    unit: ScaledRows,
    centroids: FloatArray,
    iterations: int,
    tolerance: float,
    every: int,
    n_threads: int | None,
    layer: int,
    callback: Callback | None,
) -> tuple[FloatArray, int]:
    """Lloyd's iterations in scaled units, one in ``every`` by full comparisons; returns the centroids and how many ran."""
    before, repaired, since = np.inf, 0, every
    for iteration in range(1, iterations + 1):
        clock = time.perf_counter()
        full = repaired > 0 or since >= every - 1  # rows near a centroid that was put elsewhere are anyone's
        since = 0 if full else since + 1
        sums = source.step(unit, centroids, None if full else neighbours_of(centroids, source.n, n_threads))
        centroids = sums.means(centroids)
        repaired = _move_to_worst(unit, centroids, sums)
        inertia = sums.distance
        if callback:
            size = inertia / unit.scale**2
            callback(Iteration(layer, iteration, iterations, size, repaired, time.perf_counter() - clock))
        if iteration > 1 and not repaired and before - inertia <= tolerance * before:
            return centroids, iteration
        before = inertia
    return centroids, iterations


def _move_to_worst(rows: Rows, centroids: FloatArray, sums: Sums) -> int:
    """Put each empty centroid on a different row, the worst represented first; returns how many."""
    empty = np.flatnonzero(sums.counts == 0)
    if not len(empty):
        return 0
    worst = sums.worst_rows[: len(empty)]
    if len(worst):
        centroids[empty[: len(worst)]] = rows.take(worst)
    return len(worst)


def _finish(source: Source[Labels], centroids: FloatArray, n_iter: int) -> Trained[Labels]:
    """Labels in the rows' own units; clusters that the last update emptied are filled once more."""
    for _ in range(_REPAIR_ROUNDS):
        sums, labels = source.assign(centroids)
        if not _move_to_worst(source, centroids, sums):
            break
    else:
        sums, labels = source.assign(centroids)
    return Trained(centroids, labels, sums.distance, n_iter, int((sums.counts == 0).sum()))


def _checked_init(init: npt.ArrayLike, n_clusters: int, dim: int) -> FloatArray:
    start = np.ascontiguousarray(init, dtype=np.float32)
    if start.shape != (n_clusters, dim):
        raise ValueError(f"init has shape {start.shape}; needs ({n_clusters}, {dim})")
    check_finite(start)
    return start
