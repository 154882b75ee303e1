"""Which token sequences are items: a trie in flat arrays, for beams.

Codes are sorted and unique; nodes are numbered breadth first in that order, so the edge with number e leads to node
e + 1 and no pointers are stored. The edges of node v are ``offsets[v] … offsets[v + 1]``, their tokens ascending; leaf
number j (the j-th code) holds the items ``item_offsets[j] … item_offsets[j + 1]``. 10 million items take about 260 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from schemas.errors import BadInput
from schemas.json_files import parse_json
from schemas.lake import write_atomically
from schemas.tokens import MOST_TOKENS
from tokenization.trie_build import trie_arrays
from tokenization.vectors import BadVectors

Nodes = npt.NDArray[np.int64]
ROOT = 0
ILLEGAL = -1
_MAX_HEADER_BYTES = 2**16
_KINDS: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "U16": np.dtype("<u2")}
_ARRAYS = {"sizes": "I64", "depth_starts": "I64", "offsets": "I64", "tokens": "U16", "item_offsets": "I64", "item_rows": "I64"}


@dataclass(frozen=True)
class TokenTrie:
    """The trie's arrays. Build with ``build``; the arrays of a loaded trie are memory maps.

    ``sizes`` (layers,): tokens of each layer. ``depth_starts`` (layers + 2,): first node of each depth, then the number of
    nodes. ``offsets`` (inner nodes + 1,): first edge of each inner node. ``tokens`` (edges,) uint16. ``item_offsets``
    (codes + 1,) and ``item_rows`` (items,): rows of the input, by code and then by rank.
    """

    sizes: Nodes
    depth_starts: Nodes
    offsets: Nodes
    tokens: npt.NDArray[np.uint16]
    item_offsets: Nodes
    item_rows: Nodes

    @classmethod
    def build(cls, codes: Any, keys: Any = None, *, ranks: Any = None, sizes: Sequence[int] | None = None) -> "TokenTrie":
        """Trie of codes (n, layers).

        Items of one code are in the order of ``ranks`` (n,), numbers of any type, then ``keys`` (n,) (item ids, say), then rows.
        ``sizes`` gives the width of the masks; without it, one above the largest token. Raises BadVectors for codes outside it.
        """
        array = np.asarray(codes)
        if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[1] == 0:
            raise BadVectors(f"codes: found shape {array.shape} of {array.dtype}; needs (n, layers) integers")
        widths = np.asarray(sizes if sizes is not None else array.max(axis=0, initial=0).astype(np.int64) + 1, np.int64)
        if (
            len(widths) != array.shape[1]
            or not 1 <= widths.min() <= widths.max() <= MOST_TOKENS
            or (len(array) and ((array < 0) | (array >= widths)).any())
        ):
            raise BadVectors(f"codes: tokens must lie below the sizes {widths.tolist()}, one for each of {array.shape[1]} layers")
        return cls(sizes=widths, **trie_arrays(array, ranks, keys))

    @property
    def layers(self) -> int:
        """Tokens of a code."""
        return len(self.sizes)

    @property
    def codes(self) -> int:
        """Distinct codes."""
        return len(self.item_offsets) - 1

    def step(self, node_ids: Any, tokens: Any) -> Nodes:
        """The nodes that tokens lead to, elementwise; −1 where that is illegal (so also from −1 and from a leaf)."""
        nodes, wanted = np.broadcast_arrays(np.asarray(node_ids, np.int64), np.asarray(tokens, np.int64))
        low, high = self._edges(nodes)
        end = high
        while (searching := low < high).any():
            middle = (low + high) // 2
            below = searching & (self.tokens[np.where(searching, middle, 0)] < wanted)
            low = np.where(below, middle + 1, low)
            high = np.where(searching & ~below, middle, high)
        found = low < end
        found &= self.tokens[np.where(found, low, 0)] == wanted if len(self.tokens) else False
        return np.where(found, low + 1, ILLEGAL)

    def walk(self, prefixes: Any) -> Nodes:
        """Nodes (b,) of prefixes (b, depth); −1 for an illegal one. Depth 0 gives the root."""
        array = np.asarray(prefixes)
        if array.ndim != 2 or array.shape[1] > self.layers:
            raise BadVectors(f"prefixes: found shape {array.shape}; needs (b, depth) with depth at most {self.layers}")
        nodes = np.full(len(array), ROOT, np.int64)
        for layer in range(array.shape[1]):
            nodes = self.step(nodes, array[:, layer])
        return nodes

    def children(self, node_ids: Any) -> tuple[Nodes, npt.NDArray[np.uint16], Nodes]:
        """All edges of nodes (b,): (row in ``node_ids``, token, child node), in the order of the rows and tokens."""
        low, high = self._edges(np.asarray(node_ids, np.int64))
        counts = high - low
        rows = np.repeat(np.arange(len(counts)), counts)
        edges = np.arange(len(rows)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return rows, self.tokens[edges], edges + 1

    def legal_mask(self, at: Any, size: int | None = None) -> npt.NDArray[np.bool_]:
        """Legal next tokens (b, size) after prefixes (b, depth), or from the nodes (b,) of one depth.

        Nothing is legal after an illegal prefix or from −1. ``size`` is the layer's unless told; tokens are below it.
        Raises BadVectors for whole codes, nodes of several depths, or a size that some token exceeds.
        """
        array = np.asarray(at)
        nodes = self.walk(array) if array.ndim == 2 else array.astype(np.int64)
        depth = array.shape[1] if array.ndim == 2 else self._depth(nodes)
        if depth == self.layers:
            raise BadVectors(f"prefixes: a code of {self.layers} tokens is whole; no token follows it")
        width = int(self.sizes[depth]) if size is None else size
        rows, tokens, _ = self.children(nodes)
        if len(tokens) and int(tokens.max()) >= width:
            raise BadVectors(f"size {width}: layer {depth + 1} has the legal token {int(tokens.max())}")
        mask = np.zeros((len(nodes), width), bool)
        mask[rows, tokens] = True
        return mask

    def contains(self, codes: Any) -> npt.NDArray[np.bool_]:
        """Whether each of codes (b, layers) belongs to an item."""
        array = np.asarray(codes)
        if array.ndim != 2 or array.shape[1] != self.layers:
            raise BadVectors(f"codes: found shape {array.shape}; needs (b, {self.layers})")
        return self.walk(array) != ILLEGAL

    def items(self, code: Sequence[int]) -> Nodes:
        """Rows of the items below a code or prefix, by code and rank; empty for an illegal one."""
        return self.items_of(np.asarray(code, np.int64)[None])[1]

    def items_of(self, prefixes: Any) -> tuple[Nodes, Nodes]:
        """Items below each of prefixes (b, depth), whole codes say: (row in ``prefixes``, row of the item), by code and rank.

        One gather for all of them; an illegal prefix has none.
        """
        array = np.asarray(prefixes)
        nodes = self.walk(array)
        known = nodes != ILLEGAL
        low = high = np.where(known, nodes, self.depth_starts[array.shape[1]])
        if not self.codes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        for _ in range(array.shape[1], self.layers):  # the leftmost and rightmost leaf below the node
            low, high = self.offsets[low] + 1, self.offsets[high + 1]
        leaf = int(self.depth_starts[self.layers])
        first = self.item_offsets[low - leaf]
        counts = np.where(known, self.item_offsets[high - leaf + 1] - first, 0)
        owners = np.repeat(np.arange(len(array)), counts)
        places = np.arange(len(owners)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return owners, self.item_rows[places]

    def save(self, path: Path) -> None:
        """Write the arrays to a safetensors file, atomically."""
        write_atomically(str(path), save({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}))

    @classmethod
    def load(cls, path: Path) -> "TokenTrie":
        """Memory-map a saved trie. Raises BadInput naming the file for a truncated, altered or foreign one."""
        trie = cls(**_memory_map(path))
        if not trie._is_sound():
            raise BadInput(f"{path}: its arrays do not make a trie (altered or truncated); save it again")
        return trie

    def _edges(self, nodes: Nodes) -> tuple[Nodes, Nodes]:
        inner = (nodes >= 0) & (nodes < len(self.offsets) - 1)
        safe = np.where(inner, nodes, 0)
        return np.where(inner, self.offsets[safe], 0), np.where(inner, self.offsets[safe + 1], 0)

    def _depth(self, nodes: Nodes) -> int:
        """The one depth of nodes; that of −1 is any."""
        depths = np.unique(np.searchsorted(self.depth_starts, nodes[nodes != ILLEGAL], side="right")) - 1
        if len(depths) > 1:
            raise BadVectors(f"nodes: lie at depths {depths.tolist()}; a mask has one width, so ask for one depth at a time")
        return int(depths[0]) if len(depths) else 0

    def _is_sound(self) -> bool:
        """Whether the arrays fit together, so that no look-up leaves them and each finds its token. Reads every array once."""
        return self._has_shape() and self._has_sound_tokens() and self._has_sound_items()

    def _has_shape(self) -> bool:
        """Whether lengths and ends fit together, and each depth's edges lead to the nodes of the next."""
        inner, edges, codes = len(self.offsets) - 1, len(self.tokens), len(self.item_offsets) - 1
        starts = self.depth_starts
        return bool(
            min(len(self.sizes), len(self.offsets), len(self.item_offsets)) > 0
            and self.sizes.min() >= 1
            and self.sizes.max() <= MOST_TOKENS
            and len(starts) == len(self.sizes) + 2
            and starts[0] == 0
            and starts[1] == 1
            and (np.diff(starts) >= 0).all()
            and starts[-2] == inner
            and starts[-1] == edges + 1
            and starts[-1] - starts[-2] == codes
            and self.offsets[-1] == edges
            and (self.offsets[starts[:-2]] == starts[1:-1] - 1).all()
            and (np.diff(self.offsets) >= 0).all()
        )

    def _has_sound_tokens(self) -> bool:
        """Whether tokens are below their layer's size and ascend below each node."""
        layers = [self.tokens[start - 1 : stop - 1] for start, stop in pairwise(self.depth_starts[1:].tolist())]
        if any(len(tokens) and int(tokens.max()) >= size for tokens, size in zip(layers, self.sizes.tolist(), strict=True)):
            return False
        descents = self.tokens[1:] <= self.tokens[:-1]
        first_edges = self.offsets[1:-1]  # of all nodes but the root: only there may a token be no larger than the one before
        descents[first_edges[(first_edges > 0) & (first_edges < len(self.tokens))] - 1] = False
        return not descents.any()

    def _has_sound_items(self) -> bool:
        """Whether each code's items are a piece of ``item_rows``, and these rows of the input."""
        items = len(self.item_rows)
        return bool(
            self.item_offsets[0] == 0
            and self.item_offsets[-1] == items
            and (np.diff(self.item_offsets) >= 0).all()
            and (not items or (self.item_rows.min() >= 0 and self.item_rows.max() < items))
        )


def _memory_map(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file as memory maps."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; build the trie and save it there")
    total = path.stat().st_size
    foreign = BadInput(f"{path}: not a trie of ours (truncated, altered or foreign); save it again")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, total - 8):
            raise foreign
        try:
            header = parse_json(stream.read(length))
            entries = {name: header[name] for name in _ARRAYS}
            arrays = {name: _map_one(path, entry, 8 + length, total, _ARRAYS[name]) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise foreign from error
    return arrays


def _map_one(path: Path, entry: dict[str, Any], base: int, total: int, kind: str) -> npt.NDArray[Any]:
    (count,) = entry["shape"]
    start, stop = entry["data_offsets"]
    dtype = _KINDS[kind]
    if entry["dtype"] != kind or not 0 <= start <= stop <= total - base or stop - start != count * dtype.itemsize:
        raise ValueError("array outside the file")
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=base + start, shape=(count,))
