"""A block of user-days (one record batch of a shard), decoded to NumPy and merged for the windows of its requests.

Shape suffixes: U user-days, Q requests of the block, E events of the block, K static keys, C static buckets.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import BadInput
from schemas.shards import LIFELONG, TARGET_MASK, stable_key
from schemas.tables import POSITIVE_BIT
from trainer.batches import BUCKETS
from trainer.shard_files import AGAIN
from trainer.windows import BEHAVIOUR_COLUMNS, Array, History, Ragged

LIFELONG_COLUMNS = ("item_key", "ts", "play_time_ms", "duration_ms", "feedback")


@dataclass(frozen=True)
class UserDays:
    """What the reader needs of a block."""

    user_ids: pa.Array
    holdout_U: Array
    static_key_UK: Array
    static_bucket_UC: Array
    short: History
    positive: History
    lifelong: Ragged
    """Representatives by (ts, item_key)."""
    request_owner_Q: Array
    request_ids: pa.Array
    request_ts_Q: Array
    request_offsets: Array
    """(Q + 1,): where each request's events begin."""
    events: Ragged
    quantile_day_E: Array
    quantile_user_E: Array
    target_E: Array
    """bool: the mask that was asked for."""


def decode(batch: pa.RecordBatch, mask: pa.RecordBatch | None, lifelong: pa.Table | None, where: Path) -> UserDays:
    """Decode a record batch of USER_DAY, with another target mask's over the same rows and the bucket's LIFELONG if any.

    Raises BadInput naming ``where`` if its lists do not fit each other.
    """
    short, positive, pending, events = (_ragged(batch, prefix, where) for prefix in ("short", "positive", "pending", "event"))
    request_offsets_U, counts_Q = _list(batch["request_events"])
    request_ts_offsets, request_ts_Q = _list(batch["request_ts"])
    request_ids = batch["request_id"]
    fits = (
        np.array_equal(request_offsets_U, request_ts_offsets)
        and np.array_equal(request_offsets_U, _list_offsets(request_ids))
        and bool(np.all(counts_Q >= 0))
    )
    request_offsets = np.concatenate([[0], np.cumsum(counts_Q)])
    if not fits or not np.array_equal(request_offsets[request_offsets_U], events.offsets):
        raise BadInput(f"{where}: request_events does not add up to a user's events; {AGAIN}")
    return UserDays(
        user_ids=batch["user_id"],
        holdout_U=np.asarray(batch["holdout"].to_numpy(zero_copy_only=False), dtype=bool),
        static_key_UK=_static_keys(batch),
        static_bucket_UC=_static_buckets(batch),
        short=History.of([short, pending, events]),
        positive=History.of([positive, _positives(pending), _positives(events)]),
        lifelong=_lifelong(batch["user_id"], lifelong),
        request_owner_Q=np.repeat(np.arange(len(batch)), np.diff(request_offsets_U)),
        request_ids=request_ids.flatten(),
        request_ts_Q=request_ts_Q,
        request_offsets=request_offsets,
        events=events,
        quantile_day_E=_floats(batch, "event_watch_quantile_day", events, where),
        quantile_user_E=_floats(batch, "event_watch_quantile_user", events, where),
        target_E=target_mask(batch, mask, where),
    )


def target_mask(batch: pa.RecordBatch, mask: pa.RecordBatch | None, where: Path) -> Array:
    """bool (E,): the block's own mask, or another one, checked to be of the same users and events."""
    own = batch["event_target"]
    if mask is None:
        return np.asarray(own.flatten().to_numpy(zero_copy_only=False), dtype=bool)
    other = mask["event_target"]
    same = len(mask) == len(batch) and mask["user_id"].equals(batch["user_id"])
    if not same or not np.array_equal(_list_offsets(own), _list_offsets(other)):
        raise BadInput(f"{where}: its target mask is of other users or events; write the mask again")
    return np.asarray(other.flatten().to_numpy(zero_copy_only=False), dtype=bool)


def masks_like(batches: list[pa.RecordBatch], mask: pa.Table | None, where: Path) -> list[pa.RecordBatch | None]:
    """Cut a file's target mask into the record batches of its data file."""
    if mask is None:
        return [None] * len(batches)
    if mask.num_rows != sum(len(batch) for batch in batches):
        raise BadInput(f"{where}: its target mask has {mask.num_rows} users; write the mask again")
    cut: list[pa.RecordBatch | None] = []
    start = 0
    for batch in batches:
        part = mask.slice(start, len(batch)).combine_chunks()
        cut.append(part.to_batches()[0] if len(batch) else pa.RecordBatch.from_pylist([], schema=TARGET_MASK))
        start += len(batch)
    return cut


