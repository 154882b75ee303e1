"""Bad input through the command line: the exit code, the one line on standard error, and what is left in the lake."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.command_line import run
from schemas.config import Config
from schemas.lake import create_lake, open_lake
from schemas.tables import EVENTS, ITEMS, PIPELINE_RUNS, QUARANTINE, USERS

Capture = pytest.CaptureFixture[str]
DAY = "2026-01-31"
GOOD = {"impression_id": "a", "user_id": "u", "item_id": "i", "ts": f"{DAY}T10:00:00Z", "play_time_ms": 5}


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    """A landing zone with one good event and its item."""
    root = tmp_path / "zone"
    events = root / "events" / f"date={DAY}"
    events.mkdir(parents=True)
    (root / "items").mkdir()
    (events / "part.jsonl").write_text(json.dumps(GOOD) + "\n")
    (root / "items" / "part.jsonl").write_text('{"item_id": "i", "valid_from": "2025-01-01T00:00:00Z"}\n')
    return root


def _ingest(zone: Path, *more: str, date: str = DAY) -> list[str]:
    return ["ingest", "--lake", str(zone.parent / "lake"), "--landing", str(zone), "--date", date, *more]


def _error(capfd: Capture, arguments: list[str], code: int = 2) -> str:
    """Run a command that must fail: its one ``error: `` line (Spark's own log lines aside), nothing on standard output."""
    assert run(arguments) == code
    output = capfd.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if line.startswith(("error", "fault", "Traceback"))]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("error: ")
    return lines[0]


def _has_lake(zone: Path) -> bool:
    return (zone.parent / "lake").exists()


# Looked at before an engine starts: nothing is created.


def test_missing_landing_folder(zone: Path, capfd: Capture) -> None:
    assert f"{zone}-typo: no such folder" in _error(capfd, _ingest(Path(f"{zone}-typo")))
    assert not _has_lake(zone)


def test_missing_landing_day_names_the_days_that_are_there(zone: Path, capfd: Capture) -> None:
    line = _error(capfd, _ingest(zone, date="2026-02-01"))
    assert "events/date=2026-02-01" in line
    assert DAY in line
    assert not _has_lake(zone)


@pytest.mark.parametrize("text", ["2026-02-30", "31.01.2026", "20260131", "2026-1-31", "yesterday", ""])
def test_a_date_that_is_none(zone: Path, capfd: Capture, text: str) -> None:
    assert f"--date {text!r}: not a date" in _error(capfd, _ingest(zone, date=text))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("ingest.quarantine_limit=1.5", "ingest.quarantine_limit"),
        ("lake.user_buckets=0", "lake.user_buckets"),
        ("lake.day_timezone=Mars/Olympus", "lake.day_timezone"),
        ("ingest.no_such=1", "ingest.no_such"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_setting_out_of_range_or_unknown(zone: Path, capfd: Capture, setting: str, named: str) -> None:
    assert named in _error(capfd, _ingest(zone, "--set", setting))
    assert not _has_lake(zone)


def test_settings_that_are_no_file_or_no_yaml(zone: Path, capfd: Capture) -> None:
    assert "settings.yaml: no such file" in _error(capfd, _ingest(zone, "--config", str(zone / "settings.yaml")))
    (zone / "settings.yaml").write_text("lake: [")
    assert "settings.yaml: not YAML" in _error(capfd, _ingest(zone, "--config", str(zone / "settings.yaml")))


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("part.txt", b"x", "an extension that ingest does not read"),
        ("part.csv", b"", "empty, so truncated"),
        ("part.jsonl.gz", b"", "empty, so truncated"),
    ],
)
def test_a_file_that_cannot_be_read_by_its_name_or_size(
    zone: Path, capfd: Capture, name: str, content: bytes, found: str
) -> None:
    (zone / "events" / f"date={DAY}" / name).write_bytes(content)
    line = _error(capfd, _ingest(zone))
    assert found in line
    assert f"events/date={DAY}/{name}" in line
    assert not _has_lake(zone)


def test_events_outside_a_day_or_in_a_deeper_folder(zone: Path, capfd: Capture) -> None:
    (zone / "events" / f"date={DAY}" / "hour=01").mkdir()
    assert "hour=01" in _error(capfd, _ingest(zone))
    (zone / "events" / "loose.jsonl").write_text("{}")
    assert "loose.jsonl" in _error(capfd, _ingest(zone))


