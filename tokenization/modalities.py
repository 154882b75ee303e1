"""Vectors by kind between Arrow and NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import BadInput


def vector_matrix(column: pa.ChunkedArray | pa.Array, dim: int | None = None) -> np.ndarray:
    """float32 (n, dim) of a column of lists; a null is a zero row. Raises BadInput for lists of another length.

    ``dim`` is needed where the column may hold nothing but nulls.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    lengths = pc.unique(pc.list_value_length(array.drop_null())).to_pylist()
    width = dim if dim is not None else (lengths[0] if lengths else 0)
    if any(length != width for length in lengths):
        raise BadInput(f"item_vectors: vectors of lengths {sorted(lengths)} where {width} was expected; remove the foreign rows")
    rows = np.zeros((len(array), width), np.float32)
    rows[valid] = pc.list_flatten(array.drop_null()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return rows


def presence(masks: Any, kinds: Sequence[str], all_kinds: Sequence[str]) -> np.ndarray:
    """bool (n, len(kinds)) of presence masks, whose bit i stands for ``all_kinds[i]``."""
    bits = np.asarray(masks, dtype=np.int64)
    return np.stack([(bits >> all_kinds.index(kind)) & 1 == 1 for kind in kinds], axis=1)


def by_kind(table: pa.Table, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Kind → float32 (n, dimension) of the columns ``<kind>_vector``."""
    return {kind: vector_matrix(table[f"{kind}_vector"], dim) for kind, dim in dims.items()}
