"""Clusters of bounded size: an assignment with a cap, by an auction that is near-linear in the rows.

Rows bid for places in the clusters (Bertsekas's auction for similar objects). A row takes the cluster whose squared distance +
price is least and bids what its second choice would cost it more, plus ε; a full cluster lets the row of the lowest bid go,
and its price is the lowest bid it holds. So over-full clusters keep those who would lose most by moving, and others move to
their next choice. At the end no row could gain more than ε at these prices, and the total is at most n · ε above the
best assignment under the cap: with ε a share of the mean squared distance to the nearest centroid, at most that share.
The prices also give a lower bound on what is possible at all, which is reported beside the total.

Each row knows its few nearest centroids only, more of them where it needs more. 500 to 800 bytes of memory a row
at a balance up to 2 (16 for each place beyond).
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from tokenization.lloyd import Callback, Iteration
from tokenization.shortlist import Shortlist
from tokenization.vectors import FloatArray, Rows, blocks, check_finite

TOLERANCE = 0.01
ITERATIONS = 5
"""Lloyd's iterations under a cap, after the first assignment, unless told."""
_CANDIDATES = 8
_BIDS_A_ROW = 20
"""After so many bids a row ε doubles: rows that are alike would else outbid each other in steps of ε for long."""
_GROWN_AT_ONCE = 4096
_FINEST = 1e-12


@dataclass(frozen=True)
class Balanced:
    """``labels`` (n,) int32 with at most the cap of each, and the squared ``distances`` (n,) float64 to their centroids.

    ``total`` is the sum of the distances, ``nearest`` what it would be without a cap, ``lower_bound`` what no assignment under
    the cap goes below. ``bids`` and ``looks`` count operations: bids made, candidates looked at; ``grown`` the
    times a row had to ask for more candidates.
    """

    labels: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float64]
    nearest: float
    lower_bound: float
    bids: int
    looks: int
    grown: int

    @property
    def total(self) -> float:
        """Sum of squared distances."""
        return float(self.distances.sum())


def cap_of(balance: float, n: int, n_clusters: int) -> int:
    """The most rows that a cluster may have: ⌈balance · n / clusters⌉. Raises ValueError for a balance below 1."""
    if not 1 <= balance < math.inf:
        raise ValueError(f"balance {balance}: must be at least 1 (the largest cluster ÷ the mean one)")
    return min(n, math.ceil(balance * n / n_clusters))


def balanced_labels(
    rows: Rows, centroids: FloatArray, cap: int, *, tolerance: float = TOLERANCE, n_threads: int | None = None
) -> Balanced:
    """Assign every row to a centroid (k, dim), none to more than ``cap`` rows; deterministic.

    The total is at most 1 + ``tolerance`` times that of the best such assignment (more only where rows so alike compete
    that ε had to grow; ``lower_bound`` says how much at most). Raises ValueError where k · cap places are too few.
    """
    if cap < 1 or cap * len(centroids) < rows.n:
        raise ValueError(f"cap {cap}: {len(centroids)} clusters of at most {cap} cannot hold {rows.n} rows")
    if tolerance <= 0:
        raise ValueError(f"tolerance {tolerance}: must be above 0")
    return _Auction(rows, Shortlist(centroids, n_threads), min(cap, rows.n)).run(tolerance)


