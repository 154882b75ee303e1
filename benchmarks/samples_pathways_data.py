"""A landing day made in NumPy: impressions as an app would log them, the same rows as Parquet and as gzip JSON lines.

A user's day is 9 requests of 5 impressions in 3 sessions: 45 events. Items are drawn by Zipf's law, play times skip, finish
or stop between. Beside the day's own rows lie what every real landing has: late rows of the day before, rows sent twice,
and a few that break a rule. Rows are in order of arrival, so a user's are scattered over all files.
"""

import datetime as dt
import itertools
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY = dt.date(2026, 3, 2)
DAY_BEFORE = DAY - dt.timedelta(days=1)
REQUESTS_A_DAY, IMPRESSIONS_A_REQUEST, SESSIONS_A_DAY = 9, 5, 3
EVENTS_A_USER = REQUESTS_A_DAY * IMPRESSIONS_A_REQUEST
LATE_SHARE, DUPLICATE_SHARE, BAD_SHARE = 0.005, 0.002, 0.0002
ROW_GROUP = 131_072
FILES = 8
_FEEDBACK_RATES = {"click": 0.45, "like": 0.03, "follow": 0.004, "comment": 0.006}
_SECOND, _DAY_US = 1_000_000, 86_400_000_000
_TIMES = pa.timestamp("us", tz="UTC")
EVENTS = pa.schema(
    [
        *((name, pa.string()) for name in ("impression_id", "request_id", "user_id", "item_id")),
        ("request_ts", _TIMES),
        ("ts", _TIMES),
        ("session_id", pa.string()),
        ("scene", pa.string()),
        ("play_time_ms", pa.int64()),
        ("duration_ms", pa.int64()),
        *((name, pa.bool_()) for name in (*_FEEDBACK_RATES, "long_view")),
    ]
)


@dataclass(frozen=True)
class World:
    """Who and what there is: ``events`` of the day, a catalogue of ``items``; shares of the day's events that one user and
    one item take (the skewed day)."""

    events: int
    items: int = 50_000
    seed: int = 0
    user_share: float = 0.0
    item_share: float = 0.0

    @property
    def users(self) -> int:
        """Users of the day, each with 45 events; the heavy one (if any) comes before them."""
        return max(1, int(self.events * (1 - self.user_share)) // EVENTS_A_USER)


def user_ids(numbers: np.ndarray) -> pa.Array:
    """Names of users 0, 1, …: 11 characters, in an order that says nothing."""
    return digits("u", (numbers.astype(np.int64) * 7_368_787 + 1_234_567_890) % 10**10, 10)


def item_ids(numbers: np.ndarray) -> pa.Array:
    """Names of items 0, 1, …: 10 characters."""
    return digits("i", (numbers.astype(np.int64) * 736_879 + 12_345_678) % 10**9, 9)


def digits(letter: str, numbers: np.ndarray, width: int) -> pa.Array:
    """``letter`` and each number in ``width`` decimal digits."""
    text = np.empty((len(numbers), width + 1), np.uint8)
    text[:, 0] = ord(letter)
    rest = numbers.astype(np.int64)
    for place in range(width, 0, -1):
        rest, last = np.divmod(rest, 10)
        text[:, place] = last + ord("0")
    return fixed_width(text)


def fixed_width(text: np.ndarray) -> pa.Array:
    """Rows of ASCII codes as strings of one length."""
    rows, width = text.shape
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    large = pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))
    return large.cast(pa.string())


def midnight(day: dt.date) -> int:
    """Start of a day, µs since the epoch."""
    return (day - dt.date(1970, 1, 1)).days * _DAY_US


