"""Co-watched pairs: items that belong together by what people engaged with, from ``co_interaction``, all kinds of pairs alike.

The fusion model trains on them, and a codebook is measured by them: when it is trained, and when it is inspected.
"""

import datetime as dt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from schemas.lake import Lake
from schemas.tables import CO_INTERACTION


def latest_pairs(lake: Lake, version: int, date: dt.date | None) -> tuple[dt.date | None, pa.Table]:
    """(day, item_a and item_b) of the latest window that ends by ``date`` (None: the latest), all kinds together.

    (None, no rows) where there is no such window. Raises BadInput for a damaged table.
    """
    days = pc.unique(lake.read(CO_INTERACTION, columns=["date"], version=version)["date"]).to_pylist()
    day = max((one for one in days if date is None or one <= date), default=None)
    columns = ["item_a", "item_b"]
    if day is None:
        return None, CO_INTERACTION.schema.empty_table().select(columns)
    return day, lake.read(CO_INTERACTION, columns=columns, filter=pads.field("date") == day, version=version)


def pair_rows(pairs: pa.Table, item_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """int64 (P, 2): the pairs as row numbers of ``item_ids``, smaller first, each once, sorted; others are left out."""
    ids = item_ids.combine_chunks() if isinstance(item_ids, pa.ChunkedArray) else item_ids
    sides = [pc.index_in(pairs[name], value_set=ids).fill_null(-1).to_numpy().astype(np.int64) for name in ("item_a", "item_b")]
    rows = np.sort(np.stack(sides, axis=1), axis=1)
    return np.unique(rows[(rows[:, 0] >= 0) & (rows[:, 0] != rows[:, 1])], axis=0).reshape(-1, 2)
