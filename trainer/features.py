"""Turns requests of a decoded block into the arrays of a ``RequestBatch``. Suffixes as in ``trainer.batches``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.batches import BehaviourWindow, RequestBatch
from trainer.item_table import ItemTable, ItemTokens
from trainer.user_days import UserDays, log_bucket
from trainer.windows import Array, tail_indices

WINDOWS = ("short", "positive", "lifelong")
_PER_TARGET = ("item_key", "feedback", "play_time_ms", "duration_ms")


@dataclass(frozen=True)
class Lengths:
    """How many behaviours of each pathway a request is given: the newest ones."""

    short: int = 20
    positive: int = 256
    lifelong: int = 2000


@dataclass(frozen=True)
class Piece:
    """Requests of one block: arrays named as the batch's tensors, ``window.field`` for those of windows."""

    arrays: Mapping[str, Array]
    user_ids: list[str]
    request_ids: list[str]


def request_pieces(
    block: UserDays, requests_B: Array, items: ItemTable, tokens: ItemTokens, lengths: Lengths, max_targets: int
) -> Piece:
    """Features, targets and labels of some requests (numbers within the block). Asks the item table as of each request."""
    owner_B = block.request_owner_Q[requests_B]
    request_ts_B = block.request_ts_Q[requests_B]
    arrays: dict[str, Array] = {
        "static_key_BK": block.static_key_UK[owner_B],
        "static_bucket_BC": block.static_bucket_UC[owner_B],
        "request_ts_B": request_ts_B,
        "holdout_B": block.holdout_U[owner_B],
    }
    for name, history, length in (("short", block.short, lengths.short), ("positive", block.positive, lengths.positive)):
        place_BS, mask_BS = history.visible_tail(owner_B, request_ts_B, length)
        arrays |= _window(name, history.entries.columns, place_BS, mask_BS, request_ts_B, items, tokens)
    place_BS, mask_BS = tail_indices(block.lifelong.offsets[owner_B], block.lifelong.offsets[owner_B + 1], lengths.lifelong)
    arrays |= _window("lifelong", block.lifelong.columns, place_BS, mask_BS, request_ts_B, items, tokens)
    arrays |= _targets(block, requests_B, tokens, max_targets)
    return Piece(
        arrays,
        block.user_ids.take(owner_B).to_pylist(),
        block.request_ids.take(requests_B).to_pylist(),
    )


def to_batch(pieces: Sequence[Piece], order_B: Array) -> RequestBatch:
    """Join pieces and put the requests in order."""
    tensors = {
        name: torch.from_numpy(np.concatenate([piece.arrays[name] for piece in pieces])[order_B]) for name in pieces[0].arrays
    }
    windows = {
        window: BehaviourWindow(**{name.split(".")[1]: value for name, value in tensors.items() if name.startswith(f"{window}.")})
        for window in WINDOWS
    }
    user_ids = [user for piece in pieces for user in piece.user_ids]
    request_ids = [request for piece in pieces for request in piece.request_ids]
    return RequestBatch(
        **windows,
        **{name: value for name, value in tensors.items() if "." not in name},
        user_ids=tuple(user_ids[place] for place in order_B),
        request_ids=tuple(request_ids[place] for place in order_B),
    )


def _window(
    name: str,
    columns: Mapping[str, Array],
    place_BS: Array,
    mask_BS: Array,
    request_ts_B: Array,
    items: ItemTable,
    tokens: ItemTokens,
) -> dict[str, Array]:
    if len(columns["item_key"]):
        values = {column: np.where(mask_BS, columns[column][place_BS], 0) for column in columns}
    else:
        values = {column: np.zeros(place_BS.shape, np.int64) for column in columns}
    author_BS, tag_BSW = items.attributes(values["item_key"], request_ts_B[:, None])
    gap_BS = np.where(mask_BS, request_ts_B[:, None] - values["ts"], 0) / 1e6
    features = {
        "item_key_BS": values["item_key"],
        "author_key_BS": author_BS,
        "tag_key_BSW": tag_BSW,
        "tokens_BSL": tokens.lookup(values["item_key"]),
        "time_gap_BS": log_bucket(gap_BS, 2),
        "play_time_BS": log_bucket(values["play_time_ms"] / 1000, 3),
        "duration_BS": _duration_bucket(values["duration_ms"]),
        "feedback_BS": values["feedback"],
        "mask_BS": mask_BS,
    }
    return {f"{name}.{field}": value for field, value in features.items()}


def _targets(block: UserDays, requests_B: Array, tokens: ItemTokens, max_targets: int) -> dict[str, Array]:
    """The first ``max_targets`` impressions of each request that are targets and have tokens, in the shard's order."""
    columns = block.events.columns
    start_B, end_B = block.request_offsets[requests_B], block.request_offsets[requests_B + 1]
    lengths_B = end_B - start_B
    row_E = np.repeat(np.arange(len(requests_B)), lengths_B)
    event_E = np.repeat(start_B - np.cumsum(lengths_B) + lengths_B, lengths_B) + np.arange(lengths_B.sum())
    usable_E = block.target_E[event_E] & tokens.known(columns["item_key"][event_E])
    row_E, event_E = row_E[usable_E], event_E[usable_E]
    counts_B = np.bincount(row_E, minlength=len(requests_B))
    rank_E = np.arange(len(row_E)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    row_E, event_E, rank_E = (values[rank_E < max_targets] for values in (row_E, event_E, rank_E))

    def placed(values_E: Array, blank: float) -> Array:
        placed_BT = np.full((len(requests_B), max_targets, *values_E.shape[1:]), blank, dtype=values_E.dtype)
        placed_BT[row_E, rank_E] = values_E
        return placed_BT

    play_E, duration_E = columns["play_time_ms"][event_E], columns["duration_ms"][event_E]
    ratio_E = np.where(duration_E > 0, play_E / np.maximum(duration_E, 1), np.nan).astype(np.float32)
    return {
        "tokens_BTL": placed(tokens.lookup(columns["item_key"][event_E]), 0),
        "target_mask_BT": placed(np.ones(len(row_E), bool), False),
        **{f"{name}_BT": placed(columns[name][event_E], -1 if name == "duration_ms" else 0) for name in _PER_TARGET},
        "play_ratio_BT": placed(ratio_E, np.nan),
        "watch_quantile_day_BT": placed(block.quantile_day_E[event_E], np.nan),
        "watch_quantile_user_BT": placed(block.quantile_user_E[event_E], np.nan),
    }


def _duration_bucket(duration_ms: Array) -> Array:
    return np.where(duration_ms > 0, log_bucket(duration_ms / 1000, 3, first=1), 0)
