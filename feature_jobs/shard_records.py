"""Turns one bucket's samples and pathways of a day into shard records (``USER_DAY``), column by column.

Pure Arrow and NumPy: no Python runs per behaviour. Ids are hashed once for each distinct item of the bucket.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys
from schemas.errors import BadInput
from schemas.shards import UNKNOWN_DURATION, USER_DAY
from schemas.tables import DAILY_SAMPLES, FEEDBACK, PATHWAY_SHORT, PATHWAY_STATIC, POSITIVE_BIT

SAMPLE_COLUMNS = pa.schema(
    [
        DAILY_SAMPLES.schema.field(name)
        for name in (
            "user_id",
            "request_ts",
            "request_id",
            "ts",
            "sample_id",
            "session_id",
            "observed_ts",
            "item_id",
            "play_time_ms",
            "duration_ms",
            *FEEDBACK,
            "positive",
            "watch_quantile_day",
            "watch_quantile_user",
            "split",
        )
    ]
)
_STATIC = ("age_band", "gender", "region", "device", "register_days", "active_days_28", "behaviours")
STATIC_COLUMNS = pa.schema([PATHWAY_STATIC.schema.field(name) for name in ("user_id", *_STATIC)])
PATHWAY_COLUMNS = pa.schema([PATHWAY_SHORT.schema.field(name) for name in ("user_id", "behaviours", "pending")])
_ORDER = ("user_id", "request_ts", "request_id", "ts", "sample_id")


@dataclass(frozen=True)
class Inputs:
    """One bucket of a day: rows of ``daily_samples`` and of the three pathways."""

    samples: pa.Table
    static: pa.Table
    short: pa.Table
    positive: pa.Table


@dataclass(frozen=True)
class _Lists:
    """Offsets (users + 1) and the flat values below them."""

    offsets: np.ndarray
    values: dict[str, pa.Array]

    def columns(self, prefix: str) -> dict[str, pa.Array]:
        offsets = pa.array(self.offsets, pa.int32())
        return {f"{prefix}_{name}": pa.ListArray.from_arrays(offsets, values) for name, values in self.values.items()}


def user_day_records(inputs: Inputs, where: str) -> pa.Table:
    """One ``USER_DAY`` row a user, ordered by user_id. ``where`` names the day and bucket in errors.

    Raises BadInput if samples and pathways do not hold the same users, or the two pathways disagree on what is pending.
    """
    samples = inputs.samples.sort_by([(name, "ascending") for name in _ORDER]).combine_chunks()
    user_ids = _whole(samples["user_id"]).dictionary_encode()
    users = user_ids.dictionary
    user_of_event = user_ids.indices.to_numpy()
    static = _aligned(inputs.static, users, "pathway_static", where)
    short = _aligned(inputs.short, users, "pathway_short", where)
    positive = _aligned(inputs.positive, users, "pathway_positive", where)
    pending = _behaviours(short["pending"])
    _check_pending(pending, _behaviours(positive["pending"]), where)

    bounds = np.arange(len(users) + 1)
    event_offsets = np.searchsorted(user_of_event, bounds)
    lists = {
        "short": _behaviours(short["behaviours"]),
        "positive": _behaviours(positive["behaviours"]),
        "pending": pending,
        "event": _Lists(event_offsets, _event_values(samples)),
    }
    columns: dict[str, pa.Array] = {"user_id": users}
    columns |= {"holdout": pc.equal(_whole(samples["split"]).take(event_offsets[:-1]), "holdout")}
    columns |= {name: _whole(static[name]) for name in _STATIC}
    columns |= _requests(samples, user_of_event, bounds)
    for prefix, values in _with_item_keys(lists).items():
        columns |= values.columns(prefix)
    columns |= _Lists(event_offsets, _label_values(samples)).columns("event")
    return pa.table([columns[name] for name in USER_DAY.names], schema=USER_DAY)


def counts_of(records: pa.Table) -> dict[str, int]:
    """Users, requests, events and targets of the mask ``all`` in ``USER_DAY`` records."""
    return {
        "users": len(records),
        "requests": _length(records["request_id"]),
        "events": _length(records["event_sample_id"]),
        "targets": pc.sum(pc.list_flatten(records["event_target"])).as_py() or 0,
    }


def targets_without_tokens(records: pa.Table, known_keys: np.ndarray) -> int:
    """Targets whose item is not among ``known_keys`` (int64, sorted)."""
    keys = _whole(pc.list_flatten(records["event_item_key"])).to_numpy()
    target = _whole(pc.list_flatten(records["event_target"])).to_numpy(zero_copy_only=False)
    wanted = keys[target]
    if not len(known_keys):
        return len(wanted)
    place = np.minimum(np.searchsorted(known_keys, wanted), len(known_keys) - 1)
    return int((known_keys[place] != wanted).sum())


def _requests(samples: pa.Table, user_of_event: np.ndarray, bounds: np.ndarray) -> dict[str, pa.Array]:
    request_ts = _micros(samples["request_ts"]).to_numpy()
    request = _whole(samples["request_id"]).dictionary_encode().indices.to_numpy()
    begins = np.ones(len(samples), bool)
    begins[1:] = (np.diff(user_of_event) != 0) | (np.diff(request_ts) != 0) | (np.diff(request) != 0)
    starts = np.flatnonzero(begins)
    offsets = np.searchsorted(user_of_event[starts], bounds)
    values = {
        "id": _whole(samples["request_id"]).take(starts),
        "ts": pa.array(request_ts[starts]),
        "session": pa.array(_session_numbers(samples, user_of_event, starts, offsets), pa.int32()),
        "events": pa.array(np.diff(np.append(starts, len(samples))), pa.int32()),
    }
    return _Lists(offsets, values).columns("request")


def _session_numbers(samples: pa.Table, user_of_event: np.ndarray, starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Each request's session (its first event's), numbered from 0 by first request within the user."""
    encoded = _whole(samples["session_id"]).dictionary_encode()
    session = user_of_event[starts].astype(np.int64) * len(encoded.dictionary) + encoded.indices.to_numpy()[starts]
    _, first, inverse = np.unique(session, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))[inverse]
    return number - np.repeat(number[offsets[:-1]], np.diff(offsets))


