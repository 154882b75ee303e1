"""Users as codes, and the order of rows, for the labels: sorts that pack their keys into one integer where they fit."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def encoded(column: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    """A column of texts as one dictionary array; one that already is stays as it is (its dictionaries unified)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(column.type) else column.combine_chunks()
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def encoded_users(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Users of a column in UTF-8 byte order, and for each row its user's place among them (int64).

    Users that a dictionary lists and no row has may be among them.
    """
    codes = encoded(column)
    order = pc.sort_indices(codes.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return codes.dictionary.take(order), place[codes.indices.to_numpy()]


def order_by(*keys: np.ndarray) -> np.ndarray:
    """Indices that sort rows by these integer keys, the first weighing most; what ties on all of them keeps its order.

    As many keys as fit together into 63 bits are sorted as one (linear time where rows are nearly in order already);
    the others are looked at only where those tie.
    """
    length = len(keys[0])
    if length < 2:
        return np.arange(length)
    packed, used = np.zeros(length, np.int64), 0
    bits = 0
    for key in keys:
        low = int(key.min())
        width = (int(key.max()) - low).bit_length()
        if bits + width > 63:
            break
        packed = (packed << width) | (key - low)
        bits += width
        used += 1
    if used < min(2, len(keys)):
        return np.lexsort(keys[::-1])
    order = np.argsort(packed, kind="stable")
    if used < len(keys):
        _settle_ties(order, packed, keys[used:])
    return order


def _settle_ties(order: np.ndarray, packed: np.ndarray, rest: tuple[np.ndarray, ...]) -> None:
    """Bring rows of ``order`` whose packed keys tie into the order of the other keys."""
    sorted_keys = packed[order]
    same = np.zeros(len(order) + 1, bool)
    same[1:-1] = sorted_keys[1:] == sorted_keys[:-1]
    places = np.flatnonzero(same[1:] | same[:-1])
    if len(places):
        rows = order[places]
        run = np.cumsum(~same[places])
        order[places] = rows[order_by(run, *(key[rows] for key in rest))]
