"""Landings that arrive in any order and repeat each other's rows: an impression is in ``events`` once, and taken in once.

The first half takes landings and days through the pure transforms of a bucket, in random orders; the second runs the jobs.
"""

import datetime as dt
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feature_jobs.backfill import run_backfill
from feature_jobs.bucket_files import BucketFiles, bucket_files, live_files
from feature_jobs.forget import run as forget
from feature_jobs.ingest import job
from feature_jobs.ingest.bucket import BucketTask, publish_bucket
from feature_jobs.ingest.landing import open_landing
from feature_jobs.ingest.shuffle import LANDED
from feature_jobs.owned_by_earlier import KEY, MOST_IDS, as_metadata, from_metadata
from feature_jobs.partition_files import PartitionFile, commit_files, data_schema
from feature_jobs.pathways import late_inputs, oldest_landing, run_pathways, taken_in
from feature_jobs.samples import run_samples
from feature_jobs.samples_inputs import event_partitions, sample_landings
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake, create_lake
from schemas.suppression import suppressed_users
from schemas.tables import EVENTS, FEEDBACK, ITEMS, USER_STATE
from tests.feature_jobs.day_rows import states
from tests.feature_jobs.day_rows import taken_in as behaviours_of
from tests.feature_jobs.reference_pathways import text_hash
from tests.lake_rows import utc

Row = dict[str, Any]
DAYS = [dt.date(2026, 1, day) for day in range(10, 16)]
CONFIG = Config.model_validate(
    {
        "lake": {"day_timezone": "UTC", "user_buckets": 1},
        "samples": {"gates": {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}},
        "ingest": {"max_late_days": 30},
    }
)
Brought = dict[dt.date, set[tuple[dt.date, str]]]
"""By landing: the (date, impression) pairs that it brings, all of user ``u``."""


@dataclass
class Bucket:
    """A lake of one bucket, what its state has seen, and by day what was taken in (date, sample_id)."""

    lake: Lake
    seen: list[dt.date] = field(default_factory=list)
    taken: list[tuple[dt.date, int]] = field(default_factory=list)

    def land(self, landing: dt.date, brought: set[tuple[dt.date, str]]) -> None:
        """What ingest does with a landing's good rows."""
        version = self.lake.table_version(EVENTS)
        wheres = (pads.field("landing_date") != landing, pads.field("landing_date") == landing)
        others, before = (bucket_files(self.lake, EVENTS, version, where) for where in wheres)
        task = BucketTask(self.lake, landing, utc("2026-02-01 00:00:00"), others, suppressed_users(self.lake), before)
        rows = [_row(date, name) for date, name in sorted(brought)]
        report = json.loads(publish_bucket(task, 0, [pa.Table.from_pylist(rows, schema=LANDED)]))
        assert report["dates"] == [str(date) for date in sorted({date for date, _ in brought})]
        assert report["kept"] + sum(report["dropped"].values()) == len(brought)
        live = live_files(self.lake.open_table(EVENTS), EVENTS)["path"].to_pylist()
        gone = pa.array([path for path in live if unquote(path) in report["rewritten"]], pa.string())
        commit_files(self.lake, EVENTS, report["files"], (pads.field("landing_date") == landing) | pads.field("path").isin(gone))

    def day(self, date: dt.date, *, every: bool) -> None:
        """What samples and pathways take in on a day."""
        version = self.lake.table_version(EVENTS)
        pairs = event_partitions(self.lake, version)
        sampled = sample_landings(date, {landing for day, landing in pairs if day == date}, self.seen, every=every)
        where = (pads.field("date") == date) & pads.field("landing_date").isin(pa.array(sampled, pa.date32()))
        samples = bucket_files(self.lake, EVENTS, version, where).read(0, pa.schema([("impression_id", pa.string())]))
        self.taken += [(date, text_hash("u", name)) for name in samples["impression_id"].to_pylist()]
        seen, late = taken_in(date, pairs, self.seen, sampled, oldest_landing(date, None, 30), every=every)
        earlier = {(day, landing) for day, landing in pairs if landing in (sampled if day == date else self.seen)}
        inputs = late_inputs(self.lake, version, late, earlier, self.lake.table_version(ITEMS))
        if inputs is not None:
            nobody = BucketFiles(self.lake.table_uri(USER_STATE), {}, {})
            rows, dropped = inputs.read(0, nobody, self.lake.config)
            assert set(dropped) <= {"duplicate", "over_the_cap"}
            days = [moment.date() for moment in rows["request_ts"].to_pylist()]
            self.taken += list(zip(days, rows["sample_id"].to_pylist(), strict=True))
        self.seen = seen


