"""The whole model: pathways → encoder → decoder, its loss and its probabilities (V1 §2.2–2.3).

Shape suffixes: B requests, T targets of a request, R = B·T, G codes a request, S memory, D model width, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.batches import RequestBatch
from trainer.model.config import ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.encoder import Encoder
from trainer.model.moe import MixtureOfExperts
from trainer.model.pathways import KeyEmbedding, Pathways


@dataclass(frozen=True)
class LossMetrics:
    """What a loss consists of (detached)."""

    token_loss_L: Tensor
    """Mean cross entropy of each layer's token, in nats."""
    targets: int
    """Targets the mean is over."""


class OneRec(nn.Module):
    """Encoder–decoder that reads a request's context once and generates codes for it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pathways = Pathways(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, batch: RequestBatch) -> tuple[Tensor, Tensor]:
        """The context of each request: memory (B, S, D) and its mask (B, S), True where it may be seen."""
        z_BSD, mask_BS = self.pathways(batch)
        return self.encoder(z_BSD, mask_BS), mask_BS

    def decode(self, memory_BSD: Tensor, memory_mask_BS: Tensor, tokens_RJ: Tensor) -> list[Tensor]:
        """Logits of the next token at every position: R = B·T codes (those of a request beside each other) of J ≤ L given
        tokens → min(J + 1, L) tensors, the l-th (R, size of layer l)."""
        return self.decoder(memory_BSD, memory_mask_BS, tokens_RJ)

    def loss(self, batch: RequestBatch) -> tuple[Tensor, LossMetrics]:
        """L_NTP: cross entropy summed over a target's tokens, averaged over the batch's targets (a scalar, nats)."""
        memory_BSD, mask_BS = self.encode(batch)
        return self.loss_from_memory(memory_BSD, mask_BS, batch)

    def loss_from_memory(self, memory_BSD: Tensor, mask_BS: Tensor, batch: RequestBatch) -> tuple[Tensor, LossMetrics]:
        """``loss`` for a context that is encoded already (RL computes it beside its own objective)."""
        keep_R = batch.target_mask_BT.flatten()
        tokens_RL = batch.tokens_BTL.flatten(0, 1)
        logits = self.decode(memory_BSD, mask_BS, tokens_RL)
        losses = [functional.cross_entropy(logits_RK[keep_R], tokens_RL[keep_R, layer]) for layer, logits_RK in enumerate(logits)]
        token_loss_L = torch.stack(losses)
        return token_loss_L.sum(), LossMetrics(token_loss_L.detach(), int(keep_R.sum()))

    def log_probs(self, memory_BSD: Tensor, memory_mask_BS: Tensor, codes_BGL: Tensor) -> Tensor:
        """Log-probability of each token of given codes, given those before it: (B, G, L)."""
        codes_RL = codes_BGL.flatten(0, 1)
        logits = self.decode(memory_BSD, memory_mask_BS, codes_RL)
        scores = [
            functional.log_softmax(logits_RK.float(), dim=-1).gather(1, codes_RL[:, layer, None])
            for layer, logits_RK in enumerate(logits)
        ]
        return torch.cat(scores, dim=1).view(codes_BGL.shape)

    def update_balance(self) -> list[Tensor]:
        """Call after each optimiser step: rebalances the experts; returns the load shares of each block with experts."""
        return [module.update_balance() for module in self.modules() if isinstance(module, MixtureOfExperts)]

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part: ``backbone`` (encoder and decoder), ``pathways`` (dense), ``tables`` (sparse)."""
        sparse = [module for module in self.modules() if isinstance(module, KeyEmbedding)]
        tables = sum(module.weight.numel() for module in sparse)
        pathways = sum(parameter.numel() for parameter in self.pathways.parameters()) - tables
        backbone = sum(parameter.numel() for part in (self.encoder, self.decoder) for parameter in part.parameters())
        return {"backbone": backbone, "pathways": pathways, "tables": tables}
