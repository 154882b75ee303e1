"""Every table of the lake, declared once in Arrow: columns, nullability, partitions, CHECK constraints.

Spark, delta-rs, Beam, the trainer, the tests and ``docs/tables.md`` all read these declarations. A CHECK constraint is
written in the SQL that Spark and DataFusion share (comparisons, AND, OR, IS NULL): both engines enforce it on the rows that
they write. Files that a task writes and the driver commits (``feature_jobs.partition_files``: events, samples, pathways,
history, state) pass no engine and are not checked: there the step's own rules hold, and ``tests/feature_jobs/test_checks.py``
evaluates the constraints on what the steps wrote.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
FEEDBACK = ("click", "like", "follow", "comment", "forward", "dislike", "profile_enter", "long_view")
"""Feedback flags in the order of their bits: ``feedback`` = Σ flag_i · 2^i. Bit 8 is ``positive``."""
POSITIVE_BIT = len(FEEDBACK)


@dataclass(frozen=True)
class Table:
    """A Delta table of the lake.

    ``schema`` includes the partition columns. ``checks`` maps a constraint's name to its SQL. ``key`` names the columns
    of the grain: no two live rows agree on all of them.
    """

    name: str
    grain: str
    schema: pa.Schema
    key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()
    checks: Mapping[str, str] = field(default_factory=dict)


def _column(name: str, kind: pa.DataType, doc: str, *, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"doc": doc})


def column_doc(column: pa.Field) -> str:
    """The sentence that describes a column."""
    return (column.metadata or {}).get(b"doc", b"").decode()


_DATE = _column("date", pa.date32(), "calendar day of request_ts in the lake's day_timezone", required=True)
_BUCKET = _column("user_bucket", pa.int32(), "pmod(xxhash64(user_id, seed 42), user_buckets)", required=True)
_USER = _column("user_id", pa.string(), "the user", required=True)
_ITEM = _column("item_id", pa.string(), "the item", required=True)

_FEEDBACK_COLUMNS = [
    _column("click", pa.bool_(), "clicked or started playing", required=True),
    _column("like", pa.bool_(), "liked", required=True),
    _column("follow", pa.bool_(), "followed the author", required=True),
    _column("comment", pa.bool_(), "commented", required=True),
    _column("forward", pa.bool_(), "forwarded or shared", required=True),
    _column("dislike", pa.bool_(), "explicitly disliked", required=True),
    _column("profile_enter", pa.bool_(), "entered the author's profile", required=True),
    _column("long_view", pa.bool_(), "watched long enough to count as a long view (the source decides)", required=True),
]

BEHAVIOUR = pa.struct(
    [
        _column("sample_id", pa.int64(), "sample of the impression", required=True),
        _ITEM,
        _column("author_id", pa.string(), "author at request_ts"),
        _column("tags", pa.list_(pa.string()), "tags at request_ts"),
        _column("ts", TIMESTAMP, "when it was shown", required=True),
        _column("observed_ts", TIMESTAMP, "when its feedback was complete", required=True),
        _column("play_time_ms", pa.int64(), "milliseconds watched", required=True),
        _column("duration_ms", pa.int64(), "length of the item; null if unknown"),
        _column("feedback", pa.int32(), "feedback bits (FEEDBACK order), bit 8 = positive", required=True),
    ]
)
"""One past behaviour as the pathways and ``user_state`` hold it."""
_BEHAVIOURS = pa.list_(BEHAVIOUR)

REPRESENTATIVE = pa.struct(
    [
        _ITEM,
        _column("author_id", pa.string(), "author of the representative"),
        _column("tags", pa.list_(pa.string()), "tags of the representative"),
        _column("feedback", pa.int32(), "feedback bits of the representative", required=True),
        _column("ts", TIMESTAMP, "mean time of the cluster", required=True),
        _column("play_time_ms", pa.float32(), "mean milliseconds watched", required=True),
        _column("duration_ms", pa.float32(), "mean known length; null if none is known"),
        _column("count", pa.int32(), "behaviours in the cluster", required=True),
    ]
)
"""One cluster of a lifelong history: the member nearest its centre, numeric features averaged (V1 §2.2.1)."""

EVENTS = Table(
    name="events",
    grain="one impression",
    schema=pa.schema(
        [
            _column("impression_id", pa.string(), "the impression, unique in the source", required=True),
            _column("request_id", pa.string(), "the request that returned it; impression_id without one", required=True),
            _USER,
            _ITEM,
            _column("request_ts", TIMESTAMP, "when the model was asked", required=True),
            _column("ts", TIMESTAMP, "when the impression was shown", required=True),
            _column("observed_ts", TIMESTAMP, "when feedback was complete; ts + play_time_ms unless told", required=True),
            _column("ingested_at", TIMESTAMP, "when the row entered the lake", required=True),
            _column("session_id", pa.string(), "session, if the source knows it"),
            _column("scene", pa.string(), "surface it was shown on"),
            _column("play_time_ms", pa.int64(), "milliseconds watched", required=True),
            _column("duration_ms", pa.int64(), "length of the item; null if unknown"),
            *_FEEDBACK_COLUMNS,
            _DATE,
            _column("landing_date", pa.date32(), "landing folder it came in", required=True),
            _BUCKET,
        ]
    ),
    key=("date", "user_id", "impression_id"),
    partition_by=("date", "landing_date", "user_bucket"),
    checks={
        "play_time_not_negative": "play_time_ms >= 0",
        "duration_positive": "duration_ms IS NULL OR duration_ms > 0",
        "shown_after_request": "ts >= request_ts",
        "observed_after_shown": "observed_ts >= ts",
        "not_from_the_future": "date <= landing_date",
    },
)

ITEMS = Table(
    name="items",
    grain="one item × change",
    schema=pa.schema(
        [
            _ITEM,
            _column("valid_from", TIMESTAMP, "when this version began to hold", required=True),
            _column("author_id", pa.string(), "who made it"),
            _column("category", pa.string(), "category"),
            _column("tags", pa.list_(pa.string()), "tags"),
            _column("title", pa.string(), "title"),
            _column("caption", pa.string(), "caption"),
            _column("ocr_text", pa.string(), "text read off the picture"),
            _column("asr_text", pa.string(), "text heard in the sound"),
            _column("cover_uri", pa.string(), "cover picture; resolved against the landing zone at ingest"),
            _column("frame_uris", pa.list_(pa.string()), "sampled frames; resolved likewise"),
            _column("audio_uri", pa.string(), "sound; resolved likewise"),
            _column("duration_ms", pa.int64(), "length; null if unknown"),
            _column("upload_ts", TIMESTAMP, "when it was uploaded"),
            _column("deleted", pa.bool_(), "this version says that the item is gone", required=True),
        ]
    ),
    key=("item_id", "valid_from"),
    checks={"duration_positive": "duration_ms IS NULL OR duration_ms > 0"},
)

USERS = Table(
    name="users",
    grain="user × day",
    schema=pa.schema(
        [
            _USER,
            _column(
                "date",
                pa.date32(),
                "day at whose end the snapshot was exported; used from the next day on",
                required=True,
            ),
            _column("age_band", pa.string(), "age band"),
            _column("gender", pa.string(), "gender"),
            _column("region", pa.string(), "region"),
            _column("register_ts", TIMESTAMP, "when the user registered"),
            _column("device", pa.string(), "device"),
        ]
    ),
    key=("date", "user_id"),
    partition_by=("date",),
)

QUARANTINE = Table(
    name="quarantine",
    grain="one rejected row",
    schema=pa.schema(
        [
            _column("table_name", pa.string(), "table the row was meant for", required=True),
            _column("date", pa.date32(), "landing or step date", required=True),
            _column("row_json", pa.string(), "the row as it came", required=True),
            _column("reasons", pa.list_(pa.string()), "every reason, `column: what is wrong`", required=True),
            _column("source_file", pa.string(), "file it came from"),
        ]
    ),
    key=(),
    partition_by=("table_name", "date"),
)

DAILY_SAMPLES = Table(
    name="daily_samples",
    grain="one impression, deduplicated, labelled",
    schema=pa.schema(
        [
            _column(
                "sample_id",
                pa.int64(),
                "xxhash64(user_id, impression_id), seed 42; unique within a user",
                required=True,
            ),
            _column("impression_id", pa.string(), "the impression", required=True),
            _column("request_id", pa.string(), "the request: the unit of training", required=True),
            _USER,
            _column("session_id", pa.string(), "the source's session, else one cut at gaps (configuration)", required=True),
            _column("request_ts", TIMESTAMP, "when the model was asked", required=True),
            _column("ts", TIMESTAMP, "when it was shown", required=True),
            _column("observed_ts", TIMESTAMP, "when its feedback was complete", required=True),
            _ITEM,
            _column("author_id", pa.string(), "author, of the item version valid before request_ts"),
            _column("category", pa.string(), "category, likewise"),
            _column("tags", pa.list_(pa.string()), "tags, likewise"),
            _column("scene", pa.string(), "surface"),
            _column("play_time_ms", pa.int64(), "milliseconds watched", required=True),
            _column("duration_ms", pa.int64(), "length: the event's, else the item's; null if unknown"),
            *_FEEDBACK_COLUMNS,
            _column("positive", pa.bool_(), "high engagement (configuration; reference §2)", required=True),
            _column("play_ratio", pa.float64(), "play_time_ms ÷ duration_ms; null if the length is unknown"),
            _column("duration_bucket", pa.int32(), "⌊log_β(duration in s + 1)⌋ (V2); −1 if unknown", required=True),
            _column(
                "watch_quantile_day",
                pa.float64(),
                "share of the day's plays in the duration bucket that are ≤ this one; a label",
            ),
            _column(
                "watch_quantile_user",
                pa.float64(),
                "the same within the user's own histogram at the day's start; null without one",
            ),
            _column("split", pa.string(), "train, or holdout (a stable share of users)", required=True),
            _DATE,
            _BUCKET,
        ]
    ),
    key=("date", "user_id", "sample_id"),
    partition_by=("date", "user_bucket"),
    checks={
        "play_time_not_negative": "play_time_ms >= 0",
        "quantile_day_in_range": "watch_quantile_day IS NULL OR (watch_quantile_day >= 0 AND watch_quantile_day <= 1)",
        "quantile_user_in_range": "watch_quantile_user IS NULL OR (watch_quantile_user >= 0 AND watch_quantile_user <= 1)",
        "split_known": "split = 'train' OR split = 'holdout'",
    },
)

USER_STATE = Table(
    name="user_state",
    grain="one user at the end of a day",
    schema=pa.schema(
        [
            _USER,
            _column(
                "short",
                _BEHAVIOURS,
                "last 20 with observed_ts before the day's end, by (observed_ts, sample_id)",
                required=True,
            ),
            _column("positive", _BEHAVIOURS, "last 256 positives, likewise", required=True),
            _column("pending", _BEHAVIOURS, "behaviours not yet observed at the day's end, same order", required=True),
            _column(
                "recent_items",
                pa.list_(pa.int64()),
                "xxhash64 of the last 512 items, by day taken in, then (observed_ts, sample_id); finds second watches",
                required=True,
            ),
            _column(
                "watch_histogram",
                pa.list_(
                    pa.struct(
                        [
                            _column("duration_bucket", pa.int32(), "duration bucket", required=True),
                            _column("play_bucket", pa.int32(), "logarithmic play time bucket", required=True),
                            _column("count", pa.int64(), "plays", required=True),
                        ]
                    )
                ),
                "the user's plays by duration bucket and play time bucket, sorted",
                required=True,
            ),
            _column("active_days", pa.int64(), "bitmap of the last 56 days, bit 0 = this day", required=True),
            _column("behaviours", pa.int64(), "behaviours ever taken in", required=True),
            _column(
                "landings_seen",
                pa.list_(pa.date32()),
                "landings taken in (the same for every user of a day)",
                required=True,
            ),
            _column(
                "landings_from",
                pa.date32(),
                "landings before this date are forgotten: `landings_seen` names none of them (the same for every user of a day)",
            ),
            _column("age_band", pa.string(), "from the latest snapshot exported before this day"),
            _column("gender", pa.string(), "likewise"),
            _column("region", pa.string(), "likewise"),
            _column("device", pa.string(), "likewise"),
            _column("register_ts", TIMESTAMP, "likewise"),
            _column("snapshot_date", pa.date32(), "that snapshot; null if there is none"),
            _column(
                "users_version",
                pa.int64(),
                "version of `users` whose snapshots before this day are in (the same for every user of a day)",
            ),
            _column("date", pa.date32(), "the day whose end this is", required=True),
            _BUCKET,
        ]
    ),
    key=("date", "user_id"),
    partition_by=("date", "user_bucket"),
)


def _pathway(name: str, content: str) -> Table:
    return Table(
        name=name,
        grain="user × day, users active that day",
        schema=pa.schema(
            [
                _USER,
                _column("behaviours", _BEHAVIOURS, f"{content} known at the start of the day, oldest first", required=True),
                _column("pending", _BEHAVIOURS, "of earlier days, observed only later; oldest first", required=True),
                _DATE,
                _BUCKET,
            ]
        ),
        key=("date", "user_id"),
        partition_by=("date", "user_bucket"),
    )


PATHWAY_SHORT = _pathway("pathway_short", "the last 20 behaviours")
PATHWAY_POSITIVE = _pathway("pathway_positive", "the last 256 positive behaviours")
PATHWAY_STATIC = Table(
    name="pathway_static",
    grain="user × day, users active that day",
    schema=pa.schema(
        [
            _USER,
            _column("age_band", pa.string(), "from the latest snapshot before the day"),
            _column("gender", pa.string(), "likewise"),
            _column("region", pa.string(), "likewise"),
            _column("device", pa.string(), "likewise"),
            _column("register_days", pa.int32(), "whole days since registration at the day's start; null if unknown"),
            _column("active_days_28", pa.int32(), "active days among the 28 before this one", required=True),
            _column("behaviours", pa.int64(), "behaviours known at the day's start", required=True),
            _column("snapshot_date", pa.date32(), "the snapshot used; null if none"),
            _DATE,
            _BUCKET,
        ]
    ),
    key=("date", "user_id"),
    partition_by=("date", "user_bucket"),
)

HISTORY_BASE = dt.date(1900, 1, 1)
"""The ``date`` of a bucket's base in ``history``: no landing has it, so no day's job replaces a base."""

HISTORY = Table(
    name="history",
    grain="user × day",
    schema=pa.schema(
        [
            _USER,
            _column(
                "behaviours",
                _BEHAVIOURS,
                "what the landing of this day brought (late rows included), by (observed_ts, sample_id); in a base, the newest "
                "lifelong.max_history of all days that it replaced",
                required=True,
            ),
            _column("landed", pa.list_(pa.date32()), "base only: the landing day of each behaviour"),
            _column("leaf", pa.list_(pa.int16()), "base only: the cluster of each behaviour, −1 if it has none yet"),
            _column("joined", pa.int64(), "base only: behaviours that joined clusters since they were made from scratch"),
            _column("fusion_version", pa.string(), "base only: vectors that were clustered; null if none were"),
            _column("refresh_date", pa.date32(), "base only: the last day that it holds"),
            _BUCKET,
            _column("date", pa.date32(), "the landing day; 1900-01-01 for a base", required=True),
        ]
    ),
    key=("date", "user_id"),
    partition_by=("user_bucket", "date"),
)

PATHWAY_LIFELONG = Table(
    name="pathway_lifelong",
    grain="user × refresh",
    schema=pa.schema(
        [
            _USER,
            _column(
                "representatives",
                pa.list_(REPRESENTATIVE),
                "at most lifelong.max_representatives, by ts",
                required=True,
            ),
            _column("history_length", pa.int64(), "behaviours that were compressed", required=True),
            _column("fusion_version", pa.string(), "vectors that were clustered", required=True),
            _column("refresh_date", pa.date32(), "history up to the end of this day", required=True),
            _BUCKET,
        ]
    ),
    key=("refresh_date", "user_id"),
    partition_by=("refresh_date", "user_bucket"),
)

CO_INTERACTION = Table(
    name="co_interaction",
    grain="item pair × kind",
    schema=pa.schema(
        [
            _column("kind", pa.string(), "swing, co_occurrence or user_to_item", required=True),
            _column("item_a", pa.string(), "item; for user_to_item, the clicked target", required=True),
            _column("item_b", pa.string(), "the other item", required=True),
            _column("score", pa.float64(), "similarity, comparable within a kind", required=True),
            _column("support", pa.int64(), "users behind the pair", required=True),
            _column("date", pa.date32(), "last day of the window", required=True),
        ]
    ),
    key=("date", "kind", "item_a", "item_b"),
    partition_by=("date",),
    checks={
        "kind_known": "kind = 'swing' OR kind = 'co_occurrence' OR kind = 'user_to_item'",
        "two_items": "item_a <> item_b",
        "score_not_negative": "score >= 0",
    },
)

ITEM_VECTORS = Table(
    name="item_vectors",
    grain="item content × encoder; item × fusion version",
    schema=pa.schema(
        [
            _ITEM,
            _column("kind", pa.string(), "text, image, audio or fused", required=True),
            _column("source", pa.string(), "encoder string, or fusion version for fused rows", required=True),
            _column("content_hash", pa.string(), "hex sha256 of the content (fused: of its inputs' hashes)", required=True),
            _column(
                "presence_mask",
                pa.int32(),
                "fused rows: bit 0 text, 1 image, 2 audio were present; else 0",
                required=True,
            ),
            _column("vector", pa.list_(pa.float32()), "unit length", required=True),
        ]
    ),
    key=("item_id", "kind", "source", "content_hash"),
    partition_by=(),
    checks={"kind_known": "kind = 'text' OR kind = 'image' OR kind = 'audio' OR kind = 'fused'"},
)

ITEM_TOKENS = Table(
    name="item_tokens",
    grain="item × codebook version",
    schema=pa.schema(
        [
            _ITEM,
            _column("tokens", pa.list_(pa.int32()), "one a layer, below its size; a suffix may follow", required=True),
            _column("rank", pa.int32(), "place among the items of the same tokens, from 0 (docs/codebook.md)", required=True),
            _column("residual_norm", pa.float32(), "norm of what the tokens leave unexplained", required=True),
            _column("content_hash", pa.string(), "of the fused vector that was quantised", required=True),
            _column("codebook_version", pa.string(), "codebook", required=True),
        ]
    ),
    key=("codebook_version", "item_id"),
    partition_by=("codebook_version",),
    checks={"rank_not_negative": "rank >= 0"},
)

PIPELINE_RUNS = Table(
    name="pipeline_runs",
    grain="step × date × attempt × table",
    schema=pa.schema(
        [
            _column("run_id", pa.string(), "one run of a step", required=True),
            _column("step", pa.string(), "command", required=True),
            _column("date", pa.date32(), "date of the step; null where it has none"),
            _column("attempt", pa.int32(), "from 1, by step and date", required=True),
            _column("status", pa.string(), "succeeded, failed or gate", required=True),
            _column("started_at", TIMESTAMP, "start", required=True),
            _column("seconds", pa.float64(), "duration", required=True),
            _column("table_name", pa.string(), "table written; null for a run that wrote none"),
            _column("rows_in", pa.int64(), "rows (or the unit that the step keeps) read"),
            _column("rows_out", pa.int64(), "written"),
            _column("rows_quarantined", pa.int64(), "put into quarantine"),
            _column("rows_dropped", pa.map_(pa.string(), pa.int64()), "dropped, by reason"),
            _column("code_version", pa.string(), "version of this distribution", required=True),
            _column("config_version", pa.string(), "hash of the configuration", required=True),
            _column("input_versions", pa.map_(pa.string(), pa.int64()), "Delta version of each input"),
            _column("message", pa.string(), "error line of a run that did not succeed; remark of one that did"),
        ]
    ),
    key=(),
    checks={"status_known": "status = 'succeeded' OR status = 'failed' OR status = 'gate'"},
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        EVENTS,
        ITEMS,
        USERS,
        QUARANTINE,
        DAILY_SAMPLES,
        USER_STATE,
        PATHWAY_STATIC,
        PATHWAY_SHORT,
        PATHWAY_POSITIVE,
        HISTORY,
        PATHWAY_LIFELONG,
        CO_INTERACTION,
        ITEM_VECTORS,
        ITEM_TOKENS,
        PIPELINE_RUNS,
    )
}
