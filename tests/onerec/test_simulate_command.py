"""``onerec simulate`` as a person types it: what it refuses, what it says, and that it replaces only what is its own."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onerec.command_line import run
from tests.onerec.simulated import contents, write_world

SMALL = ["--users", "250", "--items", "60", "--days", "2", "--broken-share", "0.02"]


def refused(capsys, *arguments: str) -> str:
    """The one line with which a command ends in exit 2."""
    assert run(["simulate", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--users", "0", "--users 0"),
        ("--users", "-5", "--users -5"),
        ("--users", "many", "--users"),
        ("--items", "0", "--items 0"),
        ("--days", "0", "--days 0"),
        ("--days", "5000", "--days 5000"),
        ("--start", "2026-02-30", "2026-02-30"),
        ("--start", "yesterday", "yesterday"),
        ("--start", "0001-01-01", "0001-01-01"),
        ("--broken-share", "1", "--broken-share 1"),
        ("--broken-share", "nan", "--broken-share nan"),
        ("--late-share", "-0.1", "--late-share -0.1"),
        ("--duplicate-share", "0.99", "add up to 1 or more"),
        ("--events-per-day", "0", "--events-per-day 0"),
        ("--format", "xml", "--format xml"),
        ("--seed", "1e5", "--seed"),
    ],
)
def test_arguments_out_of_range_end_in_one_line(capsys, tmp_path, option, value, named):
    assert named in refused(capsys, "--out", str(tmp_path / "zone"), option, value)
    assert not (tmp_path / "zone").exists()


def test_a_folder_with_other_files_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert str(tmp_path) in refused(capsys, "--out", str(tmp_path))
    (tmp_path / "landing.json").write_text('{"source": "kuairand"}')
    refused(capsys, "--out", str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_out_must_be_a_local_folder(capsys, tmp_path):
    assert "local or mounted" in refused(capsys, "--out", "s3a://bucket/zone")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "--out", str(tmp_path / "file"))
    refused(capsys, "--out", str(tmp_path / "file" / "zone"))


def test_dry_run_says_what_would_be_written_and_writes_nothing(capsys, tmp_path):
    assert run(["simulate", "--out", str(tmp_path / "zone"), "--days", "2", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] is True
    assert plan["would_change"][f"{tmp_path}/zone/events"] == ["2026-01-01", "2026-01-02"]
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_what_its_tasks_write_at_any_number_of_partitions(spark, capsys, tmp_path):
    from onerec.simulate.job import run as run_job
    from onerec.simulate.parameters import Parameters

    zone = tmp_path / "zone"
    assert run(["simulate", "--out", str(zone), *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    world = Parameters(users=250, items=60, days=2, broken_share=0.02)
    truth = write_world(world, tmp_path / "alone")
    files = contents(zone)
    assert json.loads(files.pop("landing.json"))["parameters"] == world.to_json()
    landings = files.pop("truth/landings.parquet")
    assert files == contents(tmp_path / "alone")

    told = {
        (row["landing_date"].isoformat(), row["kind"]): row["rows"]
        for row in pq.read_table(zone / "truth/landings.parquet").to_pylist()
    }
    assert told == {key: rows for key, rows in truth.items() if rows}
    events = report["tables"]["events"]
    assert events["rows_out"] == truth["2026-01-01", "rows"] + truth["2026-01-02", "rows"]
    assert events["rows_in"] == events["rows_out"] + events["rows_dropped"]["not_arrived"]

    run_job(spark, world, str(tmp_path / "other"), partitions=1)
    other = contents(tmp_path / "other")
    assert other.pop("truth/landings.parquet") == landings
    del other["landing.json"]
    assert other == files


@pytest.mark.slow
def test_a_rerun_replaces_the_zone_and_clears_what_a_killed_run_left(spark, capsys, tmp_path):
    zone = tmp_path / "zone"
    first = ["simulate", "--out", str(zone), "--users", "20", "--items", "30", "--days", "2", "--no-media"]
    assert run(first) == 0
    assert "event rows by landing" in capsys.readouterr().out
    before = contents(zone)
    leftover = tmp_path / "zone.staging"
    leftover.mkdir()
    (leftover / "simulate.unfinished").write_text("")
    (leftover / "half").write_text("half a file")
    assert run([*first, "--seed", "7", "--days", "1"]) == 0
    after = contents(zone)
    assert not any("2026-01-02" in name for name in after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zone"]
    assert run(first) == 0
    assert contents(zone) == before


@pytest.mark.slow
def test_a_foreign_folder_in_the_way_of_staging_is_left_alone(spark, capsys, tmp_path):
    foreign = Path(f"{tmp_path}/zone.staging")
    foreign.mkdir()
    (foreign / "mine").write_text("mine")
    assert run(["simulate", "--out", str(tmp_path / "zone"), "--users", "5"]) == 2
    assert "zone.staging" in capsys.readouterr().err
    assert (foreign / "mine").read_text() == "mine"
