"""The P-Score network: interests searched in the user's behaviours with the candidate as query, towers, and one score.

Each tower predicts one objective (click, long view, …); the hidden states of all towers, with the user's and the item's
representation, enter an MLP whose output is the P-Score (V1 §2.4). The interest unit is search-based: of the long pathways
only the ``search_length`` behaviours most alike the candidate are attended to, so its cost follows the search and not the
history. The item is its tokens, author, tags and length; no item id, so every legal code can be scored, shown or not.

Shape suffixes: as in ``trainer.batches``; G candidates a request, O objectives, D width, H width of a tower, K searched.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from schemas.errors import BadInput
from schemas.tables import FEEDBACK
from trainer.batches import BUCKETS, FEEDBACK_BITS, STATIC_BUCKETS, STATIC_KEYS, BehaviourWindow, RequestBatch
from trainer.model.pathways import KeyEmbedding
from trainer.reward.catalogue import CandidateFeatures

OBJECTIVES = (*FEEDBACK, "positive")
"""Labels that an objective can be."""


@dataclass(frozen=True)
class RewardConfig:
    """Sizes of a reward model; saved beside its weights."""

    codebook_sizes: tuple[int, ...]
    objectives: dict[str, float]
    """Name of a label → its weight in the P-Score's loss."""
    width: int = 32
    tower_width: int = 16
    author_rows: int = 4096
    tag_rows: int = 1024
    static_rows: int = 4096
    feature_width: int = 8
    search_length: int = 32

    def __post_init__(self) -> None:
        """Raises BadInput for objectives that no label answers."""
        unknown = sorted(set(self.objectives) - set(OBJECTIVES))
        if unknown or not self.objectives:
            raise BadInput(f"reward.objectives: {unknown or 'none given'}; choose from {', '.join(OBJECTIVES)}")
        if min(self.objectives.values()) < 0 or max(self.objectives.values()) == 0:
            raise BadInput(f"reward.objectives: weights {self.objectives}; none may be negative and one must be above 0")

    def to_json(self) -> dict[str, Any]:
        """As it is saved."""
        return dataclasses.asdict(self) | {"codebook_sizes": list(self.codebook_sizes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "RewardConfig":
        """Read it back. Raises BadInput naming ``where`` for unknown, missing or ill-typed values."""
        whole = {field.name for field in dataclasses.fields(cls)} - {"codebook_sizes", "objectives"}
        try:
            if not all(isinstance(values[name], int) and values[name] > 0 for name in whole):
                raise BadInput(f"{where}: a size is no positive whole number; the file is altered")
            sizes = tuple(int(size) for size in values["codebook_sizes"])
            objectives = {str(name): float(weight) for name, weight in values["objectives"].items()}
            return cls(**{**values, "codebook_sizes": sizes, "objectives": objectives})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{where}: sizes are missing or unknown ({error}); altered or of another version") from error


@dataclass(frozen=True)
class Scores:
    """Logits for some candidates."""

    p_score_BG: Tensor
    """The P-Score is its sigmoid."""
    objectives_BGO: Tensor
    """The towers', in the order of the configuration's objectives."""


class PScore(nn.Module):
    """Scores candidate codes for requests."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        width, small = config.width, config.feature_width
        self.tokens = nn.ModuleList(_table(size + 1, width) for size in config.codebook_sizes)
        self.author = KeyEmbedding(config.author_rows, small)
        self.tag = KeyEmbedding(config.tag_rows, small)
        self.duration = _table(BUCKETS, small)
        self.item = _mlp(width + 3 * small, width, width)
        self.time_gap = _table(BUCKETS, small)
        self.play_time = _table(BUCKETS, small)
        self.behaviour = nn.Linear(2 * small + FEEDBACK_BITS, width)
        self.static_keys = nn.ModuleList(KeyEmbedding(config.static_rows, small) for _ in STATIC_KEYS)
        self.static_buckets = nn.ModuleList(_table(BUCKETS, small) for _ in STATIC_BUCKETS)
        self.user = _mlp((len(STATIC_KEYS) + len(STATIC_BUCKETS)) * small, width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.towers = nn.ModuleList(_mlp(6 * width, 2 * config.tower_width, config.tower_width) for _ in config.objectives)
        self.heads = nn.ModuleList(nn.Linear(config.tower_width, 1) for _ in config.objectives)
        self.score = _mlp(len(config.objectives) * config.tower_width + 2 * width, width, 1)

    def forward(self, batch: RequestBatch, candidates: CandidateFeatures) -> Scores:
        """Logits of candidates (B, G) in the contexts of a batch of B requests."""
        item_BGD = self._item(candidates.tokens_QL, candidates.author_key_Q, candidates.tag_key_QW, candidates.duration_Q)
        user_BGD = self._user(batch).unsqueeze(1).expand_as(item_BGD)
        query_BGD = self.query(item_BGD)
        short_BGD = self._interest(query_BGD, [batch.short])
        long_BGD = self._interest(query_BGD, [batch.positive, batch.lifelong])
        x_BGX = torch.cat([user_BGD, item_BGD, short_BGD, long_BGD, item_BGD * short_BGD, item_BGD * long_BGD], dim=-1)
        hidden = [tower(x_BGX) for tower in self.towers]
        objectives_BGO = torch.cat([head(h_BGH) for head, h_BGH in zip(self.heads, hidden, strict=True)], dim=-1)
        p_score_BG = self.score(torch.cat([*hidden, user_BGD, item_BGD], dim=-1)).squeeze(-1)
        return Scores(p_score_BG, objectives_BGO)

    def loss(self, scores: Scores, labels_BGO: Tensor, mask_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_xtr w^xtr · BCE(y^xtr, p) and the towers' Σ_xtr BCE(y^xtr, ŷ^xtr), each averaged over unmasked candidates.

        ``labels_BGO`` is bool or float in the objectives' order.
        """
        labels_NO = labels_BGO[mask_BG].to(scores.p_score_BG.dtype)
        weights_O = torch.tensor(list(self.config.objectives.values()), device=labels_NO.device)
        p_NO = scores.p_score_BG[mask_BG].unsqueeze(-1).expand_as(labels_NO)
        whole = functional.binary_cross_entropy_with_logits(p_NO, labels_NO, reduction="none")
        towers = functional.binary_cross_entropy_with_logits(scores.objectives_BGO[mask_BG], labels_NO, reduction="none")
        return (whole * weights_O).sum(-1).mean(), towers.sum(-1).mean()

    def labels(self, batch: RequestBatch) -> Tensor:
        """Labels of a batch's targets in the objectives' order: bool (B, T, O)."""
        return torch.stack([batch.flag(name) for name in self.config.objectives], dim=-1)

    def _item(self, tokens: Tensor, author: Tensor, tags: Tensor, duration: Tensor) -> Tensor:
        token_sum = sum(table(tokens[..., layer] + 1) for layer, table in enumerate(self.tokens))
        has_tag = (tags != 0).unsqueeze(-1)
        tag_mean = (self.tag(tags) * has_tag).sum(-2) / has_tag.sum(-2).clamp(min=1)
        return self.item(torch.cat([token_sum, self.author(author), tag_mean, self.duration(duration)], dim=-1))

    def _behaviours(self, window: BehaviourWindow) -> tuple[Tensor, Tensor]:
        """What is searched by, and what is taken over: item vectors, and those with how the user took the item."""
        item_BSD = self._item(window.tokens_BSL, window.author_key_BS, window.tag_key_BSW, window.duration_BS)
        bits = torch.arange(FEEDBACK_BITS, device=item_BSD.device)
        flags = (window.feedback_BS.unsqueeze(-1) >> bits & 1).to(item_BSD.dtype)
        taken = torch.cat([self.time_gap(window.time_gap_BS), self.play_time(window.play_time_BS), flags], dim=-1)
        return item_BSD, item_BSD + self.behaviour(taken)

    def _interest(self, query_BGD: Tensor, windows: list[BehaviourWindow]) -> Tensor:
        """Attention of each candidate over its most alike behaviours; zeros for a user without any."""
        parts = [self._behaviours(window) for window in windows]
        key_BSD = self.key(torch.cat([item for item, _ in parts], dim=1))
        value_BSD = torch.cat([value for _, value in parts], dim=1)
        mask_BS = torch.cat([window.mask_BS for window in windows], dim=1)
        affinity_BGS = query_BGD @ key_BSD.transpose(1, 2) / key_BSD.shape[-1] ** 0.5
        affinity_BGS = affinity_BGS.masked_fill(~mask_BS.unsqueeze(1), -torch.inf)
        found = affinity_BGS.topk(min(self.config.search_length, affinity_BGS.shape[-1]), dim=-1)
        has_any_B11 = mask_BS.any(dim=1)[:, None, None]
        share_BGK = torch.softmax(found.values.masked_fill(~has_any_B11, 0.0), dim=-1)
        # A sparse row of shares times all behaviours: the same as gathering them, without a copy a candidate.
        share_BGS = torch.zeros_like(affinity_BGS).scatter(-1, found.indices, share_BGK)
        return (share_BGS @ value_BSD) * has_any_B11

    def _user(self, batch: RequestBatch) -> Tensor:
        parts = [table(batch.static_key_BK[:, place]) for place, table in enumerate(self.static_keys)]
        parts += [table(batch.static_bucket_BC[:, place]) for place, table in enumerate(self.static_buckets)]
        return self.user(torch.cat(parts, dim=-1))


def _table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.05)
    return table


def _mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_in, hidden), nn.LeakyReLU(), nn.Linear(hidden, d_out))
