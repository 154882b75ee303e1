"""The nested tree: the other reading of "hierarchical" k-means (reference §1), kept to compare with RQ-KMeans.

Level l + 1 splits every cluster of level l by a codebook of its own, so a token means something only below its prefix,
and the centroids multiply: up to s_1 · s_2 · … · s_l of them on level l, where RQ-KMeans has s_l. A cluster with fewer
distinct rows than the next size is starved: it gets as many children as it has distinct rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from schemas.tokens import MOST_TOKENS
from tokenization.assignment import NearestCentroid
from tokenization.kmeans import cluster
from tokenization.residual import Codes, check_codes
from tokenization.vectors import ArrayRows, BadVectors, FloatArray, as_matrix, blocks, check_finite


@dataclass(frozen=True)
class Level:
    """``centroids`` (nodes, dim) float32 of a level; those below parent p are ``starts[p]`` to ``starts[p + 1]``."""

    centroids: FloatArray
    starts: npt.NDArray[np.int64]

    def children(self, parent: int) -> FloatArray:
        """The codebook (children, dim) that splits a parent."""
        return self.centroids[self.starts[parent] : self.starts[parent + 1]]


@dataclass(frozen=True)
class NestedTree:
    """A fitted tree; ``sizes`` are the most children a node of each level may have."""

    sizes: tuple[int, ...]
    levels: list[Level]

    @property
    def nodes(self) -> list[int]:
        """Centroids of each level."""
        return [len(level.centroids) for level in self.levels]

    def starved(self, level: int) -> int:
        """Parents above ``level`` that have fewer children than its size."""
        return int((np.diff(self.levels[level].starts) < self.sizes[level]).sum())

    def encode(self, vectors: Any) -> Codes:
        """Greedy codes (n, levels) uint16 of vectors (n, dim): the nearest child, level by level; a pure function of a row.

        Raises BadVectors for a wrong dimension, NaN or infinity.
        """
        rows = ArrayRows(as_matrix(vectors))
        if rows.dim != self.levels[0].centroids.shape[1]:
            raise BadVectors(f"vectors: found {rows.dim} columns; the tree was trained on {self.levels[0].centroids.shape[1]}")
        codes = np.empty((rows.n, len(self.levels)), np.uint16)
        for start, stop, block in blocks(rows):
            check_finite(block, start)
            node = np.zeros(len(block), np.int64)
            for depth, level in enumerate(self.levels):
                for parent, members in _members(node):
                    codes[start + members, depth] = NearestCentroid(level.children(parent))(block[members])
                node = level.starts[node] + codes[start:stop, depth]
        return codes

    def decode(self, codes: Any, levels: int | None = None) -> FloatArray:
        """The centroid (n, dim) float32 of the node that codes (n, levels), or their first ``levels``, lead to.

        Raises BadVectors for codes of another shape or of a node that is not there.
        """
        checked = check_codes(codes, self.sizes).astype(np.int64)
        node = np.zeros(len(checked), np.int64)
        depths = len(self.levels) if levels is None else levels
        for depth, level in enumerate(self.levels[:depths]):
            missing = level.starts[node] + checked[:, depth] >= level.starts[node + 1]
            if missing.any():
                row = int(missing.argmax())
                raise BadVectors(f"codes: row {row} is {checked[row].tolist()}; the tree has no such node on level {depth + 1}")
            node = level.starts[node] + checked[:, depth]
        return self.levels[depths - 1].centroids[node]


def fit_nested_tree(vectors: Any, sizes: Sequence[int], *, iterations: int = 25, seed: int = 0) -> tuple[NestedTree, Codes]:
    """A tree with up to ``sizes`` children a node, level by level, and the codes (n, levels) of its training rows.

    The codes equal ``encode`` of the rows. Raises ValueError for sizes out of range, BadVectors for bad rows.
    """
    matrix = as_matrix(vectors)
    if not sizes or not all(1 <= size <= MOST_TOKENS for size in sizes):
        raise ValueError(f"sizes {list(sizes)}: needs one or more, each between 1 and {MOST_TOKENS}")
    if not len(matrix):
        raise BadVectors("vectors: found 0 rows; a tree needs at least 1")
    codes = np.empty((len(matrix), len(sizes)), np.uint16)
    node = np.zeros(len(matrix), np.int64)
    levels: list[Level] = []
    for depth, size in enumerate(sizes):
        found: list[FloatArray] = []
        for parent, members in _members(node):
            centroids, codes[members, depth] = _split(matrix[members], size, iterations, seed + parent)
            found.append(centroids)
        starts = np.concatenate([[0], np.cumsum([len(centroids) for centroids in found])]).astype(np.int64)
        levels.append(Level(np.concatenate(found), starts))
        node = starts[node] + codes[:, depth]
    return NestedTree(tuple(sizes), levels), codes


def _split(members: npt.NDArray[Any], size: int, iterations: int, seed: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Centroids (at most ``size``, each with members) and labels of the rows of one cluster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # starved clusters are expected, and counted
        result = cluster(ArrayRows(members), min(size, len(members)), iterations=iterations, seed=seed)
    used, labels = np.unique(result.labels, return_inverse=True)
    return result.centroids[used], labels


def _members(node: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Each node that has rows, ascending, with their numbers, ascending."""
    order = np.argsort(node, kind="stable")
    found, first = np.unique(node[order], return_index=True)
    return [(int(one), rows) for one, rows in zip(found, np.split(order, first[1:]), strict=True)]
