"""Python loops compiled to machine code, by Numba."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(math: set[str]) -> Callable[[Any], Any]:
    """Compile a function at its first call; where no folder for machine code can be written, once a process."""

    def compile_one(function: Any) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, fastmath=math)(function)
        except RuntimeError:  # no cache locator
            return numba.njit(nogil=True, fastmath=math)(function)

    return compile_one


@compiled(set())
def squared_distance(left: Any, right: Any) -> float:
    """|left − right|² of two vectors (dim,) in float64, summed in eight lanes: one result whatever the processor."""
    whole = len(left) - len(left) % 8
    a = b = c = d = e = f = g = h = 0.0
    for column in range(0, whole, 8):
        da = np.float64(left[column]) - np.float64(right[column])
        db = np.float64(left[column + 1]) - np.float64(right[column + 1])
        dc = np.float64(left[column + 2]) - np.float64(right[column + 2])
        dd = np.float64(left[column + 3]) - np.float64(right[column + 3])
        de = np.float64(left[column + 4]) - np.float64(right[column + 4])
        df = np.float64(left[column + 5]) - np.float64(right[column + 5])
        dg = np.float64(left[column + 6]) - np.float64(right[column + 6])
        dh = np.float64(left[column + 7]) - np.float64(right[column + 7])
        a, b, c, d = a + da * da, b + db * db, c + dc * dc, d + dd * dd
        e, f, g, h = e + de * de, f + df * df, g + dg * dg, h + dh * dh
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for column in range(whole, len(left)):
        difference = np.float64(left[column]) - np.float64(right[column])
        total += difference * difference
    return total
