"""KuaiRand (CIKM 2022): short-video impressions with users and videos, in either of its two column forms.

Rules, each counted in the report:

* a landing day is the Asia/Shanghai day of ``time_ms``, whatever the column ``date`` says (``date_column_disagrees``);
  a row whose ``time_ms`` is no number goes to the first day, for ingest to judge (``time_unreadable``);
* ``impression_id`` is user, video and time, so that a repeated row stays a duplicate (``duplicates``); no request ids;
* a duration of 0 means unknown (``duration_zero``, in the log; ``video_duration_zero``, in the video table);
* ``label`` 1 is a like and 0 a dislike (``label_split``); the other form has ``is_like`` and ``is_hate``;
* a video that only the log knows gets an item row with the log's duration (``item_rows_made``);
* item versions hold from 2000 on, since the source knows no changes; ``tag`` gives tags, the first is the category;
* the user snapshot is dated the day before the log begins; ``register_ts`` counts ``register_days`` back from that begin.
"""

from pathlib import Path
from typing import Any

import duckdb

from onerec.importers.landing_writer import (
    EARLY,
    day_before,
    describe,
    reading,
    replacing,
    require_files,
    sql_text,
    text_table,
    write_events,
    write_items,
    write_users,
)
from schemas.errors import BadInput

SOURCE_NAME = "kuairand"
DAY_TIMEZONE = "Asia/Shanghai"
LOG_COLUMNS = (
    "user_id", "video_id", "date", "time_ms", "is_click", "is_follow", "is_comment", "is_forward", "long_view",
    "play_time_ms", "duration_ms", "is_profile_enter",
)  # fmt: skip
_LOCAL_DAY = f"CAST(timezone({sql_text(DAY_TIMEZONE)}, make_timestamptz(time_number * 1000)) AS DATE)"


def find_files(source: Path) -> dict[str, list[Path]]:
    """Logs, users and videos. Raises BadInput naming what is missing."""
    others = {"users": "user_features*.csv", "videos": "video_features_basic*.csv"}
    logs = [path for pattern in ("log_*.csv", "processed_*.tsv") for path in sorted(source.glob(pattern))]
    if not logs:
        require_files(source, {"the log": "log_*.csv"})
    return {"logs": logs, **require_files(source, others)}


def run(source: Path, out: Path) -> dict[str, Any]:
    """Write the landing zone; returns the report. Raises BadInput for files that are missing or cannot be read."""
    files = find_files(source)
    with replacing(out, SOURCE_NAME) as work, reading(source) as connection:
        report = _import(connection, files, work)
        describe(work, SOURCE_NAME, DAY_TIMEZONE, report)
    return report


def _import(connection: duckdb.DuckDBPyConnection, files: dict[str, list[Path]], work: Path) -> dict[str, Any]:
    columns = _read_log(connection, files["logs"])
    first_day = connection.execute(f"SELECT min({_LOCAL_DAY}) FROM log").fetchall()[0][0]
    if first_day is None:
        raise BadInput(f"{files['logs'][0]}: no row with a time_ms; is this the log?")
    first_day = first_day.isoformat()
    connection.execute(f"CREATE TEMP TABLE videos AS SELECT * FROM {text_table(files['videos'], ',')}")
    connection.execute(f"CREATE TEMP TABLE people AS SELECT * FROM {text_table(files['users'], ',')}")
    report = _quirks(connection, columns)
    report["landing_days"] = write_events(connection, work, _events(columns, first_day))
    write_items(connection, work, _ITEMS)
    write_users(connection, work, _users(first_day))
    return report | {"user_snapshot_date": day_before(first_day), "item_valid_from": EARLY}


def _read_log(connection: duckdb.DuckDBPyConnection, logs: list[Path]) -> set[str]:
    """Create the table ``log``; returns its columns. Raises BadInput naming a file and the column it lacks."""
    parts = []
    for path in logs:
        table = text_table([path], "\t" if path.suffix == ".tsv" else ",")
        names = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}
        feedback = ("label",) if "label" in names else ("is_like", "is_hate")
        missing = [name for name in (*LOG_COLUMNS, *feedback) if name not in names]
        if missing:
            raise BadInput(f"{path}: column {missing[0]!r} is missing; both published forms of the log have it")
        parts.append(f"SELECT * FROM {table}")
    connection.execute(
        "CREATE TEMP TABLE log AS SELECT *, TRY_CAST(time_ms AS BIGINT) AS time_number "
        f"FROM ({' UNION ALL BY NAME '.join(parts)})"
    )
    return {row[0] for row in connection.execute("DESCRIBE log").fetchall()}