def popular_items(world: World, generator: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of items drawn with weight 1 ÷ (rank + 10)."""
    weights = np.cumsum(1.0 / (np.arange(world.items) + 10.0))
    return np.searchsorted(weights, generator.random(size) * weights[-1])


def item_durations(world: World) -> np.ndarray:
    """Length of each item in ms: log-normal, median 20 s; one in a hundred unknown (−1)."""
    generator = np.random.default_rng([world.seed, 1])
    length = np.clip(20_000 * np.exp(generator.normal(0, 0.9, world.items)), 1000, 600_000).astype(np.int64)
    return np.where(generator.random(world.items) < 0.01, -1, length)


def play_times(duration: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Milliseconds watched: a third skip at once, a sixth watch to the end or again, the rest stop anywhere."""
    kind, share = generator.random(len(duration)), generator.random(len(duration))
    ratio = np.where(kind < 0.33, share * 0.1, np.where(kind < 0.84, share, 1 + 0.4 * share))
    return np.where(kind < 0.05, 0, ratio * np.where(duration > 0, duration, 20_000)).astype(np.int64)


def day_events(world: World, generator: np.random.Generator, day: dt.date, users: np.ndarray) -> pa.Table:
    """45 impressions (EVENTS) of each entry of ``users`` on a day, in user order. Who is named twice has twice as many."""
    requests = len(users) * REQUESTS_A_DAY
    session = np.sort(generator.integers(0, _DAY_US - 3600 * _SECOND, (len(users), SESSIONS_A_DAY)), axis=1)
    pause = generator.integers(20 * _SECOND, 120 * _SECOND, (len(users), SESSIONS_A_DAY, REQUESTS_A_DAY // SESSIONS_A_DAY))
    asked = (midnight(day) + session[:, :, None] + np.cumsum(pause, axis=2)).reshape(-1)
    items = popular_items(world, generator, requests * IMPRESSIONS_A_REQUEST)
    if world.item_share:
        items[generator.random(len(items)) < world.item_share] = 0
    duration = item_durations(world)[items]
    play = play_times(duration, generator)
    shown = play.reshape(requests, IMPRESSIONS_A_REQUEST).cumsum(axis=1) - play.reshape(requests, IMPRESSIONS_A_REQUEST)
    ts = np.repeat(asked, IMPRESSIONS_A_REQUEST) + shown.reshape(-1) * 1000 + generator.integers(50_000, 900_000, len(play))
    request = hexadecimal(generator, requests)
    each = np.repeat(np.arange(requests), IMPRESSIONS_A_REQUEST)
    slot = np.tile(np.frombuffer(b"01234", np.uint8), requests)
    impression = np.concatenate([request[each], np.full((len(each), 1), ord("-"), np.uint8), slot[:, None]], axis=1)
    visit = digits("s", generator.integers(0, 10**12, len(users) * SESSIONS_A_DAY), 12)
    ratio = play / np.where(duration > 0, duration, 20_000)
    flags = {name: generator.random(len(play)) < rate * np.minimum(0.2 + ratio, 1.5) for name, rate in _FEEDBACK_RATES.items()}
    scene = pa.array(["feed", "following", "nearby"]).take(pa.array(generator.choice(3, requests, p=[0.8, 0.15, 0.05])))
    columns = {
        "impression_id": fixed_width(impression),
        "request_id": fixed_width(request).take(pa.array(each)),
        "user_id": user_ids(users).take(pa.array(np.repeat(np.arange(len(users)), EVENTS_A_USER))),
        "item_id": item_ids(np.arange(world.items)).take(pa.array(items)),
        "request_ts": pa.array(np.repeat(asked, IMPRESSIONS_A_REQUEST)),
        "ts": pa.array(ts),
        "session_id": visit.take(pa.array(np.arange(len(play)) * SESSIONS_A_DAY // EVENTS_A_USER)),
        "scene": scene.take(pa.array(each)),
        "play_time_ms": pa.array(play),
        "duration_ms": pa.array(duration, mask=duration < 0),
        **{name: pa.array(flag) for name, flag in flags.items()},
        "long_view": pa.array((play >= 18_000) | ((ratio >= 0.95) & (play >= 3000))),
    }
    return pa.table([columns[field.name].cast(field.type) for field in EVENTS], schema=EVENTS)


def hexadecimal(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Random names of 16 hexadecimal digits, as ASCII codes (rows, 16)."""
    codes = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), np.uint8).reshape(256, 2)
    return codes[generator.integers(0, 256, (rows, 8), dtype=np.uint8)].reshape(rows, 16)


def landing_events(world: World) -> pa.Table:
    """The landing of DAY (EVENTS) in order of arrival: the day's events, and late, repeated and bad rows beside them."""
    generator = np.random.default_rng([world.seed, 2])
    heavy = np.zeros(int(world.events * world.user_share) // EVENTS_A_USER, np.int64)
    today = day_events(world, generator, DAY, np.concatenate([heavy, 1 + np.arange(world.users)]))
    someone = 1 + generator.choice(world.users, -(-int(len(today) * LATE_SHARE) // EVENTS_A_USER), replace=False)
    late = day_events(world, generator, DAY_BEFORE, someone)
    repeated = today.take(pa.array(generator.choice(len(today), int(len(today) * DUPLICATE_SHARE), replace=False)))
    bad = day_events(world, generator, DAY, 1 + np.arange(1)).slice(0, int(len(today) * BAD_SHARE))
    bad = bad.set_column(EVENTS.get_field_index("play_time_ms"), EVENTS.field("play_time_ms"), pa.array(np.full(len(bad), -1)))
    every = pa.concat_tables([today, late, repeated, bad]).combine_chunks()
    arrival = every["ts"].cast(pa.int64()).to_numpy() + every["play_time_ms"].to_numpy() * 1000
    arrival += np.where(np.arange(len(every)) < len(today), 0, _DAY_US)
    return every.take(pa.array(np.argsort(arrival, kind="stable")))


def item_versions(world: World) -> pa.Table:
    """The catalogue as it landed the day before, titles and all."""
    generator = np.random.default_rng([world.seed, 3])
    author = generator.integers(0, max(1, world.items // 8), world.items)
    tags = digits("t", generator.integers(0, 2000, 3 * world.items), 5)
    words = pa.array([f"word{number}" for number in range(500)])
    text = [words.take(pa.array(generator.integers(0, 500, world.items))) for _ in range(4)]
    duration = item_durations(world)
    times = np.full(world.items, midnight(DAY_BEFORE) - 40 * _DAY_US) + generator.integers(0, 39 * _DAY_US, world.items)
    return pa.table(
        {
            "item_id": item_ids(np.arange(world.items)),
            "valid_from": pa.array(times).cast(_TIMES),
            "author_id": digits("a", author, 8),
            "category": digits("c", generator.integers(0, 40, world.items), 3),
            "tags": pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * world.items + 1, 3, dtype=np.int32)), tags),
            "title": pa.compute.binary_join_element_wise(*text, " "),
            "duration_ms": pa.array(duration, mask=duration < 0),
            "upload_ts": pa.array(times).cast(_TIMES),
        }
    )


def changed_items(world: World) -> pa.Table:
    """What DAY brings to the catalogue: one item in a hundred changes its author's name and tags at noon."""
    changed = item_versions(world).slice(0, max(1, world.items // 100))
    noon = pa.array(np.full(len(changed), midnight(DAY) + _DAY_US // 2)).cast(_TIMES)
    author = digits("b", np.arange(len(changed)), 8)
    return changed.set_column(1, "valid_from", noon).set_column(2, "author_id", author)


def user_snapshots(numbers: np.ndarray, day: dt.date) -> pa.Table:
    """Snapshots of some users, exported at the end of a day; a tenth of them differ from the day before in some fact."""
    age = (numbers * 7 + day.toordinal()) // 10

    def of(salt: int, *values: str) -> pa.Array:
        return pa.array(values).take(pa.array((age * 2_654_435_761 + salt * numbers) % 1_000_003 % len(values)))

    registered = midnight(dt.date(2026, 1, 1)) - (numbers * 7_919 % 2000) * _DAY_US - numbers * 104_729 % _DAY_US
    return pa.table(
        {
            "user_id": user_ids(numbers),
            "date": pa.array([day], pa.date32()).take(pa.array(np.zeros(len(numbers), np.int64))),
            "age_band": of(3, "18-23", "24-30", "31-40", "41-50", "50+"),
            "gender": of(5, "f", "m", "u"),
            "region": of(11, *(f"r{number}" for number in range(30))),
            "register_ts": pa.array(registered).cast(_TIMES),
            "device": of(13, "android", "ios", "web"),
        }
    )


def write_parquet(rows: pa.Table, folder: Path, files: int = FILES) -> None:
    """Equal shares of the rows, in order, as zstd Parquet."""
    folder.mkdir(parents=True)
    for number, (start, stop) in enumerate(_shares(len(rows), files)):
        part = rows.slice(start, stop - start)
        pq.write_table(part, folder / f"part-{number:02}.parquet", compression="zstd", row_group_size=ROW_GROUP)


def write_json_lines(parquet: Path, folder: Path, threads: int) -> None:
    """Every Parquet file of a folder as gzip JSON lines; times are RFC 3339 with a Z, an absent value is left null."""
    folder.mkdir(parents=True)
    connection = duckdb.connect(config={"threads": threads})
    connection.execute("SET TimeZone = 'UTC'")
    for path in sorted(parquet.glob("*.parquet")):
        times = [field.name for field in pq.read_schema(path) if pa.types.is_timestamp(field.type)]
        replaced = ", ".join(f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%fZ') AS {name}" for name in times)
        connection.execute(
            f"COPY (SELECT * REPLACE ({replaced}) FROM read_parquet('{path}', hive_partitioning = false)) "
            f"TO '{folder / path.stem}.jsonl.gz' (FORMAT json, COMPRESSION gzip)"
        )
    connection.close()


def _shares(rows: int, parts: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, rows, parts + 1).astype(int).tolist()
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def write_landing(world: World, folder: Path, *, json_lines: bool) -> dict[str, Path]:
    """Write the landing zones of DAY; their folders by format (``parquet``, and ``jsonl_gz`` if wanted)."""
    zones = {"parquet": folder / "parquet"}
    place = f"date={DAY}"
    write_parquet(landing_events(world), zones["parquet"] / "events" / place)
    write_parquet(changed_items(world), zones["parquet"] / "items" / place, 1)
    write_parquet(user_snapshots(1 + np.arange(world.users), DAY), zones["parquet"] / "users" / place, 1)
    if json_lines:
        zones["jsonl_gz"] = folder / "jsonl_gz"
        for table in ("events", "items", "users"):
            write_json_lines(zones["parquet"] / table / place, zones["jsonl_gz"] / table / place, 2)
    return zones