@pytest.mark.parametrize("text", ["{", "[]", '{"day_timezone": "Nowhere"}', '{"day_timezone": 8}'])
def test_a_description_that_cannot_be_understood(zone: Path, capfd: Capture, text: str) -> None:
    (zone / "landing.json").write_text(text)
    assert "landing.json" in _error(capfd, _ingest(zone))
    assert not _has_lake(zone)


def test_a_landing_of_another_time_zone(zone: Path, capfd: Capture) -> None:
    create_lake(str(zone.parent / "lake"), Config())
    (zone / "landing.json").write_text('{"day_timezone": "Asia/Shanghai"}')
    assert "day_timezone Asia/Shanghai differs" in _error(capfd, _ingest(zone))


def test_settings_other_than_the_lakes(zone: Path, capfd: Capture) -> None:
    create_lake(str(zone.parent / "lake"), Config())
    (zone / "settings.yaml").write_text("ingest: {max_late_days: 3}")
    assert "differs from" in _error(capfd, _ingest(zone, "--config", str(zone / "settings.yaml")))
    assert "fixed for the life" in _error(capfd, _ingest(zone, "--set", "lake.user_buckets=8"))


def test_a_damaged_lake_configuration(zone: Path, capfd: Capture) -> None:
    create_lake(str(zone.parent / "lake"), Config())
    (zone.parent / "lake" / "onerec.yaml").write_text("lake: {user_buckets: many}")
    line = _error(capfd, _ingest(zone))
    assert "onerec.yaml" in line
    assert "user_buckets" in line


def test_a_lake_that_is_none(tmp_path: Path, capfd: Capture) -> None:
    line = _error(capfd, ["samples", "--lake", str(tmp_path), "--date", DAY])
    assert "no lake here" in line
    assert "onerec ingest" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["ingest", "lake create", "simulate", "import"])
def test_a_place_that_cannot_be_written_to(zone: Path, capfd: Capture, command: str) -> None:
    (zone / "file").write_text("")
    place = str(zone / "file" / "x")
    source = zone / "kuairand"
    source.mkdir()
    for name in ("processed_standard_kcore_15.tsv", "user_features_pure.csv", "video_features_basic_pure.csv"):
        (source / name).write_text("")
    arguments = {
        "ingest": ["ingest", "--lake", place, "--landing", str(zone), "--date", DAY],
        "lake create": ["lake", "create", "--lake", place],
        "simulate": ["simulate", "--out", place],
        "import": ["import", "kuairand", str(source), "--out", place],
    }
    line = _error(capfd, arguments[command])
    assert place in line
    assert "can be written to" in line


@pytest.mark.parametrize(
    "problem", [PermissionError(13, "Permission denied", "/lake/events"), OSError(28, "No space left on device", "/lake/events")]
)
def test_a_full_disk_or_a_missing_permission(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, problem: OSError
) -> None:
    create_lake(str(tmp_path / "lake"), Config())
    monkeypatch.setattr("onerec.lake_view.table_summaries", lambda _: (_ for _ in ()).throw(problem))
    line = _error(capfd, ["lake", "tables", "--lake", str(tmp_path / "lake")])
    assert line.startswith(f"error: /lake/events: {problem.strerror}; ")


def test_damaged_marks_of_a_backfill(tmp_path: Path, capfd: Capture) -> None:
    create_lake(str(tmp_path / "lake"), Config())
    (tmp_path / "lake" / "stale.json").write_text("{")
    assert "stale.json: not JSON" in _error(capfd, ["status", "--lake", str(tmp_path / "lake"), "--date", DAY])


