"""How many distinct items a day shows, from sketches that merge: the K smallest keys (KMV, Bar-Yossef et al. 2002).

Keys are xxhash64 of item ids, as good as uniform over 64 bits. The k-th smallest of n of them lies near k/n of the range, so
n ≈ (k − 1) ÷ that share, with a standard error of 1/√(k − 2): 0.4 %. With fewer than K the count is exact.
A union of exact sets would move every bucket's whole share of the catalogue.

Items are dealt to ``PARTS`` sketches by the last bits of their keys, so that a day's sketches are merged by as many tasks: one
task merging all of them was the day's longest. The parts' estimates add up, and so do their variances: the error stays that of
one sketch of all K. The count is exact while no part is full: nearly always below 62,000 items.
"""

import numpy as np

KEPT = 2**16
PARTS = 8
"""A power of two: the last bits of a key say its part."""


class ItemSketch:
    """The ``kept`` smallest distinct keys (int64, in unsigned order) of those added."""

    def __init__(self, kept: int = KEPT // PARTS) -> None:
        self.keys = np.zeros(0, np.int64)
        self._kept = kept

    def add(self, keys: np.ndarray) -> None:
        """Take keys in, in any order, repeated or not."""
        if len(self.keys) == self._kept:  # most of a large merge ends here: what is above the largest kept is not looked at again
            keys = keys[keys.view(np.uint64) < self.keys[-1:].view(np.uint64)]
        if not len(keys):
            return
        smallest = np.unique(np.concatenate([self.keys, keys]).view(np.uint64))[: self._kept]
        self.keys = smallest.view(np.int64)

    def distinct(self) -> int:
        """Distinct keys ever added: exact if fewer than ``kept``, else an estimate."""
        if len(self.keys) < self._kept:
            return len(self.keys)
        return round((self._kept - 1) * 2.0**64 / (float(self.keys[-1:].view(np.uint64)[0]) + 1))


class PartedSketch:
    """An ``ItemSketch`` a part, ``kept`` keys in all."""

    def __init__(self, kept: int = KEPT) -> None:
        self.parts = [ItemSketch(kept // PARTS) for _ in range(PARTS)]

    def add(self, keys: np.ndarray) -> None:
        """Take keys in, each into its part."""
        part = keys & (PARTS - 1)
        for number, sketch in enumerate(self.parts):
            sketch.add(keys[part == number])
