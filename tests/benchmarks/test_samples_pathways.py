"""The landing day is what it says, and DuckDB's tables equal ours row for row: the peer does the same work, and judges it."""

import json
import subprocess
import sys
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.samples_pathways import FULL, figures_of
from benchmarks.samples_pathways_data import DAY, DAY_BEFORE, EVENTS_A_USER, World, landing_events, write_landing
from benchmarks.samples_pathways_duckdb import CODEC, Before, Peer, rows_of
from benchmarks.samples_pathways_lake import Past, clone, make_lake
from benchmarks.samples_pathways_runs import Cost, processor_seconds
from feature_jobs.parquet_layout import writer_options
from onerec.command_line import run as run_command
from schemas.tables import (
    DAILY_SAMPLES,
    EVENTS,
    HISTORY,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    PATHWAY_STATIC,
    QUARANTINE,
    USER_STATE,
)

WORLD = World(events=18_000, items=400, seed=1)


def of_the_day(world, events):
    return events.filter(pc.and_(pc.equal(day_of(events), DAY), pc.greater_equal(events["play_time_ms"], 0)))


def day_of(events):
    return pc.cast(pc.floor_temporal(events["request_ts"], unit="day"), pa.date32())


def test_a_user_has_45_events_of_the_day_in_9_requests():
    events = of_the_day(WORLD, landing_events(WORLD))
    distinct = events.group_by(["impression_id", "user_id", "request_id"]).aggregate([])
    assert set(Counter(distinct["user_id"].to_pylist()).values()) == {EVENTS_A_USER}
    assert set(Counter(distinct["request_id"].to_pylist()).values()) == {5}


def test_the_landing_brings_late_repeated_and_bad_rows_too():
    events = landing_events(World(events=90_000, items=400))
    assert 0.002 < pc.sum(pc.equal(day_of(events), DAY_BEFORE)).as_py() / len(events) < 0.008
    assert 0.001 < 1 - len(events["impression_id"].unique()) / len(events) < 0.003
    assert 0 < pc.sum(pc.less(events["play_time_ms"], 0)).as_py() / len(events) < 0.001


def test_a_skewed_day_gives_one_user_and_one_item_their_shares():
    events = landing_events(World(events=90_000, items=400, user_share=0.05, item_share=0.2))
    users, items = (pc.value_counts(events[name].combine_chunks()).field("counts").to_numpy() for name in ("user_id", "item_id"))
    assert users.max() / len(events) == pytest.approx(0.05, abs=0.002)
    assert items.max() / len(events) == pytest.approx(0.2, abs=0.04)
    assert np.sort(users)[-2] <= 3 * EVENTS_A_USER


def test_both_formats_hold_the_same_rows(tmp_path):
    zones = write_landing(World(events=4500, items=100), tmp_path, json_lines=True)
    for table in ("events", "items", "users"):
        parquet, lines = (
            duckdb.sql(f"FROM '{zones[kind]}/{table}/date={DAY}/*.{extension}'").df()
            for kind, extension in (("parquet", "parquet"), ("jsonl_gz", "jsonl.gz"))
        )
        assert [name for name in lines.columns if name != "date" or table == "users"] == [
            name for name in parquet.columns if name != "date" or table == "users"
        ]
    whole = pa.concat_tables([pq.read_table(path) for path in sorted((zones["parquet"] / f"events/date={DAY}").iterdir())])
    text = duckdb.sql(
        f"FROM read_json('{zones['jsonl_gz']}/events/date={DAY}/*.jsonl.gz', hive_partitioning = false, columns = "
        "{impression_id: VARCHAR, ts: TIMESTAMPTZ, play_time_ms: BIGINT, duration_ms: BIGINT, long_view: BOOLEAN})"
    ).to_arrow_table()
    assert Counter(map(repr, text.cast(whole.select(text.column_names).schema).to_pylist())) == Counter(
        map(repr, whole.select(text.column_names).to_pylist())
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory, spark):
    """A lake in which our commands took the day, and the folder where the peer did."""
    folder = tmp_path_factory.mktemp("both")
    before = make_lake(Past(WORLD, buckets=4), folder / "before", processes=1)
    landing = write_landing(WORLD, folder / "landing", json_lines=False)["parquet"]
    ours = clone(before, folder / "ours")
    for step in (["ingest", "--landing", str(landing)], ["samples"], ["pathways"]):
        assert run_command([*step, "--lake", ours.root, "--date", str(DAY), "--json"]) == 0
    theirs = folder / "theirs"
    theirs.mkdir()
    Peer(Before.of(before), landing, theirs, threads=2, memory="1GB", exact_ids=True).run()
    return ours, theirs


