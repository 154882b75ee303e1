"""What the model is fed: one request a row, its context once, its impressions as targets.

Shape suffixes: B requests, S behaviours of a window (oldest first, right-aligned: the newest is last), W tags of an item,
K static keys, C static buckets, T targets of a request (left-aligned), L layers of the codebook.
Keys are ``schemas.shards.stable_key`` hashes (int64, 0 = unknown or padding); the model folds them into its own tables, so
batches do not depend on a model's size.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from schemas.tables import FEEDBACK, POSITIVE_BIT

STATIC_KEYS = ("user", "age_band", "gender", "region", "device")
"""What the K columns of ``static_key_BK`` are."""
STATIC_BUCKETS = ("register_days", "active_days_28", "behaviours")
"""What the C columns of ``static_bucket_BC`` are; logarithmic (``log_bucket``), 0 = unknown."""
TAGS = 3
"""W: how many tags of an item are used, in the catalogue's order."""
BUCKETS = 64
"""Buckets of every numeric feature."""
FEEDBACK_BITS = len(FEEDBACK) + 1
"""Bits of ``feedback``: the flags in FEEDBACK's order, then positive."""
NO_TOKEN = -1
"""Token of a behaviour whose item has none."""

_Record = TypeVar("_Record")


def _moved(record: _Record, device: torch.device | str) -> _Record:
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        moved[field.name] = value.to(device) if hasattr(value, "to") else value
    return dataclasses.replace(record, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class BehaviourWindow:
    """Behaviours a request may see, as features. All int64 but the mask."""

    item_key_BS: Tensor
    author_key_BS: Tensor
    tag_key_BSW: Tensor
    tokens_BSL: Tensor
    """Tokens of the item, NO_TOKEN where it has none."""
    time_gap_BS: Tensor
    """Bucket of seconds between the behaviour and the request."""
    play_time_BS: Tensor
    duration_BS: Tensor
    """Bucket of the length; 0 = unknown."""
    feedback_BS: Tensor
    """Feedback bits."""
    mask_BS: Tensor
    """bool: True where there is a behaviour."""

    def to(self, device: torch.device | str) -> "BehaviourWindow":
        """The same on a device."""
        return _moved(self, device)


@dataclass(frozen=True)
class RequestBatch:
    """Requests with their exact contexts and targets."""

    static_key_BK: Tensor
    static_bucket_BC: Tensor
    short: BehaviourWindow
    positive: BehaviourWindow
    lifelong: BehaviourWindow
    tokens_BTL: Tensor
    """int64 tokens of the targets; 0 where the mask is False."""
    target_mask_BT: Tensor
    """bool: True where there is a target."""
    item_key_BT: Tensor
    """int64."""
    feedback_BT: Tensor
    """int64 feedback bits of the targets; see ``flag``."""
    play_time_ms_BT: Tensor
    """int64."""
    duration_ms_BT: Tensor
    """int64, −1 if unknown."""
    play_ratio_BT: Tensor
    """float32, NaN if the length is unknown."""
    watch_quantile_day_BT: Tensor
    """float32 label, NaN if unknown."""
    watch_quantile_user_BT: Tensor
    """float32 label, NaN if unknown."""
    request_ts_B: Tensor
    """int64 microseconds since the epoch."""
    holdout_B: Tensor
    """bool: the user is held out of all training."""
    user_ids: tuple[str, ...]
    request_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> "RequestBatch":
        """The same on a device."""
        return _moved(self, device)

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.user_ids)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.tokens_BTL.device

    def flag(self, name: str) -> Tensor:
        """A feedback flag of the targets (a name in FEEDBACK, or ``positive``) as bool (B, T); False where there is none."""
        bit = POSITIVE_BIT if name == "positive" else FEEDBACK.index(name)
        return (self.feedback_BT >> bit & 1).bool() & self.target_mask_BT
