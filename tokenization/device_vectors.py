"""Vectors that stay on a GPU while k-means and RQ-KMeans train on them (``lloyd.Source``, ``vector_source.VectorSource``).

They are read once. Each iteration takes centroids there and brings means and counts back, each epoch of refinement codes and
sums by token too; the search is ``tokenization.device_nearest``'s, sums are ``tokenization.device_sums``'s. Labels, sums and
inertia are those of the host's sources, bit for bit. Three things are a device's own: seeding rounds otherwise
(``seeding.seed_centroids``), so does what refinement moves centroids by (``device_sums.token_sums``), and every iteration
compares with all centroids (``lloyd.train``).
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tokenization.assignment import LONGEST_ROW, SAFE_NORMS, NearestCentroid, first_of_equal_rows
from tokenization.device_nearest import FusedFinder, NarrowedRows
from tokenization.device_sums import DeviceSums
from tokenization.residual import Codes
from tokenization.vector_source import Charges, CodedSums, charged, worst_kept
from tokenization.vectors import ArrayRows, Extent, FloatArray, Rows, ScaledRows, blocks

_CHUNK_VALUES = 2**26
"""Values of the rows that are worked on at once: 256 MiB, and up to seven times that for what is computed of them."""
_FEWEST_COLUMNS = 32
"""What is computed of a row takes as much as so many of its values do, at least."""
_BYTES_A_VALUE = 14
"""Of vectors, one layer's residuals, these scaled, and these in float16."""
_BYTES_A_ROW = 64
_BYTES_A_CENTROID_VALUE = 512
"""Of 16 sampled rows a centroid for seeding, in float64 and float32, and of centroids and their sums."""
_WORK_BYTES = 8 * 4 * _CHUNK_VALUES
_SHARE = 0.9


def device_for(rows: Rows, clusters: int) -> str | None:
    """The GPU that rows can stay on while so many clusters are trained; None without one.

    A GPU whose memory is too small is warned of, since training elsewhere seeds otherwise.
    """
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # PyTorch keeps what it has freed
    needed = rows.n * (rows.dim * _BYTES_A_VALUE + _BYTES_A_ROW) + clusters * rows.dim * _BYTES_A_CENTROID_VALUE + _WORK_BYTES
    if needed < _SHARE * free:
        return "cuda"
    warnings.warn(
        f"backend torch: {rows.n} vectors of {rows.dim} need {needed / _SHARE / 2**30:.1f} GiB of the GPU's memory and "
        f"{free / 2**30:.1f} are free; training stays on the processor, with seeds of its own",
        stacklevel=2,
    )
    return None


def _on(device: str | torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    """An array of the host there; it may be one that cannot be written, as those of memory maps."""
    return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device)


