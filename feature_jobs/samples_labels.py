"""Labels of one bucket's impressions: deduplication, the cap, sessions, high engagement and the user's own quantile.

Pure Arrow and NumPy: the same function labels a day's events for ``daily_samples`` and the late rows that a later
``user_state`` takes in. Every user is judged alone, so a bucket, or any set of whole users, gives the same rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys
from feature_jobs.user_state_arrays import (
    flat,
    group_starts,
    integers,
    log_bucket,
    owners,
    rank_in_group,
    sorted_users,
    user_index,
    watched_items,
)
from schemas.config import Config, PositiveDefinition
from schemas.errors import BadInput
from schemas.shards import stable_key
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK

DUPLICATE = "duplicate"
OVER_THE_CAP = "over_the_cap"
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

_TOTAL_ORDER = [
    ("landing_date", "ascending"),
    *(
        (field.name, "ascending")
        for field in EVENTS.schema
        if field.name not in ("landing_date", "ingested_at", "user_id", "impression_id", "user_bucket")
    ),
]


def check_positive(definition: PositiveDefinition) -> None:
    """Raise BadInput for a feedback name that events do not have."""
    unknown = sorted(set(definition.feedback) - set(FEEDBACK))
    if unknown:
        raise BadInput(f"samples.positive.feedback: {', '.join(unknown)} unknown; choose among {', '.join(FEEDBACK)}")


def label_samples(events: pa.Table, state: pa.Table, config: Config) -> pa.Table:
    """Label events (EVENT_COLUMNS, any order) given their users' state at the end of the day before (STATE_COLUMNS).

    Returns LABELLED_COLUMNS, one row an event, samples first, sorted by (user_id, request_ts, ts, sample_id).
    * A repeated (user_id, impression_id) keeps the row of the earliest landing, then the first by the event's columns in
      their declared order (but ``ingested_at``).
    * A user's day keeps its ``samples.user_day_cap`` earliest impressions by (ts, sample_id).
    * A *watch* is an impression with play time above 0. It is a *second watch* if the user's last
      ``positive.repeat_window`` watches before it have its item; "before" is (observed_ts, sample_id) order among the
      pending behaviours of earlier days and these events, behind all of ``recent_items``.
    * ``watch_quantile_user`` = share of the user's plays at the day's start, in this duration bucket, whose play bucket is
      at most this play's: ⌊log(play seconds + 1)⌋ to the base ``samples.play_log_base``. Null if the bucket is empty or
      the length unknown.
    """
    users = sorted_users(events["user_id"])
    owner = user_index(users, events["user_id"])
    dropped = _dropped(events, owner, config.samples.user_day_cap)
    kept = dropped == ""
    samples = _label(events.filter(pa.array(kept)), users, owner[kept], state, config)
    rest = events.filter(pa.array(~kept)).append_column("dropped", pa.array(dropped[~kept], pa.string()))
    present = [name for name in LABELLED_COLUMNS.names if name in rest.column_names]
    columns = [
        rest[name].cast(LABELLED_COLUMNS.field(name).type)
        if name in present
        else pa.nulls(len(rest), LABELLED_COLUMNS.field(name).type)
        for name in LABELLED_COLUMNS.names
    ]
    return pa.concat_tables([samples, pa.table(columns, schema=LABELLED_COLUMNS)])


def _dropped(events: pa.Table, owner: np.ndarray, cap: int) -> np.ndarray:
    """For each event "" or why it is dropped."""
    dropped = np.full(len(events), "", dtype=object)
    sample_id = integers(events["sample_id"])
    order = np.lexsort((sample_id, owner))
    group = np.cumsum(group_starts(owner[order], sample_id[order])) - 1 if len(order) else order
    repeated = order[np.bincount(group)[group] > 1] if len(order) else order
    if len(repeated):
        numbers = pa.table({"owner": owner[repeated], "sample_id": sample_id[repeated], "row": repeated})
        rows = events.take(pa.array(repeated)).select([name for name, _ in _TOTAL_ORDER])
        for name in numbers.column_names:
            rows = rows.append_column(f"_{name}", numbers[name])
        rows = rows.sort_by([("_owner", "ascending"), ("_sample_id", "ascending"), *_TOTAL_ORDER])
        later = rank_in_group(integers(rows["_owner"]), integers(rows["_sample_id"])) > 0
        dropped[integers(rows["_row"])[later]] = DUPLICATE
    kept = np.flatnonzero(dropped == "")
    ts, date = integers(events["ts"]), integers(events["date"])
    kept = kept[np.lexsort((sample_id[kept], ts[kept], date[kept], owner[kept]))]
    if len(kept):
        dropped[kept[rank_in_group(owner[kept], date[kept]) >= cap]] = OVER_THE_CAP
    return dropped


def _label(events: pa.Table, users: pa.Array, owner: np.ndarray, state: pa.Table, config: Config) -> pa.Table:
    keys = (integers(events[name]) for name in ("sample_id", "ts", "request_ts"))
    order = np.lexsort((*keys, owner))
    events, owner = events.take(pa.array(order)), owner[order]
    play = integers(events["play_time_ms"])
    duration = pc.coalesce(flat(events["duration_ms"]), flat(events["item_duration_ms"]))
    length = integers(duration, null=-1)
    ratio = np.divide(play, length, out=np.full(len(play), np.nan), where=length > 0)
    bucket = log_bucket(length, config.samples.duration_log_base)
    play_bucket = log_bucket(play, config.samples.play_log_base)
    state_owner = user_index(users, state["user_id"])
    state, state_owner = state.filter(pa.array(state_owner >= 0)), state_owner[state_owner >= 0]
    definition = config.samples.positive
    positive = np.zeros(len(events), bool)
    for name in definition.feedback:
        positive |= integers(events[name]).astype(bool)
    if definition.min_play_ratio is not None:
        positive |= ratio >= definition.min_play_ratio
    if definition.repeat_watch:
        positive |= _second_watches(events, owner, state, state_owner, definition.repeat_window)
    computed = {
        "session_id": _sessions(events, users, owner, config.samples.session_gap_minutes),
        "duration_ms": duration,
        "positive": pa.array(positive),
        "play_ratio": pa.array(ratio, from_pandas=True),
        "duration_bucket": pa.array(bucket),
        "watch_quantile_user": pa.array(_user_quantile(owner, bucket, play_bucket, state, state_owner), from_pandas=True),
        "split": _split(users, config.samples.holdout_share).take(pa.array(owner)),
        "dropped": pa.nulls(len(events), pa.string()),
    }
    columns = [computed[name] if name in computed else events[name] for name in LABELLED_COLUMNS.names]
    return pa.table(
        [flat(column).cast(field.type) for column, field in zip(columns, LABELLED_COLUMNS, strict=True)], schema=LABELLED_COLUMNS
    )


def _second_watches(events: pa.Table, owner: np.ndarray, state: pa.Table, state_owner: np.ndarray, window: int) -> np.ndarray:
    recent = flat(state["recent_items"])
    pending = flat(state["pending"])
    waiting = pending.flatten()
    waiting_watched, waiting_items = watched_items(waiting)
    remembered = integers(recent.flatten())
    earliest = np.iinfo(np.int64).min
    sequence_owner = np.concatenate([state_owner[owners(recent)], state_owner[owners(pending)], owner])
    observed = np.concatenate(
        [np.full(len(remembered), earliest), integers(waiting.field("observed_ts")), integers(events["observed_ts"])]
    )
    tie = np.concatenate([np.arange(len(remembered)), integers(waiting.field("sample_id")), integers(events["sample_id"])])
    item = np.concatenate([remembered, waiting_items, integers(item_keys(events["item_id"]))])
    watched = np.concatenate([np.ones(len(remembered), bool), waiting_watched, integers(events["play_time_ms"]) > 0])
    row = np.concatenate([np.full(len(remembered) + len(waiting), -1), np.arange(len(events))])
    order = np.lexsort((tie, observed, sequence_owner))
    order = order[watched[order]]
    place = np.empty(len(sequence_owner), np.int64)
    place[order] = np.arange(len(order))
    by_item = order[np.lexsort((place[order], item[order], sequence_owner[order]))]
    again = ~group_starts(sequence_owner[by_item], item[by_item]) if len(by_item) else np.zeros(0, bool)
    again[1:] &= place[by_item[1:]] - place[by_item[:-1]] <= window
    second = np.zeros(len(events), bool)
    second[row[by_item[again & (row[by_item] >= 0)]]] = True
    return second


def _user_quantile(
    owner: np.ndarray, bucket: np.ndarray, play_bucket: np.ndarray, state: pa.Table, state_owner: np.ndarray
) -> np.ndarray:
    histogram = flat(state["watch_histogram"])
    cells = histogram.flatten()
    cell_owner = state_owner[owners(histogram)]
    cell_bucket, cell_play = integers(cells.field("duration_bucket")), integers(cells.field("play_bucket"))
    order = np.lexsort((cell_play, cell_bucket, cell_owner))
    width = 1 << 20  # buckets of either kind are logarithms, far fewer than this
    key = ((cell_owner * width + cell_bucket + 1) * width + cell_play)[order]
    total = np.concatenate([[0], np.cumsum(integers(cells.field("count"))[order])])
    first = (owner * width + bucket + 1) * width
    start = total[np.searchsorted(key, first, side="left")]
    upto = total[np.searchsorted(key, first + play_bucket, side="right")] - start
    whole = total[np.searchsorted(key, first + width, side="left")] - start
    return np.divide(upto, whole, out=np.full(len(owner), np.nan), where=(whole > 0) & (bucket >= 0))


def _sessions(events: pa.Table, users: pa.Array, owner: np.ndarray, gap_minutes: int) -> pa.Array:
    """The source's session, else ``gap-`` and the hash of (user, first request): a new one after more than the gap between
    two of the user's requests of a day that have no session of the source's. ``events`` are in request order."""
    given = flat(events["session_id"])
    missing = np.flatnonzero(given.is_null().to_numpy(zero_copy_only=False))
    if not len(missing):
        return given
    who, asked, date = owner[missing], integers(events["request_ts"])[missing], integers(events["date"])[missing]
    starts = group_starts(who, date)
    starts[1:] |= np.diff(asked) > gap_minutes * 60_000_000
    names = [
        f"gap-{stable_key(f'{user}@{first}') % 2**64:016x}"
        for user, first in zip(users.take(pa.array(who[starts])).to_pylist(), asked[starts].tolist(), strict=True)
    ]
    cut = np.full(len(events), "", dtype=object)
    cut[missing] = np.array(names, dtype=object)[np.cumsum(starts) - 1]
    return pc.coalesce(given, pa.array(cut, pa.string()))


def _split(users: pa.Array, holdout_share: float) -> pa.Array:
    """``holdout`` for the users whose salted hash, as a share of 2^64, lies below ``holdout_share``; else ``train``."""
    return pa.array(
        ["holdout" if stable_key(f"holdout:{user}") % 2**64 < holdout_share * 2.0**64 else "train" for user in users.to_pylist()],
        pa.string(),
    )
