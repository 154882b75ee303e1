"""Random matrices of every awkward kind, for the quantiser's tests."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

KINDS = ("normal", "lattice", "duplicates", "constant column", "huge", "tiny", "far from zero", "one outlier", "zeros")


def matrix(kind: str, rows: int, dim: int, seed: int) -> npt.NDArray[np.float32]:
    """A float32 matrix (rows, dim) of a kind."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, dim))
    if kind == "lattice":
        values = random.integers(-2, 3, size=(rows, dim)).astype(float)
    elif kind == "duplicates":
        values = values[random.integers(0, max(1, rows // 4), rows)]
    elif kind == "constant column":
        values[:, 0] = 7.25
    elif kind == "huge":
        values *= 1e30
    elif kind == "tiny":
        values *= 1e-30
    elif kind == "far from zero":
        values += 3000
    elif kind == "one outlier":
        values[-1] *= 1e6
    elif kind == "zeros":
        values[:] = 0
    return values.astype(np.float32)


@st.composite
def matrices(draw: st.DrawFn, most_rows: int = 60, most_columns: int = 9) -> npt.NDArray[np.float32]:
    """A matrix of a drawn kind and shape."""
    rows, dim = draw(st.integers(1, most_rows)), draw(st.integers(1, most_columns))
    return matrix(draw(st.sampled_from(KINDS)), rows, dim, draw(st.integers(0, 2**16)))


def squared_distances(left: npt.ArrayLike, right: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """All squared distances in float64, by direct differences."""
    one, other = np.asarray(left, np.float64), np.asarray(right, np.float64)
    return ((one[:, None, :] - other[None]) ** 2).sum(axis=2)


def square(row: np.ndarray) -> Fraction:
    """|row|², exactly."""
    return sum((Fraction(float(value)) ** 2 for value in row), Fraction(0))


def nearly_equal_lengths(dim: int, gap: int) -> np.ndarray:
    """Two rows (2, dim + 8) float32, the second shorter by a share of about ``gap`` · 2⁻⁵³ of |c|²: less than summing |c|² in
    float64 may lose where all values are alike, as the first row's are."""
    random = np.random.default_rng(0)
    alike = random.uniform(0.5, 1, 400).astype(np.float32)
    summed = np.einsum("ij,ij->i", *[np.repeat(alike[:, None], dim, axis=1).astype(np.float64)] * 2)
    lost = [
        float(Fraction(float(one)) / (Fraction(float(value)) ** 2 * dim) - 1) for one, value in zip(summed, alike, strict=True)
    ]
    rows = np.zeros((2, dim + 8), np.float32)
    rows[0, :dim] = alike[np.argmin(lost)]
    rows[1, :dim] = random.uniform(0.5, 1, dim) * rows[0, 0]
    wanted = square(rows[0]) * (1 - Fraction(gap, 2**53))
    rows[1] *= np.float32(0.999 * np.sqrt(float(wanted / square(rows[1]))))
    for column in range(dim, dim + 8):  # the rest, by ever smaller values
        left = wanted - square(rows[1])
        value = np.float32(np.sqrt(float(left)))
        rows[1, column] = value if square(np.array([value])) <= left else np.nextafter(value, np.float32(0))
    return rows
