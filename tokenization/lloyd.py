"""Lloyd's algorithm as a pure function of the rows and the seed, wherever the rows lie.

Everything that is summed over rows is summed exactly: coordinates as multiples of a power of two in int64, distances as
integers of any length. Exact sums are associative and commutative, so blocks, threads, parts of a distributed job and their
order change no bit of the centroids, of the inertia or of the iteration that the stopping rule ends at. The coordinates keep
40 bits after the point where there are fewer than half a million rows, one less each time that doubles: in scaled units
(``ScaledRows``, spread 1 to 2) a float32 has 23.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tokenization.assignment import NearestCentroid
from tokenization.seeding import seed_centroids
from tokenization.shortlisted import EVERY
from tokenization.vectors import BadVectors, Extent, FloatArray, Rows, ScaledRows, blocks, check_finite, scaled

_REPAIR_ROUNDS = 20
_MOST_BITS = 40
_ROOM_BITS = 59
"""Of int64's 63: scaled coordinates stay below 2³, and one bit is spare."""
_POINT = 1200
"""Bits after the point of an exact sum of float64: no float64 has more."""
_THREADED_VALUES = 2**18

Labels = TypeVar("Labels")
L_co = TypeVar("L_co", covariant=True)


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


def all_of(*callbacks: Callback | None) -> Callback:
    """One callback that tells several."""
    told = [callback for callback in callbacks if callback]

    def tell(iteration: Iteration) -> None:
        for callback in told:
            callback(iteration)

    return tell


