"""Writes small shards in the format of ``docs/shards.md`` from plain rows, so that the trainer's tests need no Spark.

``made_log`` invents a log whose users prefer items of their own topics: something a model can learn.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.shard_manifest import MASK_FORMAT
from schemas.shards import ITEM_TABLE, LIFELONG, SHARD_FORMAT, SHARD_VERSION, TARGET_MASK, TOKEN_TABLE, USER_DAY, stable_key
from schemas.tables import POSITIVE_BIT

BEHAVIOUR = ("sample_id", "item_key", "ts", "observed_ts", "play_time_ms", "duration_ms", "feedback")
SECOND = 1_000_000
DAY = 24 * 3600 * SECOND


@dataclass
class Request:
    """A request and its impressions (dicts of BEHAVIOUR, and ``target`` unless True)."""

    request_id: str
    request_ts: int
    events: list[dict[str, Any]]


@dataclass
class UserDay:
    """One record, as rows."""

    user_id: str
    requests: list[Request]
    short: list[dict[str, Any]] = field(default_factory=list)
    positive: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    holdout: bool = False
    static: dict[str, Any] = field(default_factory=dict)


def behaviour(sample_id: int, item: str, ts: int, observed_ts: int, play: int = 1000, duration: int = 2000, feedback: int = 1):
    """A behaviour's row."""
    return dict(zip(BEHAVIOUR, (sample_id, stable_key(item), ts, observed_ts, play, duration, feedback), strict=True))


def instant(date: dt.date, seconds: float = 0) -> int:
    """Microseconds since the epoch."""
    return int(dt.datetime.combine(date, dt.time(), tzinfo=dt.UTC).timestamp() * SECOND + seconds * SECOND)


