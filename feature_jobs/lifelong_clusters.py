"""Hierarchical k-means over one user's history: NumPy in, NumPy out (V1 §2.2.1; reference §2, "Lifelong compression").

At each step a cluster of n members is split into ⌊∛n⌋ (at least 2) clusters. The paper splits until every cluster has at
most M members, M not given; here M adapts to the history: in each round the largest clusters are split first, as many as
there is room for below ``max_leaves``, until there is no room or nothing can be split.

Clusters of a round that have about the same size are split together. Where they have fewer members than dimensions, k-means
runs on the members' inner products, computed once: an iteration then costs w² and not w · d for w members of d dimensions.
The same arguments give the same result with one BLAS thread (callers pin it), on one kind of processor.
"""

from collections.abc import Callable

import numpy as np

ITERATIONS = 4
_MEMBERS_A_CENTRE = 64
_MAX_BATCH_FLOATS = 4_000_000


def hierarchical_clusters(vectors: np.ndarray, max_leaves: int, seed: int) -> np.ndarray:
    """Partition ``vectors`` (float32, n × d) into at most ``max_leaves`` clusters: each vector's cluster (int64, n), numbered
    from 0 without gaps.

    Equal vectors are not told apart, so there may be fewer clusters. At most ``max_leaves`` vectors are a cluster each.
    """
    count = len(vectors)
    if count <= max_leaves:
        return np.arange(count)
    leaf = np.zeros(count, np.int64)
    fill_room(vectors, leaf, 1, max_leaves, np.random.default_rng(seed))
    return leaf


def fill_room(vectors: np.ndarray, leaf: np.ndarray, leaves: int, max_leaves: int, random: np.random.Generator) -> int:
    """Split leaves, the largest first, in place in ``leaf`` until there are ``max_leaves`` or none can be split; how many
    there are then."""
    solid = np.zeros(max_leaves, bool)  # leaves whose members are all equal
    while leaves < max_leaves:
        sizes = np.bincount(leaf, minlength=leaves)
        able = np.flatnonzero((sizes >= 2) & ~solid[:leaves])
        able = able[np.argsort(-sizes[able], kind="stable")]
        chosen, parts = parts_that_fit(able, sizes[able], max_leaves - leaves)
        if not len(chosen):
            break
        leaves, alike = split_leaves(vectors, leaf, chosen, parts, leaves, random)
        solid[alike] = True
    return leaves


