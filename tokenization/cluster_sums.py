"""What k-means sums over rows, summed exactly: coordinates as multiples of a power of two in int64, distances as integers of any
length.

Exact sums are associative and commutative, so no division of the rows and no order changes a bit. The coordinates keep
40 bits after the point where there are fewer than half a million rows, one less each time that doubles: in scaled units
(``ScaledRows``, spread 1 to 2) a float32 has 23.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.vectors import FloatArray

_MOST_BITS = 40
_ROOM_BITS = 59
"""Of int64's 63: scaled coordinates stay below 2³, and one bit is spare."""
_POINT = 1200
"""Bits after the point of an exact sum of float64: no float64 has more."""
EXPONENTS = (-1075, 1025)
"""``frexp``'s of float64 lie between: from the first on, below the second."""
LOW_BITS = 27
"""A mantissa is summed in two parts: more than two billion of either fit int64."""
_THREADED_VALUES = 2**18


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
        told: dict[str, Any] = {**arrays, "bits": int(arrays["bits"]), "most": int(arrays["most"])}
        return cls(**told | {"inertia": int.from_bytes(arrays["inertia"].tobytes(), "little")})

    @property
    def distance(self) -> float:
        """The inertia as the nearest float."""
        return as_float(self.inertia)

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
        total += added_up(int((chosen >> LOW_BITS).sum()), int((chosen & (2**LOW_BITS - 1)).sum()), exponent)
    return total


def added_up(high: int, low: int, exponent: int) -> int:
    """What the upper and the lower LOW_BITS of 53-bit mantissas of one exponent (``frexp``) add up to, in units of 2^−1200."""
    return ((high << LOW_BITS) + low) << (exponent - 53 + _POINT)


def as_float(inertia: int) -> float:
    """An exact sum in units of 2^−1200 as the nearest float."""
    return inertia / (1 << _POINT)


def fraction_bits(n: int) -> int:
    """Bits after the point of summed coordinates, so that sums of ``n`` rows fit int64."""
    return min(_MOST_BITS, _ROOM_BITS - n.bit_length())
