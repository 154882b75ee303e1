"""``user_state``: what one day leaves to the next, and what each pathway holds at the start of a day.

Pure Arrow. state(D) = state(D−1) + the behaviours and snapshots taken in on D. Users without any are passed on at the cost
of copying them; order everywhere: (observed_ts, sample_id).
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import relaxed
from feature_jobs.parquet_layout import coded
from feature_jobs.user_state_arrays import (
    CODED_BEHAVIOURS,
    behaviour_columns,
    behaviour_order,
    flat,
    integers,
    list_lengths,
    lists_of,
    lists_of_lengths,
    owners,
    sorted_users,
    user_index,
)
from feature_jobs.user_state_facts import FACTS, latest_facts
from feature_jobs.user_state_windows import Arrivals, Lists, histogram, recent_items, window
from schemas.config import Config, SamplesSection
from schemas.lake import day_start
from schemas.tables import PATHWAY_STATIC, USER_STATE

_RELAXED = [relaxed(field) for field in USER_STATE.schema if field.name not in USER_STATE.partition_by]
STATE = pa.schema([field.with_type(coded(field.type)) for field in _RELAXED])
"""``user_state`` without its partition columns, nullable at every depth, texts inside lists as dictionaries."""
FRESH = pa.schema([("user_id", pa.string()), ("date", pa.date32()), *CODED_BEHAVIOURS.value_type])
"""Behaviours that a day takes in: the user, the day of the request, the behaviour's own columns."""
ACTIVE_DAYS = 56


def fresh_rows(samples: pa.Table) -> pa.Table:
    """Samples (columns of ``daily_samples``, those that a behaviour needs) as FRESH."""
    columns = {"user_id": samples["user_id"], "date": samples["date"]} | behaviour_columns(samples)
    return pa.table([columns[field.name].cast(field.type) for field in FRESH], schema=FRESH)


@dataclass(frozen=True)
class Fresh:
    """What a day takes in, by user (distinct, in UTF-8 byte order) and (observed_ts, sample_id). ``ends``: for each user how
    many behaviours lie up to its last; ``dates``: the day of each behaviour's request (int64, days since the epoch)."""

    users: pa.Array
    ends: np.ndarray
    arrivals: Arrivals
    dates: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table, settings: SamplesSection) -> "Fresh":
        """Of FRESH rows in any order."""
        encoded = flat(rows["user_id"]).dictionary_encode()
        by_name = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(by_name), np.int64)
        rank[by_name] = np.arange(len(by_name))
        owner = rank[encoded.indices.to_numpy()]
        order = behaviour_order(owner, integers(rows["observed_ts"]), integers(rows["sample_id"]))
        fields = list(CODED_BEHAVIOURS.value_type)
        values = pa.StructArray.from_arrays([flat(rows[field.name]).take(pa.array(order)) for field in fields], fields=fields)
        return cls(
            encoded.dictionary.take(pa.array(by_name)),
            np.cumsum(np.bincount(owner, minlength=len(by_name))),
            Arrivals.of(owner[order], values, settings),
            integers(rows["date"])[order],
        )

    def slice(self, first: int, last: int) -> "Fresh":
        """Of the users from place ``first`` to before ``last``; owners count from the first."""
        start, stop = (int(self.ends[place - 1]) if place else 0 for place in (first, last))
        part = self.arrivals.slice(start, stop)
        return Fresh(
            self.users.slice(first, last - first),
            self.ends[first:last] - start,
            part.owned_by(part.owner - first),
            self.dates[start:stop],
        )

    def history(self) -> pa.Table:
        """Rows of ``history`` (user_id, behaviours)."""
        return pa.table(
            {"user_id": self.users, "behaviours": lists_of_lengths(np.diff(self.ends, prepend=0), self.arrivals.values)}
        )


@dataclass(frozen=True)
class Marks:
    """What the state of a day says of its inputs, the same for every user: landings taken in, the date before which they are
    forgotten, version of ``users``."""

    landings_seen: list[dt.date]
    landings_from: dt.date | None
    users_version: int | None


def align(state: pa.Table, snapshots: pa.Table, users: pa.Array) -> pa.Table:
    """What is known of exactly these users when a day begins, in their order: their state (STATE) at the end of the day
    before, static facts by ``snapshots`` (PROFILE) since; someone new has empty lists and zeros."""
    blank = pa.table([_blank(field.type) for field in STATE], schema=STATE)
    index = integers(pc.index_in(users, value_set=flat(state["user_id"])), null=len(state))
    rows = pa.concat_tables([state, blank]).take(pa.array(index))
    facts = latest_facts(state, snapshots, users) | {"user_id": users}
    return pa.table([facts.get(field.name, rows[field.name]) for field in STATE], schema=STATE)