def _event_values(samples: pa.Table) -> dict[str, pa.Array]:
    bits = np.zeros(len(samples), np.int16)
    for bit, flag in enumerate((*FEEDBACK, "positive")):
        bits |= _whole(samples[flag]).to_numpy(zero_copy_only=False).astype(np.int16) << bit
    return {
        "sample_id": _whole(samples["sample_id"]),
        "item_id": _whole(samples["item_id"]),
        "ts": _micros(samples["ts"]),
        "observed_ts": _micros(samples["observed_ts"]),
        "play_time_ms": _whole(samples["play_time_ms"]),
        "duration_ms": _known(samples["duration_ms"]),
        "feedback": pa.array(bits),
    }


def _label_values(samples: pa.Table) -> dict[str, pa.Array]:
    quantiles = {
        name: _whole(samples[name].fill_null(float("nan"))).cast(pa.float32(), safe=False)
        for name in ("watch_quantile_day", "watch_quantile_user")
    }
    return quantiles | {"target": _whole(pc.invert(samples["dislike"]))}


def _behaviours(column: pa.ChunkedArray) -> _Lists:
    whole = _whole(column)
    flat = whole.flatten()
    lengths = pc.list_value_length(whole).to_numpy(zero_copy_only=False)
    return _Lists(
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        {
            "sample_id": pc.struct_field(flat, "sample_id"),
            "item_id": pc.struct_field(flat, "item_id"),
            "ts": _micros(pc.struct_field(flat, "ts")),
            "observed_ts": _micros(pc.struct_field(flat, "observed_ts")),
            "play_time_ms": pc.struct_field(flat, "play_time_ms"),
            "duration_ms": _known(pc.struct_field(flat, "duration_ms")),
            "feedback": pc.struct_field(flat, "feedback").cast(pa.int16()),
        },
    )


def _with_item_keys(lists: dict[str, _Lists]) -> dict[str, _Lists]:
    """Replace item ids by keys; all lists together, so that a distinct item is hashed once."""
    keys = item_keys(pa.concat_arrays([part.values["item_id"] for part in lists.values()]))
    result, start = {}, 0
    for prefix, part in lists.items():
        count = len(part.values["item_id"])
        values = {name: array for name, array in part.values.items() if name != "item_id"}
        # copied, since a file's bytes must not depend on where a slice began
        result[prefix] = _Lists(part.offsets, values | {"item_key": pa.array(keys.slice(start, count).to_numpy())})
        start += count
    return result


def _check_pending(short: _Lists, positive: _Lists, where: str) -> None:
    """Both pathways carry the pending behaviours; the record keeps one copy, so their positive ones must agree."""

    def positives(part: _Lists) -> list[np.ndarray]:
        user = np.repeat(np.arange(len(part.offsets) - 1), np.diff(part.offsets))
        kept = part.values["feedback"].to_numpy() & (1 << POSITIVE_BIT) != 0
        return [user[kept], part.values["sample_id"].to_numpy()[kept]]

    if not all(np.array_equal(one, other) for one, other in zip(positives(short), positives(positive), strict=True)):
        raise BadInput(f"{where}: pathway_short and pathway_positive disagree on pending behaviours; run `onerec pathways` again")


def _aligned(pathway: pa.Table, users: pa.Array, name: str, where: str) -> pa.Table:
    places = pc.index_in(users, value_set=pathway["user_id"])
    missing = places.null_count  # counted, not named: messages are kept in pipeline_runs, people are not
    if missing:
        raise BadInput(f"{where}: {missing} users have samples but no {name}; run `onerec pathways` for this day again")
    if len(pathway) != len(users):
        raise BadInput(
            f"{where}: {name} has {len(pathway)} rows for {len(users)} users with samples; run `onerec pathways` again"
        )
    return pathway.take(places)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _micros(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return _whole(column).cast(pa.int64())


def _known(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return _whole(column).fill_null(UNKNOWN_DURATION)


def _length(column: pa.ChunkedArray) -> int:
    return pc.sum(pc.list_value_length(column)).as_py() or 0
