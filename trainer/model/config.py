"""Every size of a model, in one frozen record that is saved beside its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import BadInput

MAX_PARTS = 1024
"""No model has more layers, experts or heads: a description that asks for more is refused before it is built."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model (reference §2–§3).

    ``encoder_experts_every`` and ``decoder_experts_every`` say which blocks carry experts instead of the dense feed
    forward: 0 none, 1 all, 2 every second one.
    """

    preset: str
    codebook_sizes: tuple[int, ...]
    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    feed_forward: int
    experts: int = 0
    active_experts: int = 0
    expert_hidden: int = 0
    encoder_experts_every: int = 0
    decoder_experts_every: int = 0
    balance_rate: float = 0.001
    """How far an expert's selection bias moves after each step."""
    short_length: int = 20
    positive_length: int = 256
    lifelong_length: int = 2000
    lifelong_queries: int = 128
    lifelong_blocks: int = 2
    item_rows: int = 2**20
    author_rows: int = 2**18
    tag_rows: int = 2**14
    static_rows: int = 2**20
    author_width: int = 512
    feature_width: int = 128
    static_width: int = 64
    history_tokens: bool = False
    """Whether a behaviour's item is also embedded by its tokens (V1 §4.2.2), which carries over to unseen items."""

    def __post_init__(self) -> None:
        """Raises BadInput for sizes that cannot make a model."""
        for name in ("encoder_layers", "decoder_layers", "lifelong_blocks", "experts", "heads"):
            if not (name == "experts" or getattr(self, name) >= 1) or getattr(self, name) > MAX_PARTS:
                raise BadInput(f"model {self.preset}: {name} {getattr(self, name)} is not between 1 and {MAX_PARTS}")
        if self.d_model % self.heads:
            raise BadInput(f"model {self.preset}: d_model {self.d_model} is no multiple of {self.heads} heads")
        if self.active_experts > self.experts:
            raise BadInput(f"model {self.preset}: {self.active_experts} active of {self.experts} experts")
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise BadInput(f"model {self.preset}: codebook sizes {self.codebook_sizes} name no tokens")

    @property
    def memory_length(self) -> int:
        """Positions that the encoder sees: static, short, positive, lifelong queries."""
        return 1 + self.short_length + self.positive_length + self.lifelong_queries

    def to_json(self) -> dict[str, Any]:
        """As it is saved."""
        return dataclasses.asdict(self) | {"codebook_sizes": list(self.codebook_sizes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "ModelConfig":
        """Read it back. Raises BadInput naming ``where`` for unknown, missing or ill-typed values."""
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        accepted = {int: int, float: (int, float), bool: bool, str: str, tuple[int, ...]: list}
        for name, value in values.items():
            if name not in types or not isinstance(value, accepted[types[name]]):  # type: ignore[index, arg-type]
                raise BadInput(f"{where}: {name} = {value!r} is no size of a model; the file is altered or of a newer version")
        if not all(isinstance(size, int) for size in values.get("codebook_sizes", [])):
            raise BadInput(f"{where}: codebook_sizes {values['codebook_sizes']!r} are no whole numbers")
        try:
            return cls(**{**values, "codebook_sizes": tuple(values["codebook_sizes"])})
        except (TypeError, KeyError) as error:
            raise BadInput(f"{where}: sizes are missing ({error}); the file is altered or of another version") from error