def log_bucket(values: Array, per_octave: int, first: int = 0) -> Array:
    """Logarithmic bucket of a non-negative number: ``first + ⌊per_octave · log2(1 + value)⌋``, below BUCKETS."""
    scaled = np.floor(per_octave * np.log2(1 + np.maximum(values, 0).astype(np.float64)))
    return np.minimum(first + scaled, BUCKETS - 1).astype(np.int64)


def _list_offsets(array: pa.ListArray) -> Array:
    """Offsets of each list into ``flatten()``: from 0, whatever slice the array is."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(lengths)])


def _list(array: pa.ListArray) -> tuple[Array, Array]:
    return _list_offsets(array), np.asarray(array.flatten().to_numpy(zero_copy_only=False), dtype=np.int64)


def _ragged(batch: pa.RecordBatch, prefix: str, where: Path) -> Ragged:
    columns = {}
    offsets = _list_offsets(batch[f"{prefix}_sample_id"])
    for name in BEHAVIOUR_COLUMNS:
        column = batch[f"{prefix}_{name}"]
        other, columns[name] = _list(column)
        if not np.array_equal(other, offsets) or column.flatten().null_count:
            raise BadInput(f"{where}: {prefix}_{name} does not fit {prefix}_sample_id; {AGAIN}")
    return Ragged(offsets, columns)


def _floats(batch: pa.RecordBatch, name: str, events: Ragged, where: Path) -> Array:
    if not np.array_equal(_list_offsets(batch[name]), events.offsets):
        raise BadInput(f"{where}: {name} does not fit event_sample_id; {AGAIN}")
    return np.asarray(batch[name].flatten().to_numpy(zero_copy_only=False), dtype=np.float32)


def _positives(entries: Ragged) -> Ragged:
    return entries.where((entries.columns["feedback"] >> POSITIVE_BIT & 1).astype(bool))


def _static_keys(batch: pa.RecordBatch) -> Array:
    columns = [np.array([stable_key(user) for user in batch["user_id"].to_pylist()], dtype=np.int64)]
    for name in ("age_band", "gender", "region", "device"):
        encoded = batch[name].dictionary_encode()
        keys = np.array([stable_key(text) for text in encoded.dictionary.to_pylist()] + [0], dtype=np.int64)
        columns.append(keys[pc.fill_null(encoded.indices, len(keys) - 1).to_numpy(zero_copy_only=False)])
    return np.stack(columns, axis=1)


def _static_buckets(batch: pa.RecordBatch) -> Array:
    registered = np.asarray(pc.fill_null(batch["register_days"], -1).to_numpy(zero_copy_only=False), dtype=np.int64)
    active, behaviours = (np.asarray(batch[name].to_numpy(), dtype=np.int64) for name in ("active_days_28", "behaviours"))
    return np.stack(
        [
            np.where(registered < 0, 0, log_bucket(registered, 4, first=1)),
            np.clip(active, 0, BUCKETS - 2) + 1,
            log_bucket(behaviours, 3, first=1),
        ],
        axis=1,
    )


def _lifelong(user_ids: pa.Array, table: pa.Table | None) -> Ragged:
    """Representatives of the block's users, oldest first; means are rounded to whole milliseconds."""
    users = len(user_ids)
    if table is None or not table.num_rows:
        return Ragged(np.zeros(users + 1, np.int64), {name: np.zeros(0, np.int64) for name in LIFELONG_COLUMNS})
    rows = table.select(LIFELONG.names).take(pc.index_in(user_ids, value_set=table["user_id"].combine_chunks()))
    lists = {name: rows[name].combine_chunks() for name in LIFELONG_COLUMNS}
    offsets = _list_offsets(lists["item_key"])
    columns = {name: _whole(np.asarray(array.flatten().to_numpy(zero_copy_only=False))) for name, array in lists.items()}
    order = np.lexsort((columns["item_key"], columns["ts"], np.repeat(np.arange(users), np.diff(offsets))))
    return Ragged(offsets, {name: values[order] for name, values in columns.items()})


def _whole(values: Array) -> Array:
    """Means rounded to int64; keys and times, which are whole already, must not pass through floats."""
    return (np.rint(values) if values.dtype.kind == "f" else values).astype(np.int64)
