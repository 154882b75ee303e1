"""A small lake of random samples, pathways, items, tokens and a lifelong refresh, for the tests of what Spark derives."""

import datetime as dt
import random
from typing import Any

from schemas.lake import Lake
from schemas.registry import Registry
from schemas.tables import (
    DAILY_SAMPLES,
    FEEDBACK,
    ITEM_TOKENS,
    ITEMS,
    PATHWAY_LIFELONG,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
)
from tests.lake_rows import write_rows

DAY = dt.date(2026, 1, 5)
MIDNIGHT = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
USERS = ["anna", "bert", "çelik", "ünal", "李雷", "zoë 🙂", "x", "y", "", "u9", "u10"]
ITEM_IDS = ["i1", "i2", "i3", "видео", "写真", "i6", "i7", "i8"]
SIZES = [4, 4, 4]


def behaviour(rng: random.Random, sample_id: int, observed: dt.datetime) -> dict[str, Any]:
    """A past behaviour; sometimes of unknown length, without author or tags."""
    return {
        "sample_id": sample_id,
        "item_id": rng.choice(ITEM_IDS),
        "author_id": rng.choice([None, "author"]),
        "tags": rng.choice([None, [], ["a", "b"]]),
        "ts": observed - dt.timedelta(seconds=rng.randrange(60)),
        "observed_ts": observed,
        "play_time_ms": rng.randrange(60_000),
        "duration_ms": rng.choice([None, 1000, 30_000]),
        "feedback": rng.randrange(512),
    }


def behaviours(rng: random.Random, count: int, latest: dt.datetime) -> list[dict[str, Any]]:
    """Behaviours in (observed_ts, sample_id) order, some at the same instant."""
    rows = [
        behaviour(rng, rng.randrange(-(2**63), 2**63), latest - dt.timedelta(minutes=rng.randrange(30))) for _ in range(count)
    ]
    return sorted(rows, key=lambda row: (row["observed_ts"], row["sample_id"]))


def samples_of_user(rng: random.Random, user: str, date: dt.date = DAY) -> list[dict[str, Any]]:
    """A day of requests, several of them at the same instant, each with one to four impressions."""
    start = dt.datetime.combine(date, dt.time(), tzinfo=dt.UTC)
    rows = []
    for number in range(rng.randrange(1, 6)):
        request_ts = start + dt.timedelta(minutes=10 * rng.randrange(4))
        for impression in range(rng.randrange(1, 5)):
            shown = request_ts + dt.timedelta(seconds=rng.randrange(3))
            play, duration = rng.choice([0, 5, rng.randrange(60_000)]), rng.choice([None, 20_000])
            rows.append(
                {
                    "sample_id": rng.randrange(-(2**63), 2**63),
                    "impression_id": f"{user}-{number}-{impression}",
                    "request_id": f"r{number}",
                    "user_id": user,
                    "session_id": f"s{request_ts.minute // 20}",
                    "request_ts": request_ts,
                    "ts": shown,
                    "observed_ts": shown + dt.timedelta(milliseconds=play),
                    "item_id": rng.choice(ITEM_IDS),
                    "play_time_ms": play,
                    "duration_ms": duration,
                    "positive": rng.random() < 0.4,
                    "duration_bucket": -1,
                    "watch_quantile_day": rng.choice([None, rng.random()]),
                    "watch_quantile_user": rng.choice([None, rng.random()]),
                    "split": "holdout" if user == "x" else "train",
                    "date": date,
                    **{flag: rng.random() < 0.3 for flag in FEEDBACK},
                }
            )
    return rows


def fill(lake: Lake, seed: int, date: dt.date = DAY) -> None:
    """Random samples and pathways of a day, empty histories included."""
    rng = random.Random(seed)
    midnight = dt.datetime.combine(date, dt.time(), tzinfo=dt.UTC)
    samples, static, short, positive = [], [], [], []
    for user in USERS:
        samples += samples_of_user(rng, user, date)
        pending = behaviours(rng, rng.choice([0, 0, 3]), midnight + dt.timedelta(minutes=20))
        row = {"user_id": user, "date": date}
        static.append(
            row
            | {"age_band": rng.choice([None, "20-29"]), "gender": None, "region": "Ö", "device": "phone"}
            | {"register_days": rng.choice([None, 12]), "active_days_28": rng.randrange(28), "behaviours": rng.randrange(99)}
        )
        short.append(row | {"behaviours": behaviours(rng, rng.choice([0, 1, 20]), midnight), "pending": pending})
        kept = [one for one in pending if one["feedback"] & 256]
        positive.append(row | {"behaviours": behaviours(rng, rng.choice([0, 5, 40]), midnight), "pending": kept})
    rng.shuffle(samples)
    write_rows(lake, DAILY_SAMPLES, samples)
    write_rows(lake, PATHWAY_STATIC, static)
    write_rows(lake, PATHWAY_SHORT, short)
    write_rows(lake, PATHWAY_POSITIVE, positive)


def fill_items(lake: Lake) -> None:
    """Item versions; one item changes its author, one is deleted."""
    early, late = MIDNIGHT - dt.timedelta(days=9), MIDNIGHT - dt.timedelta(days=1)
    rows = [{"item_id": item, "valid_from": early, "author_id": "a", "tags": ["t"], "duration_ms": 1000} for item in ITEM_IDS]
    rows.append({"item_id": "i1", "valid_from": late, "author_id": "b", "tags": None, "duration_ms": None})
    rows.append({"item_id": "i2", "valid_from": late, "deleted": True})
    write_rows(lake, ITEMS, rows)


def publish_tokens(lake: Lake, items: list[str], seed: int = 0) -> str:
    """Tokens of these items under a codebook of their own, published as the token set; its version."""
    registry = Registry.of(lake)
    codebook = registry.publish("codebook", {"sizes": SIZES, "seed": seed}, {"codebook.safetensors": b"-"}).version
    rng = random.Random(seed)
    common = {"rank": 0, "residual_norm": 0.5, "content_hash": "c", "codebook_version": codebook}
    write_rows(
        lake, ITEM_TOKENS, [{"item_id": item, "tokens": [rng.randrange(size) for size in SIZES], **common} for item in items]
    )
    registry.publish("token_set", {"codebook_version": codebook, "codebook_sizes": SIZES}, {})
    return codebook


def fill_lifelong(lake: Lake, refresh: dt.date, users: list[str], seed: int) -> None:
    """A lifelong refresh of these users."""
    rng = random.Random(seed)
    rows = []
    for user in users:
        one = [behaviour(rng, 0, MIDNIGHT - dt.timedelta(days=3, minutes=-minute)) for minute in range(rng.randrange(1, 4))]
        representatives = [
            {name: row[name] for name in ("item_id", "author_id", "tags", "ts", "play_time_ms", "duration_ms", "feedback")}
            | {"count": rng.randrange(1, 5)}
            for row in one
        ]
        rows.append({"user_id": user, "representatives": representatives, "refresh_date": refresh})
    common = {"history_length": 9, "fusion_version": "f"}
    write_rows(lake, PATHWAY_LIFELONG, [row | common for row in rows])
