"""Batches of invented numbers, for tests of the model that need no shards."""

import dataclasses
from typing import Any

import torch

from trainer.batches import BUCKETS, FEEDBACK_BITS, STATIC_BUCKETS, STATIC_KEYS, TAGS, BehaviourWindow, RequestBatch
from trainer.model.config import ModelConfig
from trainer.model.presets import preset


def small_config(**changes: Any) -> ModelConfig:
    """A model smaller than ``tiny``: layers of 5, 4 and 6 tokens, short windows."""
    sizes = {"d_model": 16, "heads": 2, "feed_forward": 32, "expert_hidden": 16, "short_length": 4, "positive_length": 6}
    rows = {"item_rows": 50, "author_rows": 20, "tag_rows": 10, "static_rows": 20}
    return dataclasses.replace(
        preset("tiny", (5, 4, 6)), **{**sizes, **rows, "lifelong_length": 7, "lifelong_queries": 3, **changes}
    )


def made_batch(config: ModelConfig, *, requests: int = 4, targets: int = 3, seed: int = 0) -> RequestBatch:
    """Random features, windows of random fill (request 0 has no history at all), at least one target each."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw)

    def window(length: int) -> BehaviourWindow:
        filled = integers(length + 1, requests)
        filled[0] = 0
        mask = torch.arange(length) >= length - filled[:, None]
        shape = (requests, length)
        tokens = torch.stack([integers(size + 1, *shape) - 1 for size in config.codebook_sizes], dim=-1)
        return BehaviourWindow(
            item_key_BS=integers(10**9, *shape) * mask,
            author_key_BS=integers(10**9, *shape) * mask,
            tag_key_BSW=integers(10**9, *shape, TAGS) * mask[..., None],
            tokens_BSL=torch.where(mask[..., None], tokens, -1),
            time_gap_BS=integers(BUCKETS, *shape) * mask,
            play_time_BS=integers(BUCKETS, *shape) * mask,
            duration_BS=integers(BUCKETS, *shape) * mask,
            feedback_BS=integers(1 << FEEDBACK_BITS, *shape) * mask,
            mask_BS=mask,
        )

    target_mask = torch.arange(targets) < integers(targets, requests)[:, None] + 1
    shape = (requests, targets)
    return RequestBatch(
        static_key_BK=integers(10**9, requests, len(STATIC_KEYS)),
        static_bucket_BC=integers(BUCKETS, requests, len(STATIC_BUCKETS)),
        short=window(config.short_length),
        positive=window(config.positive_length),
        lifelong=window(config.lifelong_length),
        tokens_BTL=torch.stack([integers(size, *shape) for size in config.codebook_sizes], dim=-1) * target_mask[..., None],
        target_mask_BT=target_mask,
        item_key_BT=integers(10**9, *shape) * target_mask,
        feedback_BT=integers(1 << FEEDBACK_BITS, *shape) * target_mask,
        play_time_ms_BT=integers(10**5, *shape) * target_mask,
        duration_ms_BT=torch.where(target_mask, integers(10**5, *shape), -1),
        play_ratio_BT=torch.rand(shape, generator=draw),
        watch_quantile_day_BT=torch.rand(shape, generator=draw),
        watch_quantile_user_BT=torch.rand(shape, generator=draw),
        request_ts_B=integers(10**15, requests),
        holdout_B=torch.zeros(requests, dtype=torch.bool),
        user_ids=tuple(f"user{n}" for n in range(requests)),
        request_ids=tuple(f"request{n}" for n in range(requests)),
    )
