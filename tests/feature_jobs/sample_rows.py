"""Rows of one day for the tests of samples: impressions as events hold them, and published samples."""

import datetime as dt
from typing import Any

from tests.feature_jobs.reference_pathways import text_hash
from tests.lake_rows import utc

DAY = dt.date(2026, 1, 1)


def impression(name: str, at: str = "12:00:00", **values: Any) -> dict[str, Any]:
    ts = utc(f"2026-01-01 {at}")
    return {
        "impression_id": name,
        "request_id": f"request-{at}",
        "user_id": "u",
        "item_id": "i",
        "request_ts": ts,
        "ts": ts,
        "observed_ts": ts,
        "ingested_at": ts,
        "play_time_ms": 0,
        "date": DAY,
        "landing_date": DAY,
    } | values


def sample_row(name: str, date: dt.date) -> dict[str, Any]:
    return impression(name) | {
        "sample_id": text_hash("u", name),
        "session_id": "s",
        "duration_bucket": -1,
        "split": "train",
        "date": date,
    }
