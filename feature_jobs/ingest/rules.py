"""What a readable row must also satisfy, and what an absent value means. Pure transforms of the frames of ``sources``.

Each function fills the defaults of ``docs/landing-zone.md`` and adds its reasons to ``_reasons``; a row with a reason goes
to quarantine. Reasons read ``column: what is wrong (found …)``; all of a row's are kept.
"""

import datetime as dt

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_jobs.ingest.values import found
from schemas.config import Config
from schemas.lake import day_start
from schemas.tables import FEEDBACK

EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
"""Instants outside are mistakes of unit or clock, whatever the landing day."""
_MEDIA_PATH = r"^(?![/\\])(?!.*(^|/)\.\.(/|$))(?!.*%(2[eEfF]|5[cC]))[^\x00-\x1f\\?#:]+\z"


def judge_events(frame: DataFrame, date: dt.date, config: Config) -> DataFrame:
    """Defaults and rules of events for landing day ``date``; adds ``date``, the day of request_ts in the lake's zone.

    A request must not lie after its landing day's end; an impression and its feedback may reach past midnight by at most
    ``ingest.max_play_time_ms``.
    """
    limits = config.ingest
    play = F.col("play_time_ms")
    request, shown, observed = F.col("request_ts"), F.col("ts"), F.col("observed_ts")
    end = day_start(date + dt.timedelta(days=1), config)
    end_of_feedback = end + dt.timedelta(milliseconds=limits.max_play_time_ms)
    bounded = F.greatest(F.least(play, F.lit(limits.max_play_time_ms)), F.lit(0))
    watched = F.when(play.isNotNull(), bounded)  # least and greatest pass over nulls
    # unix_micros keeps its argument within 64 bits: watched is bounded, and years have four digits
    default_observed = F.timestamp_micros(F.unix_micros(shown) + watched * 1000)
    frame = frame.withColumns(
        {
            "request_id": F.coalesce("request_id", "impression_id"),
            "request_ts": F.coalesce("request_ts", "ts"),
            "observed_ts": F.coalesce("observed_ts", default_observed),
            **{name: F.coalesce(name, F.lit(False)) for name in FEEDBACK},
        }
    )
    local_day = F.to_date(F.from_utc_timestamp(request, config.lake.day_timezone))
    frame = frame.withColumn("date", local_day)
    oldest = date - dt.timedelta(days=limits.max_late_days)
    return _add_reasons(
        frame,
        _reason("play_time_ms", play < 0, "negative"),
        _reason("play_time_ms", play > limits.max_play_time_ms, f"more than {limits.max_play_time_ms}"),
        *_duration_reasons(limits.max_duration_ms),
        *(_reason(name, F.col(name) < EARLIEST, "before the year 2000") for name in ("request_ts", "ts", "observed_ts")),
        _reason("request_ts", request >= end, f"from the future: after its landing day {date}"),
        _reason("ts", shown >= end_of_feedback, f"from the future: long after its landing day {date}"),
        _reason("observed_ts", observed >= end_of_feedback, f"from the future: long after its landing day {date}"),
        _reason(
            "request_ts",
            (F.col("date") < oldest) & (request >= EARLIEST),
            f"more than {limits.max_late_days} days before its landing day {date}",
        ),
        _reason("ts", shown < request, "before request_ts"),
        _reason("observed_ts", observed < shown, "before ts"),
    )


def judge_items(frame: DataFrame, date: dt.date, config: Config, landing_uri: str) -> DataFrame:
    """Defaults and rules of item versions; media addresses become absolute ones below ``landing_uri``.

    Plain files are read on every day, so their versions may lie ahead; a dated folder's may not.
    """
    end = day_start(date + dt.timedelta(days=1), config)
    valid_from, frames = F.col("valid_from"), F.col("frame_uris")
    escaping = _escaping("cover_uri", landing_uri), _escaping("audio_uri", landing_uri)
    frames_escape = F.exists(frames, lambda uri: uri.isNotNull() & ~_inside(uri, landing_uri))
    frame = _add_reasons(
        frame.withColumn("deleted", F.coalesce("deleted", F.lit(False))),
        *_duration_reasons(config.ingest.max_duration_ms),
        *_sane_instants("valid_from", "upload_ts"),
        _reason("valid_from", F.col("_dated") & (valid_from >= end), f"from the future: after its landing day {date}"),
        *escaping,
        _reason("frame_uris", frames_escape, "outside the landing zone", F.to_json(frames)),
    )
    return frame.withColumns(
        {
            "cover_uri": _absolute(F.col("cover_uri"), landing_uri),
            "audio_uri": _absolute(F.col("audio_uri"), landing_uri),
            "frame_uris": F.transform(frames, lambda uri: _absolute(uri, landing_uri)),
        }
    )


def judge_users(frame: DataFrame, date: dt.date) -> DataFrame:
    """Rules of user snapshots; a dated folder's may not lie after its day."""
    day = F.col("date")
    return _add_reasons(
        frame,
        _reason("date", (day < EARLIEST.date()) | (day >= LATEST.date()), "not between the years 2000 and 2100"),
        _reason("date", F.col("_dated") & (day > date), f"from the future: after its landing day {date}"),
        *_sane_instants("register_ts"),
    )


def add_unknown_items(frame: DataFrame, known: DataFrame) -> DataFrame:
    """Add a reason to events whose item is not among ``known`` (one column item_id, distinct)."""
    marked = frame.join(known.withColumn("_known", F.lit(True)), "item_id", "left")
    unknown = F.col("_known").isNull() & F.col("item_id").isNotNull() & (F.trim("item_id") != "")
    return _add_reasons(marked, _reason("item_id", unknown, "no catalogue row knows it")).drop("_known")


def _reason(column: str, wrong: Column, what: str, shown: Column | None = None) -> Column:
    text = F.col(column).cast("string") if shown is None else shown
    return F.when(wrong, F.concat(F.lit(f"{column}: {what}"), found(text)))


def _add_reasons(frame: DataFrame, *reasons: Column) -> DataFrame:
    return frame.withColumn("_reasons", F.concat("_reasons", F.array_compact(F.array(*reasons))))


def _duration_reasons(most: int) -> list[Column]:
    duration = F.col("duration_ms")
    return [
        _reason("duration_ms", duration <= 0, "not positive"),
        _reason("duration_ms", duration > most, f"more than {most}"),
    ]


def _sane_instants(*columns: str) -> list[Column]:
    return [
        _reason(name, (F.col(name) < EARLIEST) | (F.col(name) >= LATEST), "not between the years 2000 and 2100")
        for name in columns
    ]


def _inside(uri: Column, landing_uri: str) -> Column:
    """True for a path relative to the landing zone that stays in it, or an absolute address below it."""
    return F.coalesce(_relative(uri, landing_uri).rlike(_MEDIA_PATH), F.lit(False))


def _relative(uri: Column, landing_uri: str) -> Column:
    return F.when(uri.startswith(f"{landing_uri}/"), F.substring(uri, len(landing_uri) + 2, 1 << 20)).otherwise(uri)


def _absolute(uri: Column, landing_uri: str) -> Column:
    return F.concat(F.lit(f"{landing_uri}/"), _relative(uri, landing_uri))


def _escaping(column: str, landing_uri: str) -> Column:
    uri = F.col(column)
    return _reason(column, uri.isNotNull() & ~_inside(uri, landing_uri), "outside the landing zone")