def _row(date: dt.date, name: str, user: str = "u") -> Row:
    moment = utc(f"{date} 12:00:00")
    times = dict.fromkeys(("request_ts", "ts", "observed_ts"), moment)
    return dict.fromkeys(FEEDBACK, False) | times | {
        "impression_id": name, "request_id": name, "user_id": user, "item_id": "i", "play_time_ms": 1, "date": date,
    }  # fmt: skip


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Brought, list[tuple[dt.date, list[dt.date], bool]]]:
    """What each landing brings, and by day the landings that arrive before it is run, and whether it takes in every landing.

    A landing brings rows of its own day and of days before. It may arrive early, late, and more than once, with the same rows.
    """
    late = st.integers(0, len(DAYS) - 1)
    brought: Brought = {}
    for place, landing in enumerate(DAYS):
        names = draw(st.sets(st.tuples(st.integers(0, place), st.integers(0, 2)), max_size=5))
        brought[landing] = {(DAYS[date], f"{date}-{name}") for date, name in names}
    arrive = draw(st.lists(st.tuples(late, st.sampled_from(DAYS)), max_size=8)) + [(draw(late), landing) for landing in DAYS]
    arrive = draw(st.permutations(arrive))
    every = [draw(st.sampled_from([False, False, True])) for _ in DAYS]
    return brought, [
        (day, [landing for before, landing in arrive if before == place], every[place]) for place, day in enumerate(DAYS)
    ]


_BROUGHT: Brought = {landing: set() for landing in DAYS} | {DAYS[2]: {(DAYS[1], "x")}, DAYS[3]: {(DAYS[1], "x")}}
AFTER_A_BACKFILL = (
    _BROUGHT,
    [(DAYS[0], [DAYS[3]], True), (DAYS[1], [DAYS[2]], False), *((day, [], False) for day in DAYS[2:5]), (DAYS[5], DAYS, False)],
)
"""Landing 13 was seen by a backfill before landing 12 came, which displaced x before any day took it in."""


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@example(AFTER_A_BACKFILL)
@given(arrivals())
def test_whatever_the_order_of_landings_each_impression_is_taken_in_once(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[Brought, list[tuple[dt.date, list[dt.date], bool]]]
) -> None:
    brought, days = made
    bucket = Bucket(create_lake(str(tmp_path_factory.mktemp("order") / "lake"), CONFIG))
    arrived: set[dt.date] = set()
    for day, landings, every in days:
        for landing in landings:
            if brought[landing]:
                bucket.land(landing, brought[landing])
            arrived.add(landing)
        owner = {pair: landing for landing in sorted(arrived, reverse=True) for pair in brought[landing]}
        rows = bucket.lake.read(EVENTS, columns=["date", "impression_id", "landing_date"]).to_pylist()
        assert sorted(map(tuple, (row.values() for row in rows))) == sorted((*pair, landing) for pair, landing in owner.items())
        bucket.day(day, every=every)
    assert arrived == set(DAYS)
    assert Counter(bucket.taken) == Counter((date, text_hash("u", name)) for date, name in set().union(*brought.values()))


def test_the_cap_of_a_day_counts_what_an_earlier_landing_took_over(make_lake: Callable[..., Lake]) -> None:
    settings = CONFIG.model_dump()
    bucket = Bucket(make_lake(**settings | {"samples": settings["samples"] | {"user_day_cap": 4}}))
    bucket.land(DAYS[2], {(DAYS[0], name) for name in "abc"})
    for day in DAYS[:3]:
        bucket.day(day, every=False)
    assert len(bucket.taken) == 3
    bucket.land(DAYS[1], {(DAYS[0], name) for name in "abde"})  # delayed: landing 12 is left with c
    bucket.day(DAYS[3], every=False)
    assert len(bucket.taken) == len(set(bucket.taken)) == 4, "one of d and e"


