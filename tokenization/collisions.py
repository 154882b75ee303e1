"""Items that share a code, and their order within it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.metrics import prefix_keys


def rank_within_code(codes: Any, item_ids: Any, residual_norms: Any) -> npt.NDArray[np.int32]:
    """Rank (n,) int32, from 0, of each item among the items of the same code (n, layers).

    The rule: the item that its code describes best, by the smallest residual norm, comes first; ties fall to the smaller
    item id (Unicode code points for text). The order of the rows does not matter.
    """
    keys = prefix_keys(np.asarray(codes))[-1]
    norms = np.asarray(residual_norms, np.float32)
    _, id_order = np.unique(np.asarray(item_ids), return_inverse=True)
    order = np.lexsort((id_order, norms, keys))
    place = np.arange(len(order))
    starts = np.ones(len(order), bool)
    starts[1:] = keys[order][1:] != keys[order][:-1]
    ranks = np.empty(len(order), np.int32)
    ranks[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return ranks
