"""Random logs full of what makes visibility hard, deterministic for a seed.

Ties at the same microsecond, siblings of one request, plays that end after the next request or after midnight, late and
duplicate rows (with other values, in the same landing or a later one), items that change or have no version yet, users
with no, one or many behaviours, robots, users absent for weeks, attributes that change and snapshots that land late.
"""

import datetime as dt
import random
from dataclasses import dataclass, field
from typing import Any

from schemas.config import Config
from schemas.lake import day_start

Row = dict[str, Any]


@dataclass
class Log:
    """Rows of ``events``, ``items`` and ``users`` (with a ``landing_date``, which the table leaves out)."""

    days: list[dt.date]
    events: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    users: list[Row] = field(default_factory=list)

    def snapshots(self, day: dt.date) -> list[Row]:
        """Rows of ``users`` that have landed by the end of a day."""
        return [row for row in self.users if row["landing_date"] <= day]


def ugly_log(seed: int | random.Random, config: Config, first: dt.date, days: int, users: int, *, special: bool = True) -> Log:
    """A log of ``days`` days from ``first``; rows land at most three days late and never after the last day.

    With ``special`` the first users are nobody, one of one day, one who stays away between the first day and the last, and a
    robot.
    """
    rng = random.Random(seed) if isinstance(seed, int) else seed
    log = Log([first + dt.timedelta(days=offset) for offset in range(days)])
    _items(log, rng, config)
    for number in range(users):
        user = f"user-{number}-ü" if number % 7 == 0 else f"user-{number}"
        _snapshots(log, rng, user)
        for day in log.days:
            if _is_active(number if special else None, day, log.days, rng):
                _user_day(log, rng, config, user, day, robot=special and number == 3)
    rng.shuffle(log.events)
    return log


def _is_active(number: int | None, day: dt.date, days: list[dt.date], rng: random.Random) -> bool:
    if number == 0:
        return False  # in the snapshots, never in the log
    if number == 1:
        return day == days[len(days) // 2]
    if number == 2:
        return day in (days[0], days[-1])  # absent in between
    return rng.random() < 0.7


def _items(log: Log, rng: random.Random, config: Config) -> None:
    start = day_start(log.days[0], config).astimezone(dt.UTC)
    for number in range(12):
        versions = rng.choice([0, 1, 1, 2, 4])
        for _ in range(versions):
            valid_from = start + dt.timedelta(minutes=rng.randrange(-2000, 1440 * len(log.days)))
            log.items.append(
                {
                    "item_id": f"item-{number}",
                    "valid_from": valid_from,
                    "author_id": rng.choice([None, "author-1", "author-2", "author-3"]),
                    "category": rng.choice([None, "a", "b"]),
                    "tags": rng.choice([None, [], ["x"], ["y", "x"]]),
                    "duration_ms": rng.choice([None, 500, 10_000, 60_000]),
                    "deleted": rng.random() < 0.2,
                }
            )
    unique = {(row["item_id"], row["valid_from"]): row for row in log.items}
    log.items = list(unique.values())


def _snapshots(log: Log, rng: random.Random, user: str) -> None:
    for day in [log.days[0] - dt.timedelta(days=1), *log.days]:
        if rng.random() < 0.4:
            log.users.append(
                {
                    "user_id": user,
                    "date": day,
                    "landing_date": min(max(day + dt.timedelta(days=rng.choice([0, 0, 1, 3])), log.days[0]), log.days[-1]),
                    "age_band": rng.choice([None, "18-24", "25-34"]),
                    "gender": rng.choice(["f", "m"]),
                    "region": rng.choice(["north", "south"]),
                    "device": rng.choice([None, "phone"]),
                    "register_ts": rng.choice(
                        [None, dt.datetime(2026, 1, 5, 17, 30, tzinfo=dt.UTC), dt.datetime(2025, 6, 1, tzinfo=dt.UTC)]
                    ),
                }
            )


def _user_day(log: Log, rng: random.Random, config: Config, user: str, day: dt.date, *, robot: bool) -> None:
    start, end = (day_start(date, config).astimezone(dt.UTC) for date in (day, day + dt.timedelta(days=1)))
    seconds = int((end - start).total_seconds())
    for request in range(rng.choice([8]) if robot else rng.choice([1, 1, 2, 4])):
        # A coarse grid of seconds makes ties; the last minutes make plays that end after midnight.
        at = rng.choice([0, 60, 120, 1800, 1801, 3700, seconds // 2, seconds - 60, seconds - 1, rng.randrange(seconds)])
        request_ts = start + dt.timedelta(seconds=at)
        session = rng.choice([None, None, "s1"])
        for place in range(rng.choice([1, 2, 3])):
            row = _impression(rng, user, day, request_ts, f"{user}/{day}/{request}", place, session)
            log.events.append(row)
            _repeats(log, rng, row)


def _impression(
    rng: random.Random, user: str, day: dt.date, request_ts: dt.datetime, request: str, place: int, session: str | None
) -> Row:
    ts = request_ts + dt.timedelta(seconds=rng.choice([0, 0, 1]))
    play = rng.choice([0, 0, 500, 1000, 10_000, 60_000, 7_200_000])
    own = random.Random(f"{request}/{place}")  # so that more flags leave the rest of a seed's log as it is
    return {
        "impression_id": f"{request}/{place}",
        "request_id": request,
        "user_id": user,
        "item_id": f"item-{int(min(rng.paretovariate(0.8), 1e6)) % 14}",  # 12 and 13 are in no catalogue
        "request_ts": request_ts,
        "ts": ts,
        "observed_ts": rng.choice([ts + dt.timedelta(milliseconds=play)] * 3 + [ts, ts + dt.timedelta(days=2)]),
        "ingested_at": ts,
        "session_id": session,
        "scene": rng.choice([None, "feed"]),
        "play_time_ms": play,
        "duration_ms": rng.choice([None, None, 1000, 20_000, 30_000, 45_000]),
        "click": play > 0,
        "like": rng.random() < 0.15,
        "dislike": rng.random() < 0.05,
        "long_view": rng.random() < 0.1,
        **{flag: own.random() < 0.1 for flag in ("follow", "comment", "forward", "profile_enter")},
        "date": day,
        "landing_date": day,
    }


def _repeats(log: Log, rng: random.Random, row: Row) -> None:
    """Make the row late, or repeat it: word for word or with other values, in its landing or a later one."""
    if rng.random() < 0.15:
        row["landing_date"] = min(row["date"] + dt.timedelta(days=rng.choice([1, 1, 2, 3])), log.days[-1])
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        landing = min(row["landing_date"] + dt.timedelta(days=rng.choice([0, 0, 1, 2])), log.days[-1])
        changes = {} if rng.random() < 0.3 else {"like": not row["like"], "item_id": f"item-{rng.randrange(14)}"}
        log.events.append(row | changes | {"landing_date": landing})
