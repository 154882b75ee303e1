"""The nearest centroid of a row among the neighbours of the one it had: an iteration's comparison at NEIGHBOURS ÷ k of the work.

Centroids move little from one iteration to the next, so a row nearly always stays with its centroid or goes to one nearby.
One iteration in ``EVERY`` compares all rows with all centroids; those between look at the NEIGHBOURS centroids nearest to a
row's last one (itself among them). Neighbours are found anew each time, so a row may go on walking. The labels at the end of
training are of a full comparison, always. Both choices are exact (float64 decides), so training stays a pure function of
the rows.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.candidates import float32_bound
from tokenization.shortlist import Shortlist
from tokenization.threads import threads_or_cores
from tokenization.vectors import FloatArray

NEIGHBOURS, EVERY = 32, 5
WORTH_IT = 32 * NEIGHBOURS
"""With fewer centroids a full comparison is as fast: its products are those of whole matrices."""
ROWS_A_CENTROID = 8
"""With fewer rows, too: neighbours of a centroid cost some three times what a row does."""
_THREADED_ROWS = 2048


@dataclass
class LastLabels:
    """Of each row of a source the label (n,) int32 that its last comparison gave."""

    labels: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


def worth_it(centroids: int, rows: int) -> bool:
    """Whether neighbours are looked at: to find those of all centroids must cost little beside a full comparison."""
    return centroids >= WORTH_IT and rows >= ROWS_A_CENTROID * centroids


def neighbours_of(centroids: FloatArray, rows: int, threads: int | None = None) -> npt.NDArray[np.int32] | None:
    """Of each of ``centroids`` (k, dim) the NEIGHBOURS nearest ones (ties: the lowest index), ascending by index; None where
    that is not worth it for so many ``rows``."""
    if not worth_it(len(centroids), rows):
        return None
    near = Shortlist(centroids, threads)(centroids.astype(np.float64)[:, None], NEIGHBOURS).token
    return np.sort(near, axis=1).astype(np.int32)


class NearestNeighbour:
    """Nearest among the neighbours of each row's last centroid. ``centroids``: (k, dim) float32; ``neighbours``: (k, most) int32,
    ascending; ``threads``: at most so many (None: one a core)."""

    def __init__(self, centroids: FloatArray, neighbours: npt.NDArray[np.int32], threads: int | None = None) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._neighbours = neighbours
        self._threads = threads_or_cores(threads)
        squares = np.einsum("ij,ij->i", self.centroids, self.centroids, dtype=np.float64)
        self._squares = squares.astype(np.float32)
        self._bound = float32_bound(self.centroids.shape[1], float(np.sqrt(squares.max())))

    def __call__(self, block: FloatArray, labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Labels (n,) of rows (n, dim) float32 whose last ones were ``labels`` (ties: the lowest index).

        Raises ValueError for other than one label a row.
        """
        from tokenization.nearest_kernels import nearest_of_neighbours

        if len(labels) != len(block):
            raise ValueError(f"found {len(labels)} labels for {len(block)} rows; needs those of the step before")
        found = np.empty(len(block), np.int64)
        order = np.argsort(labels.astype(np.uint16 if len(self.centroids) <= 2**16 else np.int32), kind="stable")
        step = max(_THREADED_ROWS, -(-len(block) // self._threads))

        def work(start: int) -> None:
            some = order[start : start + step]
            nearest_of_neighbours(block, some, self.centroids, self._squares, self._neighbours, labels, *self._bound, found)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(work, range(0, len(block), step)))
        return found