@dataclass
class ClusterSums:
    """What some rows add to a step; grows in place, by ``add`` and ``merge``, to the same whatever their order.

    ``sums`` (k, dim) int64 in units of 2^−``bits``, or (k, 0) where only the assignment is wanted; ``counts`` (k,) int64;
    ``inertia``, the exact sum of squared distances in units of 2^−1200; ``worst_rows``, ``worst_distances``: the up to ``most``
    rows that lie farthest from their centroid, farthest first, of equal ones the first row.
    """

    sums: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    bits: int
    most: int
    inertia: int
    worst_rows: npt.NDArray[np.int64]
    worst_distances: npt.NDArray[np.float64]

    @classmethod
    def none(cls, clusters: int, dim: int, bits: int, most: int | None = None) -> "ClusterSums":
        """Those of no rows; ``most`` is k unless told."""
        zeros, counts = np.zeros((clusters, dim), np.int64), np.zeros(clusters, np.int64)
        return cls(zeros, counts, bits, clusters if most is None else most, 0, np.zeros(0, np.int64), np.zeros(0))

    def add(
        self, block: FloatArray, labels: npt.NDArray[np.int64], centroids: FloatArray, first_row: int, threads: int = 1
    ) -> None:
        """Add rows (n, dim), assigned to ``centroids`` (k, dim) by ``labels`` (n,); their numbers go from ``first_row``."""
        self.add_distances(block, labels, centroids, first_row)
        self.add_coordinates(block, labels, threads)

    def add_distances(self, block: FloatArray, labels: npt.NDArray[np.int64], centroids: FloatArray, first_row: int) -> None:
        """Add how many rows there are, and how far from their centroids."""
        from tokenization.lloyd_kernels import distances_to

        distances = np.empty(len(block))
        distances_to(block, centroids, labels, distances)
        self.counts += np.bincount(labels, minlength=len(self.counts))
        self.inertia += exact_sum(distances)
        self._keep_worst(np.arange(first_row, first_row + len(block)), distances)

    def add_coordinates(self, block: FloatArray, labels: npt.NDArray[np.int64], threads: int = 1) -> None:
        """Add the coordinates of rows (n, dim), which are below 8."""
        from tokenization.lloyd_kernels import add_rows

        dim = self.sums.shape[1]
        shares = min(threads, dim) if block.size >= _THREADED_VALUES else 1
        edges = [dim * share // shares for share in range(shares + 1)] if dim else [0, 0]

        def add(share: int) -> None:
            add_rows(block, labels, edges[share], edges[share + 1], 2.0**self.bits, self.sums)

        if shares < 2:
            add(0)
        else:  # a thread takes columns of its own, so none waits for another
            with ThreadPoolExecutor(shares) as pool:
                list(pool.map(add, range(shares)))

    def merge(self, other: "ClusterSums") -> "ClusterSums":
        """Add those of other rows; returns itself."""
        self.sums += other.sums
        self.counts += other.counts
        self.inertia += other.inertia
        self._keep_worst(other.worst_rows, other.worst_distances)
        return self

    def means(self, centroids: FloatArray) -> FloatArray:
        """The centroids (k, dim) moved to the means of their rows; those without rows stay."""
        filled = self.counts > 0
        moved = centroids.copy()
        moved[filled] = self.sums[filled].astype(np.float64) * 2.0**-self.bits / self.counts[filled, None]
        return moved

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a file; ``from_arrays`` reads them."""
        size = self.inertia.bit_length() // 8 + 1
        numbers = {"bits": np.array(self.bits), "most": np.array(self.most)}
        whole = np.frombuffer(self.inertia.to_bytes(size, "little"), np.uint8)
        arrays = {name: getattr(self, name) for name in ("sums", "counts", "worst_rows", "worst_distances")}
        return arrays | numbers | {"inertia": whole}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "ClusterSums":
        """Of ``to_arrays``."""
        numbers = {"bits": int(arrays["bits"]), "most": int(arrays["most"])}
        return cls(**{**arrays, **numbers, "inertia": int.from_bytes(arrays["inertia"].tobytes(), "little")})

    @property
    def distance(self) -> float:
        """The inertia as the nearest float."""
        return self.inertia / (1 << _POINT)

    def _keep_worst(self, rows: npt.NDArray[np.int64], distances: npt.NDArray[np.float64]) -> None:
        most = self.most
        if not most:
            return
        far = distances > (self.worst_distances[-1] if len(self.worst_rows) == most else 0)
        if len(self.worst_rows) == most:
            far |= (distances == self.worst_distances[-1]) & (rows < self.worst_rows[-1])
        if not far.any():
            return
        rows = np.concatenate([self.worst_rows, rows[far]])
        distances = np.concatenate([self.worst_distances, distances[far]])
        if len(rows) > most:
            limit = np.partition(distances, len(rows) - most)[len(rows) - most]
            rows, distances = rows[distances >= limit], distances[distances >= limit]
        order = np.lexsort((rows, -distances))[:most]
        self.worst_rows, self.worst_distances = rows[order], distances[order]


def exact_sum(values: npt.NDArray[np.float64]) -> int:
    """The sum of finite numbers (n,), without rounding, in units of 2^−1200."""
    mantissas, exponents = np.frexp(values)
    whole = (mantissas * 2.0**53).astype(np.int64)
    total = 0
    for exponent in np.unique(exponents).tolist():
        chosen = whole[exponents == exponent]
        high, low = int((chosen >> 27).sum()), int((chosen & (2**27 - 1)).sum())
        total += ((high << 27) + low) << (exponent - 53 + _POINT)
    return total


def fraction_bits(n: int) -> int:
    """Bits after the point of summed coordinates, so that sums of ``n`` rows fit int64."""
    return min(_MOST_BITS, _ROOM_BITS - n.bit_length())


def add_assigned(
    sums: ClusterSums, rows: Rows, nearest: NearestCentroid, first_row: int = 0, threads: int = 1
) -> npt.NDArray[np.int32]:
    """Assign rows (which are finite) and add them to ``sums``; returns their labels (n,)."""
    labels = np.empty(rows.n, np.int32)
    for start, stop, block in blocks(rows):
        found, _ = nearest(block)
        sums.add(block, found, nearest.centroids, first_row + start, threads)
        labels[start:stop] = found
    return labels


class Source(Rows, Protocol[L_co]):
    """Rows that can be summed over: in this process (``kmeans.LocalSource``) or by the workers of a pipeline."""

    def extent(self) -> Extent:
        """Of all rows. Raises BadVectors for rows that are not finite."""
        ...

    def step(self, unit: ScaledRows, centroids: FloatArray, *, full: bool) -> ClusterSums:
        """Of all rows, in the units of ``unit``, as are the centroids; unless ``full``, a source that keeps lists of each row's
        nearest centroids may look at these alone (``tokenization.shortlisted``)."""
        ...

    def assign(self, centroids: FloatArray) -> tuple[ClusterSums, L_co]:
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
    layer: int = 1,
    callback: Callback | None = None,
) -> Trained[Labels]:
    """k-means of a source's rows; the arguments are those of ``kmeans.cluster``."""
    if n_clusters < 1 or iterations < 1 or n_init < 1 or tolerance < 0:
        raise ValueError("n_clusters, iterations and n_init must be at least 1, tolerance at least 0")
    if source.n < 1:
        raise BadVectors("vectors: found 0 rows; k-means needs at least 1")
    unit = scaled(source, source.extent())
    best: Trained[Labels] | None = None
    for run in range(n_init if init is None else 1):
        if init is None:
            start = seed_centroids(unit, n_clusters, np.random.default_rng([seed, run]))
        else:
            start = unit.forward(_checked_init(init, n_clusters, source.dim))
        centroids, n_iter = _iterate(source, unit, start, iterations, tolerance, layer, callback)
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
    layer: int,
    callback: Callback | None,
) -> tuple[FloatArray, int]:
    """Lloyd's iterations in scaled units; returns the centroids and how many iterations ran."""
    before, repaired, listed = np.inf, 0, EVERY
    for iteration in range(1, iterations + 1):
        clock = time.perf_counter()
        full = repaired > 0 or listed >= EVERY - 1  # no list holds a centroid that was put elsewhere
        listed = 0 if full else listed + 1
        sums = source.step(unit, centroids, full=full)
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


def _move_to_worst(rows: Rows, centroids: FloatArray, sums: ClusterSums) -> int:
    """Put each empty centroid on a different row, the worst represented first; returns how many."""
    empty = np.flatnonzero(sums.counts == 0)
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
