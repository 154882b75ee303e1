"""Matrices of vectors as the quantiser reads them: checked once, in float32 blocks, so that a memory map never loads whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import BadInput

FloatArray = npt.NDArray[np.float32]
_BLOCK_VALUES = 2**22
_ROWS_NAMED = 5


class BadVectors(BadInput, ValueError):
    """Vectors that cannot be quantised; a ``ValueError`` too, as scikit-learn's conventions ask."""


class Rows(Protocol):
    """Rows that are read block by block; ``block`` and ``take`` give float32, C-contiguous copies or views."""

    @property
    def n(self) -> int:
        """Rows."""
        ...

    @property
    def dim(self) -> int:
        """Columns."""
        ...

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop``, shape (stop − start, dim)."""
        ...

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices``, shape (len(indices), dim)."""
        ...


def as_matrix(vectors: Any) -> npt.NDArray[Any]:
    """A two-dimensional float array (float16, float32 or float64; a memory map stays one). Raises BadVectors otherwise."""
    matrix = np.asarray(vectors)
    if matrix.dtype.kind in "iub":
        matrix = matrix.astype(np.float32)
    if matrix.dtype.kind != "f" or matrix.ndim != 2 or matrix.shape[1] == 0:
        raise BadVectors(f"vectors: found shape {matrix.shape} of {matrix.dtype}; needs (n, dim) numbers with dim above 0")
    return matrix


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array or memory map of any float type and layout."""

    matrix: npt.NDArray[Any]

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.matrix.shape[0])

    @property
    def dim(self) -> int:
        """Columns."""
        return int(self.matrix.shape[1])

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop`` in float32."""
        return to_float32(self.matrix[start:stop])

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices`` in float32."""
        return to_float32(self.matrix[indices])


@dataclass(frozen=True)
class ScaledRows:
    """Rows moved to mean 0 and a spread of about 1, which keeps float32 distances exact at any offset and scale.

    ``scale`` is a power of two, so that scaling itself rounds nothing; ``shift`` is in scaled units.
    """

    rows: Rows
    scale: float
    shift: FloatArray

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    @property
    def dim(self) -> int:
        """Columns."""
        return self.rows.dim

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop``, scaled."""
        return self.forward(self.rows.block(start, stop))

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices``, scaled."""
        return self.forward(self.rows.take(indices))

    def forward(self, vectors: FloatArray) -> FloatArray:
        """Vectors into scaled units."""
        if 2.0**-126 <= self.scale <= 2.0**127:
            moved: FloatArray = vectors * np.float32(self.scale)
        else:  # spreads near the ends of float32's range
            moved = (vectors * np.float64(self.scale)).astype(np.float32)
        moved -= self.shift
        return moved

    def back(self, vectors: npt.NDArray[Any]) -> FloatArray:
        """Vectors out of scaled units."""
        restored: FloatArray = ((vectors.astype(np.float64) + self.shift) / self.scale).astype(np.float32)
        return restored


def to_float32(matrix: npt.NDArray[Any]) -> FloatArray:
    """A C-contiguous float32 copy, or the array itself; values beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(matrix, dtype=np.float32)


def blocks(rows: Rows, width: int = 0) -> Iterator[tuple[int, int, FloatArray]]:
    """(start, stop, rows) of consecutive blocks, sized so that block × max(dim, width) floats stay near 16 MB."""
    step = max(1, _BLOCK_VALUES // max(rows.dim, width, 1))
    for start in range(0, rows.n, step):
        stop = min(start + step, rows.n)
        yield start, stop, rows.block(start, stop)


def check_finite(block: FloatArray, first_row: int = 0) -> None:
    """Raise BadVectors that names the rows holding NaN, infinity or a number beyond float32."""
    if np.isfinite(block.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1)) + first_row
    if len(bad):
        named = ", ".join(str(row) for row in bad[:_ROWS_NAMED])
        more = f" and more ({len(bad)} of this block)" if len(bad) > _ROWS_NAMED else ""
        raise BadVectors(f"vectors: NaN or infinity (in float32) in row {named}{more}; remove or mend these rows")


def scaled(rows: Rows) -> ScaledRows:
    """Scan rows once: check them (BadVectors names bad ones) and find the shift and scale."""
    total = np.zeros(rows.dim)
    low, high = np.full(rows.dim, np.inf), np.full(rows.dim, -np.inf)
    for start, _, block in blocks(rows):
        check_finite(block, start)
        total += block.sum(axis=0, dtype=np.float64)
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    mean = total / rows.n
    spread = float(np.maximum(high - mean, mean - low).max())
    scale = 2.0 ** -np.floor(np.log2(spread)) if spread > 0 else 1.0
    # an offset that dwarfs the spread must not overflow once scaled
    largest = float(np.abs(mean).max())
    if largest * scale > 2.0**100:
        scale = 2.0 ** np.floor(np.log2(2.0**100 / largest))
    return ScaledRows(rows, float(scale), (mean * scale).astype(np.float32))
