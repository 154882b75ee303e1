"""Initial centroids by k-means++ (Arthur and Vassilvitskii, 2007) on a seeded sample.

The greedy form: several candidates a step, the best are kept. Small codebooks keep one a step; larger ones a group, a 64th of the
codebook at once (above 8,192 centroids less), so that seeding costs 64 passes over the sample and large matrix products, not a
pass a centroid. With four candidates a place k-means from there ends within 1 % of one at a time (256 and 1,024 centroids, ten
iterations); after refinement there is no difference.
"""

import numpy as np
import numpy.typing as npt

from tokenization.threads import one_blas_thread
from tokenization.vectors import FloatArray, Rows, blocks

_STEPS = 64
_CANDIDATES_A_PLACE = 4
_MOST_REACHED = 2**26
"""Distances of a step, from candidates to the sample: 256 MiB."""
_SAMPLE_PER_CENTROID = 16
_SAMPLE_AT_LEAST = 8_192
_ROWS_A_BLOCK = 4096
_NOISE = np.float32(8e-7)


def seed_centroids(rows: Rows, n_clusters: int, random: np.random.Generator) -> FloatArray:
    """Initial centroids (n_clusters, dim), each of them a row.

    Where fewer rows than ``n_clusters`` are distinct, the distinct ones come first and then repeat.
    """
    if rows.n <= n_clusters:
        return _repeat(_distinct(rows), n_clusters)
    size = min(rows.n, max(_SAMPLE_PER_CENTROID * n_clusters, _SAMPLE_AT_LEAST))
    chosen = np.sort(random.choice(rows.n, size, replace=False)) if size < rows.n else np.arange(rows.n)
    sample = rows.take(chosen)
    with one_blas_thread():  # on a busy machine BLAS threads wait for each other longer than these small products take
        found = _plus_plus(sample, n_clusters, random)
    if len(found) < n_clusters:  # the sample has too few distinct rows; all rows may have more
        distinct = _distinct(rows)
        if len(distinct) > n_clusters:
            return distinct[np.sort(random.choice(len(distinct), n_clusters, replace=False))]
        return _repeat(distinct, n_clusters)
    return found


def _plus_plus(sample: FloatArray, n_clusters: int, random: np.random.Generator) -> FloatArray:
    """Up to ``n_clusters`` rows of the sample; fewer where every row is already a centroid."""
    group = min(-(-n_clusters // _STEPS), max(1, _MOST_REACHED // (_CANDIDATES_A_PLACE * len(sample))))
    candidates = 2 + int(np.log(n_clusters)) if group == 1 else _CANDIDATES_A_PLACE
    squares = np.einsum("ij,ij->i", sample, sample)
    noise = _NOISE * squares
    picked = [int(random.integers(len(sample)))]
    closest = np.full(len(sample), np.inf, np.float32)
    closest = _reached(sample, squares, sample[picked], closest)[0]
    while len(picked) < n_clusters:
        closest[closest <= noise] = 0  # equal rows, up to rounding
        want = min(group, n_clusters - len(picked))
        drawn = _draw(closest, want * candidates, random)
        if not len(drawn):
            break
        reached = _reached(sample, squares, sample[drawn], closest)
        best = np.argsort(reached.sum(axis=1, dtype=np.float64), kind="stable")[:want]
        picked.extend(drawn[best].tolist())
        closest = reached[best].min(axis=0)
        closest[drawn[best]] = 0
    return sample[picked]


def _draw(weights: FloatArray, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Distinct indices with probability proportional to their weights; fewer where few weights are above 0."""
    cumulative = weights.cumsum(dtype=np.float64)
    if cumulative[-1] <= 0:
        return np.zeros(0, np.int64)
    drawn = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")
    distinct = np.unique(np.minimum(drawn, len(weights) - 1))
    return distinct[weights[distinct] > 0]


def _reached(sample: FloatArray, squares: FloatArray, centroids: FloatArray, closest: FloatArray) -> FloatArray:
    """Squared distance (centroids, sample) of each row to its closest centroid, were one of ``centroids`` added."""
    norms = np.einsum("ij,ij->i", centroids, centroids)[:, None]
    reached = np.empty((len(centroids), len(sample)), np.float32)
    for start in range(0, len(sample), _ROWS_A_BLOCK):
        rows = slice(start, start + _ROWS_A_BLOCK)
        distances = centroids @ sample[rows].T
        distances *= np.float32(-2)
        distances += squares[rows]
        distances += norms
        np.minimum(distances, closest[rows], out=reached[:, rows])
    return reached


def _distinct(rows: Rows) -> FloatArray:
    """The distinct rows, sorted."""
    found: FloatArray = np.zeros((0, rows.dim), np.float32)
    for _, _, block in blocks(rows):
        found = np.unique(np.concatenate([found, block + np.float32(0)]), axis=0)
    return found


def _repeat(distinct: FloatArray, n_clusters: int) -> FloatArray:
    return distinct[np.arange(n_clusters) % len(distinct)]
