"""What a user's own past says of an impression: whether its item was watched before, and how long plays usually are."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys
from feature_jobs.samples_arrays import encoded, order_by
from feature_jobs.user_state_arrays import flat, group_starts, integers, owners, rank_in_group, watched_items

_FEW_FALSE_MARKS = 16
"""Slots of the table of marks for each watch: one in so many of the remembered items is looked at for nothing."""


def second_watches(events: pa.Table, owner: np.ndarray, state: pa.Table, state_owner: np.ndarray, window: int) -> np.ndarray:
    """Whether each event repeats an item of its user's last ``window`` watches before it (bool; ``label_samples``).

    ``owner`` and ``state_owner`` are users' codes. A user remembers far more items than a day's events have, and few of
    them come again, so a table of marks leaves out what no event of the user has before anything is sorted.
    """
    items = encoded(events["item_id"])
    keys, code = np.unique(integers(item_keys(items.dictionary)), return_inverse=True)
    item = code[items.indices.to_numpy()]
    rows = np.flatnonzero(integers(events["play_time_ms"]) > 0)
    recent = flat(state["recent_items"])
    lengths = integers(pc.list_value_length(recent))
    remembered = np.zeros(max(owner.max(initial=-1), state_owner.max(initial=-1)) + 1, np.int64)
    remembered[state_owner] = lengths
    old_owner, old_item, old_place = _remembered(recent, lengths, state_owner, owner[rows], item[rows], keys)
    pending = flat(state["pending"])
    waiting = pending.flatten()
    watched, waiting_keys = watched_items(waiting)
    who = np.concatenate([state_owner[owners(pending)][watched], owner[rows]])
    what = np.concatenate([_codes(waiting_keys[watched], keys), item[rows]])
    observed = np.concatenate([integers(waiting.field("observed_ts"))[watched], integers(events["observed_ts"])[rows]])
    tie = np.concatenate([integers(waiting.field("sample_id"))[watched], integers(events["sample_id"])[rows]])
    row = np.concatenate([np.full(int(watched.sum()), -1), rows])
    order = order_by(who, observed, tie)
    place = np.empty(len(order), np.int64)
    place[order] = rank_in_group(who[order]) + remembered[who[order]]
    known = what >= 0
    who, what, place, row = (
        np.concatenate([old, new[known]])
        for old, new in ((old_owner, who), (old_item, what), (old_place, place), (np.full(len(old_item), -1), row))
    )
    order = order_by(who, what, place)
    who, what, place, row = who[order], what[order], place[order], row[order]
    again = ~group_starts(who, what)
    again[1:] &= place[1:] - place[:-1] <= window
    second = np.zeros(len(events), bool)
    second[row[again & (row >= 0)]] = True
    return second


def _remembered(
    recent: pa.Array, lengths: np.ndarray, state_owner: np.ndarray, owner: np.ndarray, item: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the remembered items (keys) that their user may watch again: owner, code of the item and place in its list."""
    values = integers(recent.flatten())
    bits = max(len(owner) * _FEW_FALSE_MARKS, 2).bit_length()
    marked = np.zeros(1 << bits, bool)
    marked[_slots(owner, keys[item], bits)] = True
    row = np.repeat(np.arange(len(lengths)), lengths)
    maybe = np.flatnonzero(marked[_slots(state_owner[row], values, bits)])
    code = _codes(values[maybe], keys)
    maybe, code = maybe[code >= 0], code[code >= 0]
    starts = np.cumsum(lengths) - lengths
    return state_owner[row[maybe]], code, maybe - starts[row[maybe]]


def _slots(owner: np.ndarray, key: np.ndarray, bits: int) -> np.ndarray:
    """A slot of a table of 2^bits for each (user, item)."""
    mixed = (key.view(np.uint64) ^ (owner.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xC2B2AE3D27D4EB4F)
    slots: np.ndarray = (mixed >> np.uint64(64 - bits)).view(np.int64)
    return slots


def _codes(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place of each value in the sorted ``keys``, −1 if it is not there."""
    if not len(keys):
        return np.full(len(values), -1)
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[place] == values, place, -1)


def user_quantile(
    owner: np.ndarray, bucket: np.ndarray, play_bucket: np.ndarray, state: pa.Table, state_owner: np.ndarray
) -> np.ndarray:
    """Share of the user's earlier plays in the duration bucket whose play bucket is at most this one's (float64); NaN
    without any, or for a length that is unknown (bucket −1)."""
    histogram = flat(state["watch_histogram"])
    cells = histogram.flatten()
    cell_owner = state_owner[owners(histogram)]
    cell_bucket, cell_play = integers(cells.field("duration_bucket")), integers(cells.field("play_bucket"))
    order = order_by(cell_owner, cell_bucket, cell_play)
    buckets = int(max(bucket.max(initial=-1), cell_bucket.max(initial=-1))) + 2
    plays = int(max(play_bucket.max(initial=0), cell_play.max(initial=0))) + 1
    groups = (max(owner.max(initial=-1), cell_owner.max(initial=-1)) + 1) * buckets
    group = (cell_owner * buckets + cell_bucket + 1)[order]
    key = group * plays + cell_play[order]
    total = np.concatenate([[0], np.cumsum(integers(cells.field("count"))[order])])
    ends = total[np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))])]
    wanted = owner * buckets + bucket + 1
    upto = total[np.searchsorted(key, wanted * plays + play_bucket, side="right")] - ends[wanted]
    whole = ends[wanted + 1] - ends[wanted]
    return np.divide(upto, whole, out=np.full(len(owner), np.nan), where=(whole > 0) & (bucket >= 0))
