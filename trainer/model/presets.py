"""Named model sizes: ``tiny`` for a laptop, and those of V1's Table 1 (reference §3).

What the published names count is not said. Ours: the *backbone* is encoder, decoder, token embeddings (all layers but the
last, which is never an input) and output heads; the pathways (their dense layers and the QFormer) come on top; the sparse
tables (item, author, tag, static) are outside both. With codebooks of 3 × 8192, in millions:

| preset | backbone | against the name | with pathways |
|---|---|---|---|
| 0.015B | 5.95 | −60 % (5.2 of it are token tables and heads; the paper must count differently here) | 6.89 |
| 0.121B | 126.27 | +4.4 % | 154.63 |
| 0.935B | 940.06 | +0.5 % | 968.42 |
| 2.633B | 2735.46 | +3.9 % (experts in every second block) | 2763.82 |

A test holds these numbers on the meta device.
"""

from schemas.errors import BadInput
from trainer.model.config import ModelConfig


def expert_hidden(d_model: int) -> int:
    """Width of a SwiGLU expert: ⅔ · 4 · d, rounded up to a multiple of 128."""
    return -(-8 * d_model // (3 * 128)) * 128


def preset(name: str, codebook_sizes: tuple[int, ...]) -> ModelConfig:
    """The sizes that a name stands for. Raises BadInput naming the known ones."""
    if name not in _SIZES:
        raise BadInput(f"preset {name!r}: unknown; there are {', '.join(_SIZES)}")
    return ModelConfig(preset=name, codebook_sizes=tuple(codebook_sizes), **_SIZES[name])  # type: ignore[arg-type]


_SIZES: dict[str, dict[str, int | float | bool]] = {
    "tiny": {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "heads": 4,
        "feed_forward": 128,
        "experts": 4,
        "active_experts": 2,
        "expert_hidden": 128,
        "decoder_experts_every": 1,
        "balance_rate": 0.005,
        "positive_length": 64,
        "lifelong_length": 128,
        "lifelong_queries": 8,
        "lifelong_blocks": 1,
        "item_rows": 4096,
        "author_rows": 1024,
        "tag_rows": 512,
        "static_rows": 2048,
        "author_width": 32,
        "feature_width": 16,
        "static_width": 16,
        "history_tokens": True,
    },
    "0.015B": {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "feed_forward": 256},
    "0.121B": {"d_model": 1024, "encoder_layers": 4, "decoder_layers": 4, "heads": 8, "feed_forward": 2048},
    "0.935B": {
        "d_model": 1024,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "heads": 8,
        "feed_forward": 2048,
        "experts": 24,
        "active_experts": 2,
        "expert_hidden": expert_hidden(1024),
        "decoder_experts_every": 1,
    },
    "2.633B": {
        "d_model": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "heads": 8,
        "feed_forward": 2048,
        "experts": 24,
        "active_experts": 4,
        "expert_hidden": expert_hidden(1024),
        "encoder_experts_every": 2,
        "decoder_experts_every": 2,
    },
}
PRESETS = tuple(_SIZES)
