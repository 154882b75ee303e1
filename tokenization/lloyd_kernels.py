"""Compiled loops of Lloyd's step, each with one result whatever the processor: integers, or float64 in a fixed order."""

from typing import Any

import numpy as np

from tokenization.nearest_kernels import _compiled


@_compiled(set())
def add_rows(block: Any, labels: Any, first: int, last: int, unit: float, sums: Any) -> None:
    """Add columns ``first`` to ``last`` of float32 rows (n, dim), in whole multiples of 1 / ``unit``, to the int64 sums
    (k, dim) of their labels (n,)."""
    for row in range(len(labels)):
        label = labels[row]
        for column in range(first, last):
            sums[label, column] += np.int64(np.rint(np.float64(block[row, column]) * unit))


@_compiled(set())
def distances_to(block: Any, centroids: Any, labels: Any, distances: Any) -> None:
    """Squared distance (n,) float64 of each row (n, dim) to the centroid (k, dim) of its label, summed in eight lanes."""
    rows, dim = block.shape
    whole = dim - dim % 8
    for row in range(rows):
        label = labels[row]
        a = b = c = d = e = f = g = h = 0.0
        for column in range(0, whole, 8):
            da = np.float64(block[row, column]) - np.float64(centroids[label, column])
            db = np.float64(block[row, column + 1]) - np.float64(centroids[label, column + 1])
            dc = np.float64(block[row, column + 2]) - np.float64(centroids[label, column + 2])
            dd = np.float64(block[row, column + 3]) - np.float64(centroids[label, column + 3])
            de = np.float64(block[row, column + 4]) - np.float64(centroids[label, column + 4])
            df = np.float64(block[row, column + 5]) - np.float64(centroids[label, column + 5])
            dg = np.float64(block[row, column + 6]) - np.float64(centroids[label, column + 6])
            dh = np.float64(block[row, column + 7]) - np.float64(centroids[label, column + 7])
            a, b, c, d = a + da * da, b + db * db, c + dc * dc, d + dd * dd
            e, f, g, h = e + de * de, f + df * df, g + dg * dg, h + dh * dh
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
        for column in range(whole, dim):
            difference = np.float64(block[row, column]) - np.float64(centroids[label, column])
            total += difference * difference
        distances[row] = total
