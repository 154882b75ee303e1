"""Static facts of users in ``user_state``: the latest snapshot of each, moved on by the snapshots that are new."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.user_state_arrays import flat, integers, user_index
from schemas.tables import USER_STATE

FACTS = ("age_band", "gender", "region", "device", "register_ts", "snapshot_date")
"""Columns of ``user_state`` that come from the latest snapshot; ``snapshot_date`` is the snapshot's ``date``."""
PROFILE = pa.schema([("user_id", pa.string()), *((name, USER_STATE.schema.field(name).type) for name in FACTS)])
"""A user's latest snapshot among some."""
_NEVER = np.iinfo(np.int64).min


def latest_facts(state: pa.Table, snapshots: pa.Table, users: pa.Array) -> dict[str, pa.Array]:
    """FACTS of each of ``users``: those of ``state`` (user_id, FACTS), or of ``snapshots`` (PROFILE, one row a user) unless
    the state's are of a later date; a snapshot of the same date was exported again and replaces them. Nulls without any."""
    held = _place(users, state)
    new = _place(users, snapshots)
    newer = _dates(snapshots, new) >= np.maximum(_dates(state, held), _NEVER + 1)
    if not newer.any() and len(held) == len(state) and (held == np.arange(len(held))).all():
        return {name: flat(state[name]) for name in FACTS}
    index = np.where(newer, new + len(state), held)
    rows = pa.array(index, mask=index < 0)
    return {name: pa.concat_arrays([flat(state[name]), flat(snapshots[name])]).take(rows) for name in FACTS}


def latest_of_each(snapshots: pa.Table) -> pa.Table:
    """The row of the latest ``snapshot_date`` of each user (PROFILE), in user order."""
    rows = snapshots.sort_by([("user_id", "ascending"), ("snapshot_date", "ascending")])
    users = flat(rows["user_id"])
    last = np.ones(len(users), bool)
    if len(users) > 1:
        last[:-1] = pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(last))


def _place(users: pa.Array, rows: pa.Table) -> np.ndarray:
    """Where each user's row is, −1 without one."""
    return user_index(flat(rows["user_id"]), users) if len(rows) else np.full(len(users), -1)


def _dates(rows: pa.Table, place: np.ndarray) -> np.ndarray:
    """``snapshot_date`` at each place (days since the epoch); below all dates where there is none."""
    return np.append(integers(rows["snapshot_date"], null=_NEVER), _NEVER)[place]