def _quirks(connection: duckdb.DuckDBPyConnection, columns: set[str]) -> dict[str, Any]:
    label = "count(label)" if "label" in columns else "0"
    row = connection.execute(
        f"""SELECT count(*) AS rows, count(*) - count(DISTINCT (user_id, video_id, time_ms)) AS duplicates,
        count_if(duration_ms = '0') AS duration_zero, {label} AS label_split,
        count_if(strftime({_LOCAL_DAY}, '%Y%m%d') <> date) AS date_column_disagrees,
        count_if(time_number IS NULL) AS time_unreadable,
        count_if(TRY_CAST(play_time_ms AS BIGINT) > TRY_CAST(duration_ms AS BIGINT) AND duration_ms <> '0')
            AS played_longer_than_the_video
        FROM log"""
    )
    report = dict(zip([column[0] for column in row.description], row.fetchall()[0], strict=True))
    tables = connection.execute(
        """SELECT (SELECT count(*) FROM videos) AS item_rows_from_table,
        (SELECT count(DISTINCT video_id) FROM log WHERE video_id NOT IN (SELECT video_id FROM videos)) AS item_rows_made,
        (SELECT count_if(TRY_CAST(video_duration AS DOUBLE) = 0) FROM videos) AS video_duration_zero,
        (SELECT count(*) FROM people) AS users,
        (SELECT count(DISTINCT user_id) FROM log WHERE user_id NOT IN (SELECT user_id FROM people)) AS users_without_features"""
    )
    return report | dict(zip([column[0] for column in tables.description], tables.fetchall()[0], strict=True))


def _events(columns: set[str], first_day: str) -> str:
    like, dislike = [], []
    if "label" in columns:
        like.append("CASE label WHEN '1' THEN 'true' WHEN '0' THEN 'false' ELSE label END")
        dislike.append("CASE label WHEN '0' THEN 'true' WHEN '1' THEN 'false' END")
    if "is_like" in columns:
        like.append("is_like")
        dislike.append("is_hate")
    return f"""SELECT concat_ws('-', user_id, video_id, time_ms) AS impression_id, user_id, video_id AS item_id,
        coalesce(strftime(make_timestamp(time_number * 1000), '%Y-%m-%dT%H:%M:%S.%fZ'), time_ms) AS ts,
        play_time_ms, nullif(duration_ms, '0') AS duration_ms, {"tab" if "tab" in columns else "NULL::VARCHAR"} AS scene,
        is_click AS click, coalesce({", ".join(like)}) AS like, is_follow AS follow, is_comment AS comment,
        is_forward AS forward, coalesce({", ".join(dislike)}) AS dislike, is_profile_enter AS profile_enter, long_view,
        coalesce(CAST({_LOCAL_DAY} AS VARCHAR), {sql_text(first_day)}) AS landing_day FROM log"""


_ITEMS = f"""SELECT video_id AS item_id, '{EARLY}' AS valid_from, author_id,
    nullif(split_part(tag, ',', 1), '') AS category, string_split(nullif(tag, ''), ',') AS tags,
    CASE WHEN TRY_CAST(video_duration AS DOUBLE) = 0 THEN NULL ELSE video_duration END AS duration_ms,
    CASE WHEN TRY_CAST(upload_dt AS DATE) IS NULL THEN upload_dt ELSE upload_dt || 'T00:00:00+08:00' END AS upload_ts
    FROM videos
    UNION ALL SELECT video_id, '{EARLY}', NULL, NULL, NULL, max(CAST(nullif(TRY_CAST(duration_ms AS BIGINT), 0) AS VARCHAR)),
    NULL FROM log WHERE video_id NOT IN (SELECT video_id FROM videos) GROUP BY video_id"""


def _users(first_day: str) -> str:
    start = f"timezone({sql_text(DAY_TIMEZONE)}, TIMESTAMP {sql_text(first_day)})"
    days = "TRY_CAST(register_days AS INTEGER)"
    registered = f"strftime({start} - to_days({days}), '%Y-%m-%dT%H:%M:%SZ')"
    return f"""SELECT user_id, {sql_text(day_before(first_day))} AS date,
        coalesce({registered}, register_days) AS register_ts FROM people"""
