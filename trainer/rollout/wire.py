"""What travels between the trainer and the rollout service: contexts and weights as plain NumPy arrays.

Ray moves NumPy arrays through shared memory without copies and without knowing our classes, so a service and a trainer need
not be of one build. Numbers of half precision travel as float32, which holds them exactly.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batches import BehaviourWindow, RequestBatch

Arrays = dict[str, NDArray[np.generic]]

_WINDOWS = ("short", "positive", "lifelong")
_WINDOW_FIELDS = tuple(field.name for field in dataclasses.fields(BehaviourWindow))
_STATIC = ("static_key_BK", "static_bucket_BC")
_TARGETS = {
    "item_key_BT": torch.int64,
    "feedback_BT": torch.int64,
    "play_time_ms_BT": torch.int64,
    "duration_ms_BT": torch.int64,
    "target_mask_BT": torch.bool,
    "play_ratio_BT": torch.float32,
    "watch_quantile_day_BT": torch.float32,
    "watch_quantile_user_BT": torch.float32,
}


def contexts_to_arrays(batch: RequestBatch) -> Arrays:
    """The context of each request (static features, three windows, request times), without targets, labels or names."""
    arrays = {name: getattr(batch, name).cpu().numpy() for name in (*_STATIC, "request_ts_B")}
    for window in _WINDOWS:
        for name in _WINDOW_FIELDS:
            arrays[f"{window}.{name}"] = getattr(getattr(batch, window), name).cpu().numpy()
    return arrays


def contexts_from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> RequestBatch:
    """A batch of these contexts with no targets (T = 0). Raises KeyError for a context that lacks a feature."""
    # Ray hands out read-only views of shared memory; torch wants memory of its own.
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    requests = len(tensors["request_ts_B"])
    layers = tensors["short.tokens_BSL"].shape[-1]
    return RequestBatch(
        **{name: tensors[name] for name in (*_STATIC, "request_ts_B")},
        **{window: BehaviourWindow(**{name: tensors[f"{window}.{name}"] for name in _WINDOW_FIELDS}) for window in _WINDOWS},
        **{name: torch.zeros(requests, 0, dtype=kind) for name, kind in _TARGETS.items()},
        tokens_BTL=torch.zeros(requests, 0, layers, dtype=torch.int64),
        holdout_B=torch.zeros(requests, dtype=torch.bool),
        user_ids=("",) * requests,
        request_ids=("",) * requests,
    )


def rows_of(arrays: Mapping[str, NDArray[np.generic]], start: int, end: int) -> Arrays:
    """Some of the requests."""
    return {name: values[start:end] for name, values in arrays.items()}


def weights_to_arrays(state: Mapping[str, Tensor]) -> Arrays:
    """A model's ``state_dict`` as arrays."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy() for name, tensor in state.items()
    }


def weights_from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """And back; ``load_state_dict`` casts to the model's own precision."""
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
