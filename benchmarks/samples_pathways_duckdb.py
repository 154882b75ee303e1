"""The peer: one landing day in DuckDB's SQL, from the same Parquet to the same tables, with two threads like ours.

It reads the landing's Parquet and the lake's files of the day before, and writes zstd Parquet files in the same partitions
and row order: ``events``, ``items``, ``users``, ``quarantine``, ``daily_samples``, ``history``, the pathways and
``user_state``. What makes it quick: users are numbered once and joined by number; duplicates are looked for by counting,
and only repeated impressions are ranked; items' versions are a hash join on ranges; lists that already are in order are
joined without sorting; everything but ``user_state`` stays in memory between the steps.

Two things are done outside SQL, as DuckDB has no xxhash64: the buckets of the distinct users and the keys of the catalogue's
items come from Python. ``sample_id`` is DuckDB's own ``hash`` unless ``exact_ids`` asks for ours, which the test of equality does.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import xxhash

from benchmarks.samples_pathways_data import DAY, DAY_BEFORE, midnight
from benchmarks.samples_pathways_data import EVENTS as LANDED
from schemas.lake import Lake
from schemas.shards import stable_key
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK, ITEMS, POSITIVE_BIT, USER_STATE, USERS, Table

_DAY_US = 86_400_000_000
_BITS = " | ".join(f'("{name}"::INTEGER << {bit})' for bit, name in (*enumerate(FEEDBACK), (POSITIVE_BIT, "positive")))
_BEHAVIOUR = f"""{{'sample_id': sample_id, 'item_id': item_id, 'author_id': author_id, 'tags': tags, 'ts': ts,
    'observed_ts': observed_ts, 'play_time_ms': play_time_ms, 'duration_ms': duration_ms, 'feedback': {_BITS}}}"""


@dataclass(frozen=True)
class Before:
    """What the lake holds before the day, as lists of Parquet files, and its settings."""

    lake: Lake
    files: dict[str, list[str]]
    users_version: int

    @classmethod
    def of(cls, lake: Lake) -> "Before":
        """Of a lake at the end of DAY_BEFORE."""
        tables = (EVENTS, ITEMS, USERS, USER_STATE)
        files = {table.name: [uri.removeprefix("file://") for uri in lake.open_table(table).file_uris()] for table in tables}
        return cls(lake, files, lake.table_version(USERS))

    def read(self, table: Table, bucket: int | None = None) -> str:
        """SQL that reads a table, or a bucket of it."""
        files = [file for file in self.files[table.name] if bucket is None or f"user_bucket={bucket}/" in file]
        return f"read_parquet({files}, hive_partitioning = true)"


class Peer:
    """A connection that takes a lake one day on, into ``out``."""

    def __init__(self, before: Before, landing: Path, out: Path, *, threads: int, memory: str, exact_ids: bool = False) -> None:
        self.before, self.landing, self.out = before, landing, out
        self.config = before.lake.config
        self.sql = duckdb.connect(config={"threads": threads, "memory_limit": memory, "temp_directory": str(out / "spill")})
        self.sql.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET enable_progress_bar = false")
        ids = "(hash(u, i) >> 1)::BIGINT"
        if exact_ids:
            self.sql.create_function("exact_id", _sample_ids, ["VARCHAR", "VARCHAR"], "BIGINT", type="arrow")  # type: ignore[arg-type]
            ids = "exact_id(u, i)"
        self.sql.execute(f"CREATE MACRO sample_id_of(u, i) AS {ids}")
        samples = self.config.samples
        for name, base in (("duration_bucket_of", samples.duration_log_base), ("play_bucket_of", samples.play_log_base)):
            # times are whole milliseconds, so no ratio of logarithms lies nearer than this below a whole number
            self.sql.execute(f"CREATE MACRO {name}(ms) AS floor(ln(ms / 1000 + 1) / ln({base}) + 1e-9)::INTEGER")

    def run(self) -> None:
        """The whole day."""
        self.ingest()
        self.samples()
        self.pathways()
        self.sql.close()

    def ingest(self) -> None:
        """Landing files to ``events``, ``items``, ``users`` and ``quarantine``."""
        self._catalogue()
        limits, end = self.config.ingest, midnight(DAY) + _DAY_US
        zone = self.landing / "events" / f"date={DAY}" / "*.parquet"
        none = ", ".join(f'false AS "{name}"' for name in FEEDBACK if name not in LANDED.names)
        self._make(
            "judged",
            f"""SELECT l.*, {none}, epoch_us(request_ts) AS request_us, epoch_us(ts) + play_time_ms * 1000 AS observed_us,
                coalesce(trim(impression_id) <> '' AND length(impression_id) <= 512 AND trim(request_id) <> ''
                AND length(request_id) <= 512 AND trim(user_id) <> '' AND length(user_id) <= 512
                AND coalesce(length(session_id) <= 512 AND trim(session_id) <> '', true)
                AND play_time_ms BETWEEN 0 AND {limits.max_play_time_ms}
                AND coalesce(duration_ms BETWEEN 1 AND {limits.max_duration_ms}, true)
                AND request_us BETWEEN {midnight(DAY - dt.timedelta(days=limits.max_late_days))} AND {end - 1}
                AND request_ts <= ts AND observed_us < {end + limits.max_play_time_ms * 1000}
                AND l.item_id IN (SELECT item_id FROM item_keys), false) AS good
            FROM read_parquet('{zone}', hive_partitioning = false) l""",
        )
        self._copy("quarantine", f"table_name=events/date={DAY}", "SELECT to_json(j) AS row_json FROM judged j WHERE NOT good")
        self._number_users()
        others = ", ".join(("item_id", "session_id", "scene", "play_time_ms", "duration_ms"))
        self._make(
            "events",
            f"""WITH good AS (SELECT * FROM judged WHERE good),
            repeated AS (SELECT impression_id FROM good GROUP BY ALL HAVING count(*) > 1),
            firsts AS (SELECT * FROM good SEMI JOIN repeated USING (impression_id) QUALIFY row_number() OVER (
                PARTITION BY impression_id ORDER BY request_ts, ts, observed_us, request_id, user_id, {others}) = 1),
            earlier AS (SELECT impression_id FROM {self.before.read(EVENTS)} WHERE date IN
                (SELECT DISTINCT DATE '1970-01-01' + (request_us // {_DAY_US})::INTEGER FROM good))
            SELECT e.* EXCLUDE (good), DATE '1970-01-01' + (request_us // {_DAY_US})::INTEGER AS date,
                make_timestamptz(observed_us) AS observed_ts, user_no, user_bucket
            FROM (FROM good ANTI JOIN repeated USING (impression_id) UNION ALL FROM firsts) e JOIN numbered USING (user_id)
            ANTI JOIN earlier USING (impression_id)""",
        )
        self.sql.execute("DROP TABLE judged")
        columns = self._data_columns(EVENTS, ingested_at="now()")
        for day, bucket in self.sql.execute("SELECT DISTINCT date, user_bucket FROM events").fetchall():
            self._copy(
                "events",
                f"date={day}/landing_date={DAY}/user_bucket={bucket}",
                f"SELECT {columns} FROM events WHERE date = DATE '{day}' AND user_bucket = {bucket} "
                "ORDER BY user_id, request_ts, ts, impression_id",
            )

    def _catalogue(self) -> None:
        """Publishes the landing's items and users; makes ``versions``: each item's attributes and the range they held in."""
        landed = {
            name: f"read_parquet('{self.landing}/{name}/date={DAY}/*.parquet', hive_partitioning = false)"
            for name in ("items", "users")
        }
        items, users = self.before.read(ITEMS), self.before.read(USERS)
        self._copy("items", "", f"SELECT * FROM {landed['items']} l ANTI JOIN {items} USING (item_id, valid_from)")
        self._copy("users", f"date={DAY}", f"SELECT * FROM {landed['users']} l ANTI JOIN {users} USING (user_id, date)")
        every = f"""(SELECT item_id, epoch_us(valid_from) AS start, author_id, category, tags, duration_ms AS length FROM {items}
            UNION SELECT item_id, epoch_us(valid_from), author_id, category, tags, duration_ms FROM {landed["items"]})"""
        names = self.sql.execute(f"SELECT DISTINCT item_id FROM {every}").fetchall()
        keys = pa.table({"item_id": [name for (name,) in names], "item_key": [stable_key(name) for (name,) in names]})
        self.sql.register("keys_made", keys)
        self._make("item_keys", "FROM keys_made")
        self._make(
            "versions",
            f"""WITH every AS (FROM {every} UNION ALL BY NAME SELECT item_id, {-(2**62)} AS start FROM item_keys)
            SELECT v.*, lead(start, 1, {2**62}) OVER (PARTITION BY item_id ORDER BY start) AS stop, item_key
            FROM every v JOIN item_keys USING (item_id)""",
        )

    def _number_users(self) -> None:
        """``numbered``: users of the landing and of yesterday's ``snapshots``, with number, bucket and split."""
        self._make(
            "snapshots",
            f"""SELECT user_id, age_band, gender, region, device, register_ts, date AS snapshot_date
            FROM {self.before.read(USERS)} WHERE date = DATE '{DAY_BEFORE}'""",
        )
        every = "SELECT user_id FROM judged WHERE good UNION SELECT user_id FROM snapshots"
        names = [name for (name,) in self.sql.execute(every).fetchall()]
        buckets, share = self.config.lake.user_buckets, self.config.samples.holdout_share * 2.0**64
        made = {
            "user_id": names,
            "user_no": pa.array(range(len(names)), pa.int32()),
            "user_bucket": pa.array([stable_key(name) % buckets for name in names], pa.int32()),
            "split": ["holdout" if stable_key(f"holdout:{name}") % 2**64 < share else "train" for name in names],
        }
        self.sql.register("users_made", pa.table(made))
        self._make("numbered", "FROM users_made")

    def samples(self) -> None:
        """``daily_samples`` of the day; leaves ``labelled``, with the late rows of earlier days beside the samples."""
        self._make(
            "state_of_active",
            f"""SELECT user_no, pending, recent_items, watch_histogram FROM {self.before.read(USER_STATE)} s
            JOIN numbered USING (user_id)""",
        )
        self._label("today", f"date = DATE '{DAY}'")
        self._label("late", f"date < DATE '{DAY}'")
        self._make(
            "day_quantiles",
            """SELECT duration_bucket, play_time_ms, sum(plays) OVER (PARTITION BY duration_bucket ORDER BY play_time_ms)
                / sum(plays) OVER (PARTITION BY duration_bucket) AS watch_quantile_day
            FROM (SELECT duration_bucket, play_time_ms, count(*) AS plays FROM today WHERE duration_bucket >= 0 GROUP BY ALL)""",
        )
        columns = self._data_columns(DAILY_SAMPLES)
        for bucket in range(self.config.lake.user_buckets):
            self._copy(
                "daily_samples",
                f"date={DAY}/user_bucket={bucket}",
                f"""SELECT {columns} FROM today t JOIN numbered n USING (user_id)
                LEFT JOIN day_quantiles q USING (duration_bucket, play_time_ms)
                WHERE t.user_bucket = {bucket} ORDER BY user_id, request_ts, ts, sample_id""",
            )
        self._make("labelled", "FROM today UNION ALL FROM late")
        self.sql.execute("DROP TABLE today; DROP TABLE late; DROP TABLE state_of_active; DROP TABLE events")

    def _label(self, name: str, where: str) -> None:
        """Table ``name``: the events that ``where`` selects, labelled given the state of the day before."""
        samples = self.config.samples
        self._make(
            "base",
            f"""WITH chosen AS (SELECT e.* REPLACE (coalesce(duration_ms, length) AS duration_ms), author_id, category, tags, item_key,
                sample_id_of(user_id, impression_id) AS sample_id FROM events e JOIN versions v
                ON e.item_id = v.item_id AND request_us > v.start AND request_us <= v.stop WHERE {where}),
            heavy AS (SELECT user_no, date FROM chosen GROUP BY ALL HAVING count(*) > {samples.user_day_cap}),
            capped AS (SELECT * FROM chosen SEMI JOIN heavy USING (user_no, date) QUALIFY row_number() OVER (
                PARTITION BY user_no, date ORDER BY ts, sample_id) <= {samples.user_day_cap})
            SELECT *, row_number() OVER () AS row_no, play_time_ms / duration_ms AS play_ratio,
                coalesce(duration_bucket_of(duration_ms), -1) AS duration_bucket, play_bucket_of(play_time_ms) AS play_bucket
            FROM (FROM chosen ANTI JOIN heavy USING (user_no, date) UNION ALL FROM capped)""",
        )
        self._make(
            "second",
            f"""WITH watches AS (
                SELECT row_no, user_no, item_key, observed_us, sample_id FROM base WHERE play_time_ms > 0 UNION ALL
                SELECT NULL, user_no, item_key, epoch_us(b.observed_ts), b.sample_id
                FROM (SELECT user_no, unnest(pending) AS b FROM state_of_active SEMI JOIN base USING (user_no)) JOIN item_keys k
                ON b.item_id = k.item_id WHERE b.play_time_ms > 0),
            placed AS (SELECT *, row_number() OVER (PARTITION BY user_no ORDER BY observed_us, sample_id) AS place FROM watches),
            remembered AS (SELECT user_no, item_key, max(place) AS place FROM (
                SELECT user_no, unnest(recent_items) AS item_key, generate_subscripts(recent_items, 1) - len(recent_items) AS place
                FROM state_of_active) SEMI JOIN placed USING (user_no, item_key) GROUP BY ALL),
            paired AS (SELECT p.row_no, p.place, coalesce(
                lag(p.place) OVER (PARTITION BY user_no, item_key ORDER BY p.place), r.place) AS before
                FROM placed p LEFT JOIN remembered r USING (user_no, item_key))
            SELECT row_no FROM paired WHERE row_no IS NOT NULL AND place - before <= {samples.positive.repeat_window}""",
        )
        any_flag = " OR ".join(f'"{name}"' for name in samples.positive.feedback)
        self._make(
            name,
            f"""WITH cells AS (SELECT user_no, cell.duration_bucket, cell.play_bucket, cell.count AS plays
                FROM (SELECT user_no, unnest(watch_histogram) AS cell FROM state_of_active SEMI JOIN base USING (user_no))),
            shares AS (SELECT user_no, duration_bucket, play_bucket AS first,
                lead(play_bucket, 1, 1000000) OVER w AS stop, sum(plays) OVER w / sum(plays) OVER (PARTITION BY user_no, duration_bucket) AS share
                FROM cells WINDOW w AS (PARTITION BY user_no, duration_bucket ORDER BY play_bucket)),
            starts AS (SELECT user_no, duration_bucket, min(first) AS least FROM shares GROUP BY ALL)
            SELECT b.*, {any_flag} OR coalesce(play_ratio >= {samples.positive.min_play_ratio}, false) OR s.row_no IS NOT NULL AS positive,
                CASE WHEN b.duration_bucket >= 0 AND least IS NOT NULL THEN coalesce(h.share, 0.0) END AS watch_quantile_user
            FROM base b LEFT JOIN second s ON b.row_no = s.row_no
            LEFT JOIN starts t ON b.user_no = t.user_no AND b.duration_bucket = t.duration_bucket
            LEFT JOIN shares h ON b.user_no = h.user_no AND b.duration_bucket = h.duration_bucket
                AND b.play_bucket >= h.first AND b.play_bucket < h.stop""",
        )
        self.sql.execute("DROP TABLE base; DROP TABLE second")

    def pathways(self) -> None:
        """``history``, the three pathways and ``user_state``, bucket by bucket."""
        for bucket in range(self.config.lake.user_buckets):
            self._bucket(bucket)

    def _bucket(self, bucket: int) -> None:
        days = (DAY - dt.date(1970, 1, 1)).days
        end = f"make_timestamptz({midnight(DAY) + _DAY_US})"
        place = f"date={DAY}/user_bucket={bucket}"
        facts = ("age_band", "gender", "region", "device", "register_ts", "snapshot_date")
        self._make(
            "state",
            f"""WITH s AS (FROM {self.before.read(USER_STATE, bucket)}),
            n AS (SELECT n.* FROM snapshots n JOIN numbered USING (user_id) WHERE user_bucket = {bucket})
            SELECT s.* EXCLUDE (date, user_bucket, {", ".join(facts)}),
                {", ".join(f"CASE WHEN n.user_id IS NULL THEN s.{name} ELSE n.{name} END AS {name}" for name in facts)}
            FROM s LEFT JOIN n ON s.user_id = n.user_id UNION ALL BY NAME
            SELECT n.*, [] AS short, [] AS positive, [] AS pending, [] AS recent_items, [] AS watch_histogram, 0 AS active_days,
                0 AS behaviours FROM n ANTI JOIN s USING (user_id)""",
        )
        self._make(
            "fresh",
            f"""SELECT user_id, list({{'key': item_key, 'b': {_BEHAVIOUR}}} ORDER BY observed_ts, sample_id) AS arrived,
                bit_or(CASE WHEN {days} - (date - DATE '1970-01-01') < 56 THEN 1::BIGINT << ({days} - (date - DATE '1970-01-01')) ELSE 0 END)
                AS days, count(*) AS plays, bool_or(date = DATE '{DAY}') AS active
            FROM labelled WHERE user_bucket = {bucket} GROUP BY user_id""",
        )
        self._copy(
            "history",
            f"user_bucket={bucket}/date={DAY}",
            "SELECT user_id, list_transform(arrived, lambda x: x.b) AS behaviours FROM fresh ORDER BY user_id",
        )
        self._make(
            "active",
            """SELECT f.user_id AS user_id, s.* EXCLUDE (user_id) FROM (FROM fresh WHERE active) f LEFT JOIN state s ON f.user_id = s.user_id""",
        )
        self._copy(
            "pathway_static",
            place,
            f"""SELECT user_id, age_band, gender, region, device, CASE WHEN register_ts IS NOT NULL THEN
                    greatest(({midnight(DAY)} - epoch_us(register_ts)) // {_DAY_US}, 0)::INTEGER END AS register_days, coalesce(bit_count(active_days & {2**28 - 1}), 0)::INTEGER AS active_days_28,
                coalesce(behaviours - len(pending), 0) AS behaviours, snapshot_date FROM active ORDER BY user_id""",
        )
        self._copy(
            "pathway_short",
            place,
            "SELECT user_id, coalesce(short, []) AS behaviours, coalesce(pending, []) AS pending FROM active ORDER BY user_id",
        )
        positive = f"lambda x: (x.feedback >> {POSITIVE_BIT}) & 1 = 1"
        self._copy(
            "pathway_positive",
            place,
            f"""SELECT user_id, coalesce(positive, []) AS behaviours, coalesce(list_filter(pending, {positive}), []) AS pending
            FROM active ORDER BY user_id""",
        )
        self._advance(place, end, positive, facts)
        self.sql.execute("DROP TABLE state; DROP TABLE fresh; DROP TABLE active")

    def _advance(self, place: str, end: str, positive: str, facts: tuple[str, ...]) -> None:
        """``user_state`` of the bucket at the day's end: lists of users with something new, everybody else passed on."""
        lengths, window = self.config.pathways, self.config.samples.positive.repeat_window
        self._make(
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

        self._make(
            "moved",
            f"""WITH touched AS (SELECT coalesce(f.user_id, w.user_id) AS user_id, coalesce(days, 0) AS days, coalesce(plays, 0) AS plays,
                coalesce(w.arrived, []) AS old, coalesce(f.arrived, []) AS new
                FROM fresh f FULL JOIN waiting w ON f.user_id = w.user_id),
            every AS (SELECT * EXCLUDE (old, new), {joined("old", "new", "x.b")} AS arrived FROM touched)
            SELECT user_id, days, plays, list_filter(arrived, lambda x: x.b.observed_ts < {end}) AS entered,
                list_transform(list_filter(arrived, lambda x: x.b.observed_ts >= {end}), lambda x: x.b) AS later FROM every""",
        )
        self._make(
            "cells",
            """WITH plays AS (SELECT user_id, unnest(entered).b AS b FROM moved),
            every AS (SELECT user_id, c.duration_bucket, c.play_bucket, c.count FROM
                (SELECT user_id, unnest(watch_histogram) AS c FROM state SEMI JOIN moved USING (user_id)) UNION ALL
                SELECT user_id, coalesce(duration_bucket_of(b.duration_ms), -1), play_bucket_of(b.play_time_ms), 1 FROM plays),
            summed AS (SELECT user_id, duration_bucket, play_bucket, sum(count)::BIGINT AS count FROM every GROUP BY ALL)
            SELECT user_id, list({'duration_bucket': duration_bucket, 'play_bucket': play_bucket, 'count': count}
                ORDER BY duration_bucket, play_bucket) AS watch_histogram FROM summed GROUP BY user_id""",
        )
        oldest = DAY - dt.timedelta(days=2 * self.config.ingest.max_late_days)
        seen = self.sql.execute(f"SELECT landings_seen FROM {self.before.read(USER_STATE)} LIMIT 1").fetchone()
        landings = sorted({day for day in (seen[0] if seen else []) if day >= oldest} | {DAY})
        marks = f"""[{", ".join(f"DATE '{day}'" for day in landings)}] AS landings_seen, {self.before.users_version + 1}::BIGINT AS users_version"""
        plain = "list_transform(entered, lambda x: x.b)"
        chosen = f"list_filter({plain}, {positive})"
        shifted = f"((coalesce(active_days, 0) & {2**55 - 1}) << 1)"
        self._copy(
            "user_state",
            place,
            f"""SELECT m.user_id AS user_id, ({joined("coalesce(short, [])", plain)})[-{lengths.short_length}:] AS short,
                ({joined("coalesce(positive, [])", chosen)})[-{lengths.positive_length}:] AS positive, later AS pending,
                list_concat(coalesce(recent_items, []), list_transform(list_filter(entered, lambda x: x.b.play_time_ms > 0), lambda x: x.key))
                    [-{window}:] AS recent_items,
                coalesce(c.watch_histogram, []) AS watch_histogram, {shifted} | days AS active_days,
                coalesce(behaviours, 0) + plays AS behaviours, {marks},
                {", ".join(facts)}
            FROM moved m LEFT JOIN state s ON m.user_id = s.user_id LEFT JOIN cells c ON m.user_id = c.user_id
            UNION ALL BY NAME
            SELECT s.* EXCLUDE (landings_seen, users_version) REPLACE ({shifted} AS active_days), {marks} FROM state s ANTI JOIN moved USING (user_id)
            ORDER BY user_id""",
        )
        self.sql.execute("DROP TABLE waiting; DROP TABLE moved; DROP TABLE cells")

    def _data_columns(self, table: Table, **given: str) -> str:
        names = [name for name in table.schema.names if name not in table.partition_by]
        return ", ".join(f"{given[name]} AS {name}" if name in given else f'"{name}"' for name in names)

    def _make(self, name: str, query: str) -> None:
        self.sql.execute(f"CREATE TEMP TABLE {name} AS {query}")

    def _copy(self, table: str, partition: str, query: str) -> None:
        folder = self.out / table / partition
        folder.mkdir(parents=True, exist_ok=True)
        self.sql.execute(f"COPY ({query}) TO '{folder}/part.parquet' (FORMAT parquet, COMPRESSION zstd)")


def _sample_ids(users: pa.ChunkedArray, impressions: pa.ChunkedArray) -> pa.Array:
    hashes = [
        xxhash.xxh64_intdigest(impression.encode(), xxhash.xxh64_intdigest(user.encode(), 42))
        for user, impression in zip(users.to_pylist(), impressions.to_pylist(), strict=True)
    ]
    return pa.array(hashes, pa.uint64()).cast(pa.int64(), safe=False)


def rows_of(out: Path, table: Table) -> pa.Table:
    """What the peer wrote of a table, partition columns included."""
    schema = pa.schema([(name, table.schema.field(name).type) for name in table.partition_by])
    partitioning = pads.partitioning(schema, flavor="hive")
    return pads.dataset(str(out / table.name), format="parquet", partitioning=partitioning).to_table()
