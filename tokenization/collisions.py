"""Items that share a code: their order within it, who leaves an over-full one, and a fourth token that tells them apart.

All of it is independent of the order of the rows: the item that a code describes best, by the smallest residual norm, comes
first; ties fall to the smaller item id. Where the others go: ``tokenization.spilling``. Why: docs/decisions/collisions.md.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenization.metrics import prefix_keys

Policy = Literal["keep", "cap", "unique", "suffix"]
Flags = npt.NDArray[np.bool_]


def rank_within_code(codes: Any, item_ids: Any, residual_norms: Any) -> npt.NDArray[np.int32]:
    """Rank (n,) int32, from 0, of each item among the items of the same code (n, layers).

    The rule: the item that its code describes best, by the smallest residual norm, comes first; ties fall to the smaller
    item id (Unicode code points for text). The order of the rows does not matter.
    """
    keys = prefix_keys(np.asarray(codes))[-1]
    return _places(keys, [_id_order(item_ids), np.asarray(residual_norms, np.float32)])


def over_full(codes: Any, item_ids: Any, residual_norms: Any, cap: int, kept: Any = None) -> Flags:
    """Which items (n,) must leave their code, so that it has ``cap``: those after the first ``cap``.

    ``kept`` (n,) bool: items that have had their code since earlier. They come before all others and never leave, also where
    they alone are more than ``cap``.
    """
    keys = prefix_keys(np.asarray(codes))[-1]
    norms = np.asarray(residual_norms, np.float32)
    settled = np.zeros(len(keys), bool) if kept is None else np.asarray(kept, bool)
    leaving: Flags = (_places(keys, [_id_order(item_ids), norms, ~settled]) >= cap) & ~settled
    return leaving


def suffixes(codes: Any, item_ids: Any, residual_norms: Any, present: Any = None) -> npt.NDArray[np.int32]:
    """A number (n,) int32 that tells each item from the others of its code (n, layers): the smallest that are free, by rank.

    ``present`` (n,): the number that an item has had since earlier and keeps, −1 for none. Without it the numbers are the
    ranks.
    """
    found = np.full(len(codes), -1, np.int32) if present is None else np.array(present, np.int32)
    if not len(found):
        return found
    groups = np.unique(prefix_keys(np.asarray(codes))[-1], return_inverse=True)[1]
    new = found < 0
    # A code with n items has a free number for each new one among 0 … n − 1.
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    taken = np.zeros(len(groups), bool)
    inside = ~new & (found < sizes[groups])
    taken[starts[groups[inside]] + found[inside]] = True
    free = np.flatnonzero(~taken)
    group_of_free = np.repeat(np.arange(len(sizes)), sizes)[free]
    first_free = np.searchsorted(group_of_free, np.arange(len(sizes)))
    ranks = _places(groups[new], [_id_order(np.asarray(item_ids)[new]), np.asarray(residual_norms, np.float32)[new]])
    places = free[first_free[groups[new]] + ranks]
    found[new] = places - starts[groups[new]]
    return found


def collision_figures(codes: Any) -> dict[str, float]:
    """``collision_share`` (of items, that share their code with another) and ``largest_bucket`` of codes (n, layers)."""
    counts = np.unique(prefix_keys(np.asarray(codes))[-1], return_counts=True)[1]
    items = int(counts.sum())
    return {
        "collision_share": float(counts[counts > 1].sum() / items) if items else 0.0,
        "largest_bucket": int(counts.max(initial=0)),
    }


def over_cap(codes: Any, cap: int) -> int:
    """Items beyond ``cap`` in their code, over all codes (n, layers)."""
    counts = np.unique(prefix_keys(np.asarray(codes))[-1], return_counts=True)[1]
    return int(np.maximum(counts - cap, 0).sum())


def _id_order(item_ids: Any) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.unique(np.asarray(item_ids), return_inverse=True)[1]
    return order


def _places(keys: npt.NDArray[Any], order_by: list[npt.NDArray[Any]]) -> npt.NDArray[np.int32]:
    """Place (n,) int32 of each row among those of its key, ordered by the last of ``order_by`` first (as np.lexsort)."""
    order = np.lexsort([*order_by, keys])
    place = np.arange(len(order))
    ordered = keys[order]
    starts = np.ones(len(order), bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    places = np.empty(len(order), np.int32)
    places[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return places
