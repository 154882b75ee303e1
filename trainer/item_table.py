"""Look-ups in the shards' item side table: attributes of the item version valid before a moment, and tokens.

Shape suffixes: V item versions, I items with tokens, W tags, L layers; queries may have any shape.
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import BadInput
from schemas.shards import stable_key
from trainer.batches import NO_TOKEN, TAGS
from trainer.windows import Array, TimeIndex


@dataclass(frozen=True)
class ItemTable:
    """Item versions in (item_key, valid_from) order."""

    keys: Array
    """Distinct item keys, ascending."""
    offsets: Array
    """Where each key's versions begin."""
    index: TimeIndex
    """Over ``valid_from`` by key."""
    author_key_V: Array
    """int64, 0 = unknown."""
    tag_key_VW: Array
    """int64, 0 = none."""
    deleted_V: Array
    """bool: the version says that the item is gone."""
    item_ids: pa.Array
    """Item id of each distinct key."""

    @classmethod
    def from_arrow(cls, table: pa.Table, where: str) -> "ItemTable":
        """Read an ITEM_TABLE. Raises BadInput if it is not in its order."""
        key_V = _ints(table["item_key"])
        valid_from_V = _ints(table["valid_from"])
        _check_order(key_V, valid_from_V, where)
        keys, first = np.unique(key_V, return_index=True)
        tags = table["tags"].combine_chunks()
        offsets = np.append(first, len(key_V))
        return cls(
            keys=keys,
            offsets=offsets,
            index=TimeIndex.of(offsets, valid_from_V),
            author_key_V=_text_keys(table["author_id"]),
            tag_key_VW=_tag_keys(tags),
            deleted_V=np.asarray(table["deleted"].to_numpy(), dtype=bool),
            item_ids=table["item_id"].combine_chunks().take(pa.array(first)),
        )

    def versions(self, item_key: Array, moment: Array) -> Array:
        """Row of the last version with ``valid_from`` before the moment, −1 if there is none: the queries' shape."""
        if not len(self.keys):
            return np.full(item_key.shape, -1)
        flat_key, flat_moment = item_key.ravel(), np.broadcast_to(moment, item_key.shape).ravel()
        owner = np.minimum(np.searchsorted(self.keys, flat_key), len(self.keys) - 1)
        earlier = self.index.count_before(owner, flat_moment)
        known = (self.keys[owner] == flat_key) & (earlier > 0)
        return np.where(known, self.offsets[owner] + earlier - 1, -1).reshape(item_key.shape)

    def attributes(self, item_key: Array, moment: Array) -> tuple[Array, Array]:
        """Author keys (the queries' shape) and tag keys (the shape, W) as known before the moment; 0 where unknown."""
        row = self.versions(item_key, moment)
        if not len(self.keys):
            return np.zeros(row.shape, np.int64), np.zeros((*row.shape, TAGS), np.int64)
        known = row >= 0
        return np.where(known, self.author_key_V[row], 0), np.where(known[..., None], self.tag_key_VW[row], 0)

    def deleted(self, item_key: Array, moment: Array) -> Array:
        """bool, the queries' shape: whether the last version before the moment says that the item is gone."""
        row = self.versions(item_key, moment)
        if not len(self.deleted_V):
            return np.zeros(row.shape, bool)
        return (row >= 0) & self.deleted_V[row]

    def item_id(self, item_key: int) -> str | None:
        """The item id behind a key, None for an unknown one."""
        place = int(np.searchsorted(self.keys, item_key))
        known = place < len(self.keys) and self.keys[place] == item_key
        return str(self.item_ids[place].as_py()) if known else None


@dataclass(frozen=True)
class ItemTokens:
    """Tokens by item, of one codebook version."""

    keys_I: Array
    """Ascending."""
    tokens_IL: Array
    rank_I: Array
    """Rank among the items of one code; 0 first."""

    @classmethod
    def from_arrow(cls, table: pa.Table, sizes: tuple[int, ...], where: str) -> "ItemTokens":
        """Read a TOKEN_TABLE. Raises BadInput for a wrong order, a wrong number of tokens or one outside its layer."""
        keys_I = _ints(table["item_key"])
        _check_order(keys_I, np.zeros(len(keys_I), np.int64), where)
        if len(keys_I) and np.any(np.diff(keys_I) == 0):
            raise BadInput(f"{where}: an item has two codes; write the shards again")
        lists = table["tokens"].combine_chunks()
        if not pc.all(pc.equal(pc.list_value_length(lists), len(sizes))).as_py() and len(keys_I):
            raise BadInput(f"{where}: an item has not {len(sizes)} tokens; write the shards again")
        tokens_IL = _ints(lists.flatten()).reshape(-1, len(sizes))
        if np.any(tokens_IL < 0) or np.any(tokens_IL >= np.array(sizes)):
            raise BadInput(f"{where}: a token lies outside the codebook's sizes {sizes}; write the shards again")
        return cls(keys_I, tokens_IL, _ints(table["rank"]))

    def live(self, items: ItemTable, moment: dt.datetime) -> "ItemTokens":
        """Without the items that were deleted before a moment: what may be recommended then."""
        keep_I = ~items.deleted(self.keys_I, np.array(round(moment.timestamp() * 1e6)))
        return ItemTokens(self.keys_I[keep_I], self.tokens_IL[keep_I], self.rank_I[keep_I])

    def lookup(self, item_key: Array) -> Array:
        """Tokens of each item: the queries' shape and L; NO_TOKEN where an item has none."""
        if not len(self.keys_I):
            return np.full((*item_key.shape, self.tokens_IL.shape[1]), NO_TOKEN)
        place = np.minimum(np.searchsorted(self.keys_I, item_key), len(self.keys_I) - 1)
        known = self.keys_I[place] == item_key
        return np.where(known[..., None], self.tokens_IL[place], NO_TOKEN)

    def known(self, item_key: Array) -> Array:
        """bool: whether each item has tokens."""
        return self.lookup(item_key)[..., 0] != NO_TOKEN


def _ints(column: pa.ChunkedArray | pa.Array) -> Array:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _check_order(first: Array, second: Array, where: str) -> None:
    before, after = (first[:-1], second[:-1]), (first[1:], second[1:])
    if np.any((before[0] > after[0]) | ((before[0] == after[0]) & (before[1] > after[1]))):
        raise BadInput(f"{where}: rows are not in the order of docs/shards.md; write the shards again")


def _text_keys(column: pa.ChunkedArray) -> Array:
    """stable_key of each text, 0 for null; each distinct text is hashed once."""
    encoded = column.combine_chunks().dictionary_encode()
    keys = np.array([stable_key(text) for text in encoded.dictionary.to_pylist()] + [0], dtype=np.int64)
    return keys[np.asarray(pc.fill_null(encoded.indices, len(keys) - 1).to_numpy(zero_copy_only=False), dtype=np.int64)]


def _tag_keys(tags: pa.ListArray) -> Array:
    """(V, W): the first W tags of each version as keys."""
    keys = np.zeros((len(tags), TAGS), np.int64)
    counts = np.asarray(pc.fill_null(pc.list_value_length(tags), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    flat = _text_keys(pa.chunked_array([tags.flatten()]))
    starts = np.cumsum(counts) - counts
    for place in range(TAGS):
        has = counts > place
        keys[has, place] = flat[starts[has] + place]
    return keys
