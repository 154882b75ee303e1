"""The codebook artefact: published once, immutable, loaded without any engine (DESIGN §4).

``registry/codebook/VERSION/`` holds ``codebook.safetensors`` (``layer_0``, ``layer_1``, … float32 (size, dim)) and the
registry's ``codebook.json`` with sizes, dimension and the caller's metadata (encoders, fusion version, inputs, metrics).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from schemas.errors import BadInput
from schemas.registry import Artefact, Registry
from schemas.tokens import MOST_TOKENS
from tokenization import residual
from tokenization.assignment import Backend
from tokenization.residual import Codes, Encoder
from tokenization.vectors import FloatArray

if TYPE_CHECKING:
    from tokenization.rq_kmeans import RQKMeans

KIND = "codebook"
FILE = "codebook.safetensors"
FORMAT = "onerec-codebook"
MAX_FILE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Codebook:
    """A frozen codebook: ``codebooks`` holds one float32 (size, dim) a layer."""

    version: str
    codebooks: list[FloatArray]
    metadata: dict[str, Any]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each layer."""
        return [len(codebook) for codebook in self.codebooks]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.codebooks[0].shape[1])

    def encode(self, vectors: Any, backend: Backend = "auto", threads: int | None = None) -> Codes:
        """Greedy codes (n, layers) uint16 of vectors (n, dim), equal to those of the model that was published."""
        return residual.encode(vectors, self.codebooks, backend, threads)

    def encoder(self, rows: int, backend: Backend = "auto") -> Encoder:
        """What encodes as ``encode`` does, made ready once for many calls about ``rows`` vectors in all."""
        return Encoder(self.codebooks, rows, backend)

    def encode_beam(self, vectors: Any, beam: int = 5) -> Codes:
        """Codes (n, layers) uint16 by beam search."""
        return residual.encode_beam(vectors, self.codebooks, beam)

    def decode(self, codes: Any, layers: int | None = None) -> FloatArray:
        """Reconstruction (n, dim) float32 of codes (n, layers), or of their first ``layers``."""
        return residual.decode(codes, self.codebooks, layers)

    def residual_norms(self, vectors: Any, codes: Any) -> FloatArray:
        """Norm (n,) float32 of what the codes leave of each vector."""
        return residual.residual_norms(vectors, codes, self.codebooks)


def publish_codebook(registry: Registry, model: "RQKMeans", metadata: Mapping[str, Any], *, latest: bool = True) -> Artefact:
    """Publish a fitted model. ``metadata`` is JSON-able; ``format``, ``sizes``, ``dim`` and ``training`` are added to it.

    The version is the content's hash, so a model published twice is one artefact. ``latest`` moves last.
    """
    tensors = {f"layer_{layer}": np.ascontiguousarray(codebook) for layer, codebook in enumerate(model.codebooks_)}
    described = {
        **metadata,
        "format": FORMAT,
        "sizes": [len(codebook) for codebook in model.codebooks_],
        "dim": int(model.codebooks_[0].shape[1]),
        "training": {
            "rows": len(model.codes_),
            "inertia": list(model.inertia_),
            "iterations": list(model.n_iter_),
            "refinements": model.n_refinements_,
            "evenness": model.evenness,
            "seed": model.seed,
            "backend": model.backend,
        },
    }
    return registry.publish(KIND, described, {FILE: save(tensors)}, latest=latest)


def load_codebook(registry: Registry, version: str | None = None) -> Codebook:
    """Load a version (None: the latest). Raises BadInput with one line for a missing, truncated, altered or foreign one."""
    artefact = registry.load(KIND, version)
    path = artefact.file(FILE)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInput(f"{path}: larger than {MAX_FILE_BYTES} bytes; not a codebook of ours")
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadInput(f"{path}: not a safetensors file that we can read ({error}); publish the codebook again") from error
    names = [f"layer_{layer}" for layer in range(len(tensors))]
    if not tensors or sorted(tensors) != sorted(names):
        raise BadInput(f"{path}: holds tensors {sorted(tensors)[:5]}; a codebook holds layer_0, layer_1, …")
    codebooks = [tensors[name] for name in names]
    if len({codebook.shape[1:] for codebook in codebooks}) != 1 or not all(_is_layer(codebook) for codebook in codebooks):
        raise BadInput(f"{path}: its layers are not finite float32 matrices of one dimension; publish the codebook again")
    if artefact.metadata.get("sizes") != [len(codebook) for codebook in codebooks]:
        raise BadInput(f"{path}: layer sizes differ from codebook.json's {artefact.metadata.get('sizes')}; publish it again")
    return Codebook(artefact.version, codebooks, artefact.metadata)


def _is_layer(codebook: Any) -> bool:
    return bool(
        codebook.ndim == 2 and codebook.dtype == np.float32 and 1 <= len(codebook) <= MOST_TOKENS and np.isfinite(codebook).all()
    )
