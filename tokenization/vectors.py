"""Matrices of vectors as the quantiser reads them: checked once, in float32 blocks, so that a memory map never loads whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

FloatArray = npt.NDArray[np.float32]
LARGEST = 1e38
"""Vectors of values beyond are refused: float32 would not hold what the first layers leave of them."""
_BLOCK_VALUES = 2**22
_ROWS_NAMED = 5
_ROWS_AVERAGED = 1024


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


class ArrowRows:
    """Rows of an Arrow column of fixed-size lists (float16, float32 or float64), read where they lie.

    A column of an IPC file that was opened through ``pyarrow.memory_map`` is therefore never loaded whole. Raises BadVectors
    for another type and for nulls.
    """

    def __init__(self, column: "pa.ChunkedArray | pa.FixedSizeListArray") -> None:
        import pyarrow as pa

        if not isinstance(column, (pa.ChunkedArray, pa.Array)):
            raise BadVectors(f"vectors: found an Arrow {type(column).__name__}; give one column of it")
        kind = column.type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type) or not kind.list_size:
            raise BadVectors(f"vectors: found an Arrow column of {kind}; cast it to fixed_size_list<float>[dim]")
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        self._pieces = [_arrow_matrix(chunk) for chunk in chunks if len(chunk)]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)
        self.n = int(self._ends[-1]) if self._pieces else 0
        self.dim = int(kind.list_size)

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop`` in float32."""
        found = [np.zeros((0, self.dim), np.float32)]
        for piece, end in zip(self._pieces, self._ends.tolist(), strict=True):
            first = end - len(piece)
            if first < stop and start < end:
                found.append(to_float32(piece[max(start - first, 0) : stop - first]))
        return found[1] if len(found) == 2 else np.concatenate(found)

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices`` in float32."""
        taken = np.empty((len(indices), self.dim), np.float32)
        places = np.searchsorted(self._ends, indices, side="right")
        for place in np.unique(places).tolist():
            wanted = places == place
            piece = self._pieces[place]
            taken[wanted] = to_float32(piece[indices[wanted] - (self._ends[place] - len(piece))])
        return taken


def _arrow_matrix(chunk: "pa.FixedSizeListArray") -> npt.NDArray[Any]:
    """The values of a chunk as a matrix, without a copy."""
    values = chunk.flatten() if not chunk.null_count else None
    if values is None or values.null_count:
        raise BadVectors("vectors: the Arrow column holds nulls; remove these rows")
    matrix: npt.NDArray[Any] = values.to_numpy(zero_copy_only=True).reshape(len(chunk), -1)
    return matrix


def as_rows(vectors: Any) -> Rows:
    """Rows of an array, a memory map or an Arrow column; rows stay what they are. Raises BadVectors for anything else."""
    if isinstance(vectors, (ArrayRows, ArrowRows)):
        return vectors
    return ArrowRows(vectors) if is_arrow(vectors) else ArrayRows(as_matrix(vectors))


def is_arrow(vectors: Any) -> bool:
    """Whether it is one of pyarrow's; asked without pyarrow, which arrays do not need."""
    return type(vectors).__module__.startswith("pyarrow")


@dataclass(frozen=True)
class RowsOver:
    """Rows read from others, as they are; a subclass changes what ``block`` and ``take`` give."""

    rows: Rows

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    @property
    def dim(self) -> int:
        """Columns."""
        return self.rows.dim

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop``."""
        return self.rows.block(start, stop)

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices``."""
        return self.rows.take(indices)


@dataclass(frozen=True)
class ScaledRows(RowsOver):
    """Rows moved to mean 0 and a spread of about 1, which keeps float32 distances exact at any offset and scale.

    ``scale`` is a power of two, so that scaling itself rounds nothing; ``shift`` is in scaled units.
    """

    scale: float
    shift: FloatArray

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


def device_of(rows: Rows) -> str | None:
    """The device that rows lie on (``device_vectors.DeviceRows``); None for the host."""
    device: str | None = getattr(rows, "device", None)
    return device


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
    """Raise BadVectors that names the rows (counted from ``first_row``) holding NaN, infinity or a number beyond float32."""
    _check(block, first_row, float(np.finfo(np.float32).max), "NaN or infinity (in float32)")


def check_vectors(block: FloatArray, first_row: int = 0) -> None:
    """``check_finite``, for vectors that are to be quantised: a number beyond LARGEST is refused too."""
    _check(block, first_row, LARGEST, f"NaN, infinity or a number beyond {LARGEST:.0e}")


def _check(block: FloatArray, first_row: int, largest: float, what: str) -> None:
    bad = rows_beyond(block, largest) + first_row
    if len(bad):
        named = ", ".join(str(row) for row in bad[:_ROWS_NAMED])
        more = f" and more ({len(bad)} of this block)" if len(bad) > _ROWS_NAMED else ""
        raise BadVectors(f"vectors: {what} in row {named}{more}; remove or mend these rows")


def rows_beyond(block: FloatArray, largest: float = LARGEST) -> npt.NDArray[np.int64]:
    """Rows of (n, dim) that hold NaN or a number beyond ``largest``, ascending."""
    if not block.size or (block.min() >= -largest and block.max() <= largest):  # of NaN neither is true
        return np.zeros(0, np.int64)
    return np.flatnonzero(~(np.abs(block) <= largest).all(axis=1))


@dataclass(frozen=True)
class Extent:
    """Smallest and largest value of each column, (dim,) float32; extents merge in any order."""

    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, rows: Rows, first_row: int = 0) -> "Extent":
        """Scan rows once. Raises BadVectors naming those that are not finite, counted from ``first_row``."""
        extent = cls(np.full(rows.dim, np.inf, np.float32), np.full(rows.dim, -np.inf, np.float32))
        for start, _, block in blocks(rows):
            check_finite(block, first_row + start)
            extent = extent.merge(cls(block.min(axis=0), block.max(axis=0)))
        return extent

    def merge(self, other: "Extent") -> "Extent":
        """That of both sets of rows."""
        return Extent(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def checked(self) -> "Extent":
        """The same, if it is of vectors that can be quantised. Raises BadVectors for values beyond LARGEST."""
        largest = np.maximum(-self.low, self.high)
        if largest.max() > LARGEST:
            column = int(largest.argmax())
            raise BadVectors(
                f"vectors: column {column} holds {largest[column]:.3g}; values beyond {LARGEST:.0e} leave float32 no room for "
                "differences, so scale the vectors down"
            )
        return self

    def to_arrays(self) -> dict[str, FloatArray]:
        """For a file; the constructor takes them by name."""
        return {"low": self.low, "high": self.high}


def scaled(rows: Rows, extent: Extent) -> ScaledRows:
    """Rows in scaled units. The shift is the mean of a thousand evenly spaced rows: a mean of all would depend on the order
    in which parts of the rows are summed."""
    count = min(rows.n, _ROWS_AVERAGED)
    mean = rows.take(np.arange(count, dtype=np.int64) * rows.n // count).mean(axis=0, dtype=np.float64)
    spread = float(np.maximum(extent.high - mean, mean - extent.low).max())
    scale = 2.0 ** -np.floor(np.log2(spread)) if spread > 0 else 1.0
    # an offset that dwarfs the spread must not overflow once scaled
    largest = float(np.abs(mean).max())
    if largest * scale > 2.0**100:
        scale = 2.0 ** np.floor(np.log2(2.0**100 / largest))
    return ScaledRows(rows, float(scale), (mean * scale).astype(np.float32))
