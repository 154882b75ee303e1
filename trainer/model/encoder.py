"""The encoder: fully visible self-attention over the pathways' vectors (V1 §2.2.2). Suffixes as in ``layers``."""

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.layers import Attention
from trainer.model.moe import feed_forward_or_experts


class EncoderBlock(nn.Module):
    """z ← z + SelfAttn(RMSNorm(z)); z ← z + FFN or experts (RMSNorm(z))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model)
        self.attention = Attention(config.d_model, config.heads)
        self.norm_feed = nn.RMSNorm(config.d_model)
        self.feed = feed_forward_or_experts(config, layer, config.encoder_experts_every)

    def forward(self, z_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        z_BSD = z_BSD + self.attention(self.norm_attention(z_BSD), mask_BS=mask_BS)
        return z_BSD + self.feed(self.norm_feed(z_BSD))


class Encoder(nn.Module):
    """Learnable positions, blocks, a last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(config.memory_length, config.d_model) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(config, layer) for layer in range(config.encoder_layers))
        self.norm = nn.RMSNorm(config.d_model)

    def forward(self, z_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """(B, S, D) and its mask → memory (B, S, D)."""
        z_BSD = z_BSD + self.positions
        for block in self.blocks:
            z_BSD = block(z_BSD, mask_BS)
        return self.norm(z_BSD)