class DeviceRows:
    """``values`` (n, dim) float32 on a device as rows."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    @classmethod
    def of(cls, rows: Rows, device: str) -> Self:
        """Rows read block by block."""
        values = torch.empty((rows.n, rows.dim), dtype=torch.float32, device=device)
        for start, stop, block in blocks(rows):
            values[start:stop] = _on(device, block)
        return cls(values)

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.values)

    @property
    def dim(self) -> int:
        """Columns."""
        return self.values.shape[1]

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop``, on the host."""
        found: FloatArray = self.values[start:stop].cpu().numpy()
        return found

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices``, on the host."""
        found: FloatArray = self.values[_on(self.device, indices)].cpu().numpy()
        return found

    @property
    def device(self) -> str:
        """Where they are."""
        return str(self.values.device)

    def chunks(self) -> Iterator[slice]:
        """Parts of the rows that are worked on at once."""
        step = max(1, _CHUNK_VALUES // max(self.dim, _FEWEST_COLUMNS))
        for start in range(0, self.n, step):
            yield slice(start, min(start + step, self.n))

    def extent(self) -> Extent:
        """Of all rows. Raises BadVectors for rows that are not finite."""
        low, high = self.values.amin(0), self.values.amax(0)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            return Extent.of(ArrayRows(self.values.cpu().numpy()))
        return Extent(low.cpu().numpy(), high.cpu().numpy())

    def scaled_by(self, unit: ScaledRows, part: slice) -> torch.Tensor:
        """Rows in the units of ``unit``, as its ``forward`` gives them."""
        values = self.values[part]
        shift = _on(self.device, unit.shift)
        if 2.0**-126 <= unit.scale <= 2.0**127:
            return values * unit.scale - shift
        return (values.double() * unit.scale).float() - shift


class DeviceNearest:
    """``NearestCentroid`` on a device; ``centroids`` (k, dim) float32 there. What the search cannot tell the host decides."""

    def __init__(self, centroids: FloatArray, device: str | torch.device) -> None:
        self._host_centroids = centroids
        first = first_of_equal_rows(centroids)
        self.centroids, self._first = _on(device, centroids), _on(device, first)
        distinct = self.centroids if len(first) == len(centroids) else self.centroids[self._first]
        squares = distinct.double().square().sum(1)
        self._largest = float(squares.max().sqrt())
        low, high = SAFE_NORMS
        self._finder = FusedFinder(distinct, squares, str(device)) if low < self._largest < high else None
        self._host: NearestCentroid | None = None

    def __call__(self, rows: NarrowedRows) -> torch.Tensor:
        """Labels (n,) int64 of rows on the device."""
        if self._finder is None:
            labels = torch.full((len(rows),), -1, device=rows.rows.device)
        else:
            low, high = SAFE_NORMS
            safe = (rows.norms > low) & (rows.norms < min(high, LONGEST_ROW * self._largest))
            labels = torch.where(safe, self._finder.certain(rows), -1)
        unsure, zero = labels < 0, rows.norms == 0
        labels = self._first[labels]
        if bool((unsure & zero).any()):  # of vectors that are missing, say, there may be many
            labels[unsure & zero] = self._on_host(torch.zeros_like(rows.rows[:1]))
            unsure &= ~zero
        if bool(unsure.any()):
            labels[unsure] = self._on_host(rows.rows[unsure])
        return labels

    def _on_host(self, rows: torch.Tensor) -> torch.Tensor:
        self._host = self._host or NearestCentroid(self._host_centroids, "float32")
        return torch.from_numpy(self._host(rows.cpu().numpy())).to(rows.device)


class DeviceSource(DeviceRows):
    """Rows that k-means trains on (``lloyd.Source``); labels are an array (n,) int32 of the host."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(values)
        self._unit: tuple[float, bytes] | None = None  # not the unit itself, which refers to these rows: both would live on
        self._prepared: list[NarrowedRows] = []

    def step(self, unit: ScaledRows, centroids: FloatArray, neighbours: npt.NDArray[np.int32] | None = None) -> DeviceSums:  # noqa: ARG002
        """Of all rows, in scaled units, compared with all centroids."""
        if self._unit != (key := (unit.scale, unit.shift.tobytes())):
            self._prepared.clear()
            self._prepared.extend(NarrowedRows.of(self.scaled_by(unit, part)) for part in self.chunks())
            self._unit = key
        nearest = DeviceNearest(centroids, self.device)
        sums = DeviceSums(len(centroids), self.dim, self.n, self.device)
        for rows in self._prepared:
            labels = nearest(rows)
            sums.add_distances(rows.rows, labels, nearest.centroids)
            sums.add_coordinates(rows.rows, labels)
        return sums

    def assign(self, centroids: FloatArray) -> tuple[DeviceSums, npt.NDArray[np.int32]]:
        """Of all rows, in their own units; and their labels."""
        nearest = DeviceNearest(centroids, self.device)
        sums, labels = DeviceSums(len(centroids), 0, self.n, self.device), np.empty(self.n, np.int32)
        for part in self.chunks():
            rows = NarrowedRows.of(self.values[part])
            found = nearest(rows)
            sums.add_distances(rows.rows, found, nearest.centroids)
            labels[part] = found.cpu().numpy()
        return sums, labels


class DeviceVectors(DeviceRows):
    """Vectors that RQ-KMeans trains on (``vector_source.VectorSource``)."""

    def residuals(self, codebooks: Sequence[FloatArray], codes: Codes) -> DeviceSource:
        """What the first layers left, in memory of its own if there are any."""
        left = self.values.clone() if codebooks else self.values
        for layer, codebook in enumerate(codebooks):
            centroids = _on(self.device, codebook)
            for part in self.chunks():
                rows = left[part]
                rows -= centroids[_on(self.device, codes[part, layer].astype(np.int64))]
        return DeviceSource(left)

    def encode(
        self, unit: ScaledRows, codebooks: Sequence[FloatArray], charges: Charges | None = None
    ) -> tuple[CodedSums, Codes]:
        """Greedy codes and their sums."""
        places = codebooks if charges is None else [charged(*one) for one in zip(codebooks, charges, strict=True)]
        layers = [DeviceNearest(place, self.device) for place in places]
        whole = [_on(self.device, codebook) for codebook in codebooks]
        sizes = [len(codebook) for codebook in codebooks]
        sums = [
            DeviceSums(size, self.dim, self.n, self.device, most) for size, most in zip(sizes, worst_kept(sizes), strict=True)
        ]
        codes = np.empty((self.n, len(layers)), np.uint16)
        for part in self.chunks():
            left, coordinates = self.values[part].clone(), self.scaled_by(unit, part)
            for layer, (nearest, codebook) in enumerate(zip(layers, whole, strict=True)):
                seen = left if charges is None else torch.nn.functional.pad(left, (0, 1))
                tokens = nearest(NarrowedRows.of(seen))
                sums[layer].add_distances(left, tokens, codebook)
                sums[layer].add_coordinates(coordinates, tokens)
                codes[part, layer] = tokens.cpu().numpy()
                left -= codebook[tokens]
        return CodedSums([layer.on_host() for layer in sums]), codes
