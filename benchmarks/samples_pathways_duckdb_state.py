"""The peer's second half: pathways and ``user_state`` of a day in DuckDB's SQL, bucket by bucket."""

import datetime as dt
from typing import TYPE_CHECKING

from benchmarks.samples_pathways_data import DAY, midnight
from schemas.tables import FEEDBACK, POSITIVE_BIT, USER_STATE

if TYPE_CHECKING:
    from benchmarks.samples_pathways_duckdb import Peer

_DAY_US = 86_400_000_000
_BITS = " | ".join(f'("{name}"::INTEGER << {bit})' for bit, name in (*enumerate(FEEDBACK), (POSITIVE_BIT, "positive")))
_BEHAVIOUR = f"""{{'sample_id': sample_id, 'item_id': item_id, 'author_id': author_id, 'tags': tags, 'ts': ts,
    'observed_ts': observed_ts, 'play_time_ms': play_time_ms, 'duration_ms': duration_ms, 'feedback': {_BITS}}}"""


def pathways(peer: "Peer") -> None:
    """``history``, the three pathways and ``user_state``, bucket by bucket."""
    for bucket in range(peer.config.lake.user_buckets):
        _bucket(peer, bucket)


def _bucket(peer: "Peer", bucket: int) -> None:
    end = f"make_timestamptz({midnight(DAY) + _DAY_US})"
    place = f"date={DAY}/user_bucket={bucket}"
    facts = ("age_band", "gender", "region", "device", "register_ts", "snapshot_date")
    peer.make(
        "state",
        f"""WITH s AS (FROM {peer.before.read(USER_STATE, bucket)}),
        n AS (SELECT n.* FROM snapshots n JOIN numbered USING (user_id) WHERE user_bucket = {bucket})
        SELECT s.* EXCLUDE (date, user_bucket, {", ".join(facts)}),
            {", ".join(f"CASE WHEN n.user_id IS NULL THEN s.{name} ELSE n.{name} END AS {name}" for name in facts)}
        FROM s LEFT JOIN n ON s.user_id = n.user_id UNION ALL BY NAME
        SELECT n.*, [] AS short, [] AS positive, [] AS pending, [] AS recent_items, [] AS watch_histogram, 0 AS active_days,
            0 AS behaviours FROM n ANTI JOIN s USING (user_id)""",
    )
    peer.make(
        "fresh",
        f"""SELECT user_id, list({{'key': item_key, 'b': {_BEHAVIOUR}}} ORDER BY observed_ts, sample_id) AS arrived,
            bit_or(CASE WHEN DATE '{DAY}' - date < 56 THEN 1::BIGINT << (DATE '{DAY}' - date)::INTEGER ELSE 0 END) AS days,
            count(*) AS plays, bool_or(date = DATE '{DAY}') AS active
        FROM labelled WHERE user_bucket = {bucket} GROUP BY user_id""",
    )
    peer.copy(
        "history",
        f"user_bucket={bucket}/date={DAY}",
        "SELECT user_id, list_transform(arrived, lambda x: x.b) AS behaviours FROM fresh ORDER BY user_id",
    )
    peer.make(
        "active",
        """SELECT f.user_id AS user_id, s.* EXCLUDE (user_id)
        FROM (FROM fresh WHERE active) f LEFT JOIN state s ON f.user_id = s.user_id""",
    )
    peer.copy(
        "pathway_static",
        place,
        f"""SELECT user_id, age_band, gender, region, device, CASE WHEN register_ts IS NOT NULL THEN
                greatest(({midnight(DAY)} - epoch_us(register_ts)) // {_DAY_US}, 0)::INTEGER END AS register_days,
            coalesce(bit_count(active_days & {2**28 - 1}), 0)::INTEGER AS active_days_28,
            coalesce(behaviours - len(pending), 0) AS behaviours, snapshot_date FROM active ORDER BY user_id""",
    )
    peer.copy(
        "pathway_short",
        place,
        "SELECT user_id, coalesce(short, []) AS behaviours, coalesce(pending, []) AS pending FROM active ORDER BY user_id",
    )
    positive = f"lambda x: (x.feedback >> {POSITIVE_BIT}) & 1 = 1"
    peer.copy(
        "pathway_positive",
        place,
        f"""SELECT user_id, coalesce(positive, []) AS behaviours, coalesce(list_filter(pending, {positive}), []) AS pending
        FROM active ORDER BY user_id""",
    )
    _advance(peer, place, end, positive, facts)
    peer.sql.execute("DROP TABLE state; DROP TABLE fresh; DROP TABLE active")