class _Auction:
    """The rows' candidates, in pools that grow, and who holds which place."""

    def __init__(self, rows: Rows, shortlist: Shortlist, cap: int) -> None:
        self._rows, self._shortlist = rows, shortlist
        self._clusters = len(shortlist.centroids)
        width = min(_CANDIDATES, self._clusters)
        self._starts = np.arange(rows.n, dtype=np.int64) * width
        self._lengths = np.full(rows.n, width, np.int64)
        self._tokens, self._distances = np.empty(rows.n * width, np.int32), np.empty(rows.n * width)
        self._filled = rows.n * width
        for start, _, block in blocks(rows, width=4 * rows.dim):
            check_finite(block, start)
            self._put(start * width, block, width)
        self._prices, self._sizes = np.zeros(self._clusters), np.zeros(self._clusters, np.int64)
        self._bids, self._holders = np.zeros((self._clusters, cap)), np.zeros((self._clusters, cap), np.int64)
        self._labels = np.full(rows.n, -1, np.int32)

    def run(self, tolerance: float) -> Balanced:
        from tokenization.balance_kernels import auction, lowest_values

        n = self._rows.n
        nearest = float(self._distances[self._starts].sum())
        epsilon = max(tolerance * nearest / n, _FINEST * float(self._distances.max())) or 1.0
        queue, hungry, state = np.arange(n), np.empty(n, np.int64), np.array([0, n, 0, 0])
        grown, budget = 0, _BIDS_A_ROW * n
        while state[1]:
            made = int(state[2])
            lists = (self._starts, self._lengths, self._tokens, self._distances)
            places = (self._prices, self._sizes, self._bids, self._holders, self._labels)
            asked = auction(state, queue, hungry, *lists, *places, epsilon, budget)
            budget -= int(state[2]) - made
            if budget <= 0:
                epsilon, budget = 2 * epsilon, _BIDS_A_ROW * n
            if asked:
                self._grow(np.sort(hungry[:asked]))
                waiting = np.concatenate([np.take(queue, np.arange(state[0], state[0] + state[1]), mode="wrap"), hungry[:asked]])
                queue[: len(waiting)] = waiting
                state[:2] = 0, len(waiting)
                grown += asked
        lowest = np.empty(n)
        lowest_values(self._starts, self._lengths, self._tokens, self._distances, self._prices, lowest)
        bound = float(lowest.sum()) - self._bids.shape[1] * float(self._prices.sum())
        return Balanced(self._labels, self._own_distances(), nearest, bound, int(state[2]), int(state[3]), grown)

    def _own_distances(self) -> npt.NDArray[np.float64]:
        own = np.empty(self._rows.n)
        for start, stop, block in blocks(self._rows):
            left = block.astype(np.float64) - self._shortlist.centroids[self._labels[start:stop]]
            own[start:stop] = np.einsum("ij,ij->i", left, left)
        return own

    def _grow(self, asking: npt.NDArray[np.int64]) -> None:
        """Twice as many candidates for the rows that ask (ascending)."""
        wider = np.minimum(2 * self._lengths[asking], self._clusters)
        needed = self._filled + int(wider.sum())
        if needed > len(self._tokens):
            spare = max(needed, 2 * len(self._tokens)) - len(self._tokens)
            self._tokens = np.concatenate([self._tokens, np.empty(spare, np.int32)])
            self._distances = np.concatenate([self._distances, np.empty(spare)])
        for width in np.unique(wider):
            rows = asking[wider == width]
            self._starts[rows] = self._filled + np.arange(len(rows)) * width
            self._lengths[rows] = width
            for start in range(0, len(rows), _GROWN_AT_ONCE):
                some = rows[start : start + _GROWN_AT_ONCE]
                self._put(self._filled, self._rows.take(some), int(width))
                self._filled += len(some) * int(width)

    def _put(self, first: int, block: FloatArray, width: int) -> None:
        """The nearest ``width`` centroids of some rows, into the pools from ``first`` on."""
        found = self._shortlist(block.astype(np.float64)[:, None], width)
        place = slice(first, first + len(block) * width)
        self._tokens[place], self._distances[place] = found.token.ravel(), found.errors.ravel()


@dataclass(frozen=True)
class BalancedClustering:
    """Centroids (k, dim) float32 with the capped assignment to them."""

    centroids: FloatArray
    assignment: Balanced


def balance_clusters(
    rows: Rows,
    centroids: FloatArray,
    cap: int,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    n_threads: int | None = None,
    layer: int = 1,
    callback: Callback | None = None,
) -> BalancedClustering:
    """Lloyd's iterations whose assignment has a cap, from centroids (k, dim) on; the iteration of least total error wins.

    A centroid without rows moves to the row that is represented worst. Stops early once the total falls no more. The callback
    hears of the first assignment and of each iteration after it, as of ``layer``, with the total of the bounded clusters.
    """
    best: BalancedClustering | None = None
    current = np.ascontiguousarray(centroids, dtype=np.float32)
    for number in range(1, iterations + 2):
        clock = time.perf_counter()
        found = balanced_labels(rows, current, cap, tolerance=tolerance, n_threads=n_threads)
        if callback:
            callback(Iteration(layer, number, iterations + 1, found.total, 0, time.perf_counter() - clock, greedy=False))
        if best is not None and not found.total < best.assignment.total:
            break
        best = BalancedClustering(current, found)
        current = _means(rows, best)
    assert best is not None
    return best


def _means(rows: Rows, clustering: BalancedClustering) -> FloatArray:
    centroids, labels = clustering.centroids.copy(), clustering.assignment.labels
    sums = np.zeros(centroids.shape)
    counts = np.bincount(labels, minlength=len(centroids))
    for start, stop, block in blocks(rows):
        shape = (stop - start, len(centroids))
        members = csr_matrix((np.ones(stop - start), labels[start:stop], np.arange(stop - start + 1)), shape=shape)
        sums += members.T @ block.astype(np.float64)
    filled = counts > 0
    centroids[filled] = sums[filled] / counts[filled, None]
    empty = np.flatnonzero(~filled)
    worst = np.argsort(-clustering.assignment.distances, kind="stable")[: len(empty)]
    centroids[empty[: len(worst)]] = rows.take(worst)
    return centroids
