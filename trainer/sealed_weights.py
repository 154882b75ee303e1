"""Weights on disk with a description that seals them: ``PREFIX-<sha>.safetensors`` and a JSON file that names them.

The description holds the sizes, the metadata, the weights' name, length and sha256, and a checksum of itself. It is
replaced last and atomically, so a reader sees the old model or the new one, never a mixture. Nothing is unpickled.
Generators and reward models are both kept like this (``trainer/checkpoints.py``, ``trainer/reward/files.py``).
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
from torch import Tensor, nn

from schemas.errors import BadInput
from schemas.lake import write_atomically
from schemas.registry import text_sha256

MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SealedFormat:
    """One kind of model: its files' names, its format and version, and what to do about a bad one."""

    prefix: str
    format: str
    version: int
    again: str

    @property
    def file(self) -> str:
        """Name of the description."""
        return f"{self.prefix}.json"

    def write(self, folder: Path, config: Mapping[str, Any], metadata: Mapping[str, Any], model: nn.Module) -> str:
        """Save a model and return the hex sha256 of its weights. Older weights in the folder are removed.

        Keys of ``config`` keep their order.
        """
        folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
        sha256 = hashlib.sha256(content).hexdigest()
        weights = folder / f"{self.prefix}-{sha256[:12]}.safetensors"
        write_atomically(str(weights), content)
        body = {
            "format": self.format,
            "version": self.version,
            "config": dict(config),
            "metadata": dict(metadata),
            "weights": {"path": weights.name, "bytes": len(content), "sha256": sha256},
        }
        sealed = {**body, "checksum": checksum_of(body)}
        write_atomically(str(folder / self.file), (json.dumps(sealed, indent=1) + "\n").encode())
        for old in folder.glob(f"{self.prefix}-*.safetensors"):
            if old != weights:
                old.unlink()
        return sha256

    def read_description(self, folder: Path, absent: str) -> dict[str, Any]:
        """The description, checked. Raises BadInput for one that is ``absent`` (what to say then), damaged or foreign."""
        path = folder / self.file
        if not path.is_file():
            raise BadInput(f"{path}: {absent}")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInput(f"{path}: larger than {MAX_JSON_BYTES} bytes; not one of ours")
        try:
            body: dict[str, Any] = json.loads(path.read_bytes())
            entry = body["weights"]
            typed = (
                (body["config"], dict),
                (body["metadata"], dict),
                (entry["path"], str),
                (entry["bytes"], int),
                (entry["sha256"], str),
            )
            well_formed = (body["format"], body["version"]) == (self.format, self.version) and all(
                isinstance(value, kind) for value, kind in typed
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadInput(f"{path}: no model description of ours (truncated or foreign); {self.again}") from error
        if not well_formed:
            raise BadInput(f"{path}: format {body['format']!r} version {body['version']!r}, or ill-typed; {self.again}")
        if body.pop("checksum", None) != checksum_of(body):
            raise BadInput(f"{path}: altered (its checksum is not that of its content); {self.again}")
        return body

    def weights_path(self, folder: Path, body: Mapping[str, Any]) -> Path:
        """Where a description's weights lie. Raises BadInput if they are missing, truncated or outside the folder."""
        entry = body["weights"]
        path = folder / entry["path"]
        if path.resolve().parent != folder.resolve():
            raise BadInput(f"{folder / self.file}: names weights outside its folder ({entry['path']!r}); not one of ours")
        if not path.is_file():
            raise BadInput(f"{path}: missing, though {self.file} names it; {self.again}")
        if path.stat().st_size != entry["bytes"]:
            found, expected = path.stat().st_size, entry["bytes"]
            raise BadInput(f"{path}: truncated or altered ({found} bytes, expected {expected}); {self.again}")
        return path

    def read_tensors(self, folder: Path, body: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
        """The weights, checked against the description and the names, shapes and types of ``model`` (on any device)."""
        path = self.weights_path(folder, body)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != body["weights"]["sha256"]:
            raise BadInput(f"{path}: altered (its sha256 is not that of {self.file}); {self.again}")
        try:
            tensors: dict[str, Tensor] = load(content)
        except SafetensorError as error:
            raise BadInput(f"{path}: no safetensors file ({error}); {self.again}") from error
        if _layout(tensors) != _layout(model.state_dict()):
            raise BadInput(f"{path}: its tensors are not those of the sizes in {self.file}; {self.again}")
        return tensors


def checksum_of(body: Mapping[str, Any]) -> str:
    """Hex sha256 of a description's content, whatever its layout."""
    return text_sha256(json.dumps(body, sort_keys=True))


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