def write_items(shards: Path, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The item table; rows of item_id, valid_from and, if any, author_id, tags, duration_ms."""
    rows = [
        {"author_id": None, "category": None, "tags": [], "duration_ms": -1, "deleted": False}
        | dict(item)
        | {"item_key": stable_key(item["item_id"])}
        for item in items
    ]
    rows.sort(key=lambda row: (row["item_key"], row["valid_from"]))
    return _write(shards, "items/items", rows, ITEM_TABLE)


def write_tokens(shards: Path, codes: Mapping[str, Sequence[int]], version: str = "cb1") -> dict[str, Any]:
    """The token table of item id → tokens."""
    seen: dict[tuple[int, ...], int] = {}
    rows = []
    for item, code in sorted(codes.items()):
        rank = seen[tuple(code)] = seen.get(tuple(code), -1) + 1
        rows.append({"item_key": stable_key(item), "tokens": list(code), "rank": rank})
    return _write(shards, f"items/tokens-{version}", sorted(rows, key=lambda row: row["item_key"]), TOKEN_TABLE)


def write_lifelong(shards: Path, date: dt.date, bucket: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A bucket's lifelong sidecar."""
    entry = _write(shards, f"lifelong/refresh_date={date}/bucket={bucket:05d}", rows, LIFELONG)
    return {"refresh_date": date.isoformat(), **entry}


def write_day(
    shards: Path,
    date: dt.date,
    user_days: Sequence[UserDay],
    items: Mapping[str, Any],
    tokens: Mapping[str, Any],
    *,
    sizes: Sequence[int] = (8, 8, 8),
    buckets: int = 2,
    lifelong: Mapping[int, Mapping[str, Any]] | None = None,
    codebook_version: str = "cb1",
    rows_per_batch: int = 7,
) -> dict[str, Any]:
    """A day's data files and manifest; returns the manifest."""
    folder = shards / f"date={date}"
    files = []
    requests = [request for day in user_days for request in day.requests]
    events = [event for request in requests for event in request.events]
    targets = sum(event.get("target", True) for event in events)
    for bucket in range(buckets):
        mine = [day for day in user_days if stable_key(day.user_id) % buckets == bucket]
        rows = [_record(day) for day in sorted(mine, key=lambda day: day.user_id)]
        entry = _write(folder, f"bucket={bucket:05d}", rows, USER_DAY, rows_per_batch)
        files.append({**entry, "user_bucket": bucket, "users": len(rows), "requests": 0, "events": 0})
    manifest = {
        "format": SHARD_FORMAT,
        "version": SHARD_VERSION,
        "date": date.isoformat(),
        "day_timezone": "UTC",
        "user_buckets": buckets,
        "codebook_version": codebook_version,
        "codebook_sizes": list(sizes),
        "counts": {
            "users": len(user_days),
            "requests": len(requests),
            "events": len(events),
            "targets": targets,
            "targets_without_tokens": 0,
        },
        "files": files,
        "items": items,
        "tokens": tokens,
        "lifelong": {str(bucket): entry for bucket, entry in (lifelong or {}).items()},
        "inputs": {},
        "config_version": "test",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def write_mask(shards: Path, date: dt.date, manifest: Mapping[str, Any], user_days: Sequence[UserDay], keep: Any) -> None:
    """The mask ``rsft``: ``keep(event)`` says which are targets."""
    folder = shards / f"date={date}"
    files = []
    for data in manifest["files"]:
        mine = [day for day in user_days if stable_key(day.user_id) % manifest["user_buckets"] == data["user_bucket"]]
        rows = [
            {
                "user_id": day.user_id,
                "event_target": [bool(keep(e)) for r in day.requests for e in r.events],
            }
            for day in sorted(mine, key=lambda day: day.user_id)
        ]
        entry = _write(folder, f"targets-rsft-bucket={data['user_bucket']:05d}", rows, TARGET_MASK)
        files.append({**entry, "user_bucket": data["user_bucket"], "data_sha256": data["sha256"]})
    kept = [bool(keep(event)) for day in user_days for request in day.requests for event in request.events]
    counts = {"targets": sum(kept), "dropped": len(kept) - sum(kept)}
    body = {"format": MASK_FORMAT, "version": 1, "targets": "rsft", "unit": "session", "counts": counts, "files": files}
    (folder / "targets-rsft.json").write_text(json.dumps(body))


@dataclass(frozen=True)
class MadeLog:
    """An invented log in shards: where, and what is in it."""

    shards: Path
    dates: list[dt.date]
    user_days: dict[dt.date, list[UserDay]]
    codes: dict[str, tuple[int, int, int]]
    topic_of_user: dict[str, int]


def made_log(
    shards: Path, *, users: int = 24, items: int = 64, days: int = 2, requests: int = 4, seed: int = 0, holdout_every: int = 8
) -> MadeLog:
    """Users of 8 topics who mostly watch items of theirs; an item's first token is its topic. Every user every day."""
    rng = np.random.default_rng(seed)
    names = [f"item{number:03d}" for number in range(items)]
    codes = {name: (n % 8, n // 8 % 8, int(rng.integers(8))) for n, name in enumerate(names)}
    start = dt.date(2026, 1, 1)
    item_entry = write_items(
        shards,
        [
            {"item_id": name, "valid_from": instant(start) - DAY, "author_id": f"a{n % 16}", "tags": [f"t{n % 8}"]}
            for n, name in enumerate(names)
        ],
    )
    token_entry = write_tokens(shards, codes)
    user_names = [f"user{number:03d}" for number in range(users)]
    topic_of = {name: int(rng.integers(8)) for name in user_names}
    known: dict[str, list[dict[str, Any]]] = {name: [] for name in user_names}
    sample_id = 0
    result: dict[dt.date, list[UserDay]] = {}
    for day in range(days):
        date = start + dt.timedelta(days=day)
        result[date] = []
        for number, name in enumerate(user_names):
            begin = instant(date)
            seen = sorted((b for b in known[name] if b["observed_ts"] < begin), key=lambda b: (b["observed_ts"], b["sample_id"]))
            pending = [b for b in known[name] if b["observed_ts"] >= begin]
            asked = []
            for request in range(requests):
                request_ts = begin + int((request + 1) * DAY / (requests + 1))
                events = []
                for slot in range(3):
                    topic = topic_of[name] if rng.random() < 0.9 else int(rng.integers(8))
                    item = names[int(rng.integers(items // 8)) * 8 + topic]
                    feedback = 1 | (1 << POSITIVE_BIT if topic == topic_of[name] else 0)
                    ts = request_ts + slot * 10 * SECOND
                    events.append(behaviour(sample_id, item, ts, ts + 5 * SECOND, 5000, 9000, feedback))
                    sample_id += 1
                asked.append(Request(f"{name}-{date}-{request}", request_ts, events))
            known[name] += [event for request_ in asked for event in request_.events]
            positives = [b for b in seen if b["feedback"] >> POSITIVE_BIT & 1]
            holdout = number % holdout_every == holdout_every - 1
            result[date].append(UserDay(name, asked, seen[-20:], positives[-256:], pending, holdout))
        write_day(shards, date, result[date], item_entry, token_entry)
    return MadeLog(shards, sorted(result), result, codes, topic_of)


def _record(day: UserDay) -> dict[str, Any]:
    events = [event for request in day.requests for event in request.events]
    record: dict[str, Any] = {
        "user_id": day.user_id,
        "holdout": day.holdout,
        "active_days_28": 1,
        "behaviours": len(day.short),
        **day.static,
        "request_id": [request.request_id for request in day.requests],
        "request_ts": [request.request_ts for request in day.requests],
        "request_session": [0 for _ in day.requests],
        "request_events": [len(request.events) for request in day.requests],
        "event_watch_quantile_day": [event.get("quantile", 0.5) for event in events],
        "event_watch_quantile_user": [float("nan") for _ in events],
        "event_target": [event.get("target", True) for event in events],
    }
    for prefix, rows in (("short", day.short), ("positive", day.positive), ("pending", day.pending), ("event", events)):
        record |= {f"{prefix}_{name}": [row[name] for row in rows] for name in BEHAVIOUR}
    return record


def _write(
    root: Path, stem: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, rows_per_batch: int = 1000
) -> dict[str, Any]:
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    content = sink.getvalue().to_pybytes()
    sha = hashlib.sha256(content).hexdigest()
    path = root / f"{stem}-{sha[:12]}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"path": f"{stem}-{sha[:12]}.arrow", "bytes": len(content), "sha256": sha}
