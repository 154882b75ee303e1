"""The brute-force reference of samples, pathways and visibility: plain Python over the whole log, no state, no windows kept.

It keeps every behaviour for ever and looks each answer up in all of them, so it shares no idea with the product but the
rules in DESIGN (visibility, incremental, late events) and their statements in ``label_samples``, ``advance``, ``taken_in``.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import xxhash

from schemas.config import Config
from schemas.lake import day_start
from schemas.tables import EVENTS, FEEDBACK, POSITIVE_BIT

Row = dict[str, Any]


def signed(value: int) -> int:
    """An unsigned 64-bit number as signed."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text_hash(*texts: str) -> int:
    """Spark's ``xxhash64(text, …)``: one text after another, each hash the next one's seed, from 42."""
    value = 42
    for text in texts:
        value = xxhash.xxh64_intdigest(text.encode(), seed=value)
    return signed(value)


@cache
def log_bucket(milliseconds: int | None, base: float) -> int:
    """⌊log_base(seconds + 1)⌋ in exact arithmetic; −1 if unknown."""
    if milliseconds is None:
        return -1
    bucket = 0
    while Fraction(base) ** (bucket + 1) <= Fraction(milliseconds, 1000) + 1:
        bucket += 1
    return bucket


def place(behaviour: Row) -> tuple[dt.datetime, int]:
    """The order of behaviours everywhere."""
    return behaviour["observed_ts"], behaviour["sample_id"]


def reconstructed_window(
    behaviours: Iterable[Row], pending: Iterable[Row], samples: Iterable[Row], request_ts: dt.datetime, length: int
) -> list[int]:
    """What a reader rebuilds (docs/shards.md): sample ids of the last ``length`` entries of (pathway at the day's start ++
    pending ++ the day's own) observed before the request, by (observed_ts, sample_id)."""
    known = [entry for entry in (*behaviours, *pending, *samples) if entry["observed_ts"] < request_ts]
    return [entry["sample_id"] for entry in sorted(known, key=place)][-length:]


@dataclass
class DayResult:
    """What the reference expects of one day."""

    samples: list[Row]
    dropped: Counter[str]
    pathways: dict[str, Row]
    history: dict[str, list[Row]]
    late_dropped: Counter[str]
    state: dict[str, Row]