def parts_that_fit(leaves: np.ndarray, sizes: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of ``leaves`` (in order of preference, with their sizes) that can be split, and into how many each, so that
    at most ``room`` leaves are added; the last one may get fewer parts than the rule says."""
    parts = np.maximum(2, _cube_root(sizes))
    added = np.cumsum(parts - 1)
    fits = int(np.searchsorted(added, room, side="right"))
    left = room - (int(added[fits - 1]) if fits else 0)
    if fits == len(leaves) or left == 0:
        return leaves[:fits], parts[:fits]
    parts = parts[: fits + 1].copy()
    parts[-1] = left + 1
    return leaves[: fits + 1], parts


def split_leaves(
    vectors: np.ndarray, leaf: np.ndarray, chosen: np.ndarray, parts: np.ndarray, leaves: int, random: np.random.Generator
) -> tuple[int, np.ndarray]:
    """Split the ``chosen`` leaves into at most ``parts`` each, in place in ``leaf``: one part keeps the leaf's number, the
    others are numbered from ``leaves`` on.

    Returns the number of leaves afterwards, and those of the chosen whose members could not be told apart.
    """
    sizes = np.bincount(leaf, minlength=leaves)
    order = np.argsort(leaf.astype(np.int16 if leaves < 2**15 else np.int64), kind="stable")
    starts = np.cumsum(sizes) - sizes
    alike = []
    for k in np.unique(parts).tolist():
        group = chosen[parts == k]
        for batch in _batches(group[np.argsort(sizes[group], kind="stable")], sizes, vectors.shape[1]):
            inside = np.arange(sizes[batch[-1]]) < sizes[batch, None]
            members = order[np.minimum(starts[batch, None] + np.arange(inside.shape[1]), len(order) - 1)]
            labels = _k_means(vectors[members], inside, k, random)
            occupied = ((labels[:, :, None] == np.arange(k)) & inside[:, :, None]).any(axis=1)
            fresh = occupied & (np.cumsum(occupied, axis=1) > 1)
            number = np.repeat(batch[:, None], k, axis=1)
            number[fresh] = leaves + np.arange(np.count_nonzero(fresh))
            leaf[members[inside]] = np.take_along_axis(number, labels, axis=1)[inside]
            leaves += int(np.count_nonzero(fresh))
            alike.append(batch[~fresh.any(axis=1)])
    return leaves, np.concatenate(alike)


def _cube_root(numbers: np.ndarray) -> np.ndarray:
    root = np.rint(np.cbrt(numbers)).astype(np.int64)
    return np.where(root**3 > numbers, root - 1, root)


def _batches(group: np.ndarray, sizes: np.ndarray, dim: int) -> list[np.ndarray]:
    """Cut leaves in ascending size into batches of about the same size whose padded members fit the memory bound."""
    result, start = [], 0
    widths = sizes[group].tolist()
    for place, width in enumerate(widths):
        too_many = (place + 1 - start) * width * dim > _MAX_BATCH_FLOATS
        if place > start and (too_many or width > 1.5 * widths[start] + 1):
            result.append(group[start:place])
            start = place
    result.append(group[start:])
    return result


def _k_means(points: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Labels (int64, leaves × members) of a batch of padded leaves (float32, leaves × members × d), k clusters each."""
    if points.shape[1] <= points.shape[2]:
        return _on_products(points @ points.transpose(0, 2, 1), inside, k, random)
    return _on_vectors(points, inside, k, random)


def _on_products(products: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """The labels from inner products (float32, leaves × members × members)."""
    norms = np.einsum("bww->bw", products).copy()
    rows = np.arange(len(products))

    def to_member(place: np.ndarray) -> np.ndarray:
        distance: np.ndarray = norms + norms[rows, place][:, None] - 2 * products[rows, place]
        return distance

    labels = _seeded(to_member, inside, k, random)[1]
    for _ in range(ITERATIONS):
        one_hot = ((labels[:, :, None] == np.arange(k)) & inside[:, :, None]).astype(np.float32)
        counts = one_hot.sum(axis=1)[:, None, :]
        inner = (products @ one_hot) / np.maximum(counts, 1)
        means = (inner * one_hot).sum(axis=1)[:, None, :] / np.maximum(counts, 1)
        nearest = np.where(counts > 0, means - 2 * inner, np.float32(np.inf)).argmin(axis=2)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
    return labels


def _on_vectors(points: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """The labels from vectors, Lloyd's algorithm; of large leaves, centres are found on some evenly spaced members."""
    step = max(1, points.shape[1] // (_MEMBERS_A_CENTRE * k))
    if step > 1:
        labels = _nearest(points, _centres(points[:, ::step], inside[:, ::step], k, random))
        if (np.where(inside, labels, labels[:, :1]) != labels[:, :1]).any(axis=1).all():
            return labels
    return _nearest(points, _centres(points, inside, k, random))  # few members, or those chosen were all alike


def _centres(points: np.ndarray, inside: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Centres (float32, leaves × k × d) after some rounds of Lloyd's algorithm."""
    norms = np.einsum("bwd,bwd->bw", points, points)
    rows = np.arange(len(points))

    def to_member(place: np.ndarray) -> np.ndarray:
        centre = points[rows, place]
        distance: np.ndarray = norms + norms[rows, place][:, None] - 2 * (points @ centre[:, :, None])[:, :, 0]
        return distance

    seeds, labels = _seeded(to_member, inside, k, random)
    centres = points[rows[:, None], seeds]
    for _ in range(ITERATIONS):
        one_hot = ((labels[:, None, :] == np.arange(k)[:, None]) & inside[:, None, :]).astype(np.float32)
        counts = one_hot.sum(axis=2)[:, :, None]
        centres = np.where(counts > 0, (one_hot @ points) / np.maximum(counts, 1), centres)
        nearest = _nearest(points, centres)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
    return centres


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each member (int64, leaves × members)."""
    distance = np.einsum("bkd,bkd->bk", centres, centres)[:, None, :] - points @ (2 * centres).transpose(0, 2, 1)
    return distance.argmin(axis=2)


def _seeded(
    to_member: Callable[[np.ndarray], np.ndarray], inside: np.ndarray, k: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """k-means++: a random member of each leaf, then members drawn by squared distance to the chosen ones.

    ``to_member`` gives the squared distances of all members of each leaf to one of them, given by its place. Returns the
    members chosen (int64, leaves × k) and the nearest of them for each member.
    """
    batch, width = inside.shape
    mass = inside.astype(np.float32)
    seeds, labels = np.empty((batch, k), np.int64), np.zeros((batch, width), np.int64)
    nearest = np.full((batch, width), np.inf, np.float32)
    for number in range(k):
        total = np.cumsum(mass, axis=1)
        drawn = (total <= (random.random(batch, np.float32) * total[:, -1])[:, None]).sum(axis=1)
        seeds[:, number] = np.minimum(drawn, width - 1)
        distance = to_member(seeds[:, number])
        closer = distance < nearest
        labels[closer] = number
        nearest = np.where(closer, distance, nearest)
        mass = np.where(inside, np.maximum(nearest, 0), np.float32(0))
    return seeds, labels
