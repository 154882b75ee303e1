"""Ingest in plain Python, row by row: what the tests compare the Spark job with. Written from the docs, not from the job.

A row is a mapping from column to text (None where absent), as JSON or CSV hold it. Timestamps are whole microseconds.
"""

import datetime as dt
import json
import re
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from schemas.config import Config
from schemas.tables import FEEDBACK
from tests.feature_jobs.reference_pathways import text_hash
from tests.lake_rows import user_bucket

IDS = ("impression_id", "request_id", "user_id", "item_id", "session_id")
TIMES = ("request_ts", "ts", "observed_ts")
NUMBERS = ("play_time_ms", "duration_ms")
COLUMNS = (*IDS, "scene", *TIMES, *NUMBERS, *FEEDBACK)
REQUIRED = ("impression_id", "user_id", "item_id", "ts", "play_time_ms")


@dataclass
class Expected:
    """The table and quarantine that a sequence of landings must leave."""

    config: Config
    items: set[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    quarantine: dict[dt.date, list[tuple[str, ...]]] = field(default_factory=dict)
    dropped: dict[dt.date, dict[str, int]] = field(default_factory=dict)

    def ingest(self, date: dt.date, rows: list[Any]) -> None:
        """Take in a landing; a row that is no mapping is a line that is no JSON object."""
        good, bad = [], []
        for row in rows:
            event, reasons = judge(row, date, self.config, self.items)
            if reasons:
                bad.append(tuple(sorted(reasons)))
            else:
                good.append(event)
        good, over = _within_the_cap(good, self.config.samples.user_day_cap)
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for event in sorted(good, key=_order):
            first.setdefault((event["user_id"], event["impression_id"]), event)
        earlier = {_grain(event) for event in self.events if event["landing_date"] < date}
        kept = [event | {"landing_date": date} for event in first.values() if _grain(event) not in earlier]
        ours = {_grain(event) for event in kept}
        self.events = [
            event
            for event in self.events
            if event["landing_date"] != date and not (event["landing_date"] > date and _grain(event) in ours)
        ] + kept
        self.quarantine[date] = bad
        self.dropped[date] = {"duplicate": len(good) - len(kept), "over_the_cap": over}


def _within_the_cap(events: list[dict[str, Any]], cap: int) -> tuple[list[dict[str, Any]], int]:
    """Events without those that have as many impressions of their user and day before them, and how many those were."""
    days: dict[tuple[str, dt.date], dict[tuple[int, int], list[dict[str, Any]]]] = {}
    for event in events:
        place = event["ts"], text_hash(event["user_id"], event["impression_id"])
        days.setdefault((event["user_id"], event["date"]), {}).setdefault(place, []).append(event)
    kept: list[dict[str, Any]] = []
    for by_place in days.values():
        seen: set[str] = set()
        for _, tied in sorted(by_place.items(), key=lambda entry: entry[0]):
            if len(seen) < cap:
                kept += tied
            seen |= {event["impression_id"] for event in tied}
    return kept, len(events) - len(kept)


def _grain(event: dict[str, Any]) -> tuple[Any, ...]:
    """What is one impression: of a user, on a day."""
    return event["date"], event["user_id"], event["impression_id"]


def judge(row: Any, date: dt.date, config: Config, items: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The event of a row, and what is wrong with it (without what was found)."""
    if not isinstance(row, dict):
        return {}, ["row: not a JSON object on a line of its own"]
    event: dict[str, Any] = {}
    wrong: list[str] = []
    for name in COLUMNS:
        text = row.get(name)
        event[name] = None
        if text is None:
            if name in REQUIRED:
                wrong.append(f"{name}: missing")
            continue
        value, reason = _read(name, text)
        event[name] = value
        if reason:
            wrong.append(f"{name}: {reason}")
    event["request_id"] = event["impression_id"] if event["request_id"] is None else event["request_id"]
    event["request_ts"] = event["ts"] if event["request_ts"] is None else event["request_ts"]
    limit = config.ingest.max_play_time_ms
    if event["observed_ts"] is None and event["ts"] is not None and event["play_time_ms"] is not None:
        event["observed_ts"] = event["ts"] + min(max(event["play_time_ms"], 0), limit) * 1000
    for name in FEEDBACK:
        event[name] = bool(event[name])
    wrong += _rules(event, date, config, items)
    if event["user_id"] is not None:
        event["user_bucket"] = user_bucket(event["user_id"], config.lake.user_buckets)
    return event, wrong


def _rules(event: dict[str, Any], date: dt.date, config: Config, items: set[str]) -> list[str]:
    zone = ZoneInfo(config.lake.day_timezone)
    end = _micros(dt.datetime.combine(date + dt.timedelta(days=1), dt.time(), zone))
    earliest = _micros(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    limit = config.ingest.max_play_time_ms
    play, duration = event["play_time_ms"], event["duration_ms"]
    request, shown, observed = event["request_ts"], event["ts"], event["observed_ts"]
    event["date"] = None
    wrong = []
    if play is not None and play < 0:
        wrong.append("play_time_ms: negative")
    if play is not None and play > limit:
        wrong.append(f"play_time_ms: more than {limit}")
    if duration is not None and duration <= 0:
        wrong.append("duration_ms: not positive")
    if duration is not None and duration > config.ingest.max_duration_ms:
        wrong.append(f"duration_ms: more than {config.ingest.max_duration_ms}")
    for name in TIMES:
        if event[name] is not None and event[name] < earliest:
            wrong.append(f"{name}: before the year 2000")
    if request is not None:
        if request >= end:
            wrong.append(f"request_ts: from the future: after its landing day {date}")
        if request >= earliest:
            event["date"] = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=request)).astimezone(zone).date()
            if event["date"] < date - dt.timedelta(days=config.ingest.max_late_days):
                wrong.append(f"request_ts: more than {config.ingest.max_late_days} days before its landing day {date}")
    for name in ("ts", "observed_ts"):
        if event[name] is not None and event[name] >= end + limit * 1000:
            wrong.append(f"{name}: from the future: long after its landing day {date}")
    if None not in (shown, request) and shown < request:
        wrong.append("ts: before request_ts")
    if None not in (shown, observed) and observed < shown:
        wrong.append("observed_ts: before ts")
    item = event["item_id"]
    if item is not None and item.strip(" ") and item not in items:
        wrong.append("item_id: no catalogue row knows it")
    return wrong


def _read(name: str, text: str) -> tuple[Any, str | None]:
    if name in IDS or name == "scene":
        if name != "scene" and not text.strip(" "):
            return text, "empty"
        if name != "scene" and len(text) > 512:
            return text, "longer than 512 characters"
        if text[:1] in "{[" and _is_nested(text):
            return text, "not a text"
        return text, None
    if name in NUMBERS:
        match = re.fullmatch(r"([+-]?[0-9]+)(\.0+)?", text)
        if match and -(1 << 63) <= int(match[1]) < 1 << 63:
            return int(match[1]), None
        return None, "not a whole number of 64 bits"
    if name in FEEDBACK:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        return value, None if value is not None else "not true or false"
    return _read_time(text)


def _read_time(text: str) -> tuple[int | None, str | None]:
    wrong = "not a timestamp like 2026-01-31T12:00:00Z"
    pattern = r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?"
    match = re.fullmatch(pattern, text, flags=re.ASCII)
    if not match:
        return None, wrong
    offset = (match[4] or "Z").upper().replace("Z", "+00:00")
    if not -18 * 60 <= int(offset[:3]) * 60 <= 18 * 60:
        return None, wrong
    try:
        moment = dt.datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}")
    except ValueError:
        return None, wrong
    fraction = int(((match[3] or ".0")[1:] + "000000")[:6])
    return _micros(moment) + fraction, None


def _micros(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _is_nested(text: str) -> bool:
    """Here a text that is JSON stands for a nested value (the generator writes no such strings)."""
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _order(event: dict[str, Any]) -> tuple[Any, ...]:
    names = (
        *TIMES,
        *IDS[:1],
        "request_id",
        "user_id",
        "item_id",
        "session_id",
        "scene",
        "play_time_ms",
        "duration_ms",
        *FEEDBACK,
    )
    return tuple(
        (event[name] is not None, event[name].encode() if isinstance(event[name], str) else event[name]) for name in names
    )
