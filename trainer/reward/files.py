"""A reward model on disk: ``reward-<sha>.safetensors`` and ``reward.json``, which names it and is replaced last.

A reader sees the old model or the new one, never a mixture; nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from schemas.errors import BadInput
from schemas.lake import write_atomically
from trainer.checkpoints import checksum_of
from trainer.reward.network import PScore, RewardConfig

REWARD_FILE = "reward.json"
FORMAT = "onerec-reward"
VERSION = 1
MAX_JSON_BYTES = 16 * 2**20
AGAIN = "train it again with `onerec reward`"


@dataclass(frozen=True)
class SavedReward:
    """A reward model read back, in evaluation mode."""

    model: PScore
    metadata: dict[str, Any]
    version: str
    """First 12 hex digits of the sha256 of its weights."""


def save_reward(folder: Path, model: PScore, metadata: Mapping[str, Any]) -> str:
    """Save a model; returns its version. Older weights in the folder are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    sha256 = hashlib.sha256(content).hexdigest()
    weights = folder / f"reward-{sha256[:12]}.safetensors"
    write_atomically(str(weights), content)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_json(),
        "metadata": dict(metadata),
        "weights": {"path": weights.name, "bytes": len(content), "sha256": sha256},
    }
    # Keys stay in their order: that of the objectives is the order of the towers.
    sealed = {**body, "checksum": checksum_of(body)}
    write_atomically(str(folder / REWARD_FILE), (json.dumps(sealed, indent=1) + "\n").encode())
    for old in folder.glob("reward-*.safetensors"):
        if old != weights:
            old.unlink()
    return sha256[:12]


def load_reward(folder: Path) -> SavedReward:
    """Read a model back. Raises BadInput for a missing, truncated, altered or foreign one."""
    path = folder / REWARD_FILE
    body = _body(path)
    entry = body["weights"]
    weights = folder / entry["path"]
    if weights.resolve().parent != folder.resolve():
        raise BadInput(f"{path}: names weights outside its folder ({entry['path']!r}); not one of ours")
    if not weights.is_file() or weights.stat().st_size != entry["bytes"]:
        raise BadInput(f"{weights}: missing or truncated, though {REWARD_FILE} names it; {AGAIN}")
    content = weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BadInput(f"{weights}: altered (its sha256 is not that of {REWARD_FILE}); {AGAIN}")
    with torch.device("meta"):  # sizes that ask for too much fail below, before anything is allocated
        model = PScore(RewardConfig.from_json(body["config"], str(path)))
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise BadInput(f"{weights}: no safetensors file ({error}); {AGAIN}") from error
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
        raise BadInput(f"{weights}: its tensors are not those of the sizes in {REWARD_FILE}; {AGAIN}")
    model.load_state_dict(tensors, assign=True)
    return SavedReward(model.eval().requires_grad_(False), body["metadata"], entry["sha256"][:12])


def _body(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: no reward model here; run `onerec reward` first")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BadInput(f"{path}: larger than {MAX_JSON_BYTES} bytes; not one of ours")
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        entry = body["weights"]
        well_formed = (body["format"], body["version"]) == (FORMAT, VERSION) and all(
            isinstance(value, kind)
            for value, kind in (
                (body["config"], dict),
                (body["metadata"], dict),
                (entry["path"], str),
                (entry["bytes"], int),
                (entry["sha256"], str),
            )
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: no reward model's description (truncated or foreign); {AGAIN}") from error
    if not well_formed:
        raise BadInput(f"{path}: of another format or version, or ill-typed; {AGAIN}")
    if body.pop("checksum", None) != checksum_of(body):
        raise BadInput(f"{path}: altered (its checksum is not that of its content); {AGAIN}")
    return body
