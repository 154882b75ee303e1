"""What inspection reads from a lake: an item's tokens by codebook version, and the newest facts about items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import CO_INTERACTION, ITEM_TOKENS, ITEMS
from tokenization.pairs import latest_pairs, pair_rows

FACTS = ["item_id", "valid_from", "author_id", "category", "tags", "title", "caption", "cover_uri", "deleted"]


@dataclass(frozen=True)
class TokenisedItems:
    """Items of one codebook version, by code, then rank, then item id. ``codes`` (n, layers) int32."""

    version: str
    item_ids: pa.Array
    codes: npt.NDArray[np.int32]
    ranks: npt.NDArray[np.int32]
    residual_norms: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[Any]) -> "TokenisedItems":
        """Some of the items, in the order of ``rows``."""
        ids = self.item_ids.take(pa.array(rows))
        return TokenisedItems(self.version, ids, self.codes[rows], self.ranks[rows], self.residual_norms[rows])

    def with_prefix(self, prefix: Sequence[int]) -> "TokenisedItems":
        """The items whose codes begin with ``prefix``. Raises BadInput for a prefix longer than a code."""
        if len(prefix) > self.codes.shape[1]:
            raise BadInput(f"prefix {' '.join(map(str, prefix))}: longer than the {self.codes.shape[1]} tokens of a code")
        return self.take(np.flatnonzero((self.codes[:, : len(prefix)] == np.asarray(prefix)).all(axis=1)))

    def row_of(self, item_id: str) -> int | None:
        """Row of an item, or None."""
        found = pc.index(self.item_ids, pa.scalar(item_id, self.item_ids.type)).as_py()
        return None if found < 0 else int(found)


def count_tokens(lake: Lake, version: str) -> int:
    """Items tokenised by a codebook version."""
    rows: int = lake.dataset(ITEM_TOKENS).count_rows(filter=pads.field("codebook_version") == version)
    return rows


def read_codes(lake: Lake, version: str) -> npt.NDArray[np.int32]:
    """The codes (n, layers) int32 of a version alone, in no order. Raises BadInput for codes of different lengths."""
    rows = lake.read(ITEM_TOKENS, columns=["tokens"], filter=pads.field("codebook_version") == version)
    return _codes(lake, version, rows["tokens"].combine_chunks())


def _codes(lake: Lake, version: str, tokens: pa.ListArray) -> npt.NDArray[np.int32]:
    lengths = pc.list_value_length(tokens)
    layers = int(pc.max(lengths).as_py() or 0)
    if len(tokens) and pc.min(lengths).as_py() != layers:
        raise BadInput(f"{lake.table_uri(ITEM_TOKENS)}: codes of {version} differ in length; run `onerec tokenize` again")
    codes: npt.NDArray[np.int32] = pc.list_flatten(tokens).to_numpy().reshape(len(tokens), layers)
    return codes


def read_tokens(lake: Lake, version: str) -> TokenisedItems:
    """All items of a version; none if it never tokenised. Raises BadInput for codes of different lengths."""
    columns = ["item_id", "tokens", "rank", "residual_norm"]
    rows = lake.read(ITEM_TOKENS, columns=columns, filter=pads.field("codebook_version") == version).combine_chunks()
    codes = _codes(lake, version, rows["tokens"].combine_chunks())
    ids = rows["item_id"].combine_chunks()
    place = np.empty(rows.num_rows, np.int64)
    place[pc.array_sort_indices(ids).to_numpy()] = np.arange(rows.num_rows)
    ranks = rows["rank"].to_numpy()
    order = np.lexsort((place, ranks, *(codes[:, layer] for layer in reversed(range(codes.shape[1])))))
    return TokenisedItems(version, ids, codes, ranks, rows["residual_norm"].to_numpy()).take(order)


def newest_items(lake: Lake, item_ids: pa.Array | None = None) -> pa.Table:
    """The newest version of each item (of ``item_ids``, or all), columns FACTS, ordered by item id; deleted ones included."""
    wanted = None if item_ids is None else pads.field("item_id").cast(pa.string()).isin(item_ids)
    rows = lake.read(ITEMS, columns=FACTS, filter=wanted).sort_by([("item_id", "ascending"), ("valid_from", "ascending")])
    if rows.num_rows < 2:
        return rows
    ids = rows["item_id"].combine_chunks()
    last = pc.not_equal(ids.slice(0, len(ids) - 1), ids.slice(1))
    return rows.filter(pa.concat_arrays([last, pa.array([True])]))


def facts_by_item(lake: Lake, item_ids: pa.Array) -> dict[str, dict[str, Any]]:
    """FACTS of a few items by item id; an item without a catalogue row is left out."""
    return {row["item_id"]: row for row in newest_items(lake, item_ids).to_pylist()}


def categories_of(lake: Lake, items: TokenisedItems) -> npt.NDArray[Any]:
    """Newest category of each item (n,) object; None where unknown."""
    facts = newest_items(lake).select(["item_id", "category"])
    position = pc.index_in(items.item_ids, facts["item_id"].combine_chunks())
    labels: npt.NDArray[Any] = facts["category"].combine_chunks().take(position).to_numpy(zero_copy_only=False)
    return labels


def co_watched_rows(lake: Lake, items: TokenisedItems) -> npt.NDArray[np.int64] | None:
    """Rows (m, 2) of the co-watched pairs (``tokenization.pairs``) in the newest window, each pair once; None if there is none.

    Pairs with an item that has no tokens are left out.
    """
    day, pairs = latest_pairs(lake, lake.table_version(CO_INTERACTION), None)
    return None if day is None else pair_rows(pairs, items.item_ids)


def search_items(facts: pa.Table, text: str) -> pa.Table:
    """Rows of ``newest_items`` whose title, caption or a tag contains ``text``, in any case."""
    joined = pc.binary_join(pc.fill_null(facts["tags"], pa.scalar([], facts["tags"].type)), "\n")
    columns = (joined, facts["title"], facts["caption"])
    hits = [pc.fill_null(pc.match_substring(column, text, ignore_case=True), False) for column in columns]
    return facts.filter(pc.or_(pc.or_(hits[0], hits[1]), hits[2]))
