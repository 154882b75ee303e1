"""Random matrices of every awkward kind, for the quantiser's tests."""

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
