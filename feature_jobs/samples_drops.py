"""Which impressions are no samples: repetitions, and what a user's day has over the cap. Every user is judged alone."""

import numpy as np
import pyarrow as pa

from feature_jobs.samples_arrays import order_by
from feature_jobs.user_state_arrays import group_starts, integers, rank_in_group
from schemas.tables import EVENTS

REASONS = ("duplicate", "over_the_cap")
"""Why a row is dropped; ``drops`` gives the place + 1, 0 for a row that is kept."""
DUPLICATE, OVER_THE_CAP = REASONS
_KEEP_FIRST = (
    "landing_date",
    *(
        name
        for name in EVENTS.schema.names
        if name not in ("landing_date", "ingested_at", "user_id", "impression_id", "user_bucket")
    ),
)
"""Of a repeated impression's rows, the first by these columns is kept."""


def drops(events: pa.Table, owner: np.ndarray, cap: int, taken: np.ndarray | None = None) -> np.ndarray:
    """For each event 0, or 1 + the place in REASONS of why it is dropped (int8); ``owner`` is its user's code.

    A repeated ``sample_id`` of a user keeps the row of the earliest landing, then the first by the columns of EVENTS that
    ``events`` has, in their declared order. A user's day keeps its ``cap`` earliest impressions by (ts, sample_id), fewer
    where ``taken`` (int64, for each event) says how many impressions its user's day had before.
    """
    dropped = np.zeros(len(events), np.int8)
    sample_id = integers(events["sample_id"])
    dropped[_repetitions(events, owner, sample_id)] = 1
    most = np.bincount(owner)
    if taken is not None:
        before = np.zeros(len(most), np.int64)
        np.maximum.at(before, owner, taken)
        most = most + before
    crowded = most > cap
    if crowded.any():
        rows = np.flatnonzero(crowded[owner] & (dropped == 0))
        who, date, ts = owner[rows], integers(events["date"])[rows], integers(events["ts"])[rows]
        order = order_by(who, date, ts, sample_id[rows])
        place = rank_in_group(who[order], date[order]) + (0 if taken is None else taken[rows[order]])
        dropped[rows[order[place >= cap]]] = 2
    return dropped


def _repetitions(events: pa.Table, owner: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
    """Rows that repeat an impression of their user and are not the one to keep."""
    sorted_ids = np.sort(sample_id)
    repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    if not len(repeated):
        return np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(repeated, sample_id), len(repeated) - 1)
    rows = np.flatnonzero(repeated[place] == sample_id)
    rows = rows[order_by(owner[rows], sample_id[rows])]
    starts = group_starts(owner[rows], sample_id[rows])
    alone = starts & np.append(starts[1:], True)
    rows = rows[~alone]
    if not len(rows):
        return rows
    columns = events.select([name for name in _KEEP_FIRST if name in events.column_names]).take(pa.array(rows))
    columns = pa.table([_plain(column) for column in columns.columns], names=columns.column_names)
    names = columns.column_names
    columns = columns.append_column("_owner", pa.array(owner[rows])).append_column("_sample_id", pa.array(sample_id[rows]))
    columns = columns.append_column("_row", pa.array(rows))
    columns = columns.sort_by([(name, "ascending") for name in ("_owner", "_sample_id", *names)])
    later = ~group_starts(integers(columns["_owner"]), integers(columns["_sample_id"]))
    return integers(columns["_row"])[later]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without its dictionary, whose codes would be sorted in place of the texts."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
