"""Mixture of experts with top-k routing, balanced without an auxiliary loss (reference §3; DeepSeek-V3).

A bias an expert is added to the routing score for the *choice* only; the gates weigh the chosen experts by the score itself.
After each optimiser step the bias of a starved expert moves up and that of a crowded one down (``update_balance``).

Shape suffixes: N positions, D model width, X experts, A active experts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.config import ModelConfig
from trainer.model.layers import FeedForward


class MixtureOfExperts(nn.Module):
    """SwiGLU experts behind a sigmoid router."""

    bias_X: Tensor
    load_X: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, d_model, hidden = config.experts, config.d_model, config.expert_hidden
        self.active = config.active_experts
        self.balance_rate = config.balance_rate
        self.router = nn.Linear(d_model, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, d_model, 2 * hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, d_model))
        nn.init.normal_(self.gate_up, std=d_model**-0.5)
        nn.init.normal_(self.down, std=hidden**-0.5)
        self.register_buffer("bias_X", torch.zeros(experts))
        self.register_buffer("load_X", torch.zeros(experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D). In training mode it also counts the positions each expert took."""
        x_ND = x.reshape(-1, x.shape[-1])
        scores_NX = torch.sigmoid(self.router(x_ND).float())
        chosen_NA = torch.topk(scores_NX + self.bias_X, self.active, dim=-1).indices
        gates_NA = scores_NX.gather(1, chosen_NA)
        gates_NA = (gates_NA / gates_NA.sum(dim=-1, keepdim=True)).to(x_ND.dtype)
        out_ND = torch.zeros_like(x_ND)
        for expert in range(len(self.gate_up)):
            rows, slots = torch.where(chosen_NA == expert)
            gate, up = (x_ND[rows] @ self.gate_up[expert]).chunk(2, dim=-1)
            value = (functional.silu(gate) * up) @ self.down[expert]
            out_ND = out_ND.index_add(0, rows, value * gates_NA[rows, slots, None])
        if self.training:
            self.load_X += torch.bincount(chosen_NA.flatten(), minlength=len(self.gate_up)).to(self.load_X)
        return out_ND.view_as(x)

    @torch.no_grad()
    def update_balance(self) -> Tensor:
        """Move the biases by the load since the last call and forget it; returns the share of positions an expert took."""
        load_X = self.load_X.clone()
        self.bias_X += self.balance_rate * torch.sign(load_X.mean() - load_X)
        self.load_X.zero_()
        return load_X / load_X.sum().clamp(min=1)


def feed_forward_or_experts(config: ModelConfig, layer: int, every: int) -> nn.Module:
    """The experts of a designated block (every n-th, the last of each n), else the dense feed forward."""
    if every and layer % every == every - 1:
        return MixtureOfExperts(config)
    return FeedForward(config.d_model, config.feed_forward, config.d_model)
