"""Compiled loops of Lloyd's step, each with one result whatever the processor: integers, or float64 in a fixed order."""

from typing import Any

import numpy as np

from tokenization.compiled import compiled, squared_distance


@compiled(set())
def add_rows(block: Any, labels: Any, first: int, last: int, unit: float, sums: Any) -> None:
    """Add columns ``first`` to ``last`` of float32 rows (n, dim), in whole multiples of 1 / ``unit``, to the int64 sums
    (k, dim) of their labels (n,)."""
    for row in range(len(labels)):
        label = labels[row]
        for column in range(first, last):
            sums[label, column] += np.int64(np.rint(np.float64(block[row, column]) * unit))


@compiled(set())
def distances_to(block: Any, centroids: Any, labels: Any, distances: Any) -> None:
    """Squared distance (n,) float64 of each row (n, dim) to the centroid (k, dim) of its label (n,)."""
    for row in range(len(block)):
        distances[row] = squared_distance(block[row], centroids[labels[row]])
