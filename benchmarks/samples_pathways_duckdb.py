"""The peer: one landing day in DuckDB's SQL, from the same Parquet to the same tables, with two threads like ours.

It reads the landing's Parquet and the lake's files of the day before, and writes zstd Parquet files in the same partitions
and row order: ``events``, ``items``, ``users``, ``quarantine``, ``daily_samples``, ``history``, the pathways and
``user_state``. What makes it quick: users are numbered once and joined by number; duplicates are looked for by counting,
and only repeated impressions are ranked; items' versions are a hash join on ranges; lists that already are in order are
joined without sorting; everything but ``user_state`` stays in memory between the steps.

Two things are done outside SQL, as DuckDB has no xxhash64: the buckets of the distinct users and the keys of the catalogue's
items come from Python. ``sample_id`` is DuckDB's own ``hash`` unless ``exact_ids`` asks for ours, as the test of equality does.
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
from benchmarks.samples_pathways_duckdb_state import pathways
from schemas.lake import Lake
from schemas.shards import stable_key
from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK, ITEMS, USER_STATE, USERS, Table

_DAY_US = 86_400_000_000
CODEC = "COMPRESSION zstd, COMPRESSION_LEVEL 1"
"""As our files have it (``feature_jobs.parquet_layout``)."""


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
            self.sql.create_function("exact_id", _sample_ids, ["VARCHAR", "VARCHAR"], "BIGINT", type="arrow")
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
        pathways(self)
        self.sql.close()

    def ingest(self) -> None:
        """Landing files to ``events``, ``items``, ``users`` and ``quarantine``."""
        self._catalogue()
        limits, end = self.config.ingest, midnight(DAY) + _DAY_US
        zone = self.landing / "events" / f"date={DAY}" / "*.parquet"
        none = ", ".join(f'false AS "{name}"' for name in FEEDBACK if name not in LANDED.names)
        self.make(
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
        self.copy("quarantine", f"table_name=events/date={DAY}", "SELECT to_json(j) AS row_json FROM judged j WHERE NOT good")
        self._number_users()
        others = ", ".join(("item_id", "session_id", "scene", "play_time_ms", "duration_ms"))
        self.make(
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
        columns = self.data_columns(EVENTS, ingested_at="now()")
        for day, bucket in self.sql.execute("SELECT DISTINCT date, user_bucket FROM events").fetchall():
            self.copy(
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
        self.copy("items", "", f"SELECT * FROM {landed['items']} l ANTI JOIN {items} USING (item_id, valid_from)")
        self.copy("users", f"date={DAY}", f"SELECT * FROM {landed['users']} l ANTI JOIN {users} USING (user_id, date)")
        every = f"""(SELECT item_id, epoch_us(valid_from) AS start, author_id, category, tags, duration_ms AS length FROM {items}
            UNION SELECT item_id, epoch_us(valid_from), author_id, category, tags, duration_ms FROM {landed["items"]})"""
        names = self.sql.execute(f"SELECT DISTINCT item_id FROM {every}").fetchall()
        keys = pa.table({"item_id": [name for (name,) in names], "item_key": [stable_key(name) for (name,) in names]})
        self.sql.register("keys_made", keys)
        self.make("item_keys", "FROM keys_made")
        self.make(
            "versions",
            f"""WITH every AS (FROM {every} UNION ALL BY NAME SELECT item_id, {-(2**62)} AS start FROM item_keys)
            SELECT v.*, lead(start, 1, {2**62}) OVER (PARTITION BY item_id ORDER BY start) AS stop, item_key
            FROM every v JOIN item_keys USING (item_id)""",
        )

    def _number_users(self) -> None:
        """``numbered``: users of the landing and of yesterday's ``snapshots``, with number, bucket and split."""
        self.make(
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
        self.make("numbered", "FROM users_made")

    def samples(self) -> None:
        """``daily_samples`` of the day; leaves ``labelled``, with the late rows of earlier days beside the samples."""
        self.make(
            "state_of_active",
            f"""SELECT user_no, pending, recent_items, watch_histogram FROM {self.before.read(USER_STATE)} s
            JOIN numbered USING (user_id)""",
        )
        self._label("today", f"date = DATE '{DAY}'")
        self._label("late", f"date < DATE '{DAY}'")
        self.make(
            "day_quantiles",
            """SELECT duration_bucket, play_time_ms, sum(plays) OVER (PARTITION BY duration_bucket ORDER BY play_time_ms)
                / sum(plays) OVER (PARTITION BY duration_bucket) AS watch_quantile_day
            FROM (SELECT duration_bucket, play_time_ms, count(*) AS plays FROM today WHERE duration_bucket >= 0 GROUP BY ALL)""",
        )
        columns = self.data_columns(DAILY_SAMPLES)
        for bucket in range(self.config.lake.user_buckets):
            self.copy(
                "daily_samples",
                f"date={DAY}/user_bucket={bucket}",
                f"""SELECT {columns} FROM today t JOIN numbered n USING (user_id)
                LEFT JOIN day_quantiles q USING (duration_bucket, play_time_ms)
                WHERE t.user_bucket = {bucket} ORDER BY user_id, request_ts, ts, sample_id""",
            )
        self.make("labelled", "FROM today UNION ALL FROM late")
        self.sql.execute("DROP TABLE today; DROP TABLE late; DROP TABLE state_of_active; DROP TABLE events")

    def _label(self, name: str, where: str) -> None:
        """Table ``name``: the events that ``where`` selects, labelled given the state of the day before."""
        samples = self.config.samples
        self.make(
            "base",
            f"""WITH chosen AS (SELECT e.* REPLACE (coalesce(duration_ms, length) AS duration_ms),
                author_id, category, tags, item_key,
                sample_id_of(user_id, impression_id) AS sample_id FROM events e JOIN versions v
                ON e.item_id = v.item_id AND request_us > v.start AND request_us <= v.stop WHERE {where}),
            heavy AS (SELECT user_no, date FROM chosen GROUP BY ALL HAVING count(*) > {samples.user_day_cap}),
            capped AS (SELECT * FROM chosen SEMI JOIN heavy USING (user_no, date) QUALIFY row_number() OVER (
                PARTITION BY user_no, date ORDER BY ts, sample_id) <= {samples.user_day_cap})
            SELECT *, row_number() OVER () AS row_no, play_time_ms / duration_ms AS play_ratio,
                coalesce(duration_bucket_of(duration_ms), -1) AS duration_bucket, play_bucket_of(play_time_ms) AS play_bucket
            FROM (FROM chosen ANTI JOIN heavy USING (user_no, date) UNION ALL FROM capped)""",
        )
        self.make(
            "second",
            f"""WITH watches AS (
                SELECT row_no, user_no, item_key, observed_us, sample_id FROM base WHERE play_time_ms > 0 UNION ALL
                SELECT NULL, user_no, item_key, epoch_us(b.observed_ts), b.sample_id
                FROM (SELECT user_no, unnest(pending) AS b FROM state_of_active SEMI JOIN base USING (user_no)) JOIN item_keys k
                ON b.item_id = k.item_id WHERE b.play_time_ms > 0),
            placed AS (SELECT *, row_number() OVER (PARTITION BY user_no ORDER BY observed_us, sample_id) AS place FROM watches),
            remembered AS (SELECT user_no, item_key, max(place) AS place FROM (
                SELECT user_no, unnest(recent_items) AS item_key,
                    generate_subscripts(recent_items, 1) - len(recent_items) AS place
                FROM state_of_active) SEMI JOIN placed USING (user_no, item_key) GROUP BY ALL),
            paired AS (SELECT p.row_no, p.place, coalesce(
                lag(p.place) OVER (PARTITION BY user_no, item_key ORDER BY p.place), r.place) AS before
                FROM placed p LEFT JOIN remembered r USING (user_no, item_key))
            SELECT row_no FROM paired WHERE row_no IS NOT NULL AND place - before <= {samples.positive.repeat_window}""",
        )
        any_flag = " OR ".join(f'"{name}"' for name in samples.positive.feedback)
        self.make(
            name,
            f"""WITH cells AS (SELECT user_no, cell.duration_bucket, cell.play_bucket, cell.count AS plays
                FROM (SELECT user_no, unnest(watch_histogram) AS cell FROM state_of_active SEMI JOIN base USING (user_no))),
            shares AS (SELECT user_no, duration_bucket, play_bucket AS first,
                lead(play_bucket, 1, 1000000) OVER w AS stop,
                sum(plays) OVER w / sum(plays) OVER (PARTITION BY user_no, duration_bucket) AS share
                FROM cells WINDOW w AS (PARTITION BY user_no, duration_bucket ORDER BY play_bucket)),
            starts AS (SELECT user_no, duration_bucket, min(first) AS least FROM shares GROUP BY ALL)
            SELECT b.*, {any_flag} OR coalesce(play_ratio >= {samples.positive.min_play_ratio}, false)
                    OR s.row_no IS NOT NULL AS positive,
                CASE WHEN b.duration_bucket >= 0 AND least IS NOT NULL THEN coalesce(h.share, 0.0) END AS watch_quantile_user
            FROM base b LEFT JOIN second s ON b.row_no = s.row_no
            LEFT JOIN starts t ON b.user_no = t.user_no AND b.duration_bucket = t.duration_bucket
            LEFT JOIN shares h ON b.user_no = h.user_no AND b.duration_bucket = h.duration_bucket
                AND b.play_bucket >= h.first AND b.play_bucket < h.stop""",
        )
        self.sql.execute("DROP TABLE base; DROP TABLE second")

    def data_columns(self, table: Table, **given: str) -> str:
        """A table's columns but those of its partitions, as SQL; ``given`` says how to compute some."""
        names = [name for name in table.schema.names if name not in table.partition_by]
        return ", ".join(f"{given[name]} AS {name}" if name in given else f'"{name}"' for name in names)

    def make(self, name: str, query: str) -> None:
        """A table of this connection."""
        self.sql.execute(f"CREATE TEMP TABLE {name} AS {query}")

    def copy(self, table: str, partition: str, query: str) -> None:
        """The one file of a partition."""
        folder = self.out / table / partition
        folder.mkdir(parents=True, exist_ok=True)
        self.sql.execute(f"COPY ({query}) TO '{folder}/part.parquet' (FORMAT parquet, {CODEC})")


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
