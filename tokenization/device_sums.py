"""``ClusterSums`` on a GPU: the same integers, added up where the rows lie.

Integers add to the same in any order, so atomic additions are as good as any; distances are summed in the lanes of
``compiled.squared_distance``. Only the host's numbers leave the device: counts, the inertia, and the means.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tokenization.cluster_sums import EXPONENTS, LOW_BITS, ClusterSums, added_up, as_float, fraction_bits
from tokenization.vectors import FloatArray

_LANES = 8


class DeviceSums:
    """Of ``n`` rows in all, by ``clusters``; ``dim`` 0 where only the assignment is wanted (``lloyd.Sums``)."""

    def __init__(self, clusters: int, dim: int, n: int, device: str | torch.device, most: int | None = None) -> None:
        self._bits = fraction_bits(n) if dim else 0
        self._most = clusters if most is None else most
        self._sums = torch.zeros((clusters, dim), dtype=torch.int64, device=device)
        self._counts = torch.zeros(clusters, dtype=torch.int64, device=device)
        self._parts = torch.zeros((2, EXPONENTS[1] - EXPONENTS[0]), dtype=torch.int64, device=device)
        self._distances: list[torch.Tensor] = []

    def add_distances(self, rows: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor) -> None:
        """Add how many rows (n, dim) there are, and how far from their ``centroids`` (k, dim); in the order of the rows."""
        distances = squared_distances(rows, centroids, labels)
        self._counts += torch.bincount(labels, minlength=len(self._counts))
        mantissas, exponents = torch.frexp(distances)
        whole, place = (mantissas * 2.0**53).long(), exponents.long() - EXPONENTS[0]
        self._parts[0].index_add_(0, place, whole >> LOW_BITS)
        self._parts[1].index_add_(0, place, whole & (2**LOW_BITS - 1))
        if self._most:
            self._distances.append(distances)

    def add_coordinates(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the coordinates of float32 rows (n, dim), which are below 8."""
        if self._sums.shape[1]:
            self._sums.index_add_(0, labels, (rows.double() * 2.0**self._bits).round_().long())

    def means(self, centroids: FloatArray) -> FloatArray:
        """See ``ClusterSums.means``."""
        device = self._sums.device
        means = (self._sums.double() * 2.0**-self._bits / self._counts[:, None]).float()
        moved = torch.where(self._counts[:, None] > 0, means, torch.from_numpy(centroids).to(device))
        host: FloatArray = moved.cpu().numpy()
        return host

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows (k,) of each cluster."""
        host: npt.NDArray[np.int64] = self._counts.cpu().numpy()
        return host

    @property
    def worst_rows(self) -> npt.NDArray[np.int64]:
        """See ``ClusterSums``."""
        return self._worst()[0]

    @property
    def inertia(self) -> int:
        """The exact sum of squared distances in units of 2^−1200."""
        high, low = self._parts.cpu().numpy()
        return sum(added_up(int(high[place]), int(low[place]), int(place) + EXPONENTS[0]) for place in np.flatnonzero(high | low))

    @property
    def distance(self) -> float:
        """The inertia as the nearest float."""
        return as_float(self.inertia)

    def on_host(self) -> ClusterSums:
        """The same as the host adds up."""
        sums: npt.NDArray[np.int64] = self._sums.cpu().numpy()
        return ClusterSums(sums, self.counts, self._bits, self._most, self.inertia, *self._worst())

    def _worst(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        if not self._most:
            return np.zeros(0, np.int64), np.zeros(0)
        distances = torch.cat(self._distances)
        order = torch.argsort(distances, descending=True, stable=True)[: self._most]
        order = order[distances[order] > 0]
        return order.cpu().numpy(), distances[order].cpu().numpy()


def token_sums(
    codes: torch.Tensor, layer: int, wide: Sequence[npt.NDArray[np.float64]], rows_at_once: int = 2**17
) -> npt.NDArray[np.float64]:
    """Sums (size, dim) float64, by their token of a layer, of the centroids ``wide`` that rows have on the other layers.

    ``codes`` (n, layers) int64 are on the device. Added up as whole multiples of a power of two, so to the same in any order: of
    two million rows each loses 2⁻³⁸ of the largest centroids at most.
    """
    others = [other for other in range(len(wide)) if other != layer]
    largest = sum(float(np.abs(wide[other]).max()) for other in others)
    exponent = fraction_bits(len(codes)) - int(np.frexp(largest)[1])
    size, dim = wide[layer].shape
    sums = torch.zeros((size, dim), dtype=torch.int64, device=codes.device)
    scaled = [torch.from_numpy(np.ldexp(wide[other], exponent)).to(codes.device) for other in others]
    for part in codes.split(rows_at_once):
        added = torch.zeros((len(part), dim), dtype=torch.float64, device=codes.device)
        for other, centroids in zip(others, scaled, strict=True):
            added += centroids[part[:, other]]
        sums.index_add_(0, part[:, layer], added.round_().long())
    found: npt.NDArray[np.float64] = np.ldexp(sums.cpu().numpy().astype(np.float64), -exponent)
    return found


def squared_distances(rows: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared distance (n,) float64 of float32 rows (n, dim) to the centroids (k, dim) of their labels (n,): each addition that
    ``compiled.squared_distance`` makes, in its order."""
    squares = rows.double().sub_(centroids[labels].double())
    squares *= squares  # a kernel of its own: nothing contracts it with the additions
    n, dim = squares.shape
    whole = dim - dim % _LANES
    lanes = torch.zeros((n, _LANES), dtype=torch.float64, device=rows.device)
    for first in range(0, whole, _LANES):
        lanes += squares[:, first : first + _LANES]
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    total = lanes[:, 0]
    for column in range(whole, dim):
        total = total + squares[:, column]
    return total
