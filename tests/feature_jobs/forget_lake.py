"""A lake in which there is something to forget of everybody."""

import datetime as dt
import json
from typing import Any

from schemas.lake import Lake
from schemas.tables import EVENTS, HISTORY, QUARANTINE, USER_STATE
from schemas.tables import USERS as USERS_TABLE
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, MIDNIGHT, USERS
from tests.lake_rows import write_rows

GONE = ["李雷", "it's me", "anna"]
"""People whom the tests forget."""


def filled(made: Lake) -> Lake:
    """The lake, every user with a row in every table, some in quarantine."""
    for seed, date in enumerate([DAY - dt.timedelta(days=1), DAY]):
        shard_lake.fill(made, seed=seed, date=date)
    shard_lake.fill_items(made)
    shard_lake.fill_lifelong(made, DAY - dt.timedelta(days=3), USERS, seed=1)
    for users in (USERS[:5], [*USERS[5:], "it's me"]):
        for user in users:
            write_rows(made, EVENTS, [event(user)])
        write_rows(made, USERS_TABLE, [{"user_id": user, "date": DAY} for user in users])
        write_rows(made, HISTORY, [{"user_id": user, "behaviours": [], "date": DAY} for user in users])
        lists = ("short", "positive", "pending", "recent_items", "watch_histogram", "landings_seen")
        empty: dict[str, Any] = {name: [] for name in lists}
        state = empty | {"active_days": 1, "behaviours": 0, "date": DAY}
        write_rows(made, USER_STATE, [state | {"user_id": user} for user in users])
    rejected = [
        json.dumps({"user_id": "anna", "play_time_ms": -1}),
        json.dumps({"user_id": "bert", "item_id": "anna"}),
        json.dumps({"row": {"user_id": "it's me"}}),
        "not JSON, anna,3",
        "not JSON, annabel,3",
        json.dumps({"user_id": "李雷"}, ensure_ascii=False),
    ]
    write_rows(
        made, QUARANTINE, [{"table_name": "events", "date": DAY, "row_json": row, "reasons": ["x: y"]} for row in rejected]
    )
    return made


def event(user: str) -> dict[str, Any]:
    """An impression of a user."""
    times = dict.fromkeys(("request_ts", "ts", "observed_ts", "ingested_at"), MIDNIGHT)
    ids = {"impression_id": f"imp {user}", "request_id": "r", "user_id": user, "item_id": "i1"}
    return ids | times | {"play_time_ms": 0, "date": DAY, "landing_date": DAY}
