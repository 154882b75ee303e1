"""A small lake through pre-training and fine-tuning, as post-training and publishing find it; made from invented shards."""

import json
from pathlib import Path
from typing import Any

from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.registry import Registry
from schemas.tables import POSITIVE_BIT
from tests.trainer.made_shards import MadeLog, made_log, write_mask
from trainer import evaluation, publishing, training

SETTINGS: dict[str, Any] = {
    "train": {"batch_requests": 32, "steps": 40, "warmup_steps": 5, "learning_rate": 3e-3},
    "evaluate": {"beam": 8, "max_requests": 48, "free_samples": 8},
    "reward": {"objectives": {"positive": 1.0, "click": 0.5}, "steps": 30},
    "reinforce": {
        "steps": 4,
        "users_per_step": 4,
        "group_size": 8,
        "format_choices": 3,
        "push_every": 2,
        "evaluated_requests": 12,
    },
}


def log_with_masks(shards: Path, **sizes: Any) -> MadeLog:
    """``made_log`` with the mask ``rsft`` of every day: positive events only."""
    log = made_log(shards, **sizes)
    for date in log.dates:
        manifest = json.loads((shards / f"date={date}" / "manifest.json").read_text())
        write_mask(shards, date, manifest, log.user_days[date], lambda event: event["feedback"] >> POSITIVE_BIT & 1)
    return log


def fine_tuned_lake(root: Path) -> Lake:
    """Two days trained on, a third to evaluate on; a published token set and pretrained model; the rsft model."""
    lake = create_lake(str(root), Config.model_validate(SETTINGS))
    log_with_masks(lake.local_path("shards"), users=24, days=3)
    Registry.of(lake).publish(
        "token_set", {"codebook_version": "cb1", "codebook_sizes": [8, 8, 8]}, {"trie.safetensors": b"a trie"}
    )
    training.run(lake, training.TrainRequest(stage="pretrain"))
    evaluation.run(lake, "pretrain", None, gate=False)
    publishing.run(lake, "pretrained", "rl", None)
    training.run(lake, training.TrainRequest(stage="rsft", steps=5))
    return lake
