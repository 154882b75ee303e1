"""Policy losses over groups of generated codes: ECPO (V1 §2.4, §3.3) and GBPO (V2).

A rollout is one code, o = (s¹, s², s³); its probability is the product of its tokens', so every ratio here is a
ratio of sequences: ρ = exp(Σ log π_θ(s^l | …) − log π'_old). Both losses bound the gradient by lifting the old
probability, never by punishing less: ECPO through π'_old = max(sg(π_θ)/(1+ε+δ), π_old), which keeps ρ ≤ 1+ε+δ where the
advantage is negative and clipping would not; GBPO through max(π_old, 1 − sg(π_θ)) there. No KL term: the supervised loss
runs beside them. Shapes: B users, G samples a user.
"""

import torch
from torch import Tensor

MIN_STANDARD_DEVIATION = 1e-6


def group_advantages(rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """A_i = (r_i − mean r) / std r over the valid samples of each group; float32 (B, G), 0 where not valid.

    The standard deviation is the population's (divided by the number of valid samples). A group whose rewards are all
    alike (below 1e-6), or with fewer than two valid samples, teaches nothing: its advantages are 0.
    """
    valid = valid_BG.to(torch.float32)
    rewards = torch.where(valid_BG, rewards_BG.to(torch.float32), torch.zeros((), device=rewards_BG.device))
    count_B1 = valid.sum(-1, keepdim=True).clamp(min=1)
    centred_BG = (rewards - rewards.sum(-1, keepdim=True) / count_B1) * valid
    deviation_B1 = (centred_BG.square().sum(-1, keepdim=True) / count_B1).sqrt()
    return torch.where(deviation_B1 > MIN_STANDARD_DEVIATION, centred_BG / deviation_B1.clamp(min=MIN_STANDARD_DEVIATION), 0.0)


def early_clipped_ratio(log_probs_BG: Tensor, old_log_probs_BG: Tensor, *, epsilon: float, delta: float) -> Tensor:
    """ρ = π_θ / max(sg(π_θ)/(1+ε+δ), π_old) of log probabilities of whole codes; never above 1+ε+δ."""
    bound = torch.log1p(torch.tensor(epsilon + delta, dtype=log_probs_BG.dtype, device=log_probs_BG.device))
    lifted_BG = torch.maximum(log_probs_BG.detach() - bound, old_log_probs_BG.detach())
    return (log_probs_BG - lifted_BG).exp()


def ecpo_loss(
    log_probs_BG: Tensor,
    old_log_probs_BG: Tensor,
    advantages_BG: Tensor,
    *,
    epsilon: float,
    delta: float,
) -> Tensor:
    """−J of ECPO: the mean over users of 1/G Σ min(ρ A, clip(ρ, 1−ε, 1+ε) A). A scalar.

    A sample that shall not count has advantage 0; it still counts in G, so that a group with few legal codes steps less.
    """
    ratio_BG = early_clipped_ratio(log_probs_BG, old_log_probs_BG, epsilon=epsilon, delta=delta)
    clipped_BG = ratio_BG.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio_BG * advantages_BG, clipped_BG * advantages_BG).mean()


def gbpo_loss(log_probs_BG: Tensor, old_log_probs_BG: Tensor, advantages_BG: Tensor) -> Tensor:
    """−J of GBPO (V2): the mean over users of 1/G Σ π_θ/π'_old · A, no sample dropped. A scalar.

    π'_old = max(π_old, sg(π_θ)) for A ≥ 0 and max(π_old, 1 − sg(π_θ)) for A < 0, which bounds the gradients as binary
    cross-entropy's are: a negative sample that is already improbable is hardly pushed further.
    """
    own_BG, old_BG = log_probs_BG.detach(), old_log_probs_BG.detach()
    # log(1 − π) from log π; a probability of exactly 1 gives −inf, and the maximum then takes π_old.
    complement_BG = torch.log(-torch.expm1(own_BG.clamp(max=0.0)))
    lifted_BG = torch.where(advantages_BG >= 0, torch.maximum(old_BG, own_BG), torch.maximum(old_BG, complement_BG))
    return -((log_probs_BG - lifted_BG).exp() * advantages_BG).mean()


def kl_to_old(log_probs_BG: Tensor, old_log_probs_BG: Tensor) -> Tensor:
    """How far the policy has moved from the one that sampled, in nats a code: mean of e^x − 1 − x, x = log π_θ − log π_old.

    An unbiased, never negative estimate of KL(π_old ‖ π_θ) from samples of π_old; watched, not optimised. A scalar.
    """
    difference_BG = (log_probs_BG - old_log_probs_BG).detach()
    return (torch.expm1(difference_BG) - difference_BG).mean()
