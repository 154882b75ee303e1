"""Chance by counter: every draw is a hash of (seed, purpose, counters), so it does not matter who draws, or when.

A sequence-based generator would tie a user's day to the partition it was made in. Here the draw of user 7, day 2,
request 5 is the same number in any process; whole arrays of counters are hashed at once.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


class Draws:
    """Random numbers of one world. Counters are whole numbers or arrays of them that broadcast together."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _bits(self, purpose: str, counters: tuple[ArrayLike, ...]) -> NDArray[np.uint64]:
        digest = hashlib.blake2b(f"{self._seed}/{purpose}".encode(), digest_size=8).digest()
        state = np.array([int.from_bytes(digest, "little")], dtype=np.uint64)
        for counter in counters:
            state = _mix((state ^ np.asarray(counter, dtype=np.int64).astype(np.uint64)) * _STEP + _STEP)
        return state

    def uniform(self, purpose: str, *counters: ArrayLike) -> NDArray[np.float64]:
        """Uniform numbers strictly between 0 and 1, float64, in the counters' broadcast shape (at least one dimension)."""
        return ((self._bits(purpose, counters) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, purpose: str, *counters: ArrayLike) -> NDArray[np.float64]:
        """Standard normal numbers, likewise."""
        normal: NDArray[np.float64] = ndtri(self.uniform(purpose, *counters))
        return normal

    def choice(self, purpose: str, count: int | NDArray[np.int64], *counters: ArrayLike) -> NDArray[np.int64]:
        """Whole numbers from 0 to ``count`` − 1, int64, likewise."""
        return np.floor(self.uniform(purpose, *counters) * count).astype(np.int64)

    def weighted(self, purpose: str, weights: ArrayLike, *counters: ArrayLike) -> NDArray[np.int64]:
        """Positions in ``weights`` drawn in proportion to them, int64, likewise."""
        cumulative = np.cumsum(np.asarray(weights, dtype=np.float64))
        return np.searchsorted(cumulative / cumulative[-1], self.uniform(purpose, *counters)).astype(np.int64)
