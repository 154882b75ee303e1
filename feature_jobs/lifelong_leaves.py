"""A user's clusters kept up to date instead of computed anew: new behaviours join leaves, leaves split and merge.

A leaf is known by its members; its count, vector sum and sum of squared norms follow from them in one sparse product, so
nothing of it is stored but a leaf number a behaviour. New behaviours join the nearest leaf. Then the most spread leaves
are split by the rule of the full clustering (``lifelong_clusters``). The room for it is what ``max_leaves`` leaves free,
and what merging the nearest leaves gives, as long as a split takes away more error than its merge adds.

Error is the within-cluster error: the sum of squared distances of members to their leaf's mean.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from feature_jobs.lifelong_clusters import fill_room, parts_that_fit, split_leaves
from feature_jobs.lifelong_vectors import ItemVectors

_NOTHING = 1e-6
"""Error of a leaf, a member, that is rounding."""
_ROWS_AT_ONCE = 1024
"""Vectors that fit the processor's cache together with their centres."""
_MERGE_CANDIDATES = 384
"""Leaves whose nearest leaf is looked for in one update, the smallest first."""


@dataclass(frozen=True)
class LeafSums:
    """What is kept of each leaf: its members' count (int64), vector sum (float32, leaves × d), and Σ|x|² (float64)."""

    counts: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, items: ItemVectors, rows: np.ndarray, leaf: np.ndarray, leaves: int) -> "LeafSums":
        """From the members: their items' rows and their leaves."""
        order = np.argsort(leaf.astype(np.int16 if leaves < 2**15 else np.int64), kind="stable")
        order = order[rows[order] >= 0]
        bounds = np.searchsorted(leaf[order], np.arange(leaves + 1))
        one_hot = sparse.csr_array(
            (np.ones(len(order), np.float32), rows[order], bounds), shape=(leaves, len(items.matrix)), dtype=np.float32
        )
        squares = np.bincount(leaf, weights=items.squares(rows), minlength=leaves)
        return cls(np.bincount(leaf, minlength=leaves), one_hot @ items.matrix, squares)

    def plus(self, other: "LeafSums") -> "LeafSums":
        """The leaves with the members of both."""
        return LeafSums(self.counts + other.counts, self.sums + other.sums, self.squares + other.squares)

    def centres(self) -> np.ndarray:
        """Means (float32, leaves × d)."""
        centres: np.ndarray = self.sums / self.counts[:, None].astype(np.float32)
        return centres

    def errors(self) -> np.ndarray:
        """Within-cluster error of each leaf (float64)."""
        return np.maximum(self.squares - np.einsum("ld,ld->l", self.sums, self.sums) / self.counts, 0)


def update_leaves(items: ItemVectors, rows: np.ndarray, leaf: np.ndarray, max_leaves: int, seed: int) -> np.ndarray:
    """Leaves of a history of which some behaviours have one and others (−1) are new.

    ``rows`` (int64, n) are the behaviours' items, ``leaf`` (int64, n) their leaves, of which there may be ``max_leaves`` at
    most. Leaves that lost every member are given up. Returns each behaviour's leaf, numbered from 0 without gaps.
    """
    random = np.random.default_rng(seed)
    old = leaf >= 0
    leaf = leaf.copy()
    leaf[old], leaves = without_gaps(leaf[old])
    sums = LeafSums.of(items, rows[old], leaf[old], leaves)
    leaf[~old] = assigned(items, rows[~old], rows[old], leaf[old], sums)
    sums = sums.plus(LeafSums.of(items, rows[~old], leaf[~old], leaves))
    leaf, leaves = without_gaps(_rebalanced(items, rows, leaf, sums, max_leaves, random))
    if leaves < max_leaves:
        fill_room(items.take(rows), leaf, leaves, max_leaves, random)
    return leaf


