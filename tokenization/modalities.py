"""Vectors by kind between Arrow and NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import BadInput


def vector_matrix(column: pa.ChunkedArray | pa.Array, dim: int | None = None) -> np.ndarray:
    """float32 (n, dim) of a column of lists; a null is a zero row. Raises BadInput for lists of another length.

    ``dim`` is needed where the column may hold nothing but nulls. Chunks are read one after the other: put together, lists of
    2³¹ numbers and more would overflow their 32-bit offsets.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    lengths = {length for chunk in chunks for length in pc.unique(pc.list_value_length(chunk.drop_null())).to_pylist()}
    width = dim if dim is not None else max(lengths, default=0)
    if lengths - {width}:
        raise BadInput(f"item_vectors: vectors of lengths {sorted(lengths)} where {width} was expected; remove the foreign rows")
    rows, start = np.zeros((len(column), width), np.float32), 0
    for chunk in chunks:
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        values = pc.list_flatten(chunk.drop_null()).to_numpy(zero_copy_only=False)
        rows[start : start + len(chunk)][valid] = values.reshape(int(valid.sum()), width)
        start += len(chunk)
    return rows


def presence(masks: Any, kinds: Sequence[str], all_kinds: Sequence[str]) -> np.ndarray:
    """bool (n, len(kinds)) of presence masks, whose bit i stands for ``all_kinds[i]``."""
    bits = np.asarray(masks, dtype=np.int64)
    return np.stack([(bits >> all_kinds.index(kind)) & 1 == 1 for kind in kinds], axis=1)


def by_kind(table: pa.Table, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Kind → float32 (n, dimension) of the columns ``<kind>_vector``."""
    return {kind: vector_matrix(table[f"{kind}_vector"], dim) for kind, dim in dims.items()}
