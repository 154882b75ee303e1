"""What a readable row must also satisfy, and what an absent value means. Pure transforms of a block's typed columns.

Each function fills the defaults of ``docs/landing-zone.md`` and adds what is wrong to the block's ``Reasons``; a row with a
reason goes to quarantine. Reasons read ``column: what is wrong (found …)``; all of a row's are kept.
"""

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.ingest.values import TEXTS, TIMESTAMP, Reasons, as_texts, found, json_text
from schemas.config import Config
from schemas.lake import day_start
from schemas.tables import FEEDBACK

EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
"""Instants outside are mistakes of unit or clock, whatever the landing day."""
Columns = dict[str, pa.Array]
_EPOCH = dt.date(1970, 1, 1)
_MEDIA_PATH = re.compile(r"(?![/\\])(?!.*(^|/)\.\.(/|$))(?!.*%(2[eEfF]|5[cC]))[^\x00-\x1f\\?#:]+")


@dataclass(frozen=True)
class Bounds:
    """The instants (µs) that a landing day's events are judged by, computed once: ``day_starts`` are the beginnings of the
    days from the oldest that may still land to the landing day, and the end of the landing day."""

    date: dt.date
    max_late_days: int
    max_play_time_ms: int
    max_duration_ms: int
    day_starts: np.ndarray

    @classmethod
    def of(cls, date: dt.date, config: Config) -> "Bounds":
        """For a landing day of a lake."""
        limits = config.ingest
        days = [date + dt.timedelta(days=offset) for offset in range(-limits.max_late_days, 2)]
        starts = np.array([_micros(day_start(day, config)) for day in days], np.int64)
        return cls(date, limits.max_late_days, limits.max_play_time_ms, limits.max_duration_ms, starts)


def judge_events(columns: Columns, known_items: Callable[[pa.Array], np.ndarray], bounds: Bounds, reasons: Reasons) -> Columns:
    """Defaults and rules of events; adds ``date``, the day of request_ts in the lake's zone (null where that is wrong).

    A request must not lie after its landing day's end; an impression and its feedback may reach past midnight by at most
    ``ingest.max_play_time_ms``. ``known_items`` says which items a catalogue row knows.
    """
    columns = dict(columns)
    columns["request_id"] = pc.coalesce(columns["request_id"], columns["impression_id"])
    columns["request_ts"] = pc.coalesce(columns["request_ts"], columns["ts"])
    play, has_play = _integers(columns["play_time_ms"])
    shown, has_shown = _integers(columns["ts"])
    columns["observed_ts"] = _observed(columns["observed_ts"], shown, has_shown, play, has_play, bounds.max_play_time_ms)
    for name in FEEDBACK:
        if columns[name].null_count:
            columns[name] = pc.fill_null(columns[name], False)
    request, has_request = _integers(columns["request_ts"])
    observed, has_observed = _integers(columns["observed_ts"])
    earliest, end = _micros(EARLIEST), bounds.day_starts[-1]
    end_of_feedback = end + bounds.max_play_time_ms * 1000
    add = _adder(columns, reasons)
    add("play_time_ms", has_play & (play < 0), "negative")
    add("play_time_ms", has_play & (play > bounds.max_play_time_ms), f"more than {bounds.max_play_time_ms}")
    _judge_duration(columns, bounds.max_duration_ms, reasons)
    for name, values, there in (
        ("request_ts", request, has_request),
        ("ts", shown, has_shown),
        ("observed_ts", observed, has_observed),
    ):
        add(name, there & (values < earliest), "before the year 2000")
    add("request_ts", has_request & (request >= end), f"from the future: after its landing day {bounds.date}")
    add("ts", has_shown & (shown >= end_of_feedback), f"from the future: long after its landing day {bounds.date}")
    add("observed_ts", has_observed & (observed >= end_of_feedback), f"from the future: long after its landing day {bounds.date}")
    too_late = has_request & (request < bounds.day_starts[0]) & (request >= earliest)
    add("request_ts", too_late, f"more than {bounds.max_late_days} days before its landing day {bounds.date}")
    add("ts", has_shown & has_request & (shown < request), "before request_ts")
    add("observed_ts", has_observed & has_shown & (observed < shown), "before ts")
    items = columns["item_id"]
    unknown = ~known_items(items) & ~items.is_null().to_numpy(zero_copy_only=False)
    if unknown.any():
        rows = np.flatnonzero(unknown)
        blank = pc.equal(pc.utf8_trim(items.take(pa.array(rows)), " "), "").to_numpy(zero_copy_only=False)
        unknown[rows[blank]] = False  # which is a reason already
        add("item_id", unknown, "no catalogue row knows it")
    return columns | {"date": _day(request, has_request, bounds)}


def _observed(
    given: pa.Array, shown: np.ndarray, has_shown: np.ndarray, play: np.ndarray, has_play: np.ndarray, longest: int
) -> pa.Array:
    """``observed_ts``, by default the end of the play (bounded, so that a wrong play time leaves 64 bits alone)."""
    if not given.null_count:
        return given
    end = shown + np.clip(play, 0, longest) * 1000
    return pc.coalesce(given, pa.array(end, mask=~(has_shown & has_play)).cast(TIMESTAMP))


