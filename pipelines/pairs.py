"""Pairs of items that belong together, from ``co_interaction``."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from schemas.lake import Lake
from schemas.tables import CO_INTERACTION


def latest_pairs(lake: Lake, version: int, date: dt.date | None) -> tuple[dt.date | None, pa.Table]:
    """(day, item_a and item_b) of the latest window that ends by ``date`` (None: the latest), all kinds together.

    (None, no rows) where there is no such window.
    """
    dataset = lake.dataset(CO_INTERACTION, version)
    days = pc.unique(dataset.to_table(columns=["date"])["date"]).to_pylist()
    usable = [day for day in days if date is None or day <= date]
    if not usable:
        return None, CO_INTERACTION.schema.empty_table().select(["item_a", "item_b"])
    day = max(usable)
    return day, dataset.to_table(columns=["item_a", "item_b"], filter=pads.field("date") == day)


def pair_rows(pairs: pa.Table, item_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 (P, 2): the pairs as row numbers of ``item_ids``, smaller first, each once, sorted; others are left out."""
    ids = item_ids.combine_chunks() if isinstance(item_ids, pa.ChunkedArray) else item_ids
    sides = [pc.index_in(pairs[name], value_set=ids).fill_null(-1).to_numpy().astype(np.int64) for name in ("item_a", "item_b")]
    rows = np.sort(np.stack(sides, axis=1), axis=1)
    return np.unique(rows[(rows[:, 0] >= 0) & (rows[:, 0] != rows[:, 1])], axis=0).reshape(-1, 2)