@dataclass
class Reference:
    """All that has happened so far: every behaviour ever taken in, with the day it was taken in and the day it entered.
    ``users`` holds the snapshots that have landed; put more into it before the day that they land on."""

    config: Config
    items: Sequence[Row]
    users: Sequence[Row] = ()
    taken: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    seen: set[dt.date] = field(default_factory=set)

    def visible_window(self, user: str, samples: Iterable[Row], request_ts: dt.datetime, positive: bool) -> list[int]:
        """Sample ids of the exact window of a request: among *all* behaviours that the system had by the day's start and
        the day's own, the last ones observed before the request. Call before ``day``."""
        settings = self.config.pathways
        everything = self.taken[user] + [sample for sample in samples if sample["user_id"] == user]
        known = [entry for entry in everything if entry["observed_ts"] < request_ts and (entry["positive"] or not positive)]
        length = settings.positive_length if positive else settings.short_length
        return [entry["sample_id"] for entry in sorted(known, key=place)][-length:]

    def samples(self, day: dt.date, events: Sequence[Row], every: bool = False) -> tuple[list[Row], Counter[str]]:
        """The day's samples (columns of ``daily_samples``) and the rows dropped by reason."""
        rows = [row for row in events if row["date"] == day and (every or row["landing_date"] <= max({day} | self.seen))]
        samples, dropped = self._labelled(rows)
        plays = defaultdict(list)
        for sample in samples:
            plays[sample["duration_bucket"]].append(sample["play_time_ms"])
        for sample in samples:
            same = plays[sample["duration_bucket"]]
            share = sum(play <= sample["play_time_ms"] for play in same) / len(same)
            sample["watch_quantile_day"] = share if sample["duration_bucket"] >= 0 else None
        return samples, dropped

    def day(self, day: dt.date, events: Sequence[Row], every: bool = False) -> DayResult:
        """Take a day in, after the days before it; ``every`` is a backfill's view of landings."""
        samples, dropped = self.samples(day, events, every)
        pathways = {user: self.pathway(user, day) for user in {sample["user_id"] for sample in samples}}
        present = {row["landing_date"] for row in events}
        sampled = {
            row["landing_date"]
            for row in events
            if row["date"] == day and (every or row["landing_date"] <= max({day} | self.seen))
        }
        now = self.seen | sampled | {landing for landing in present if every or landing <= max({day} | self.seen | sampled)}
        late = [row for row in events if row["date"] < day and row["landing_date"] in now - self.seen]
        had = {(row["user_id"], row["impression_id"]) for row in events if row["date"] < day and row["landing_date"] in self.seen}
        again = [row for row in late if (row["user_id"], row["impression_id"]) in had]
        taken = {(row["user_id"], row["impression_id"], row["date"]) for row in events if row["landing_date"] in self.seen}
        late_samples, late_dropped = self._labelled(
            [row for row in late if (row["user_id"], row["impression_id"]) not in had],
            Counter((user, date) for user, _, date in taken),
        )
        late_dropped["duplicate"] += len(again)
        self.seen = now
        history = defaultdict(list)
        end = day_start(day + dt.timedelta(days=1), self.config).astimezone(dt.UTC)
        for sample in samples + late_samples:
            self.taken[sample["user_id"]].append(sample | {"entered": None})
            history[sample["user_id"]].append(sample)
        for behaviours in self.taken.values():
            for behaviour in behaviours:
                if behaviour["entered"] is None and behaviour["observed_ts"] < end:
                    behaviour["entered"] = day
        return DayResult(
            samples,
            dropped,
            pathways,
            {user: sorted(brought, key=place) for user, brought in history.items()},
            late_dropped,
            {user: self._state(user, day) for user in self._everyone(day)},
        )

    def _everyone(self, day: dt.date) -> set[str]:
        """Users with a behaviour, or with a snapshot from before the day."""
        return {user for user in self.taken if self.taken[user]} | {row["user_id"] for row in self.users if row["date"] < day}

    def _labelled(
        self, rows: Sequence[Row], taken: Mapping[tuple[str, dt.date], int] | None = None
    ) -> tuple[list[Row], Counter[str]]:
        """``taken``: how many impressions a user's day had before; the cap counts them."""
        dropped: Counter[str] = Counter()
        by_impression = defaultdict(list)
        for row in rows:
            by_impression[row["user_id"], row["impression_id"]].append(row)
        kept = []
        for same in by_impression.values():
            kept.append(min(same, key=_total_order))
            dropped["duplicate"] += len(same) - 1
        by_day = defaultdict(list)
        for row in kept:
            sample_id = text_hash(row["user_id"], row["impression_id"])
            by_day[row["user_id"], row["date"]].append(row | {"sample_id": sample_id})
        cap = self.config.samples.user_day_cap
        by_user: dict[str, list[Row]] = defaultdict(list)
        for (user, date), impressions in by_day.items():
            impressions.sort(key=lambda row: (row["ts"], row["sample_id"]))
            room = max(0, cap - (taken or {}).get((user, date), 0))
            by_user[user] += impressions[:room]
            dropped["over_the_cap"] += len(impressions[room:])
        samples = []
        for user, impressions in by_user.items():
            self._sessions(user, impressions)
            samples += [self._sample(user, row, impressions) for row in impressions]
        return samples, +dropped

    def _sessions(self, user: str, impressions: list[Row]) -> None:
        gap = dt.timedelta(minutes=self.config.samples.session_gap_minutes)
        first = last = None
        for row in sorted(impressions, key=lambda row: row["request_ts"]):
            if row.get("session_id") is not None:
                continue
            if last is None or row["request_ts"] - last["request_ts"] > gap or row["date"] != last["date"]:
                first = row["request_ts"]
            last = row
            row["session_id"] = f"gap-{text_hash(f'{user}@{_microseconds(first)}') % 2**64:016x}"

    def _sample(self, user: str, row: Row, impressions: list[Row]) -> Row:
        settings = self.config.samples
        versions = [item for item in self.items if item["item_id"] == row["item_id"] and item["valid_from"] < row["request_ts"]]
        item = max(versions, key=lambda item: item["valid_from"], default={})
        duration = row.get("duration_ms") or item.get("duration_ms")
        flags = {name: row.get(name, False) for name in FEEDBACK}
        positive = any(flags[name] for name in settings.positive.feedback)
        if settings.positive.min_play_ratio is not None and duration:
            positive |= row["play_time_ms"] / duration >= settings.positive.min_play_ratio
        positive |= settings.positive.repeat_watch and self._is_second_watch(user, row, impressions)
        bucket = log_bucket(duration, settings.duration_log_base)
        return {
            **{name: row.get(name) for name in ("impression_id", "request_id", "user_id", "session_id", "item_id", "scene")},
            **{name: row[name] for name in ("sample_id", "request_ts", "ts", "observed_ts", "play_time_ms", "date")},
            **flags,
            "author_id": item.get("author_id"),
            "category": item.get("category"),
            "tags": item.get("tags"),
            "duration_ms": duration,
            "positive": bool(positive),
            "play_ratio": row["play_time_ms"] / duration if duration else None,
            "duration_bucket": bucket,
            "watch_quantile_user": self._user_quantile(user, bucket, row["play_time_ms"]),
            "split": "holdout" if text_hash(f"holdout:{user}") % 2**64 < settings.holdout_share * 2.0**64 else "train",
            "user_bucket": text_hash(user) % self.config.lake.user_buckets,
        }

    def _is_second_watch(self, user: str, row: Row, impressions: list[Row]) -> bool:
        if not row["play_time_ms"]:
            return False
        entered = [entry for entry in self.taken[user] if entry["entered"] is not None]
        entered.sort(key=lambda entry: (entry["entered"], *place(entry)))
        waiting = [entry for entry in self.taken[user] if entry["entered"] is None]
        since = sorted((entry for entry in waiting + impressions if place(entry) < place(row)), key=place)
        window = self.config.samples.positive.repeat_window
        before = [entry["item_id"] for entry in entered + since if entry["play_time_ms"] > 0][-window:]
        return row["item_id"] in before

    def _user_quantile(self, user: str, bucket: int, play: int) -> float | None:
        settings = self.config.samples
        plays = [
            log_bucket(entry["play_time_ms"], settings.play_log_base)
            for entry in self.taken[user]
            if entry["entered"] is not None and entry["duration_bucket"] == bucket
        ]
        own = log_bucket(play, settings.play_log_base)
        return sum(other <= own for other in plays) / len(plays) if plays and bucket >= 0 else None

    def pathway(self, user: str, day: dt.date) -> Row:
        """What is known of a user when a day begins: ``short``, ``positive``, ``pending`` (behaviours), ``static``."""
        start = day_start(day, self.config).astimezone(dt.UTC)
        known = sorted((entry for entry in self.taken[user] if entry["entered"] is not None), key=place)
        pending = sorted((entry for entry in self.taken[user] if entry["entered"] is None), key=place)
        snapshot = self._snapshot(user, day)
        registered = snapshot.get("register_ts")
        active = {entry["date"] for entry in self.taken[user]}
        return {
            "short": known[-self.config.pathways.short_length :],
            "positive": [entry for entry in known if entry["positive"]][-self.config.pathways.positive_length :],
            "pending": pending,
            "static": {
                **{name: snapshot.get(name) for name in ("age_band", "gender", "region", "device")},
                "register_days": max((start - registered) // dt.timedelta(days=1), 0) if registered else None,
                "active_days_28": sum(day - dt.timedelta(days=age) in active for age in range(1, 29)),
                "behaviours": len(known),
                "snapshot_date": snapshot.get("date"),
            },
        }

    def _snapshot(self, user: str, day: dt.date) -> Row:
        snapshots = [row for row in self.users if row["user_id"] == user and row["date"] < day]
        return max(snapshots, key=lambda row: row["date"], default={})

    def _state(self, user: str, day: dt.date) -> Row:
        known = [entry for entry in self.taken[user] if entry["entered"] is not None]
        watched = sorted((entry for entry in known if entry["play_time_ms"]), key=lambda entry: (entry["entered"], *place(entry)))
        cells = Counter(
            (entry["duration_bucket"], log_bucket(entry["play_time_ms"], self.config.samples.play_log_base)) for entry in known
        )
        ages = {(day - entry["date"]).days for entry in self.taken[user]}
        pathway, snapshot = self.pathway(user, day), self._snapshot(user, day)
        return {
            **{name: snapshot.get(name) for name in ("age_band", "gender", "region", "device", "register_ts")},
            "snapshot_date": snapshot.get("date"),
            **{name: [entry["sample_id"] for entry in pathway[name]] for name in ("short", "positive", "pending")},
            "recent_items": [text_hash(entry["item_id"]) for entry in watched][-self.config.samples.positive.repeat_window :],
            "watch_histogram": [(*cell, count) for cell, count in sorted(cells.items())],
            "active_days": sum(1 << age for age in ages if age < 56),
            "behaviours": len(self.taken[user]),
            "landings_seen": sorted(self.seen),
        }


def as_behaviour(sample: Row) -> Row:
    """A sample as the pathways hold it (BEHAVIOUR)."""
    bits = sum(1 << bit for bit, name in enumerate(FEEDBACK) if sample[name]) | sample["positive"] << POSITIVE_BIT
    names = ("sample_id", "item_id", "author_id", "tags", "ts", "observed_ts", "play_time_ms", "duration_ms")
    return {name: sample[name] for name in names} | {"feedback": bits}


def _total_order(row: Row) -> list[tuple[bool, Any]]:
    names = [name for name in EVENTS.schema.names if name not in ("landing_date", "ingested_at", "user_id", "user_bucket")]
    values = [row["landing_date"], *(row.get(name, False if name in FEEDBACK else None) for name in names)]
    return [(value is None, value) for value in values]


def _microseconds(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