def comparable(rows, names, key):
    """Rows as Python values, in order of the key; lists and structs included."""
    return sorted(rows.select(names).to_pylist(), key=lambda row: [row[name] for name in key])


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [EVENTS, DAILY_SAMPLES, HISTORY, PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE, USER_STATE],
    ids=lambda table: table.name,
)
def test_the_peer_writes_the_same_rows(both, table):
    ours, theirs = both
    column = "landing_date" if table is EVENTS else "date"
    mine = ours.read(table).filter(pc.field(column) == DAY)
    written = rows_of(theirs, table)
    names = [name for name in table.schema.names if name != "ingested_at" and name in written.column_names]
    base_only = {"landed", "leaf", "joined", "fusion_version", "refresh_date"} if table is HISTORY else set()
    assert set(table.schema.names) - set(names) - {"ingested_at"} == base_only
    written = pa.table([written[name].cast(mine.schema.field(name).type) for name in names], names=names)
    assert len(mine) > 0
    expected, found = (comparable(rows, names, table.key) for rows in (written, mine))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == other


@pytest.mark.slow
def test_the_peer_quarantines_as_many_rows(both):
    ours, theirs = both
    assert len(ours.read(QUARANTINE)) == len(rows_of(theirs, QUARANTINE)) > 0


TINY = """
import benchmarks.lifelong_rotation as lifelong
from benchmarks import samples_pathways as subject
lifelong.core_hours_lifelong = lambda quick, seed: {"core_hours_lifelong": 150.0, "quick": quick}  # measured by tests of its own
sizes = (4500, 9000, 18000)
subject.QUICK = subject.Plan(sizes, 1, 9000, 9000, buckets=2, skew_buckets=4, memory="1g", peer_memory="1GB", others=1)
subject.main()
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_closing_object_has_the_promised_figures():
    ended = subprocess.run([sys.executable, "-c", TINY, "--quick"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["benchmark"] == "samples_pathways"
    figures = result["figures"]
    assert set(figures["events_per_s_per_core"]) == {"ingest_parquet", "ingest_jsonl_gz", "samples", "pathways"}
    assert set(figures["core_hours_18b"]) == {"parquet", "jsonl_gz"}
    assert figures["core_hours_lifelong"] == 150.0
    numbers = ("time_ratio_duckdb", "growth_exponent", "history_10x_ratio", "max_task_over_median")
    assert all(isinstance(figures[name], float) for name in numbers)
    assert figures["max_task_over_median"] >= 1
    assert figures["peer_rounds"] == {"4500": 1, "9000": 1, "18000": 1}
    assert 20 < figures["bytes_per_sample"] < 500
    assert figures["bytes_per_user_day"] > 1000


def test_slopes_are_made_of_the_steps_of_each_chain():
    def day(size):
        millions = size / 1e6
        walls = {"ingest_parquet": 4, "ingest_jsonl_gz": 10, "samples": 2, "pathways": 3, "duckdb": 18}
        return {name: Cost(7 + seconds * millions, 1.5 * seconds * millions) for name, seconds in walls.items()}

    figures = figures_of({size: day(size) for size in (1_000_000, 2_000_000, 4_000_000)})
    assert figures["events_per_s_per_core"]["samples"] == pytest.approx(1e6 / 2 / 2)
    assert figures["core_hours_18b"] == pytest.approx({"parquet": 9e-6 * 2 * 18e9 / 3600, "jsonl_gz": 15e-6 * 2 * 18e9 / 3600})
    assert figures["processor_hours_18b"]["parquet"] == pytest.approx(13.5e-6 * 18e9 / 3600)
    assert figures["time_ratio_duckdb"] == pytest.approx(0.5)
    assert figures["growth_exponent"] == pytest.approx(1)  # of what comes above the fixed start


def test_the_peer_has_three_rounds_but_for_the_largest_size():
    assert [FULL.peer_rounds(size) for size in FULL.sizes] == [3, 3, 3, 3, 1]


def test_the_peers_files_are_compressed_as_ours_are():
    (level,) = set(writer_options(DAILY_SAMPLES.schema)["compression_level"].values())
    assert f"COMPRESSION zstd, COMPRESSION_LEVEL {level}" == CODEC


@pytest.mark.slow
def test_processor_time_counts_children_that_live_and_children_that_ended():
    before = processor_seconds()
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    subprocess.run([sys.executable, "-c", burn], check=True)
    ended = processor_seconds()
    assert ended - before >= 0.4
    with subprocess.Popen([sys.executable, "-c", burn + "print(flush=True)\ninput()"], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        assert processor_seconds() - ended >= 0.4
        child.stdin.close()