def _blank(kind: pa.DataType) -> pa.Array:
    return pa.array([[] if pa.types.is_list(kind) else "" if pa.types.is_string(kind) else 0], kind)


def advance(state: pa.Table, fresh: Fresh, snapshots: pa.Table, day: dt.date, marks: Marks, config: Config) -> pa.Table:
    """State at the end of ``day`` (STATE, sorted by user): everyone of ``state`` (STATE, the day before, sorted by user),
    ``fresh`` or ``snapshots`` (PROFILE: snapshots exported before the day that the state has not seen).

    A behaviour with ``observed_ts`` before the day's end (in the lake's time zone) enters the windows, the histogram and
    ``recent_items``; the others wait in ``pending``. ``recent_items`` keeps watches (play time above 0) in the order of
    the days that took them in, inside a day by (observed_ts, sample_id).
    """
    before = flat(state["user_id"])
    users = sorted_users(before, fresh.users, snapshots["user_id"])
    count = len(users)
    place = np.arange(count) if count == len(before) else user_index(users, before)
    place_fresh = user_index(users, fresh.users)
    lists = {name: Lists.of(flat(state[name]), place, count) for name in _LISTS}
    newcomers = fresh.arrivals.owned_by(place_fresh[fresh.arrivals.owner])
    waiting = flat(state["pending"])
    pending = Arrivals.of(place[owners(waiting)], waiting.flatten(), config.samples)
    arrived = newcomers.merged(pending)
    known = arrived.observed < int(day_start(day + dt.timedelta(days=1), config).timestamp()) * 1_000_000
    entered, later = (arrived, arrived.take(~known)) if known.all() else (arrived.take(known), arrived.take(~known))
    columns = {
        "user_id": users,
        "short": window(lists["short"], entered, config.pathways.short_length),
        "positive": window(lists["positive"], entered.take(entered.positive), config.pathways.positive_length),
        "pending": lists_of(later.owner, later.values, count),
        "recent_items": recent_items(lists["recent_items"], entered, config.samples.positive.repeat_window),
        "watch_histogram": histogram(lists["watch_histogram"], entered),
        "active_days": pa.array(_active_days(_spread(state["active_days"], place, count), newcomers.owner, fresh.dates, day)),
        "behaviours": pa.array(_spread(state["behaviours"], place, count) + np.bincount(newcomers.owner, minlength=count)),
        "landings_seen": pa.array([marks.landings_seen], pa.list_(pa.date32())).take(pa.array(np.zeros(count, np.int64))),
        "landings_from": pa.repeat(pa.scalar(marks.landings_from, pa.date32()), count),
        "users_version": pa.repeat(pa.scalar(marks.users_version, pa.int64()), count),
        **latest_facts(state, snapshots, users),
    }
    return pa.table([columns[field.name].cast(field.type) for field in STATE], schema=STATE)


_LISTS = ("short", "positive", "recent_items", "watch_histogram")


def _spread(column: pa.ChunkedArray, place: np.ndarray, users: int) -> np.ndarray:
    """A numeric column of the state for all users of the day, 0 for those who are new."""
    values = np.zeros(users, np.int64)
    values[place] = integers(column)
    return values


def static_rows(prior: pa.Table, day: dt.date, config: Config) -> pa.Table:
    """``pathway_static`` (without its partition columns) of what is known when the day begins (``align``)."""
    start = int(day_start(day, config).timestamp()) * 1_000_000
    registered = flat(prior["register_ts"])
    days = pa.array(
        np.maximum((start - integers(registered)) // 86_400_000_000, 0),
        mask=registered.is_null().to_numpy(zero_copy_only=False),
    )
    before = integers(prior["active_days"]) & ((1 << 28) - 1)
    columns = {name: flat(prior[name]) for name in FACTS if name != "register_ts"} | {
        "user_id": flat(prior["user_id"]),
        "register_days": days,
        "active_days_28": pa.array(np.bitwise_count(before)),
        "behaviours": pa.array(integers(prior["behaviours"]) - list_lengths(flat(prior["pending"]))),
    }
    schema = pa.schema([field for field in PATHWAY_STATIC.schema if field.name in columns])
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _active_days(before: np.ndarray, owner: np.ndarray, dates: np.ndarray, day: dt.date) -> np.ndarray:
    """The bitmap a day on, with the days of ``dates`` (days since the epoch) set."""
    bitmap = before << 1 & ((1 << ACTIVE_DAYS) - 1)
    age = (day - dt.date(1970, 1, 1)).days - dates
    recent = (age >= 0) & (age < ACTIVE_DAYS)
    np.bitwise_or.at(bitmap, owner[recent], np.int64(1) << age[recent])
    return bitmap
