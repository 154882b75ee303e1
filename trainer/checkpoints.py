"""Models and training states on disk: safetensors and JSON for what is shared, a weights-only file for what resumes.

A model is two files of one folder: ``model-<sha>.safetensors`` and ``model.json``, which holds the sizes, the metadata and
the name, length and sha256 of the weights, and a checksum of itself. ``model.json`` is replaced last and atomically, so a
reader sees the old model or the new one. Nothing is unpickled but tensors (``torch.load(weights_only=True)``).
"""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from schemas.errors import BadInput
from schemas.lake import write_atomically
from schemas.runs import stable_hash
from trainer.model.config import ModelConfig
from trainer.model.onerec import OneRec

MODEL_FILE = "model.json"
MODEL_FORMAT = "onerec-model"
MODEL_VERSION = 1
MAX_MODEL_JSON_BYTES = 16 * 2**20
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
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    weights = folder / f"model-{sha256[:12]}.safetensors"
    write_atomically(str(weights), content)
    body = {
        "format": MODEL_FORMAT,
        "version": MODEL_VERSION,
        "config": model.config.to_json(),
        "metadata": dict(metadata),
        "weights": {"path": weights.name, "bytes": len(content), "sha256": sha256},
    }
    sealed = {**body, "checksum": checksum_of(body)}
    write_atomically(str(folder / MODEL_FILE), (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode())
    for old in folder.glob("model-*.safetensors"):
        if old != weights:
            old.unlink()
    return model_files(folder)


def checksum_of(body: Mapping[str, Any]) -> str:
    """Hex sha256 of a description's content, whatever its layout."""
    return stable_hash(json.dumps(body, sort_keys=True))


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a saved model by name. Raises BadInput for a folder without a whole one."""
    body = _body(folder)
    return {MODEL_FILE: folder / MODEL_FILE, body["weights"]["path"]: _weights(folder, body)}


def weights_sha256(folder: Path) -> str:
    """Hex sha256 of a saved model's weights, as its description says. Raises BadInput for a folder without a model."""
    return str(_body(folder)["weights"]["sha256"])


def load_model(folder: Path, device: torch.device | str = "cpu") -> SavedModel:
    """Read a model back, in evaluation mode. Raises BadInput for a missing, truncated, altered or foreign one."""
    body = _body(folder)
    config = ModelConfig.from_json(body["config"], str(folder / MODEL_FILE))
    path = _weights(folder, body)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != body["weights"]["sha256"]:
        raise BadInput(f"{path}: altered (its sha256 is not that of {MODEL_FILE}); train or publish the model again")
    # The right shapes without memory: a model.json that asks for too much fails here, before anything is allocated.
    with torch.device("meta"):
        model = OneRec(config)
    try:
        tensors = load(content)
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
            raise BadInput(f"{path}: its tensors are not those of the sizes in {MODEL_FILE}; train the model again")
    except SafetensorError as error:
        raise BadInput(f"{path}: no safetensors file ({error}); train or publish the model again") from error
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


def _body(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    if not path.is_file():
        command = {"rsft": "train --stage rsft", "rl": "rl"}.get(folder.name, "train")
        raise BadInput(f"{path}: no model here; run `onerec {command}` first")
    if path.stat().st_size > MAX_MODEL_JSON_BYTES:
        raise BadInput(f"{path}: larger than {MAX_MODEL_JSON_BYTES} bytes; not one of ours")
    try:
        body = json.loads(path.read_bytes())
        well_formed = (
            (body["format"], body["version"]) == (MODEL_FORMAT, MODEL_VERSION)
            and isinstance(body["config"], dict)
            and isinstance(body["metadata"], dict)
            and isinstance(body["weights"]["path"], str)
            and isinstance(body["weights"]["bytes"], int)
            and isinstance(body["weights"]["sha256"], str)
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: no model description of ours (truncated or foreign); train the model again") from error
    if not well_formed:
        raise BadInput(f"{path}: format {body['format']!r} version {body['version']!r}, or ill-typed; train the model again")
    if body.pop("checksum", None) != checksum_of(body):
        raise BadInput(f"{path}: altered (its checksum is not that of its content); train or publish the model again")
    return body


def _weights(folder: Path, body: Mapping[str, Any]) -> Path:
    entry = body["weights"]
    path = folder / entry["path"]
    if path.resolve().parent != folder.resolve():
        raise BadInput(f"{folder / MODEL_FILE}: names weights outside its folder ({entry['path']!r}); not one of ours")
    if not path.is_file():
        raise BadInput(f"{path}: missing, though {MODEL_FILE} names it; train or publish the model again")
    if path.stat().st_size != entry["bytes"]:
        raise BadInput(f"{path}: truncated or altered ({path.stat().st_size} bytes, expected {entry['bytes']}); train it again")
    return path