@pytest.mark.slow
def test_a_file_written_anew_without_people_who_are_forgotten_keeps_its_ids(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake(lake={"user_buckets": 1})
    partition = {"date": str(DAYS[0]), "landing_date": str(DAYS[2]), "user_bucket": "0"}
    file = PartitionFile(lake, EVENTS, partition, as_metadata(np.array([7, -3]), "file"))
    rows = [_row(DAYS[0], name, user) | {"ingested_at": utc("2026-01-12 00:00:00")} for name, user in (("a", "gone"), ("b", "u"))]
    file.write(pa.Table.from_pylist(rows, schema=data_schema(EVENTS)))
    commit_files(lake, EVENTS, [file.close()], pads.scalar(True))
    for user, rest in (("gone", ["b"]), ("u", [])):
        forget(lake, [user])
        (path,) = lake.open_table(EVENTS).file_uris()
        assert lake.read(EVENTS)["impression_id"].to_pylist() == rest
        assert from_metadata(pq.read_metadata(path.removeprefix("file://")).metadata).tolist() == [-3, 7]


@pytest.mark.slow
def test_ids_survive_their_way_through_the_metadata_and_too_many_are_refused() -> None:
    ids = pa.array([5, -(2**63), 5, 2**63 - 1], pa.int64()).to_numpy()
    kept = {name.encode(): text.encode() for name, text in as_metadata(ids, "file").items()}
    assert from_metadata(kept).tolist() == [-(2**63), 5, 2**63 - 1]
    assert from_metadata(None).tolist() == from_metadata({}).tolist() == []
    assert as_metadata(ids[:0], "file") == {}
    many = pa.array(range(MOST_IDS + 1), pa.int64()).to_numpy()
    with pytest.raises(BadInput, match=r"events of one: 8000001 rows repeat .* lake\.user_buckets"):
        as_metadata(many, "events of one")


# The jobs: landing 12 brings x and z of day 10 and is taken in; then landing 11, which has x too, arrives at last.
SHOWN = {
    DAYS[0]: [(DAYS[0], "u", "a"), (DAYS[0], "gone", "b")],
    DAYS[1]: [(DAYS[0], "u", "x"), (DAYS[0], "gone", "y"), (DAYS[1], "u", "c"), (DAYS[0], "v", "new")],
    DAYS[2]: [(DAYS[0], "u", "x"), (DAYS[0], "u", "z"), (DAYS[0], "gone", "y"), (DAYS[2], "u", "d")],
    DAYS[3]: [(DAYS[3], "u", "e"), (DAYS[0], "u", "x")],
}
BUCKETS = 8
"""So many that ``u``, ``v`` and ``gone`` are alone in theirs: all late rows of ``gone`` in landing 12 are displaced."""


@dataclass(frozen=True)
class World:
    """A landing zone and a lake."""

    spark: Any
    zone: Path
    lake: Lake

    def ingest(self, *landings: dt.date) -> None:
        for landing in landings:
            report = job.run(self.spark, self.lake, open_landing(str(self.zone)), landing).extra
            assert "redelivered" not in report, "what another landing displaced is no change of this one"

    def run_day(self, day: dt.date) -> Row:
        run_samples(self.spark, self.lake, day)
        return run_pathways(self.spark, self.lake, day)


@pytest.fixture(scope="module")
def before(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Days 10 to 12 were run without landing 11, which has arrived since."""
    root = tmp_path_factory.mktemp("displaced")
    for landing, shown in SHOWN.items():
        folder = root / "zone" / "events" / f"date={landing}"
        folder.mkdir(parents=True)
        rows = [
            {"impression_id": name, "user_id": user, "item_id": "i", "ts": f"{date}T12:00:00Z", "play_time_ms": 5}
            for date, user, name in shown
        ]
        (folder / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "zone" / "items").mkdir()
    (root / "zone" / "items" / "all.jsonl").write_text('{"item_id": "i", "valid_from": "2020-01-01T00:00:00Z"}\n')
    config = CONFIG.model_dump(mode="json")
    config["lake"]["user_buckets"] = BUCKETS
    world = World(spark, root / "zone", create_lake(str(root / "lake"), Config.model_validate(config)))
    for day in DAYS[:3]:
        if day != DAYS[1]:
            world.ingest(day)
        world.run_day(day)
    world.ingest(DAYS[1])
    return world


@pytest.fixture
def world(before: World, tmp_path: Path) -> World:
    shutil.copytree(before.lake.root, tmp_path / "lake")
    return World(before.spark, before.zone, Lake(str(tmp_path / "lake"), before.lake.config))


def _everything(*users: str) -> Counter[tuple[str, int]]:
    return Counter({(user, text_hash(user, name)): 1 for shown in SHOWN.values() for _, user, name in shown if user in users})


def _check_taken_in_once(world: World, *users: str) -> None:
    expected = _everything(*users)
    taken = Counter(behaviours_of(world.lake, DAYS[:4]))
    assert taken == expected
    state = states(world.lake, DAYS[3])
    assert {user: row["behaviours"] for user, row in state.items()} == Counter(user for user, _ in expected)
    for user, row in state.items():
        held = {sample for owner, sample in expected if owner == user}
        assert sorted(row["short"] + row["pending"]) == sorted(held)
        assert sum(count for *_, count in row["watch_histogram"]) in (0, len(held))


@pytest.mark.slow
@pytest.mark.parametrize("again", [[], [DAYS[2]], [DAYS[1], DAYS[2]]], ids=["as it is", "12 again", "11 and 12 again"])
def test_what_a_delayed_landing_takes_from_a_later_one_is_not_taken_in_again(world: World, again: list[dt.date]) -> None:
    world.ingest(*again, DAYS[3])
    _check_events_hold_each_once(world.lake)
    report = world.run_day(DAYS[3])
    assert report["late_events"] == 4, "what landing 11 brought and still owns"
    assert report["tables"]["history"]["rows_dropped"]["duplicate"] == 2, "x and y were taken in with landing 12"
    _check_taken_in_once(world, "u", "v", "gone")


def _check_events_hold_each_once(lake: Lake) -> None:
    rows = lake.read(EVENTS, columns=["user_id", "impression_id", "landing_date"]).to_pylist()
    owners = {(user, name): landing for landing in reversed(SHOWN) for _, user, name in SHOWN[landing]}
    assert sorted(row["landing_date"] for row in rows) == sorted(owners.values())
    assert {(row["user_id"], row["impression_id"]): row["landing_date"] for row in rows} == owners


@pytest.mark.slow
def test_a_file_that_has_lost_all_its_rows_stays_and_every_engine_reads_on(world: World) -> None:
    world.ingest(DAYS[3])
    files = [path.removeprefix("file://") for path in world.lake.open_table(EVENTS).file_uris()]
    empty = {path.split("landing_date=")[1][:10]: pq.read_metadata(path) for path in files if not pq.read_metadata(path).num_rows}
    assert {landing: from_metadata(footer.metadata).tolist() for landing, footer in empty.items()} == {
        str(DAYS[2]): [text_hash("gone", "y")],  # displaced by landing 11
        str(DAYS[3]): [text_hash("u", "x")],  # dropped when it came
    }
    _check_events_hold_each_once(world.lake)
    spark = world.spark.read.format("delta").load(world.lake.table_uri(EVENTS))
    assert spark.count() == spark.select("impression_id").distinct().count() == len(_everything("u", "v", "gone"))
    assert spark.filter(f"landing_date = '{DAYS[2]}'").count() == 2


@pytest.mark.slow
def test_forgetting_people_keeps_what_others_lost_and_a_backfill_reads_files_without_rows(world: World) -> None:
    forget(world.lake, ["gone"])
    held = [pq.read_metadata(path.removeprefix("file://")).metadata or {} for path in world.lake.open_table(EVENTS).file_uris()]
    assert sum(KEY.encode() in metadata for metadata in held) == 1, "that of u; the file that noted what gone had lost is no more"
    world.ingest(DAYS[3])
    world.run_day(DAYS[3])
    _check_taken_in_once(world, "u", "v")
    run_backfill(world.spark, world.lake, DAYS[0], DAYS[3])
    _check_taken_in_once(world, "u", "v")
