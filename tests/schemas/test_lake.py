"""A lake is opened, created and written so that a reader never sees half of it."""

import datetime as dt

import pytest

from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import create_lake, day_start, is_lake, open_lake, parse_date, write_atomically
from schemas.tables import EVENTS


def test_a_folder_that_is_no_lake_is_refused(tmp_path):
    with pytest.raises(BadInput, match="onerec ingest"):
        open_lake(str(tmp_path))


def test_creating_a_lake_again_changes_nothing(tmp_path):
    lake = create_lake(str(tmp_path / "lake"), Config())
    version = lake.table_version(EVENTS)
    again = create_lake(str(tmp_path / "lake"), Config())
    assert again.table_version(EVENTS) == version
    assert open_lake(f"file://{tmp_path}/lake").config == lake.config


def test_an_interrupted_creation_is_no_lake_yet(tmp_path):
    lake = create_lake(str(tmp_path / "lake"), Config())
    (tmp_path / "lake" / "onerec.yaml").unlink()
    assert not is_lake(lake.root)
    assert is_lake(create_lake(lake.root, Config()).root)


@pytest.mark.parametrize("part", ["../secret", "/etc/passwd", "a/../../b"])
def test_no_address_leaves_the_lake(make_lake, part):
    with pytest.raises(BadInput, match="not a path inside"):
        make_lake().uri(part)


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "yesterday", "", "20260101", "2026-1-1"])
def test_a_date_that_is_no_date_is_refused(text):
    with pytest.raises(BadInput, match="--date"):
        parse_date(text)


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
