"""Rewards beside the P-Score: the format reward, which teaches legality, and the industrial one (V1 §2.4, §4.3).

Shapes: B users, G samples a user.
"""

import torch
from torch import Tensor

from schemas.config import IndustrialRule


def format_advantages(legal_BG: Tensor, choices: int, generator: torch.Generator) -> Tensor:
    """Advantages of the format reward: of K samples drawn at random from each group, legal ones get 1, all others 0.

    The draw looks at nothing but the generator (choosing the most probable ones rises, then falls: V1 §4.3), and an illegal
    sample is dropped rather than punished, since pushing improbable codes down squeezes mass towards the argmax.
    ``choices`` above G takes the whole group. float32 (B, G).
    """
    users, group = legal_BG.shape
    chosen_BK = torch.rand(users, group, generator=generator).argsort(dim=-1, stable=True)[:, :choices]
    chosen_BG = torch.zeros(users, group, dtype=torch.bool).scatter_(1, chosen_BK, True).to(legal_BG.device)
    return (chosen_BG & legal_BG).to(torch.float32)


def industrial_rewards(rewards_BG: Tensor, member_BG: Tensor, valid_BG: Tensor, rule: IndustrialRule) -> tuple[Tensor, float]:
    """Rewards after one rule, and the members' share of the valid samples (0 without any) that it was judged by.

    r' = factor · r + bonus for members, while their share exceeds ``above_share``: a factor in (0, 1) with a target share is
    the paper's, for unwanted content; promotion wants a factor above 1, or a bonus, and no ``above_share`` (always).
    The share is the whole batch's: what a feed shows too much of is a property of the traffic, not of one user.
    """
    valid_members_BG = member_BG & valid_BG
    total = int(valid_BG.sum())
    share = int(valid_members_BG.sum()) / total if total else 0.0
    if rule.above_share is not None and share <= rule.above_share:
        return rewards_BG, share
    return torch.where(valid_members_BG, rule.factor * rewards_BG + rule.bonus, rewards_BG), share
