"""Models and training states on disk: safetensors and JSON for what is shared, a weights-only file for what resumes.

A model is ``model-<sha>.safetensors`` and ``model.json`` in one folder (``trainer/sealed_weights.py``). Nothing is
unpickled but the tensors of a training state (``torch.load(weights_only=True)``).
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.onerec import OneRec
from trainer.sealed_weights import SealedFormat

MODEL = SealedFormat("model", "onerec-model", 1, "train or publish the model again")
STATE_FORMAT = "onerec-training"
STATE_VERSION = 1


@dataclass(frozen=True)
class SavedModel:
    """A model read back."""

    model: OneRec
    metadata: dict[str, Any]
    weights_sha256: str
    """Hex; what an evaluation of it repeats."""


def save_model(folder: Path, model: OneRec, metadata: Mapping[str, Any]) -> dict[str, Path]:
    """Save a model; returns its files by name (what ``Registry.publish`` takes). Older weights in the folder are removed."""
    MODEL.write(folder, model.config.to_json(), metadata, model)
    return model_files(folder)


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a saved model by name. Raises BadInput for a folder without a whole one."""
    body = _description(folder)
    return {MODEL.file: folder / MODEL.file, body["weights"]["path"]: MODEL.weights_path(folder, body)}


def weights_sha256(folder: Path) -> str:
    """Hex sha256 of a saved model's weights, as its description says. Raises BadInput for a folder without a model."""
    return str(_description(folder)["weights"]["sha256"])


def load_model(folder: Path, device: torch.device | str = "cpu") -> SavedModel:
    """Read a model back, in evaluation mode. Raises BadInput for a missing, truncated, altered or foreign one."""
    body = _description(folder)
    config = ModelConfig.from_json(body["config"], str(folder / MODEL.file))
    # The right shapes without memory: a model.json that asks for too much fails here, before anything is allocated.
    with torch.device("meta"):
        model = OneRec(config)
    tensors = MODEL.read_tensors(folder, body, model)
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        if name not in tensors:
            buffer.zero_()
    model.load_state_dict(tensors)
    return SavedModel(model.eval(), body["metadata"], body["weights"]["sha256"])


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a training state (tensors, numbers, texts, lists, dicts) so that a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        torch.save({"format": STATE_FORMAT, "version": STATE_VERSION, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Read a training state, None if there is none. Raises BadInput for one that is damaged or not ours."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path}: no training state ({type(error).__name__}); delete it to train afresh") from error
    if not isinstance(state, dict) or (state.get("format"), state.get("version")) != (STATE_FORMAT, STATE_VERSION):
        raise BadInput(f"{path}: no training state of this version; delete it to train afresh")
    return state


def _description(folder: Path) -> dict[str, Any]:
    command = {"rsft": "train --stage rsft", "rl": "rl"}.get(folder.name, "train")
    return MODEL.read_description(folder, f"no model here; run `onerec {command}` first")