def representatives(items: ItemVectors, rows: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """The member nearest the mean of each leaf (numbered without gaps), the earliest of those equally near but for rounding."""
    leaves = int(leaf.max()) + 1
    sums = LeafSums.of(items, rows, leaf, leaves)
    order = np.argsort(leaf, kind="stable")
    result = order[np.cumsum(sums.counts) - sums.counts]
    larger = sums.counts > 2  # of two members, both are equally near
    members = order[np.repeat(larger, sums.counts)]
    if len(members):
        sizes = sums.counts[larger]
        own = np.repeat(np.arange(len(sizes)), sizes)
        distance = _to_centres(items, rows[members], sums.centres()[larger], own)
        smallest = np.minimum.reduceat(distance, np.cumsum(sizes) - sizes)
        near = np.flatnonzero(distance <= smallest[own] + np.float32(1e-6))
        result[larger] = members[near[np.searchsorted(own[near], np.arange(len(sizes)))]]
    return result


def _to_centres(items: ItemVectors, rows: np.ndarray, centres: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Squared distance (float32) of each item to its own centre, but for the centre's squared length."""
    distance = items.squares(rows)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        distance[part] -= 2 * np.einsum("nd,nd->n", items.take(rows[part]), centres[own[part]])
    return distance


def without_gaps(leaf: np.ndarray) -> tuple[np.ndarray, int]:
    """The same leaves numbered 0, 1, … in the same order, and how many there are."""
    used = np.bincount(leaf) > 0
    number = np.cumsum(used) - 1
    return number[leaf], int(used.sum())


def assigned(items: ItemVectors, new: np.ndarray, rows: np.ndarray, leaf: np.ndarray, sums: LeafSums) -> np.ndarray:
    """The leaf of each new behaviour: where its item is already, else the one whose mean is nearest."""
    order = np.argsort(rows, kind="stable")
    known = rows[order]
    distinct, inverse = np.unique(new, return_inverse=True)
    place = np.minimum(np.searchsorted(known, distinct), len(known) - 1)
    nearest = leaf[order[place]]
    unknown = known[place] != distinct
    if unknown.any():
        centres = sums.centres()
        distance = np.einsum("ld,ld->l", centres, centres) - items.take(distinct[unknown]) @ (2 * centres.T)
        nearest[unknown] = distance.argmin(axis=1)
    return nearest[inverse]


def _rebalanced(
    items: ItemVectors, rows: np.ndarray, leaf: np.ndarray, sums: LeafSums, max_leaves: int, random: np.random.Generator
) -> np.ndarray:
    """Leaves (with gaps in their numbers) after splits, of those that take most error away, and the merges that pay for them."""
    errors = sums.errors()
    pairs = np.unique(leaf * (len(items.matrix) + 1) + rows)  # a row is −1 at least
    distinct = np.bincount((pairs + 1) // (len(items.matrix) + 1), minlength=len(errors))
    able, hoped = _worth_splitting(sums.counts, distinct, errors)
    free = max_leaves - len(errors)
    into, gone, cost = cheapest_merges(sums)
    tried, parts = parts_that_fit(able, sums.counts[able], free + _paid(hoped, cost, free))
    if not len(tried):
        return leaf
    place = np.full(len(errors), -1)
    place[tried] = np.arange(len(tried))
    inside = np.flatnonzero(place[leaf] >= 0)
    origin = place[leaf[inside]]
    part = origin.copy()
    count, _ = split_leaves(items.take(rows[inside]), part, np.arange(len(tried)), parts, len(tried), random)
    origin_of = np.empty(count, np.int64)
    origin_of[part] = origin
    left = np.bincount(origin_of, weights=LeafSums.of(items, rows[inside], part, count).errors())
    added = np.bincount(origin_of) - 1
    gain = (errors[tried] - left) / np.maximum(added, 1)
    order = np.argsort(-gain, kind="stable")
    paid = _paid(np.repeat(gain[order], added[order]), cost, free)
    split = order[np.cumsum(added[order]) <= free + paid]
    spared = ~(np.isin(into[:paid], tried[split]) | np.isin(gone[:paid], tried[split]))
    split = order[np.cumsum(added[order]) <= free + int(spared.sum())]
    number = np.arange(len(errors))
    number[gone[:paid][spared]] = into[:paid][spared]
    leaf = number[leaf]
    moved = np.isin(origin, split)
    leaf[inside[moved]] = np.append(tried, len(errors) + np.arange(count - len(tried)))[part[moved]]
    return leaf


def _worth_splitting(counts: np.ndarray, distinct: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves whose splits promise most, and what each further leaf would take away, in the same order.

    A split of n items into k takes (k − 1) / (n − 1) of the error away if they are all equally far from one another,
    and 1 − k^(−2/D) if they fill D dimensions; the larger is taken, for D = 10.
    """
    able = np.flatnonzero((distinct > 1) & (errors > _NOTHING * counts))
    _, parts = parts_that_fit(able, counts[able], int(counts.sum()))
    share = np.minimum(np.maximum((parts - 1) / (distinct[able] - 1), 1 - parts**-0.2), 1)
    gain = errors[able] * share / (parts - 1)
    order = np.argsort(-gain, kind="stable")
    return able[order], np.repeat(gain[order], parts[order] - 1)


def _paid(gains: np.ndarray, cost: np.ndarray, free: int) -> int:
    """How many of the cheapest merges are worth it: those that cost less error than the leaf they make room for takes away,
    once ``free`` leaves are used up. Gains descend, costs ascend."""
    wanted = gains[free:]
    pairs = min(len(wanted), len(cost))
    return int(np.count_nonzero(wanted[:pairs] > cost[:pairs]))


def cheapest_merges(sums: LeafSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint pairs of near leaves, cheapest first: the leaf that stays, the one that goes, the error that it adds.

    Looks for the nearest leaf of the smallest ones only, where merging costs least.
    """
    centres = sums.centres()
    candidates = np.argsort(sums.counts, kind="stable")[:_MERGE_CANDIDATES]
    norms = np.einsum("ld,ld->l", centres, centres)
    distance = norms - centres[candidates] @ (2 * centres.T)
    distance[np.arange(len(candidates)), candidates] = np.inf
    partner = distance.argmin(axis=1)
    apart = np.maximum(distance[np.arange(len(candidates)), partner] + norms[candidates], 0)
    weight = sums.counts[candidates] * sums.counts[partner] / (sums.counts[candidates] + sums.counts[partner])
    cost = apart.astype(np.float64) * weight
    order = np.argsort(cost, kind="stable")
    pairs = np.stack([candidates[order], partner[order]], axis=1)
    _, first = np.unique(pairs, return_index=True)
    alone = np.zeros(pairs.size, bool)
    alone[first] = True
    kept = alone.reshape(-1, 2).all(axis=1)
    return pairs[kept, 1], pairs[kept, 0], cost[order][kept]
