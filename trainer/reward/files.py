"""A reward model on disk: ``reward-<sha>.safetensors`` and ``reward.json`` (``trainer/sealed_weights.py``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.reward.network import PScore, RewardConfig
from trainer.sealed_weights import SealedFormat

REWARD = SealedFormat("reward", "onerec-reward", 1, "train it again with `onerec reward`")
REWARD_FILE = REWARD.file


@dataclass(frozen=True)
class SavedReward:
    """A reward model read back, in evaluation mode."""

    model: PScore
    metadata: dict[str, Any]
    version: str
    """First 12 hex digits of the sha256 of its weights."""


def save_reward(folder: Path, model: PScore, metadata: Mapping[str, Any]) -> str:
    """Save a model; returns its version. Older weights in the folder are removed.

    The order of the objectives in its sizes is the order of the towers, and is kept.
    """
    return REWARD.write(folder, model.config.to_json(), metadata, model)[:12]


def load_reward(folder: Path) -> SavedReward:
    """Read a model back. Raises BadInput for a missing, truncated, altered or foreign one."""
    body = REWARD.read_description(folder, "no reward model here; run `onerec reward` first")
    with torch.device("meta"):  # sizes that ask for too much fail below, before anything is allocated
        model = PScore(RewardConfig.from_json(body["config"], str(folder / REWARD_FILE)))
    model.load_state_dict(REWARD.read_tensors(folder, body, model), assign=True)
    return SavedReward(model.eval().requires_grad_(False), body["metadata"], body["weights"]["sha256"][:12])
