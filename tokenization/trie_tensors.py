"""The trie's edges as PyTorch tensors, so that a beam asks which tokens are legal on the device where it runs.

Edges are in the order of ``TokenTrie``: those of node v are ``offsets[v] … offsets[v + 1]``, and edge e leads to node e + 1.
Nothing here waits for the device, but for the size of the list in ``children``.
Shape suffixes: R nodes, N all inner nodes, E all edges, K tokens of a layer.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenization.trie import ILLEGAL, TokenTrie


@dataclass(frozen=True)
class TrieTensors:
    """``offsets_N`` (inner nodes + 1,) int64 and ``tokens_E`` (edges,) int32 on one device."""

    offsets_N: Tensor
    tokens_E: Tensor
    search_steps: int
    """Halvings that find a token among the edges of the widest node."""

    @classmethod
    def of(cls, trie: TokenTrie, device: torch.device | str = "cpu") -> "TrieTensors":
        """Copy a trie's edges to a device."""
        widest = int(np.diff(trie.offsets).max(initial=0))
        return cls(
            torch.from_numpy(np.array(trie.offsets)).to(device),
            torch.from_numpy(trie.tokens.astype(np.int32)).to(device),
            widest.bit_length(),
        )

    def children(self, nodes_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All edges of nodes, as ``TokenTrie.children``: (row in ``nodes_R``, token, child node), by row and token."""
        low_R, count_R = self._edges(nodes_R)
        rows = torch.repeat_interleave(torch.arange(len(nodes_R), device=nodes_R.device), count_R)
        before_R = count_R.cumsum(0) - count_R
        edges = torch.arange(len(rows), device=nodes_R.device) + (low_R - before_R)[rows]
        return rows, self.tokens_E[edges].long(), edges + 1

    def legal_mask(self, nodes_R: Tensor, size: int) -> Tensor:
        """Legal next tokens (R, size) bool; nothing is legal from ILLEGAL or a leaf. Tokens must lie below ``size``."""
        rows, tokens, _ = self.children(nodes_R)
        mask_RK = torch.zeros(len(nodes_R), size, dtype=torch.bool, device=nodes_R.device)
        mask_RK[rows, tokens] = True
        return mask_RK

    def step(self, nodes_R: Tensor, tokens_R: Tensor) -> Tensor:
        """The nodes that tokens lead to, elementwise over any shape; ILLEGAL where that is no edge."""
        low, count = self._edges(nodes_R)
        end = high = low + count
        if not len(self.tokens_E):
            return torch.full_like(nodes_R, ILLEGAL)
        last = len(self.tokens_E) - 1
        for _ in range(self.search_steps):
            middle = (low + high) // 2
            below = (low < high) & (self.tokens_E[middle.clamp(max=last)] < tokens_R)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < end) & (self.tokens_E[low.clamp(max=last)] == tokens_R)
        return torch.where(found, low + 1, ILLEGAL)

    def _edges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        inner = (nodes >= 0) & (nodes < len(self.offsets_N) - 1)
        safe = torch.where(inner, nodes, 0)
        low = self.offsets_N[safe]
        return low, torch.where(inner, self.offsets_N[safe + 1] - low, 0)
