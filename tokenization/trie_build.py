"""Builds the arrays of ``TokenTrie``: one sort of 64-bit integers, a code's tokens above an item's place, and scans.

Where tokens and place need more than 63 bits, codes are first numbered in their order, which costs one more sort.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.metrics import prefix_keys

Nodes = npt.NDArray[np.int64]
_BITS = 63


def trie_arrays(codes: npt.NDArray[Any], ranks: Any, keys: Any) -> dict[str, npt.NDArray[Any]]:
    """``depth_starts``, ``offsets``, ``tokens``, ``item_offsets`` and ``item_rows`` of codes (n, layers), as TokenTrie has them.

    Items of one code are in the order of ``ranks``, then ``keys``, then rows; either may be None.
    """
    rows, starts = _sorted(codes, _before(ranks, keys))
    distinct = codes[rows[starts]].astype(np.uint16)
    # Whether a code has the same first token, first two, … as the one before it.
    same = np.logical_and.accumulate(distinct[1:] == distinct[:-1], axis=1)
    tokens, offsets, depth_starts = [], [np.zeros(1, np.int64)], [0, 1]
    above = np.zeros(min(len(distinct), 1), np.int64)  # the first code below each node of the depth above
    edges = 0
    for layer in range(codes.shape[1]):
        heads = np.append(np.zeros(min(len(distinct), 1), np.int64), np.flatnonzero(~same[:, layer]) + 1)
        tokens.append(distinct[heads, layer])
        # The node of this depth that begins where the next one of the depth above does; the last one's edges end at the end.
        ends = np.append(np.searchsorted(heads, above[1:]), len(heads)) if len(heads) else np.zeros(len(above), np.int64)
        offsets.append(edges + ends)
        edges += len(heads)
        depth_starts.append(depth_starts[-1] + len(heads))
        above = heads
    if not len(distinct):
        offsets.insert(1, np.zeros(1, np.int64))  # the root, which has no edges
    return {
        "depth_starts": np.array(depth_starts, np.int64),
        "offsets": np.concatenate(offsets),
        "tokens": np.concatenate(tokens),
        "item_offsets": np.append(np.flatnonzero(starts), len(rows)),
        "item_rows": rows,
    }


def _before(ranks: Any, keys: Any) -> Nodes | None:
    """Rows by rank, then key, then row; None where that is the order of the rows."""
    order: Nodes | None = None
    if keys is not None and len(keys) > 1:
        names = np.asarray(keys)
        if not bool((names[1:] >= names[:-1]).all()):  # items mostly come in the order of their ids
            order = np.argsort(np.unique(names, return_inverse=True)[1], kind="stable")
    if ranks is not None and len(ranks):
        values = np.asarray(ranks)
        if values.dtype.kind in "iu" and 0 <= values.min() <= values.max() < 2**16:
            values = values.astype(np.uint16)  # NumPy sorts these by radix
        if values.max() > values.min():
            by_rank = np.argsort(values if order is None else values[order], kind="stable")
            order = by_rank if order is None else order[by_rank]
    return order


def _sorted(codes: npt.NDArray[Any], before: Nodes | None) -> tuple[Nodes, npt.NDArray[np.bool_]]:
    """Rows by code, those of one code in the order of ``before``; and which begin another code than the one before them."""
    place_bits = max(len(codes) - 1, 0).bit_length()
    bits = [int(width).bit_length() for width in codes.max(axis=0, initial=0)]
    if sum(bits) + place_bits <= _BITS:
        packed = np.zeros(len(codes), np.int64)
        for layer, width in enumerate(bits):
            packed <<= width
            packed |= codes[:, layer].astype(np.int64)
    else:
        packed = np.unique(prefix_keys(codes)[-1], return_inverse=True)[1].astype(np.int64)
    if before is not None:
        packed = packed[before]
    packed <<= place_bits
    packed |= np.arange(len(codes))
    packed.sort()
    places = packed & ((1 << place_bits) - 1)
    packed >>= place_bits
    starts = np.ones(len(codes), bool)
    starts[1:] = packed[1:] != packed[:-1]
    return places if before is None else before[places], starts
