"""Attention and feed forward, shared by pathways, encoder and decoder.

Shape suffixes: B rows, Q queries, S keys, H heads, D model width, E width of a head.
"""

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention without biases; from itself or from a memory."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x_BQD: Tensor, memory_BSD: Tensor | None = None, mask_BS: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """(B, Q, D) → (B, Q, D). ``mask_BS`` is True where a key may be seen; every row must see at least one."""
        source_BSD = x_BQD if memory_BSD is None else memory_BSD
        q_BHQE = self._split(self.query(x_BQD))
        k_BSD, v_BSD = self.key_value(source_BSD).chunk(2, dim=-1)
        mask = None if mask_BS is None else mask_BS[:, None, None, :]
        mixed_BHQE = functional.scaled_dot_product_attention(
            q_BHQE, self._split(k_BSD), self._split(v_BSD), attn_mask=mask, is_causal=causal
        )
        return self.output(mixed_BHQE.transpose(1, 2).flatten(2))

    def _split(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two dense layers with a LeakyReLU between them."""

    def __init__(self, d_in: int, hidden: int, d_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(d_in, hidden, bias=bias)
        self.down = nn.Linear(hidden, d_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return self.down(functional.leaky_relu(self.up(x)))
