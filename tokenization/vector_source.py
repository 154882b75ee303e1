"""Vectors that RQ-KMeans trains on, wherever they lie: in this process, on its GPU, or with the workers of a pipeline.

Training asks for little: the extent of the vectors, rows by number, Lloyd's sums over what the first layers left, and, to
refine all layers together, the sums of the vectors by token. Everything is summed exactly (``tokenization.lloyd``), so the
same vectors give the same codebook wherever processors sum them; a GPU seeds otherwise (``tokenization.device_vectors``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenization.assignment import Backend, NearestCentroid
from tokenization.cluster_sums import ClusterSums, fraction_bits
from tokenization.kmeans import LocalSource
from tokenization.lloyd import Source
from tokenization.residual import Codes, left_by
from tokenization.threads import threads_or_cores
from tokenization.vectors import ArrayRows, Extent, FloatArray, Rows, RowsOver, ScaledRows, blocks

_KEPT_VALUES = 2**26
"""Residuals of at most so many values (256 MiB) are kept while a layer is trained; more are computed each time they are read."""

Charges = Sequence[npt.NDArray[np.float64]]


def charged(codebook: FloatArray, charge: npt.NDArray[np.float64]) -> FloatArray:
    """Centroids (size, dim + 1) whose squared distance from a row with a 0 behind it is that of ``codebook`` (size, dim) plus
    ``charge`` (size,), less the least charge: the last coordinate is the square root of the rest."""
    return np.concatenate([codebook, np.sqrt(charge - charge.min())[:, None].astype(np.float32)], axis=1)


@dataclass
class CodedSums:
    """What greedy codes of some vectors add up to, a ``ClusterSums`` a layer; grows in place, by ``merge``.

    A layer's coordinates are those of the vectors x by token, in scaled units; its distances are of what it left of them. The
    last layer keeps as many of the worst rows as all layers have tokens.
    """

    layers: list[ClusterSums]

    @classmethod
    def none(cls, sizes: Sequence[int], dim: int, bits: int) -> "CodedSums":
        """Those of no rows."""
        return cls([ClusterSums.none(size, dim, bits, most) for size, most in zip(sizes, worst_kept(sizes), strict=True)])

    def merge(self, other: "CodedSums") -> "CodedSums":
        """Add those of other rows; returns itself."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.merge(theirs)
        return self

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a file; ``from_arrays`` reads them."""
        layers = enumerate(self.layers)
        return {f"{number}.{name}": array for number, layer in layers for name, array in layer.to_arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "CodedSums":
        """Of ``to_arrays``."""
        layers: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for key, array in arrays.items():
            number, name = key.split(".")
            layers.setdefault(int(number), {})[name] = array
        return cls([ClusterSums.from_arrays(layers[number]) for number in sorted(layers)])


def worst_kept(sizes: Sequence[int]) -> list[int]:
    """How many of the worst rows each layer's sums keep: only the last one's are asked for."""
    return [0] * (len(sizes) - 1) + [sum(sizes)]


class VectorSource(Rows, Protocol):
    """Vectors that can be summed over."""

    def extent(self) -> Extent:
        """Of all vectors. Raises BadVectors for those that are not finite."""
        ...

    def residuals(self, codebooks: Sequence[FloatArray], codes: Codes) -> Source[npt.NDArray[np.int32]]:
        """What the first layers left, given their codes (n, at least so many layers)."""
        ...

    def encode(
        self, unit: ScaledRows, codebooks: Sequence[FloatArray], charges: Charges | None = None
    ) -> tuple[CodedSums, Codes]:
        """Greedy codes (n, layers), as ``residual.encode`` gives them, and their sums in the units of ``unit``.

        With ``charges``, float64 (size,) a layer, the token of least squared distance plus charge is taken; sums are of the
        distances alone.
        """
        ...


def vectors_of(rows: Rows, tokens: int, backend: Backend = "auto", n_threads: int | None = None) -> VectorSource:
    """Vectors where they are summed over, by at most so many tokens a layer: on a GPU where the backend is ``torch`` and there is
    one that holds them, else here."""
    if backend == "torch":
        from tokenization.device_vectors import DeviceVectors, device_for

        if device := device_for(rows, tokens):
            return DeviceVectors.of(rows, device)
    return LocalVectors(rows, backend, n_threads)


@dataclass(frozen=True)
class LocalVectors(RowsOver):
    """Vectors summed over in this process. They may be a part, from ``first_row``, of ``of_rows`` in all."""

    backend: Backend = "auto"
    n_threads: int | None = None
    first_row: int = 0
    of_rows: int | None = None

    def extent(self) -> Extent:
        """Of all vectors."""
        return Extent.of(self.rows, self.first_row)

    def residuals(self, codebooks: Sequence[FloatArray], codes: Codes) -> LocalSource:
        """What the first layers left."""
        rows: Rows = ResidualRows(self.rows, tuple(codebooks), codes)
        if codebooks and rows.n * rows.dim <= _KEPT_VALUES:
            kept = np.empty((rows.n, rows.dim), np.float32)
            for start, stop, block in blocks(rows):
                kept[start:stop] = block
            rows = ArrayRows(kept)
        return LocalSource(rows, self.backend, self.n_threads, self.first_row, self.of_rows)

    def encode(
        self, unit: ScaledRows, codebooks: Sequence[FloatArray], charges: Charges | None = None
    ) -> tuple[CodedSums, Codes]:
        """Greedy codes and their sums."""
        from tokenization.nearest_kernels import subtract_listed

        places = codebooks if charges is None else [charged(*one) for one in zip(codebooks, charges, strict=True)]
        layers = [NearestCentroid(place, self.backend, self.n_threads, self.of_rows or self.n) for place in places]
        sizes = [len(codebook) for codebook in codebooks]
        sums = CodedSums.none(sizes, self.dim, fraction_bits(self.of_rows or self.n))
        codes = np.empty((self.n, len(layers)), np.uint16)
        threads = threads_or_cores(self.n_threads)
        for start, stop, block in blocks(self.rows):
            residual, coordinates = block.copy(), unit.forward(block)
            for layer, (nearest, codebook) in enumerate(zip(layers, codebooks, strict=True)):
                tokens = nearest(residual if charges is None else np.pad(residual, ((0, 0), (0, 1))))
                sums.layers[layer].add_distances(residual, tokens, codebook, self.first_row + start)
                sums.layers[layer].add_coordinates(coordinates, tokens, threads)
                codes[start:stop, layer] = tokens
                subtract_listed(residual, codebook, tokens)
        return sums, codes


@dataclass(frozen=True)
class ResidualRows(RowsOver):
    """What the first layers leave of some rows, computed when read."""

    codebooks: tuple[FloatArray, ...]
    codes: Codes

    def block(self, start: int, stop: int) -> FloatArray:
        """Residuals of rows ``start`` to ``stop``."""
        return left_by(self.rows.block(start, stop), self.codes[start:stop], self.codebooks)

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Residuals of the rows at ``indices``."""
        return left_by(self.rows.take(indices), self.codes[indices], self.codebooks)