def _day(request: np.ndarray, there: np.ndarray, bounds: Bounds) -> pa.Array:
    place = np.searchsorted(bounds.day_starts, request, side="right") - 1
    inside = there & (place >= 0) & (place < len(bounds.day_starts) - 1)
    first = (bounds.date - _EPOCH).days - bounds.max_late_days
    return pa.array((first + place).astype(np.int32), mask=~inside).cast(pa.date32())


def judge_items(columns: Columns, dated: bool, date: dt.date, config: Config, landing_uri: str, reasons: Reasons) -> Columns:
    """Defaults and rules of item versions; media addresses become absolute ones below ``landing_uri``.

    Plain files are read on every day, so their versions may lie ahead; those of a ``dated`` folder may not.
    """
    columns = dict(columns)
    columns["deleted"] = pc.fill_null(columns["deleted"], False)
    _judge_duration(columns, config.ingest.max_duration_ms, reasons)
    _judge_instants(columns, ("valid_from", "upload_ts"), reasons)
    if dated:
        end = _micros(day_start(date + dt.timedelta(days=1), config))
        valid_from, there = _integers(columns["valid_from"])
        _adder(columns, reasons)("valid_from", there & (valid_from >= end), f"from the future: after its landing day {date}")
    for name in ("cover_uri", "audio_uri"):
        columns[name] = _judge_media(name, columns[name], landing_uri, reasons)
    columns["frame_uris"] = _judge_frames(columns["frame_uris"], landing_uri, reasons)
    return columns


def judge_users(columns: Columns, dated: bool, date: dt.date, reasons: Reasons) -> Columns:
    """Rules of user snapshots; a ``dated`` folder's may not lie after its day."""
    day, there = _integers(columns["date"].cast(pa.int32()))
    first, last = ((moment.date() - _EPOCH).days for moment in (EARLIEST, LATEST))
    add = _adder(columns, reasons)
    add("date", there & ((day < first) | (day >= last)), "not between the years 2000 and 2100")
    if dated:
        add("date", there & (day > (date - _EPOCH).days), f"from the future: after its landing day {date}")
    _judge_instants(columns, ("register_ts",), reasons)
    return columns


def _adder(columns: Columns, reasons: Reasons) -> Callable[[str, np.ndarray, str], None]:
    def add(name: str, wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            rows = np.flatnonzero(wrong)
            shown = as_texts(columns[name].take(pa.array(rows))).to_pylist()
            reasons.add(rows.tolist(), [f"{name}: {what}{found(text)}" for text in shown])

    return add


def _judge_duration(columns: Columns, most: int, reasons: Reasons) -> None:
    duration, there = _integers(columns["duration_ms"])
    add = _adder(columns, reasons)
    add("duration_ms", there & (duration <= 0), "not positive")
    add("duration_ms", there & (duration > most), f"more than {most}")


def _judge_instants(columns: Columns, names: tuple[str, ...], reasons: Reasons) -> None:
    for name in names:
        instant, there = _integers(columns[name])
        outside = (instant < _micros(EARLIEST)) | (instant >= _micros(LATEST))
        _adder(columns, reasons)(name, there & outside, "not between the years 2000 and 2100")


def _judge_media(name: str, uris: pa.Array, landing_uri: str, reasons: Reasons) -> pa.Array:
    """Absolute addresses. A path relative to the landing zone must stay in it, an absolute one lie below it."""
    paths = [None if uri is None else _relative(uri, landing_uri) for uri in uris.to_pylist()]
    rows = [row for row, path in enumerate(paths) if path is not None and not _MEDIA_PATH.fullmatch(path)]
    shown = uris.take(pa.array(rows, pa.int64())).to_pylist()
    reasons.add(rows, [f"{name}: outside the landing zone{found(uri)}" for uri in shown])
    return pa.array([None if path is None else f"{landing_uri}/{path}" for path in paths], pa.string())


def _judge_frames(lists: pa.Array, landing_uri: str, reasons: Reasons) -> pa.Array:
    absolute: list[list[str | None] | None] = []
    for row, uris in enumerate(lists.to_pylist()):
        paths = None if uris is None else [None if uri is None else _relative(uri, landing_uri) for uri in uris]
        if paths and any(path is not None and not _MEDIA_PATH.fullmatch(path) for path in paths):
            reasons.add([row], [f"frame_uris: outside the landing zone{found(json_text(uris))}"])
        absolute.append(None if paths is None else [None if path is None else f"{landing_uri}/{path}" for path in paths])
    return pa.array(absolute, TEXTS)


def _relative(uri: str, landing_uri: str) -> str:
    return uri.removeprefix(f"{landing_uri}/")


def _integers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values (int64, 0 where null) and which there are."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    numbers = column.cast(pa.int64())
    return (pc.fill_null(numbers, 0) if numbers.null_count else numbers).to_numpy(zero_copy_only=False), there


def _micros(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