def test_backfill_dates_are_looked_at_before_an_engine_starts(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_lake(str(tmp_path / "lake"), Config())
    monkeypatch.setattr("feature_jobs.session.spark_session", None)
    arguments = ["backfill", "--lake", str(tmp_path / "lake"), "--from", DAY, "--to"]
    assert "comes before the first" in _error(capfd, [*arguments, "2026-01-30"])
    assert "no events of these dates" in _error(capfd, [*arguments, DAY])


def test_a_missing_option_and_an_unknown_one(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEREC_LAKE", raising=False)
    assert "--lake" in _error(capfd, ["ingest", "--landing", "x", "--date", DAY])
    assert "--frobnicate" in _error(capfd, ["ingest", "--frobnicate"])


def test_a_dry_run_looks_and_writes_nothing(zone: Path, capfd: Capture) -> None:
    assert run(_ingest(zone, "--dry-run", "--json")) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["would_change"]["events"] == [f"landing_date={DAY}"]
    assert report["would_change"]["items"] == ["items/part.jsonl"]
    assert not _has_lake(zone)


# From here on Spark reads.


def _tables(zone: Path) -> dict[str, int]:
    lake = open_lake(str(zone.parent / "lake"))
    return {table.name: lake.read(table).num_rows for table in (EVENTS, ITEMS, USERS, QUARANTINE)}


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


def _damaged_files() -> dict[str, tuple[bytes, str]]:
    lines = gzip.compress("".join(json.dumps(GOOD | {"impression_id": str(n)}) + "\n" for n in range(20_000)).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [value] * 1000 for name, value in GOOD.items()}), sink)
    whole = sink.getvalue().to_pybytes()
    overwritten = whole[:4] + b"\xff" * 64 + whole[68:]
    return {
        "cut.jsonl.gz": (lines[: len(lines) // 2], "deliver the file again"),
        "text.jsonl.gz": (b"not gzip at all", "deliver the file again"),
        "text.csv.gz": (b"not gzip at all", "deliver the file again"),
        "cut.parquet": (whole[: len(whole) // 2], "deliver the file again"),
        "pages.parquet": (overwritten, "deliver the file again"),
        "flipped.jsonl.gz": (_flipped(lines, len(lines) // 2), "deliver the file again"),
        "lacking.csv": (b"impression_id,user_id,item_id,ts\n", "required column 'play_time_ms' is missing"),
        "twice.csv": (b"impression_id,user_id,item_id,ts,play_time_ms,ts\n", "column 'ts' appears twice"),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("name", sorted(_damaged_files()))
def test_a_damaged_file_is_named_and_nothing_is_published(zone: Path, capfd: Capture, name: str) -> None:
    content, found = _damaged_files()[name]
    (zone / "events" / f"date={DAY}" / name).write_bytes(content)
    line = _error(capfd, _ingest(zone))
    assert f"{zone}/events/date={DAY}/{name}: " in line
    assert found in line
    assert _tables(zone) == {"events": 0, "items": 0, "users": 0, "quarantine": 0}
    (attempt,) = open_lake(str(zone.parent / "lake")).read(PIPELINE_RUNS).to_pylist()
    assert attempt["status"] == "failed"
    assert name in attempt["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("content", [b"PAR1", None], ids=["cut", "missing"])
def test_a_damaged_file_of_the_lake_is_named(zone: Path, capfd: Capture, content: bytes | None) -> None:
    assert run(_ingest(zone, "--json")) == 0
    capfd.readouterr()
    lake = open_lake(str(zone.parent / "lake"))
    (file,) = (Path(uri.removeprefix("file://")) for uri in lake.open_table(EVENTS).file_uris())
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    line = _error(capfd, ["samples", "--lake", lake.root, "--date", DAY])
    assert f"{file}: missing or damaged" in line
    attempt = lake.read(PIPELINE_RUNS).to_pylist()[-1]
    assert lake.read(PIPELINE_RUNS).num_rows > 1
    assert "\n" not in (attempt["message"] or "")


@pytest.mark.slow
def test_a_command_that_starts_its_own_engine_prints_one_line(zone: Path) -> None:
    create_lake(str(zone.parent / "lake"), Config())
    command = [sys.executable, "-m", "onerec", "samples", "--lake", str(zone.parent / "lake"), "--date", DAY]
    environment = {name: value for name, value in os.environ.items() if name != "ONEREC_WORKER"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"play_time_ms": "long"}, "play_time_ms: not a whole number of 64 bits (found long)"),
    "negative play time": ({"play_time_ms": -1}, "play_time_ms: negative (found -1)"),
    "number out of range": ({"duration_ms": 10**12}, "duration_ms: more than 604800000 (found 1000000000000)"),
    "unknown item": ({"item_id": "ghost"}, "item_id: no catalogue row knows it (found ghost)"),
    "date that is none": ({"ts": "2026-02-30"}, "ts: not a timestamp like 2026-01-31T12:00:00Z (found 2026-02-30)"),
    "missing": ({"user_id": None}, "user_id: missing"),
    "not text": ({"user_id": {"id": 7}}, 'user_id: not a text (found {"id":7})'),
}  # fmt: skip


def _add_bad_rows(zone: Path) -> None:
    rows = [GOOD | {"impression_id": name} | change for name, (change, _) in BAD_ROWS.items()]
    lines = [*map(json.dumps, rows), json.dumps(GOOD), '{"torn": ']
    (zone / "events" / f"date={DAY}" / "more.jsonl").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_bad_rows_go_to_quarantine_each_with_its_reason(zone: Path, capfd: Capture) -> None:
    _add_bad_rows(zone)
    (zone / "events" / f"date={DAY}" / "wide.csv").write_text(
        "impression_id,user_id,item_id,ts,play_time_ms,mood\n"
        f"w,u,i,{DAY}T10:00:00Z,7,happy\n"
        f"too,many,values,{DAY}T10:00:00Z,7,a,b\n"
    )  # fmt: skip
    assert run(_ingest(zone, "--set", "ingest.quarantine_limit=0.9", "--json")) == 0
    report = json.loads(capfd.readouterr().out)
    bad = len(BAD_ROWS) + 2
    assert report["tables"]["events"] == {
        "rows_in": bad + 3,
        "rows_out": 2,
        "rows_quarantined": bad,
        "rows_dropped": {"duplicate": 1},
    }
    assert report["unknown_columns"] == {f"events/date={DAY}/wide.csv": ["mood"]}
    lake = open_lake(str(zone.parent / "lake"))
    reasons = {row["row_json"]: row["reasons"] for row in lake.read(QUARANTINE).to_pylist()}
    for name, (change, reason) in BAD_ROWS.items():
        assert reasons[json.dumps(GOOD | {"impression_id": name} | change)] == [reason]
    assert reasons['{"torn": '][0].startswith("row: not a JSON object on a line of its own")
    (wide,) = [row for row in reasons if "many" in row]
    assert reasons[wide][0].startswith("row: not one value a column of the header")
    assert sorted(lake.read(EVENTS)["impression_id"].to_pylist()) == ["a", "w"]


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_too_many_bad_rows_close_the_gate(zone: Path, capfd: Capture) -> None:
    _add_bad_rows(zone)
    line = _error(capfd, _ingest(zone), code=3)
    assert "8 of 10 rows (80.0%)" in line
    assert "ingest.quarantine_limit" in line
    assert _tables(zone) == {"events": 0, "items": 0, "users": 0, "quarantine": 8}, "the rejected rows can be looked at"
    runs = open_lake(str(zone.parent / "lake")).read(PIPELINE_RUNS).to_pylist()
    assert {row["status"] for row in runs} == {"gate"}
    (events,) = [row for row in runs if row["table_name"] == "events"]
    assert (events["rows_in"], events["rows_out"], events["rows_quarantined"]) == (10, 0, 8)


OUTSIDE = ["../secret.png", "/etc/passwd", "media/../../x", "http://host/x.png", "file:///etc/passwd", "a%2e%2e/x", "a?b"]


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_media_stay_inside_the_landing_zone(zone: Path, capfd: Capture) -> None:
    version = {"valid_from": "2025-01-01T00:00:00Z"}
    items = [{"item_id": uri, "cover_uri": uri, "frame_uris": ["media/1.png", uri]} | version for uri in OUTSIDE]
    items.append({"item_id": "blank", "audio_uri": ""} | version)
    inside = {"item_id": "j", "cover_uri": "media/ü b.png", "frame_uris": ["media/1.png", f"file://{zone}/media/2.png"]} | version
    (zone / "items" / "more.jsonl").write_text("\n".join(map(json.dumps, [*items, inside])))
    assert run(_ingest(zone, "--set", "ingest.quarantine_limit=1", "--json")) == 0
    capfd.readouterr()
    lake = open_lake(str(zone.parent / "lake"))
    refused = {json.loads(row["row_json"])["item_id"]: row["reasons"] for row in lake.read(QUARANTINE).to_pylist()}
    outside = "outside the landing zone"
    assert refused.pop("blank") == [f"audio_uri: {outside} (found )"]
    assert sorted(refused) == sorted(OUTSIDE)
    for reasons in refused.values():
        assert [reason.split(" (")[0] for reason in reasons] == [f"cover_uri: {outside}", f"frame_uris: {outside}"]
    (row,) = [row for row in lake.read(ITEMS).to_pylist() if row["item_id"] == "j"]
    assert row["cover_uri"] == f"file://{zone}/media/ü b.png"
    assert row["frame_uris"] == [f"file://{zone}/media/1.png", f"file://{zone}/media/2.png"]
