"""The process that generates: holds one copy of the policy and answers for some contexts at a time.

A plain class; ``trainer.rollout.service`` runs it as a Ray actor. Nothing heavy is imported with the module, so that Ray's
workers start small.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


class Generator:
    """A policy that generates, and the name of the weights it has."""

    def __init__(self, config: Mapping[str, Any], version: str, weights: Arrays) -> None:
        import torch

        from trainer.model.config import ModelConfig
        from trainer.model.onerec import OneRec

        torch.set_num_threads(1)  # one process a core; the trainer has its own
        self._config = dict(config)
        self._model = OneRec(ModelConfig.from_json(config, "the rollout service")).eval()
        self._version = ""
        self.load_weights(version, weights)

    def load_weights(self, version: str, weights: Arrays) -> str:
        """Take weights over under this name; returns it. Raises RuntimeError for those of another model."""
        from trainer.rollout.wire import weights_from_arrays

        self._model.load_state_dict(weights_from_arrays(weights))
        self._version = version
        return version

    def generate(self, contexts: Arrays, group_size: int, temperature: float, seed: int) -> dict[str, Any]:
        """G free samples a context: ``codes`` int32 (B, G, L), ``log_probs`` float32 (B, G, L; at temperature 1), ``version``.

        The same weights, contexts and seed give the same samples.
        """
        import torch

        from trainer.generation import sample
        from trainer.rollout.wire import contexts_from_arrays

        randomness = torch.Generator().manual_seed(seed)
        codes_BGL, log_probs_BGL = sample(self._model, contexts_from_arrays(contexts), group_size, temperature, randomness)
        return {
            "codes": codes_BGL.numpy().astype(np.int32),
            "log_probs": log_probs_BGL.numpy().astype(np.float32),
            "version": self._version,
        }

    def describe(self) -> dict[str, Any]:
        """The sizes of the model and the version of its weights."""
        return {"config": self._config, "version": self._version}
