"""Hierarchical k-means over one user's history: NumPy in, NumPy out (V1 §2.2.1; reference §2, "Lifelong compression").

At each step a cluster of n members is split into ⌊∛n⌋ (at least 2) clusters. The paper splits until every cluster has at
most M members, M not given; here M adapts to the history: in each round the largest clusters are split first, as many as
there is room for below ``max_leaves``, until there is no room or nothing can be split. All clusters of a round that split
into equally many are clustered together in one batched Lloyd iteration, so the cost is in matrix products, not in Python.
"""

import numpy as np

ITERATIONS = 8
_MAX_BATCH_FLOATS = 8_000_000


def hierarchical_clusters(vectors: np.ndarray, max_leaves: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Partition ``vectors`` (float32, n × d) into at most ``max_leaves`` clusters.

    Returns each vector's cluster (int64, n), numbered from 0 by earliest member, and each cluster's representative (int64,
    clusters): the member nearest the mean, the earliest of equally near ones. Vectors are not told apart if equal, so
    there may be fewer clusters. Equal arguments give equal results.
    """
    count = len(vectors)
    if count <= max_leaves:
        every = np.arange(count)
        return every, every.copy()
    random = np.random.default_rng(seed)
    leaf = np.zeros(count, np.int64)
    leaves = 1
    solid = np.zeros(1, bool)  # leaves whose members are all equal
    while leaves < max_leaves:
        sizes = np.bincount(leaf, minlength=leaves)
        chosen, parts = _next_splits(sizes, solid, max_leaves - leaves)
        if not len(chosen):
            break
        order = np.argsort(leaf, kind="stable")
        starts = np.cumsum(sizes) - sizes
        grown = [solid]
        for k in np.unique(parts):
            group = chosen[parts == k]
            for batch in _batches(group[np.argsort(sizes[group], kind="stable")], sizes, vectors.shape[1]):
                leaves = _split(vectors, leaf, order, starts[batch], sizes[batch], int(k), leaves, random, solid, grown)
        solid = np.concatenate(grown)
    _, first, leaf = np.unique(leaf, return_index=True, return_inverse=True)
    by_time = np.argsort(np.argsort(first))
    leaf = by_time[leaf]
    return leaf, _representatives(vectors, leaf, len(first))


def _next_splits(sizes: np.ndarray, solid: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Which leaves to split, largest first, and into how many, so that at most ``room`` leaves are added."""
    able = np.flatnonzero((sizes >= 2) & ~solid)
    able = able[np.argsort(-sizes[able], kind="stable")]
    parts = np.maximum(2, _cube_root(sizes[able]))
    added = np.cumsum(parts - 1)
    fits = int(np.searchsorted(added, room, side="right"))
    if fits == len(able):
        return able, parts
    left = room - (int(added[fits - 1]) if fits else 0)
    if left == 0:
        return able[:fits], parts[:fits]
    parts = parts[: fits + 1].copy()
    parts[-1] = left + 1
    return able[: fits + 1], parts


def _cube_root(numbers: np.ndarray) -> np.ndarray:
    root = np.rint(np.cbrt(numbers)).astype(np.int64)
    return np.where(root**3 > numbers, root - 1, root)


def _batches(group: np.ndarray, sizes: np.ndarray, dim: int) -> list[np.ndarray]:
    """Cut leaves in ascending size into batches whose padded members fit the memory bound."""
    result, start = [], 0
    for place in range(len(group)):
        if place > start and (place + 1 - start) * int(sizes[group[place]]) * dim > _MAX_BATCH_FLOATS:
            result.append(group[start:place])
            start = place
    result.append(group[start:])
    return result


def _split(
    vectors: np.ndarray,
    leaf: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    k: int,
    leaves: int,
    random: np.random.Generator,
    solid: np.ndarray,
    grown: list[np.ndarray],
) -> int:
    """Split a batch of leaves into at most ``k`` each, in place in ``leaf`` and ``solid``; the new number of leaves."""
    width = int(sizes.max())
    inside = np.arange(width) < sizes[:, None]
    members = order[np.minimum(starts[:, None] + np.arange(width), len(order) - 1)]
    kept = leaf[members[:, 0]]
    labels = _lloyd(vectors[members], inside, k, random)
    one_hot = (labels[:, :, None] == np.arange(k)) & inside[:, :, None]
    occupied = one_hot.any(axis=1)
    # the first occupied part of each leaf keeps its number, the others get new ones
    rank = np.cumsum(occupied, axis=1) - 1
    fresh = occupied & (rank > 0)
    number = np.repeat(kept[:, None], k, axis=1)
    number[fresh] = leaves + np.arange(int(fresh.sum()))
    leaf[members[inside]] = np.take_along_axis(number, labels, axis=1)[inside]
    solid[kept[occupied.sum(axis=1) == 1]] = True
    grown.append(np.zeros(int(fresh.sum()), bool))
    return leaves + int(fresh.sum())


def _lloyd(points: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Labels (int64, leaves × members) of a batch of padded leaves (float32, leaves × members × d), k clusters each."""
    batch, width, _ = points.shape
    centres = _seeds(points, inside, k, random)
    labels = np.zeros((batch, width), np.int64)
    for iteration in range(ITERATIONS):
        distance = (centres**2).sum(axis=2)[:, None, :] - 2 * (points @ centres.transpose(0, 2, 1))
        nearest = distance.argmin(axis=2)
        if iteration and np.array_equal(nearest, labels):
            break
        labels = nearest
        one_hot = ((labels[:, :, None] == np.arange(k)) & inside[:, :, None]).astype(points.dtype)
        counts = one_hot.sum(axis=1)[:, :, None]
        sums = one_hot.transpose(0, 2, 1) @ points
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return labels


def _seeds(points: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """k-means++ first centres of each leaf: a random member, then members drawn by squared distance to the chosen ones."""
    batch, width, dim = points.shape
    centres = np.empty((batch, k, dim), points.dtype)
    rows = np.arange(batch)
    norms = np.einsum("bwd,bwd->bw", points, points)
    mass = inside.astype(np.float64)
    nearest = np.full((batch, width), np.inf)
    for place in range(k):
        total = np.cumsum(mass, axis=1)
        drawn = (total <= (random.random(batch) * total[:, -1])[:, None]).sum(axis=1)
        centres[:, place] = points[rows, np.minimum(drawn, width - 1)]
        centre = centres[:, place]
        distance = norms + (centre**2).sum(axis=1)[:, None] - 2 * (points @ centre[:, :, None])[:, :, 0]
        nearest = np.minimum(nearest, distance)
        mass = np.where(inside, np.maximum(nearest, 0.0), 0.0)
    return centres


def _representatives(vectors: np.ndarray, leaf: np.ndarray, leaves: int) -> np.ndarray:
    order = np.argsort(leaf, kind="stable")
    sizes = np.bincount(leaf, minlength=leaves)
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0) / sizes[:, None]
    distance = ((vectors - means[leaf]) ** 2).sum(axis=1)
    nearest = np.lexsort((np.arange(len(leaf)), distance, leaf))
    return nearest[starts]
