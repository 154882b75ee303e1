"""Rewards of generated codes: legality from the catalogue, the P-Score, and the industrial rules on top."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.config import IndustrialRule
from trainer.batches import RequestBatch
from trainer.reward.catalogue import Catalogue
from trainer.reward.network import PScore
from trainer.rewards import industrial_rewards


@dataclass(frozen=True)
class Judged:
    """What some codes are worth; B requests, G codes each."""

    rewards_BG: Tensor
    """float32: the P-Score after the rules; 0 where illegal (an illegal code has no reward and is to be left out)."""
    p_scores_BG: Tensor
    """float32 in (0, 1): before the rules; 0 where illegal."""
    legal_BG: Tensor
    """bool."""
    shares: dict[str, float]
    """Rule → its members' share of the legal codes."""


class Judge:
    """A reward model with the catalogue of the day it judges for."""

    def __init__(self, model: PScore, catalogue: Catalogue, rules: Sequence[IndustrialRule] = ()) -> None:
        self.model = model.eval()
        self.catalogue = catalogue
        self.rules = rules

    @torch.no_grad()
    def __call__(self, contexts: RequestBatch, codes_BGL: Tensor) -> Judged:
        """Judge codes (B, G, L) for the requests of ``contexts``, as of each request's time."""
        features = self.catalogue.features(codes_BGL, contexts.request_ts_B)
        legal_BG = features.legal_Q
        scored = torch.sigmoid(self.model(contexts, features).p_score_BG.float())
        p_scores_BG = torch.where(legal_BG, scored, torch.zeros(()))
        rewards_BG, shares = p_scores_BG, {}
        for rule in self.rules:
            member_BG = self.catalogue.members(codes_BGL, contexts.request_ts_B, category=rule.category, tag=rule.tag)
            rewards_BG, shares[rule.name] = industrial_rewards(rewards_BG, member_BG, legal_BG, rule)
        return Judged(rewards_BG, p_scores_BG, legal_BG, shares)
