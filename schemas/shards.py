"""The shard format, version 1: Arrow schemas and file names shared by the Spark writer and the trainer's reader.

``docs/shards.md`` explains it. Times are int64 microseconds since the epoch (UTC); an unknown length is −1; items are
``item_key``s: xxhash64 (seed 42, signed) of the item id's UTF-8 bytes, resolved through the item side table.
"""

import pyarrow as pa
import xxhash

SHARD_FORMAT = "onerec-shards"
SHARD_VERSION = 1
UNKNOWN_DURATION = -1


def stable_key(text: str) -> int:
    """xxhash64 with seed 42 as a signed integer: what Spark's ``xxhash64(text)`` gives."""
    value = xxhash.xxh64_intdigest(text.encode(), seed=42)
    return value - (1 << 64) if value >= 1 << 63 else value


def _behaviour_columns(prefix: str) -> list[pa.Field]:
    columns = {
        "sample_id": pa.int64(),
        "item_key": pa.int64(),
        "ts": pa.int64(),
        "observed_ts": pa.int64(),
        "play_time_ms": pa.int64(),
        "duration_ms": pa.int64(),
        "feedback": pa.int16(),
    }
    return [pa.field(f"{prefix}_{name}", pa.list_(kind), nullable=False) for name, kind in columns.items()]


USER_DAY = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("holdout", pa.bool_(), nullable=False),
        pa.field("age_band", pa.string()),
        pa.field("gender", pa.string()),
        pa.field("region", pa.string()),
        pa.field("device", pa.string()),
        pa.field("register_days", pa.int32()),
        pa.field("active_days_28", pa.int32(), nullable=False),
        pa.field("behaviours", pa.int64(), nullable=False),
        *_behaviour_columns("short"),
        *_behaviour_columns("positive"),
        *_behaviour_columns("pending"),
        pa.field("request_id", pa.list_(pa.string()), nullable=False),
        pa.field("request_ts", pa.list_(pa.int64()), nullable=False),
        pa.field("request_session", pa.list_(pa.int32()), nullable=False),
        pa.field("request_events", pa.list_(pa.int32()), nullable=False),
        *_behaviour_columns("event"),
        pa.field("event_watch_quantile_day", pa.list_(pa.float32()), nullable=False),
        pa.field("event_watch_quantile_user", pa.list_(pa.float32()), nullable=False),
        pa.field("event_target", pa.list_(pa.bool_()), nullable=False),
    ]
)
"""One record a user and day, ordered by user_id inside a bucket's file.

``short``, ``positive`` and ``pending`` are oldest first, by (observed_ts, sample_id); positive pending behaviours are the
pending ones with the positive bit. Requests are ordered by (request_ts, request_id); ``request_events`` says how many of
the ``event_*`` entries belong to each; events of a request are ordered by (ts, sample_id). ``request_session`` numbers
the day's sessions from 0. Unknown quantiles are NaN. ``event_target`` is the mask ``all``.
"""

ITEM_TABLE = pa.schema(
    [
        pa.field("item_key", pa.int64(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("valid_from", pa.int64(), nullable=False),
        pa.field("author_id", pa.string()),
        pa.field("category", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("duration_ms", pa.int64(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
    ]
)
"""Item versions ordered by (item_key, valid_from)."""

TOKEN_TABLE = pa.schema(
    [
        pa.field("item_key", pa.int64(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
    ]
)
"""Tokens by item, ordered by item_key; one file a codebook version and state of ``item_tokens``."""

LIFELONG = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_key", pa.list_(pa.int64()), nullable=False),
        pa.field("ts", pa.list_(pa.int64()), nullable=False),
        pa.field("play_time_ms", pa.list_(pa.float32()), nullable=False),
        pa.field("duration_ms", pa.list_(pa.float32()), nullable=False),
        pa.field("feedback", pa.list_(pa.int16()), nullable=False),
        pa.field("count", pa.list_(pa.int32()), nullable=False),
    ]
)
"""The lifelong sidecar of one refresh and bucket, ordered by user_id."""

TARGET_MASK = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("event_target", pa.list_(pa.bool_()), nullable=False),
    ]
)
"""Another target mask over a day's shard, in the same user and event order."""
