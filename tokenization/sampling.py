"""Which items a codebook is trained on where there are more than it needs."""

from collections.abc import Sequence

import numpy as np

from schemas.shards import stable_key
from tokenization.labels import label_numbers


def stratified_sample(item_ids: Sequence[str], strata: Sequence[str | None], size: int, seed: int) -> np.ndarray:
    """int64, ascending: row numbers of at most ``size`` items, each stratum in proportion (largest remainder).

    Inside a stratum the items with the smallest hash of (seed, item id) are taken, so that a catalogue that grows keeps
    most of its sample. Items of an unknown stratum (None or "") are one of their own.
    """
    if len(item_ids) <= size:
        return np.arange(len(item_ids), dtype=np.int64)
    groups = label_numbers([stratum or "" for stratum in strata])
    counts = np.bincount(groups)
    exact = counts * size / len(item_ids)
    taken = np.floor(exact).astype(np.int64)
    taken[np.argsort(taken - exact, kind="stable")[: size - taken.sum()]] += 1
    keys = np.array([stable_key(f"{seed}\0{item_id}") for item_id in item_ids])
    order = np.lexsort((keys, groups))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(order)) - starts[groups[order]]
    return np.sort(order[place < taken[groups[order]]])
