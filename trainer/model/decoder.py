"""The decoder: from BOS and the tokens so far to the next token (V1 §2.3).

Shape suffixes: B requests, R = B·T codes (the T codes of a request beside each other), P positions, S memory, D model
width, J tokens given (at most L), L layers of the codebook.
"""

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.layers import Attention
from trainer.model.moe import feed_forward_or_experts


class DecoderBlock(nn.Module):
    """Causal self-attention inside a code, cross-attention to the request's memory, then experts; each on a normed input."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_self = nn.RMSNorm(config.d_model)
        self.self_attention = Attention(config.d_model, config.heads)
        self.norm_cross = nn.RMSNorm(config.d_model)
        self.cross_attention = Attention(config.d_model, config.heads)
        self.norm_feed = nn.RMSNorm(config.d_model)
        self.feed = feed_forward_or_experts(config, layer, config.decoder_experts_every)

    def forward(self, d_RPD: Tensor, memory_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """(R, P, D) → (R, P, D)."""
        d_RPD = d_RPD + self.self_attention(self.norm_self(d_RPD), causal=True)
        # All positions of a request's codes query its memory together, so that the memory is projected once a request.
        queries = self.norm_cross(d_RPD).reshape(len(memory_BSD), -1, d_RPD.shape[-1])
        d_RPD = d_RPD + self.cross_attention(queries, memory_BSD, mask_BS).view_as(d_RPD)
        return d_RPD + self.feed(self.norm_feed(d_RPD))


class Decoder(nn.Module):
    """BOS and token embeddings, blocks, and a head a position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.codebook_sizes
        self.begin = nn.Parameter(torch.randn(config.d_model) * 0.02)
        self.tokens = nn.ModuleList(nn.Embedding(size, config.d_model) for size in sizes[:-1])
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.decoder_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.heads = nn.ModuleList(nn.Linear(config.d_model, size, bias=False) for size in sizes)
        for table in (*self.tokens, *self.heads):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, memory_BSD: Tensor, mask_BS: Tensor, tokens_RJ: Tensor) -> list[Tensor]:
        """J tokens a code → min(J + 1, L) logits, the l-th of shape (R, size of layer l), for the token of layer l."""
        begin_R1D = self.begin.expand(len(tokens_RJ), 1, -1)
        given = tokens_RJ[:, : len(self.tokens)].unbind(1)
        d_RPD = torch.cat([begin_R1D, *(table(t).unsqueeze(1) for table, t in zip(self.tokens, given, strict=False))], dim=1)
        for block in self.blocks:
            d_RPD = block(d_RPD, memory_BSD, mask_BS)
        d_RPD = self.norm(d_RPD)
        return [head(d_RPD[:, position]) for position, head in zip(range(d_RPD.shape[1]), self.heads, strict=False)]
