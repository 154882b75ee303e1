"""Writes rows straight into a lake's tables, so that a test of one step need not run those before it."""

import datetime as dt
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from schemas.lake import Lake
from schemas.shards import stable_key
from schemas.tables import FEEDBACK, Table


def utc(text: str) -> dt.datetime:
    """``2026-01-31 12:00:00.5`` as an instant in UTC."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def user_bucket(user_id: str, buckets: int) -> int:
    """The bucket of a user, as Spark's ``pmod(xxhash64(user_id), buckets)``."""
    return stable_key(user_id) % buckets


def write_rows(lake: Lake, table: Table, rows: list[dict[str, Any]]) -> None:
    """Append rows; absent feedback flags are false, an absent user_bucket is computed, other absent columns are null."""
    names = table.schema.names
    full = []
    for row in rows:
        values = {name: False for name in (*FEEDBACK, "deleted", "positive") if name in names} | row
        if "user_bucket" in names and "user_bucket" not in row:
            values["user_bucket"] = user_bucket(row["user_id"], lake.config.lake.user_buckets)
        full.append(values)
    write_deltalake(lake.table_uri(table), pa.Table.from_pylist(full, schema=table.schema), mode="append")
