"""The four pathways: static facts, short, positive and lifelong behaviour, each to vectors of the model's width (V1 §2.2.1).

Shape suffixes: as in ``trainer.batches``; N queries of the lifelong pathway, D model width.
"""

import torch
from torch import Tensor, nn

from trainer.batches import BUCKETS, FEEDBACK_BITS, STATIC_BUCKETS, STATIC_KEYS, BehaviourWindow, RequestBatch
from trainer.model.config import ModelConfig
from trainer.model.layers import Attention, FeedForward


class KeyEmbedding(nn.Embedding):
    """Embeds 64-bit keys by folding them into a table; row 0 is the unknown key (0)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, keys: Tensor) -> Tensor:
        """int64 keys of any shape → the shape with the width appended."""
        return super().forward(torch.where(keys == 0, 0, keys.remainder(self.num_embeddings - 1) + 1))


class BehaviourEmbedding(nn.Module):
    """Embeds behaviours and concatenates: item (d_model), author, tags, time gap, play time, length, feedback."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.feature_width
        self.item = KeyEmbedding(config.item_rows, config.d_model)
        self.author = KeyEmbedding(config.author_rows, config.author_width)
        self.tag = KeyEmbedding(config.tag_rows, width)
        self.numbers = nn.ModuleDict({name: _small_table(BUCKETS, width) for name in ("time_gap", "play_time", "duration")})
        self.feedback = nn.Linear(FEEDBACK_BITS, width, bias=False)
        # One more row than tokens, for items that have none.
        sizes = config.codebook_sizes if config.history_tokens else ()
        self.tokens = nn.ModuleList(_small_table(size + 1, config.d_model) for size in sizes)
        self.width = config.d_model + config.author_width + 5 * width

    def forward(self, window: BehaviourWindow) -> Tensor:
        """→ (B, S, width)."""
        item_BSD = self.item(window.item_key_BS)
        for layer, table in enumerate(self.tokens):
            item_BSD = item_BSD + table(window.tokens_BSL[..., layer] + 1)
        has_tag_BSW1 = (window.tag_key_BSW != 0).unsqueeze(-1)
        tags_BSD = (self.tag(window.tag_key_BSW) * has_tag_BSW1).sum(2) / has_tag_BSW1.sum(2).clamp(min=1)
        bits = torch.arange(FEEDBACK_BITS, device=item_BSD.device)
        flags = (window.feedback_BS.unsqueeze(-1) >> bits & 1).to(item_BSD.dtype)
        numbers = [
            self.numbers[name](values)
            for name, values in (
                ("time_gap", window.time_gap_BS),
                ("play_time", window.play_time_BS),
                ("duration", window.duration_BS),
            )
        ]
        return torch.cat([item_BSD, self.author(window.author_key_BS), tags_BSD, *numbers, self.feedback(flags)], dim=-1)


class QFormer(nn.Module):
    """Compresses many behaviours to few vectors: learnable queries attend to them, then a feed forward (blocks of both)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.queries = nn.Parameter(torch.randn(config.lifelong_queries, d_model) * 0.02)
        blocks = range(config.lifelong_blocks)
        self.attentions = nn.ModuleList(Attention(d_model, config.heads) for _ in blocks)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in blocks)
        self.feeds = nn.ModuleList(FeedForward(d_model, config.feed_forward, d_model) for _ in blocks)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """(B, S, D) → (B, N, D). A row that sees nothing gives values that its caller masks, never NaN."""
        seen_BS = mask_BS | ~mask_BS.any(dim=1, keepdim=True)
        q_BND = self.queries.expand(len(x_BSD), -1, -1)
        for attention, norm, feed in zip(self.attentions, self.norms, self.feeds, strict=True):
            q_BND = q_BND + attention(q_BND, x_BSD, seen_BS)
            q_BND = q_BND + feed(norm(q_BND))
        return q_BND


class Pathways(nn.Module):
    """All four, concatenated: static, short, positive, lifelong."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.lengths = {"short": config.short_length, "positive": config.positive_length, "lifelong": config.lifelong_length}
        self.static_keys = nn.ModuleList(KeyEmbedding(config.static_rows, config.static_width) for _ in STATIC_KEYS)
        self.static_buckets = nn.ModuleList(_small_table(BUCKETS, config.static_width) for _ in STATIC_BUCKETS)
        statics = len(STATIC_KEYS) + len(STATIC_BUCKETS)
        self.static = FeedForward(statics * config.static_width, d_model, d_model, bias=True)
        self.behaviour = BehaviourEmbedding(config)
        width = self.behaviour.width
        self.dense = nn.ModuleDict({name: FeedForward(width, d_model, d_model, bias=True) for name in self.lengths})
        self.qformer = QFormer(config)

    def forward(self, batch: RequestBatch) -> tuple[Tensor, Tensor]:
        """→ vectors (B, memory_length, D) and their mask (B, memory_length)."""
        static_B1D = self._static(batch).unsqueeze(1)
        short_BSD = self._dense("short", batch.short)
        positive_BSD = self._dense("positive", batch.positive)
        lifelong_BND = self.qformer(self._dense("lifelong", batch.lifelong), batch.lifelong.mask_BS)
        has_lifelong = batch.lifelong.mask_BS.any(dim=1, keepdim=True).expand(-1, lifelong_BND.shape[1])
        always = torch.ones_like(has_lifelong[:, :1])
        mask_BS = torch.cat([always, batch.short.mask_BS, batch.positive.mask_BS, has_lifelong], dim=1)
        return torch.cat([static_B1D, short_BSD, positive_BSD, lifelong_BND], dim=1), mask_BS

    def _static(self, batch: RequestBatch) -> Tensor:
        parts = [table(batch.static_key_BK[:, index]) for index, table in enumerate(self.static_keys)]
        parts += [table(batch.static_bucket_BC[:, index]) for index, table in enumerate(self.static_buckets)]
        return self.static(torch.cat(parts, dim=-1))

    def _dense(self, name: str, window: BehaviourWindow) -> Tensor:
        length = window.mask_BS.shape[1]
        if length != self.lengths[name]:
            raise ValueError(f"the {name} window holds {length} behaviours, the model was built for {self.lengths[name]}")
        return self.dense[name](self.behaviour(window))


def _small_table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.02)
    return table
