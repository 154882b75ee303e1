"""MovieLens: ratings as events. Reads ``ratings.csv`` and ``movies.csv`` or, of ml-1m, the same as ``.dat``.

A rating of 4 or more is a like, of 2 or less a dislike; every rating is a click with a play time of 0, known at its second
(whole seconds since 1970, UTC days). Movies have a title and their genres as tags, the first as category, and no media; a
version holds from 2000 on. Of ml-1m, ``users.dat`` gives gender and age band, dated the day before the first rating.
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
    write_events,
    write_items,
    write_users,
)
from schemas.errors import BadInput

SOURCE_NAME = "movielens"
DAY_TIMEZONE = "UTC"


def find_files(source: Path) -> dict[str, list[Path]]:
    """Ratings and movies of one form. Raises BadInput naming what is missing."""
    suffix = "dat" if (source / "ratings.dat").is_file() else "csv"
    return require_files(source, {"ratings": f"ratings.{suffix}", "movies": f"movies.{suffix}"})


def run(source: Path, out: Path) -> dict[str, Any]:
    """Write the landing zone; returns the report. Raises BadInput for files that are missing or cannot be read."""
    files = find_files(source)
    with replacing(out, SOURCE_NAME) as work, reading(source) as connection:
        report = _import(connection, files, work)
        describe(work, SOURCE_NAME, DAY_TIMEZONE, report)
    return report


def _import(connection: duckdb.DuckDBPyConnection, files: dict[str, list[Path]], work: Path) -> dict[str, Any]:
    (ratings,), (movies,) = files["ratings"], files["movies"]
    connection.execute(f"CREATE TEMP TABLE ratings AS {_rows(ratings, ('user_id', 'item_id', 'rating', 'seconds'))}")
    connection.execute(f"CREATE TEMP TABLE movies AS {_rows(movies, ('item_id', 'title', 'genres'))}")
    totals = connection.execute(
        """SELECT count(*) AS rows, count_if(TRY_CAST(rating AS DOUBLE) >= 4) AS likes,
        count_if(TRY_CAST(rating AS DOUBLE) <= 2) AS dislikes,
        count_if(TRY_CAST(seconds AS BIGINT) IS NULL) AS time_unreadable,
        count(*) - count(DISTINCT (user_id, item_id, seconds)) AS duplicates,
        (SELECT count(*) FROM movies) AS items,
        strftime(min(make_timestamp(TRY_CAST(seconds AS BIGINT) * 1000000)), '%Y-%m-%d') AS first_day FROM ratings"""
    )
    report = dict(zip([column[0] for column in totals.description], totals.fetchall()[0], strict=True))
    first_day = report.pop("first_day")
    if first_day is None:
        raise BadInput(f"{ratings}: no rating with a time; expected user, movie, rating, seconds since 1970")
    report["landing_days"] = write_events(connection, work, _EVENTS.format(first_day=sql_text(first_day)))
    write_items(connection, work, _ITEMS)
    people = ratings.with_name("users.dat")
    if people.is_file():
        names = ("user_id", "gender", "age_band", "occupation", "zip_code")
        snapshot = sql_text(day_before(first_day))
        write_users(connection, work, f"SELECT user_id, {snapshot} AS date, gender, age_band FROM ({_rows(people, names)})")
        report["user_snapshot_date"] = day_before(first_day)
    return report | {"item_valid_from": EARLY}


def _rows(path: Path, names: tuple[str, ...]) -> str:
    """The file's columns in order, as text under these names. Raises BadInput (through DuckDB) for another number of them."""
    columns = ", ".join(f"{sql_text(name)}: 'VARCHAR'" for name in names)
    form = "delim = '::', quote = '', escape = '', header = false, encoding = 'latin-1'"
    if path.suffix == ".csv":
        form = "delim = ',', quote = '\"', escape = '\"', header = true"
    return f"SELECT * FROM read_csv({sql_text(path)}, {form}, columns = {{{columns}}}, auto_detect = false)"


_MOMENT = "make_timestamp(TRY_CAST(seconds AS BIGINT) * 1000000)"
_TIME = f"coalesce(strftime({_MOMENT}, '%Y-%m-%dT%H:%M:%SZ'), seconds)"
_EVENTS = f"""SELECT concat_ws('-', user_id, item_id, seconds) AS impression_id, user_id, item_id, {_TIME} AS ts,
    '0' AS play_time_ms, 'true' AS click,
    CASE WHEN TRY_CAST(rating AS DOUBLE) IS NULL THEN rating ELSE CAST(TRY_CAST(rating AS DOUBLE) >= 4 AS VARCHAR) END AS like,
    CAST(TRY_CAST(rating AS DOUBLE) <= 2 AS VARCHAR) AS dislike,
    coalesce(strftime({_MOMENT}, '%Y-%m-%d'), {{first_day}}) AS landing_day FROM ratings"""
_ITEMS = f"""SELECT item_id, '{EARLY}' AS valid_from, title, nullif(split_part(genres, '|', 1), '') AS category,
    string_split(nullif(genres, ''), '|') AS tags FROM movies"""
