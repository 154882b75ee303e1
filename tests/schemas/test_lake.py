"""A lake is opened, created and written so that a reader never sees half of it."""

import datetime as dt

import pytest

from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import create_lake, day_start, is_lake, open_lake, parse_date, write_atomically
from schemas.tables import EVENTS, PIPELINE_RUNS
from tests.lake_rows import write_rows


def test_a_folder_that_is_no_lake_is_refused(tmp_path):
    with pytest.raises(BadInput, match="onerec ingest"):
        open_lake(str(tmp_path))


def test_creating_a_lake_again_changes_nothing(tmp_path):
    lake = create_lake(str(tmp_path / "lake"), Config())
    version = lake.table_version(EVENTS)
    again = create_lake(str(tmp_path / "lake"), Config())
    assert again.table_version(EVENTS) == version
    assert open_lake(f"file://{tmp_path}/lake").config == lake.config


def test_what_places_users_and_days_cannot_be_overridden_for_a_run(make_lake):
    lake = make_lake()
    with pytest.raises(BadInput, match="fixed for the life"):
        open_lake(lake.root, ["lake.user_buckets=8"])
    assert open_lake(lake.root, ["lake.user_buckets=4"]).config == lake.config, "saying what holds anyway is no change"


def test_an_interrupted_creation_is_no_lake_yet(tmp_path):
    lake = create_lake(str(tmp_path / "lake"), Config())
    (tmp_path / "lake" / "onerec.yaml").unlink()
    assert not is_lake(lake.root)
    assert is_lake(create_lake(lake.root, Config()).root)


@pytest.mark.parametrize("part", ["../secret", "/etc/passwd", "a/../../b"])
def test_no_address_leaves_the_lake(make_lake, part):
    with pytest.raises(BadInput, match="not a path inside"):
        make_lake().uri(part)


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "yesterday", "", "20260101", "2026-1-1", "2026-W01-4"])
def test_a_date_that_is_no_date_is_refused(text):
    with pytest.raises(BadInput, match="--date"):
        parse_date(text)


@pytest.mark.parametrize("address", ["foo://x", "hdfs://", "s3://"])
def test_an_address_that_no_filesystem_opens_is_refused(address):
    with pytest.raises(BadInput, match="not an address that can be opened"):
        open_lake(address)


def test_a_file_address_may_be_escaped(tmp_path):
    root = tmp_path / "my läke 湖"
    create_lake(str(root), Config())
    assert open_lake(root.as_uri()).root == str(root)
    assert open_lake(f"file:{root}").read(EVENTS).num_rows == 0


def test_a_lake_cannot_be_created_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="name a folder that can be written to"):
        create_lake(str(tmp_path / "file" / "lake"), Config())


def test_a_damaged_table_is_named(make_lake):
    lake = make_lake()
    write_rows(lake, PIPELINE_RUNS, [{"step": "ingest", "run_id": "a", "attempt": 1, "status": "succeeded", "seconds": 0.0,
                                      "started_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "code_version": "1",
                                      "config_version": "1", "input_versions": []}])  # fmt: skip
    (file,) = lake.local_path("pipeline_runs").glob("*.parquet")
    file.write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"pipeline_runs: a file is missing or damaged"):
        lake.read(PIPELINE_RUNS)
    newest = max(lake.local_path("pipeline_runs", "_delta_log").glob("*.json"))
    newest.write_text('{"torn')
    with pytest.raises(BadInput, match="pipeline_runs/_delta_log: "):
        lake.table_version(PIPELINE_RUNS)


def test_a_day_begins_in_the_lakes_time_zone(make_lake):
    shanghai = make_lake(lake={"day_timezone": "Asia/Shanghai"}).config
    assert day_start(dt.date(2026, 1, 2), shanghai) == dt.datetime(2026, 1, 1, 16, tzinfo=dt.UTC)
    new_york = make_lake("other", lake={"day_timezone": "America/New_York"}).config
    spring, after = day_start(dt.date(2026, 3, 8), new_york), day_start(dt.date(2026, 3, 9), new_york)
    assert after.astimezone(dt.UTC) - spring.astimezone(dt.UTC) == dt.timedelta(hours=23)


def test_a_small_file_is_replaced_whole(tmp_path):
    path = tmp_path / "pointer"
    write_atomically(str(path), b"one")
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer"]
