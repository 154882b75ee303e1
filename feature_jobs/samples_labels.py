"""Labels of one bucket's impressions: deduplication, the cap, sessions, high engagement and the user's own quantile.

Pure Arrow and NumPy: the same function labels a day's events for ``daily_samples`` and the late rows that a later
``user_state`` takes in. Every user is judged alone, so a bucket, or any set of whole users, gives the same rows.
"""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.samples_arrays import encoded_users, order_by
from feature_jobs.samples_drops import REASONS, drops
from feature_jobs.samples_history import second_watches, user_quantile
from feature_jobs.text_hashes import text_hashes
from feature_jobs.user_state_arrays import flat, group_starts, integers, log_bucket, user_index
from schemas.config import Config, PositiveDefinition
from schemas.errors import BadInput
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK

STATE_COLUMNS = ("user_id", "pending", "recent_items", "watch_histogram")
"""What labelling reads of ``user_state``."""
ITEM_COLUMNS = pa.schema(
    [
        ("author_id", pa.string()),
        ("category", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("item_duration_ms", pa.int64()),
        ("item_version_missing", pa.bool_()),
    ]
)
"""What the join with ``items`` adds to an event."""
EVENT_COLUMNS = pa.schema(
    [field for field in EVENTS.schema if field.name != "ingested_at"] + [pa.field("sample_id", pa.int64()), *ITEM_COLUMNS]
)
"""Columns of the events to be labelled."""
LABELLED_COLUMNS = pa.schema(
    [field.with_nullable(True) for field in DAILY_SAMPLES.schema if field.name != "watch_quantile_day"]
    + [pa.field("item_version_missing", pa.bool_()), pa.field("dropped", pa.string())]
)
"""Columns of labelled rows; ``dropped`` says why a row is no sample (then its labels are null)."""


def check_positive(definition: PositiveDefinition) -> None:
    """Raise BadInput for a feedback name that events do not have."""
    unknown = sorted(set(definition.feedback) - set(FEEDBACK))
    if unknown:
        raise BadInput(f"samples.positive.feedback: {', '.join(unknown)} unknown; choose among {', '.join(FEEDBACK)}")


def label_samples(events: pa.Table, state: pa.Table, config: Config, taken: np.ndarray | None = None) -> pa.Table:
    """Label events (EVENT_COLUMNS, any order) given their users' state at the end of the day before (STATE_COLUMNS).

    Returns LABELLED_COLUMNS, one row an event, samples first, sorted by (user_id, request_ts, ts, sample_id). Texts may come
    as dictionary arrays; if ``user_id`` does, texts go out as they are cheapest, dictionary arrays or plain.
    * A repeated (user_id, impression_id) keeps the row of the earliest landing, then the first by the event's columns in
      their declared order (but ``ingested_at``).
    * A user's day keeps its ``samples.user_day_cap`` earliest impressions by (ts, sample_id), less what it had ``taken`` in
      before (int64, for each event; nothing unless told).
    * A *watch* is an impression with play time above 0. It is a *second watch* if the user's last
      ``positive.repeat_window`` watches before it have its item; "before" is (observed_ts, sample_id) order among the
      pending behaviours of earlier days and these events, behind all of ``recent_items``.
    * ``watch_quantile_user`` = share of the user's plays at the day's start, in this duration bucket, whose play bucket is
      at most this play's: ⌊log(play seconds + 1)⌋ to the base ``samples.play_log_base``. Null if the bucket is empty or
      the length unknown.
    """
    users, owner = encoded_users(events["user_id"])
    dropped = drops(events, owner, config.samples.user_day_cap, taken)
    samples = _label(events, np.flatnonzero(dropped == 0), users, owner, state, config)
    rest = np.flatnonzero(dropped)
    if len(rest):
        others = events.select([name for name in samples.column_names if name in events.column_names]).take(pa.array(rest))
        others = others.append_column("dropped", pa.array(REASONS, pa.string()).take(pa.array(dropped[rest] - 1)))
        columns = [
            _as(flat(others[field.name]), field.type) if field.name in others.column_names else pa.nulls(len(rest), field.type)
            for field in samples.schema
        ]
        samples = pa.concat_tables([samples, pa.table(columns, schema=samples.schema)])
    return samples if pa.types.is_dictionary(events.schema.field("user_id").type) else samples.cast(LABELLED_COLUMNS)


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast, also from texts to a dictionary array of them."""
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.cast(kind)


def _label(events: pa.Table, kept: np.ndarray, users: pa.Array, owner: np.ndarray, state: pa.Table, config: Config) -> pa.Table:
    """The rows ``kept`` as samples, in order."""
    keys = (integers(events[name])[kept] for name in ("request_ts", "ts", "sample_id"))
    rows = kept[order_by(owner[kept], *keys)]
    wanted = ("item_duration_ms", *LABELLED_COLUMNS.names)
    events = events.select([name for name in wanted if name in events.column_names])
    if len(rows) < len(events) or (rows[1:] < rows[:-1]).any():
        events, owner = events.take(pa.array(rows)), owner[rows]
    state_owner = user_index(users, state["user_id"])
    if (state_owner < 0).any():
        state, state_owner = state.filter(pa.array(state_owner >= 0)), state_owner[state_owner >= 0]
    play = integers(events["play_time_ms"])
    duration = pc.coalesce(flat(events["duration_ms"]), flat(events["item_duration_ms"]))
    length = integers(duration, null=-1)
    ratio = np.divide(play, length, out=np.full(len(play), np.nan), where=length > 0)
    bucket = log_bucket(length, config.samples.duration_log_base)
    play_bucket = log_bucket(play, config.samples.play_log_base)
    columns = {name: events[name] for name in events.column_names} | {
        "user_id": pa.DictionaryArray.from_arrays(pa.array(owner, pa.int32()), users),
        "session_id": _sessions(events, users, owner, config.samples.session_gap_minutes),
        "duration_ms": duration,
        "positive": pa.array(_positive(events, owner, ratio, state, state_owner, config.samples.positive)),
        "play_ratio": pa.array(ratio, mask=length <= 0),
        "duration_bucket": pa.array(bucket),
        "watch_quantile_user": pa.array(user_quantile(owner, bucket, play_bucket, state, state_owner), from_pandas=True),
        "split": _split(users, owner, config.samples.holdout_share),
        "dropped": pa.nulls(len(events), pa.string()),
    }
    return pa.table({name: columns[name] for name in LABELLED_COLUMNS.names})


def _positive(
    events: pa.Table,
    owner: np.ndarray,
    ratio: np.ndarray,
    state: pa.Table,
    state_owner: np.ndarray,
    definition: PositiveDefinition,
) -> np.ndarray:
    positive = np.zeros(len(events), bool)
    for name in definition.feedback:
        positive |= flat(events[name]).to_numpy(zero_copy_only=False)
    if definition.min_play_ratio is not None:
        positive |= ratio >= definition.min_play_ratio
    if definition.repeat_watch:
        positive |= second_watches(events, owner, state, state_owner, definition.repeat_window)
    return positive


def _sessions(events: pa.Table, users: pa.Array, owner: np.ndarray, gap_minutes: int) -> pa.Array:
    """The source's session, else ``gap-`` and the hash of (user, first request): a new one after more than the gap between
    two of the user's requests of a day that have no session of the source's. ``events`` are in request order."""
    given = flat(events["session_id"])
    if not given.null_count:
        return given
    missing = np.flatnonzero(given.is_null().to_numpy(zero_copy_only=False))
    who, asked, date = owner[missing], integers(events["request_ts"])[missing], integers(events["date"])[missing]
    starts = group_starts(who, date)
    starts[1:] |= np.diff(asked) > gap_minutes * 60_000_000
    first = pa.array(asked[starts]).cast(pa.string())
    names = _session_names(text_hashes(pc.binary_join_element_wise(users.take(pa.array(who[starts])), first, "@")))
    session = np.full(len(events), -1, np.int32)
    session[missing] = np.cumsum(starts) - 1
    cut = pa.DictionaryArray.from_arrays(pa.array(session, mask=session < 0), names)
    return cut if given.null_count == len(given) else pc.coalesce(given.cast(pa.string()), cut.cast(pa.string()))


def _session_names(hashes: np.ndarray) -> pa.Array:
    """``gap-`` and sixteen hexadecimal digits for each hash (int64)."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    names = np.empty((len(hashes), 20), np.uint8)
    names[:, :4] = np.frombuffer(b"gap-", np.uint8)
    names[:, 4:] = digits[(hashes.view(np.uint64)[:, None] >> shifts & np.uint64(15)).astype(np.int64)]
    offsets = np.arange(0, names.size + 1, 20, dtype=np.int32)
    return pa.StringArray.from_buffers(len(hashes), pa.py_buffer(offsets), pa.py_buffer(names))


def _split(users: pa.Array, owner: np.ndarray, holdout_share: float) -> pa.Array:
    """``holdout`` for the users whose salted hash, as a share of 2^64, lies below ``holdout_share``; else ``train``."""
    below = math.ceil(holdout_share * 2.0**64)
    salted = text_hashes(pc.binary_join_element_wise("holdout:", users, "")).view(np.uint64)
    held = salted < np.uint64(below) if below < 2**64 else np.ones(len(users), bool)
    return pa.DictionaryArray.from_arrays(pa.array(held.astype(np.int8)[owner]), pa.array(["train", "holdout"]))
