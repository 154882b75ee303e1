"""Sound by the encoder of a Whisper checkpoint, averaged over time."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import BadInput
from tokenization.encoders.base import Kind, unit_rows

HOP = 160
"""Samples between two spectrogram frames (10 ms); the encoder halves the frames."""


class WhisperEncoder:
    """float32 (N, D) for N sounds: states are averaged over the frames that hold sound, in windows of the model's length.

    ``source`` is a checkpoint's path, or a size (``tiny``, ``base.en``, …) whose file is in Whisper's cache; nothing is
    downloaded. A checkpoint is ``{dims, model_state_dict}``, read with ``weights_only``. Raises BadInput where it is absent
    or something else.
    """

    kind: Kind = "audio"

    def __init__(self, source: str, batch_size: int = 32) -> None:
        import torch
        from whisper.model import AudioEncoder, ModelDimensions

        self.name = f"whisper:{source}"
        self._batch_size = batch_size
        path = _checkpoint(self.name, source)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            dims = ModelDimensions(**checkpoint["dims"])
            state = {
                name.removeprefix("encoder."): tensor.float()
                for name, tensor in checkpoint["model_state_dict"].items()
                if name.startswith("encoder.")
            }
            layers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
            if len(layers) != dims.n_audio_layer:  # before building what the file merely claims
                raise ValueError(f"{len(layers)} layers of weights, dims say {dims.n_audio_layer}")
            with torch.device("meta"):
                model = AudioEncoder(dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
            model.load_state_dict(state, assign=True)
        except Exception as error:  # pickle's refusals, zip errors, wrong keys, wrong shapes: each its own type
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInput(
                f"encoder {self.name!r}: {path} is no Whisper checkpoint {{dims, model_state_dict}} "
                f"({type(error).__name__}: {reason})"
            ) from error
        self._model = model.eval()
        self._mels, self._window = int(dims.n_mels), int(dims.n_audio_ctx) * 2 * HOP
        self.dim = int(dims.n_audio_state)

    def encode(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), unit length, for mono sound at 16 kHz."""
        import torch

        sums = np.zeros((len(inputs), self.dim), np.float64)
        windows = [
            (owner, sound[start : start + self._window])
            for owner, sound in enumerate(inputs)
            for start in range(0, max(len(sound), 1), self._window)
        ]
        with torch.inference_mode():
            for start in range(0, len(windows), self._batch_size):
                batch = windows[start : start + self._batch_size]
                states_BTD = self._model(self._spectrograms([sound for _, sound in batch]))
                for (owner, sound), states_TD in zip(batch, states_BTD, strict=True):
                    held = max(1, -(-len(sound) // (2 * HOP)))
                    sums[owner] += states_TD[:held].double().sum(dim=0).numpy()
        return unit_rows(sums)

    def _spectrograms(self, sounds: list[np.ndarray]) -> Any:
        import torch
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        padded = [torch.from_numpy(pad_or_trim(np.asarray(sound, np.float32), self._window)) for sound in sounds]
        # One at a time: Whisper scales a spectrogram by its maximum, which must not be a neighbour's.
        return torch.stack([log_mel_spectrogram(sound, n_mels=self._mels) for sound in padded])


def _checkpoint(name: str, source: str) -> Path:
    from whisper import _MODELS

    path = Path(source).expanduser()
    if path.is_file():
        return path
    if source in _MODELS:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper"
        cached = cache / os.path.basename(_MODELS[source])
        if cached.is_file():
            return cached
        raise BadInput(f"encoder {name!r}: no weights at {cached}; put that file there or give a checkpoint's path")
    raise BadInput(f"encoder {name!r}: no checkpoint at {path}; give a path or one of the sizes {', '.join(_MODELS)}")
