"""Lloyd's iterations that compare a row with its nearest few centroids only, as they were at the last full comparison.

A row nearly always moves to a centroid that was already among its nearest. So one iteration in ``EVERY`` compares all rows
with all centroids and notes each row's ``LISTED`` nearest ones; those between look at the noted ones: LISTED ÷ k of the work.
The labels at the end are of a full comparison, always. Both choices are exact (float64 decides), so training stays a pure
function of the rows.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tokenization.shortlist import Shortlist
from tokenization.vectors import FloatArray, Rows, blocks

LISTED, EVERY = 16, 5
WORTH_IT = 128 * LISTED
"""With fewer centroids full comparisons cost no more: to note the nearest takes three times as long as to find one."""
_THREADED_ROWS = 4096

Visit = Callable[[int, FloatArray, npt.NDArray[np.int64]], None]
"""Told the first row's number, the rows (n, dim) and their labels (n,)."""


@dataclass
class Shortlists:
    """Each row's LISTED nearest centroids, nearest first, (n, LISTED) uint16 or uint32; filled by ``compare_all``."""

    threads: int | None = None
    listed: npt.NDArray[np.unsignedinteger] = field(default_factory=lambda: np.empty((0, LISTED), np.uint16))

    def compare_all(self, rows: Rows, centroids: FloatArray, visit: Visit) -> None:
        """Label rows by all centroids (k, dim), k at least LISTED, and note the nearest ones."""
        kind = np.uint16 if len(centroids) <= 2**16 else np.uint32
        self.listed = np.empty((rows.n, LISTED), kind)
        nearest = Shortlist(centroids, self.threads)
        for start, stop, block in blocks(rows):
            tokens = nearest(block.astype(np.float64)[:, None], LISTED).token
            self.listed[start:stop] = tokens
            visit(start, block, tokens[:, 0])

    def compare_listed(self, rows: Rows, centroids: FloatArray, visit: Visit) -> None:
        """Label rows by the centroids noted for them (ties: the lowest index)."""
        from tokenization.nearest_kernels import nearest_listed

        threads = self.threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool:
            for start, stop, block in blocks(rows):
                labels = np.empty(len(block), np.int64)
                step = max(_THREADED_ROWS, -(-len(block) // threads))
                parts = [slice(first, first + step) for first in range(0, len(block), step)]
                listed = self.listed[start:stop]
                work = [pool.submit(nearest_listed, block[at], centroids, listed[at], labels[at]) for at in parts]
                for one in work:
                    one.result()
                visit(start, block, labels)
