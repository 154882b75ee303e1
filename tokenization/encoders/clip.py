"""Pictures by the image tower of an open_clip model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from schemas.errors import BadInput
from tokenization.encoders.base import Kind, unit_rows


class ClipEncoder:
    """float32 (N, D) for N pictures.

    ``source`` is ``<arch>:<checkpoint>`` with a ``.pt`` or ``.safetensors`` file, or ``<arch>:<tag>`` with a published tag
    (open_clip fetches those into its cache). An architecture of one's own is described by ``<arch>.json`` beside the
    checkpoint. Raises BadInput for an unknown architecture or tag, and for a checkpoint that is absent, damaged or of
    another architecture.
    """

    kind: Kind = "image"

    def __init__(self, source: str, batch_size: int = 32) -> None:
        import open_clip

        self.name = f"open-clip:{source}"
        self._batch_size = batch_size
        arch, _, weights = source.partition(":")
        if not arch or not weights:
            raise BadInput(f"encoder {self.name!r}: write open-clip:<arch>:<pretrained tag or path>")
        path = Path(weights).expanduser()
        if path.is_file():
            described = path.parent / f"{arch}.json"
            if described.is_file():
                open_clip.add_model_config(described)
        elif path.suffix in (".pt", ".safetensors") or "/" in weights:
            raise BadInput(f"encoder {self.name!r}: no checkpoint at {path}; give the path of a .pt or .safetensors file")
        if arch not in open_clip.list_models():
            near = ", ".join(open_clip.list_models()[:5])
            raise BadInput(
                f"encoder {self.name!r}: open_clip has no architecture {arch!r} (it has {near}, …); "
                f"put {arch}.json beside the checkpoint to describe one"
            )
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if not path.is_file() and weights not in tags:
            raise BadInput(
                f"encoder {self.name!r}: {weights!r} is neither a file nor one of the tags {', '.join(tags) or '(none)'}"
            )
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                arch, pretrained=str(path) if path.is_file() else weights, weights_only=True
            )
        except Exception as error:  # torch, safetensors, pickle's refusals, HTTP: each its own type
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInput(f"encoder {self.name!r}: weights cannot be loaded ({type(error).__name__}: {reason})") from error
        self._model = model.eval()
        self._preprocess = preprocess
        self.dim = int(getattr(model.visual, "output_dim", 0)) or self.encode([np.zeros((8, 8, 3), np.uint8)]).shape[1]

    def encode(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), unit length, for pictures (height, width, 3) uint8."""
        import torch
        from PIL import Image

        if not inputs:
            return np.zeros((0, self.dim), np.float32)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(inputs), self._batch_size):
                pictures = [self._preprocess(Image.fromarray(pixels)) for pixels in inputs[start : start + self._batch_size]]
                parts.append(self._model.encode_image(torch.stack(pictures)).float().numpy())
        return unit_rows(np.concatenate(parts))
