"""The fusion model: learnable queries attend over the modality tokens of an item (V1 §2.1) and give one unit vector.

Shape suffixes: B items, M modalities, N queries, D model and output dimension.

Beside the attention there is a straight road: each modality's vector through a linear map that starts as a random
near-isometry, summed over what is present. The attention's output starts at zero, so the untrained model retrieves about as
well as the modalities side by side, and training can only spend its steps on what they lack. Without the road a few hundred
items are too few to learn from scratch what the encoders already know.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import BadInput
from schemas.registry import Artefact, Registry
from tokenization.encoders.base import KINDS

FUSION_FILE = "fusion.safetensors"


@dataclass(frozen=True)
class FusionShape:
    """Sizes of a fusion model; ``inputs`` maps each kind of its encoder set to the dimension of its vectors."""

    inputs: Mapping[str, int]
    dim: int = 128
    queries: int = 4
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise BadInput(f"fusion.dim {self.dim} is not a multiple of fusion.heads {self.heads}")
        if not self.inputs:
            raise BadInput("fusion: no encoder has vectors; run `onerec embed` first")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds present, in the order of KINDS; M of them."""
        return tuple(kind for kind in KINDS if kind in self.inputs)

    def to_json(self) -> dict[str, Any]:
        """As the artefact's metadata keep it."""
        return asdict(self) | {"inputs": dict(self.inputs)}


class Block(nn.Module):
    """``Q ← Q + CrossAttn(RMSNorm(Q), M)``; ``Q ← Q + FFN(RMSNorm(Q))``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed_norm = nn.RMSNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, queries_BND: Tensor, tokens_BMD: Tensor, absent_BM: Tensor) -> Tensor:
        """(B, N, D), after attending to the tokens that are not absent."""
        attended_BND, _ = self.attention(
            self.attention_norm(queries_BND), tokens_BMD, tokens_BMD, key_padding_mask=absent_BM, need_weights=False
        )
        queries_BND = queries_BND + attended_BND
        return queries_BND + self.feed(self.feed_norm(queries_BND))


class FusionModel(nn.Module):
    """Kind → vectors and presence in, unit vectors (B, D) out. Every item needs at least one modality."""

    def __init__(self, shape: FusionShape) -> None:
        super().__init__()
        self.shape = shape
        dim, kinds = shape.dim, shape.kinds
        self.roads = nn.ModuleDict({kind: nn.Linear(shape.inputs[kind], dim, bias=False) for kind in kinds})
        self.tokens = nn.ModuleDict({kind: nn.Linear(shape.inputs[kind], dim) for kind in kinds})
        self.queries_ND = nn.Parameter(torch.randn(shape.queries, dim) * dim**-0.5)
        self.blocks = nn.ModuleList([Block(dim, shape.heads) for _ in range(shape.layers)])
        self.join = nn.Linear(shape.queries * dim, dim)
        self.predict_text = nn.Linear(dim, shape.inputs["text"]) if "text" in shape.inputs else None
        for road in self.roads.values():
            nn.init.normal_(road.weight, std=dim**-0.5)
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def forward(self, vectors: Mapping[str, Tensor], present_BM: Tensor) -> Tensor:
        """Unit vectors (B, D) from kind → (B, dimension) and presence (B, M) in the order of ``shape.kinds``.

        What stands in the vectors of an absent modality makes no difference.
        """
        weight_BM = present_BM.to(self.queries_ND.dtype)
        inputs = {kind: vectors[kind] * weight_BM[:, [i]] for i, kind in enumerate(self.shape.kinds)}
        road_BD = torch.stack([self.roads[kind](rows) for kind, rows in inputs.items()]).sum(dim=0)
        # Encoders give unit vectors, whose entries are small: scale them to the size that attention expects.
        tokens_BMD = torch.stack([self.tokens[kind](rows * rows.shape[1] ** 0.5) for kind, rows in inputs.items()], dim=1)
        queries_BND = self.queries_ND.expand(len(present_BM), -1, -1)
        for block in self.blocks:
            queries_BND = block(queries_BND, tokens_BMD, ~present_BM)
        return F.normalize(road_BD + self.join(queries_BND.flatten(1)), dim=-1)

    @torch.inference_mode()
    def fuse(self, vectors: Mapping[str, np.ndarray], present: np.ndarray, batch_size: int = 4096) -> np.ndarray:
        """float32 (B, D), unit length, from NumPy arrays of the same layout as ``forward``."""
        self.eval()
        parts = [np.zeros((0, self.shape.dim), np.float32)]
        for start in range(0, len(present), batch_size):
            rows = slice(start, start + batch_size)
            tensors = {kind: torch.from_numpy(np.ascontiguousarray(vectors[kind][rows])) for kind in self.shape.kinds}
            parts.append(self(tensors, torch.from_numpy(np.ascontiguousarray(present[rows]))).numpy())
        return np.concatenate(parts)


def fusion_bytes(model: FusionModel) -> bytes:
    """The model as ``fusion.safetensors``: its weights, and its shape in the header."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return save(state, metadata={"shape": json.dumps(model.shape.to_json(), sort_keys=True)})


def load_fusion(registry: Registry, version: str | None = None) -> tuple[Artefact, FusionModel]:
    """A published fusion model (``None``: the latest). Raises BadInput for none, or one that is damaged."""
    artefact = registry.load("fusion", version)
    path = artefact.file(FUSION_FILE)
    try:
        shape = FusionShape(**artefact.metadata["shape"])
        state = load_file(path)
        if len(shape.inputs) > len(KINDS) or shape.layers > len(state):
            raise ValueError("the shape does not fit the weights")
        with torch.device("meta"):  # nothing is allocated for what the file merely claims
            model = FusionModel(shape)
        model.load_state_dict(state, assign=True)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: not a fusion model of this version of onerec; run `onerec train-fusion` again") from error
    return artefact, model.eval()