def _advance(peer: "Peer", place: str, end: str, positive: str, facts: tuple[str, ...]) -> None:
    """``user_state`` of the bucket at the day's end: lists of users with something new, everybody else passed on."""
    lengths, window = peer.config.pathways, peer.config.samples.positive.repeat_window
    peer.make(
        "waiting",
        """SELECT user_id, list({'key': item_key, 'b': b} ORDER BY b.observed_ts, b.sample_id) AS arrived
        FROM (SELECT user_id, unnest(pending) AS b FROM state WHERE len(pending) > 0) w JOIN item_keys k ON b.item_id = k.item_id
        GROUP BY user_id""",
    )

    def joined(left: str, right: str, first: str = "x") -> str:
        keys = f"{{'o': {first}.observed_ts, 's': {first}.sample_id, 'x': x}}"
        ordered = f"list_transform(list_sort(list_transform(list_concat({left}, {right}), lambda x: {keys})), lambda y: y.x)"
        last, begin = f"{left}[-1]{first[1:]}", f"{right}[1]{first[1:]}"
        return f"""CASE WHEN len({right}) = 0 THEN {left} WHEN len({left}) = 0 OR {last}.observed_ts < {begin}.observed_ts
            THEN list_concat({left}, {right}) ELSE {ordered} END"""

    peer.make(
        "moved",
        f"""WITH touched AS (SELECT coalesce(f.user_id, w.user_id) AS user_id, coalesce(days, 0) AS days,
            coalesce(plays, 0) AS plays, coalesce(w.arrived, []) AS old, coalesce(f.arrived, []) AS new
            FROM fresh f FULL JOIN waiting w ON f.user_id = w.user_id),
        every AS (SELECT * EXCLUDE (old, new), {joined("old", "new", "x.b")} AS arrived FROM touched),
        parted AS (SELECT user_id, days, plays, list_filter(arrived, lambda x: x.b.observed_ts < {end}) AS entered,
            list_transform(list_filter(arrived, lambda x: x.b.observed_ts >= {end}), lambda x: x.b) AS later FROM every)
        SELECT user_id, days, plays, later, list_transform(entered, lambda x: x.b) AS came,
            list_filter(came, {positive}) AS liked,
            list_transform(list_filter(entered, lambda x: x.b.play_time_ms > 0), lambda x: x.key) AS watched FROM parted""",
    )
    peer.make(
        "cells",
        """WITH plays AS (SELECT user_id, unnest(came) AS b FROM moved),
        every AS (SELECT user_id, c.duration_bucket, c.play_bucket, c.count FROM
            (SELECT user_id, unnest(watch_histogram) AS c FROM state SEMI JOIN moved USING (user_id)) UNION ALL
            SELECT user_id, coalesce(duration_bucket_of(b.duration_ms), -1), play_bucket_of(b.play_time_ms), 1 FROM plays),
        summed AS (SELECT user_id, duration_bucket, play_bucket, sum(count)::BIGINT AS count FROM every GROUP BY ALL)
        SELECT user_id, list({'duration_bucket': duration_bucket, 'play_bucket': play_bucket, 'count': count}
            ORDER BY duration_bucket, play_bucket) AS watch_histogram FROM summed GROUP BY user_id""",
    )
    oldest = DAY - dt.timedelta(days=2 * peer.config.ingest.max_late_days)
    seen = peer.sql.execute(f"SELECT landings_seen FROM {peer.before.read(USER_STATE)} LIMIT 1").fetchone()
    landings = sorted({day for day in (seen[0] if seen else []) if day >= oldest} | {DAY})
    listed = ", ".join(f"DATE '{day}'" for day in landings)
    version = peer.before.users_version + 1
    marks = f"[{listed}] AS landings_seen, DATE '{oldest}' AS landings_from, {version}::BIGINT AS users_version"
    shifted = f"((coalesce(active_days, 0) & {2**55 - 1}) << 1)"
    peer.copy(
        "user_state",
        place,
        f"""SELECT m.user_id AS user_id, ({joined("coalesce(short, [])", "came")})[-{lengths.short_length}:] AS short,
            ({joined("coalesce(positive, [])", "liked")})[-{lengths.positive_length}:] AS positive, later AS pending,
            list_concat(coalesce(recent_items, []), watched)[-{window}:] AS recent_items,
            coalesce(c.watch_histogram, []) AS watch_histogram, {shifted} | days AS active_days,
            coalesce(behaviours, 0) + plays AS behaviours, {marks},
            {", ".join(facts)}
        FROM moved m LEFT JOIN state s ON m.user_id = s.user_id LEFT JOIN cells c ON m.user_id = c.user_id
        UNION ALL BY NAME
        SELECT s.* EXCLUDE (landings_seen, landings_from, users_version) REPLACE ({shifted} AS active_days), {marks}
        FROM state s ANTI JOIN moved USING (user_id)
        ORDER BY user_id""",
    )
    peer.sql.execute("DROP TABLE waiting; DROP TABLE moved; DROP TABLE cells")
