"""Ingest against a plain-Python reference, on random ugly rows: what lands, what is quarantined and why, in any order."""

import csv
import datetime as dt
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.ingest import job
from feature_jobs.ingest.landing import open_landing
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.tables import EVENTS, PIPELINE_RUNS, QUARANTINE
from tests.feature_jobs.ingest_reference import COLUMNS, Expected

pytestmark = pytest.mark.slow
DAYS = [dt.date(2026, 1, 30), dt.date(2026, 1, 31), dt.date(2026, 2, 1)]
ITEMS = ["i1", "i2", "i3", "ünï", "物"]
CONFIG = Config.model_validate(
    {
        "lake": {"day_timezone": "Asia/Shanghai", "user_buckets": 3},
        "ingest": {"quarantine_limit": 1.0, "max_late_days": 5, "max_play_time_ms": 3_600_000},
        "samples": {"user_day_cap": 4},
    }
)
UGLY: dict[str, list[Any]] = {
    "impression_id": ["", "  ", None, 17, "x" * 600, {"a": [1]}],
    "user_id": [None, "", ["u"], "u\u0000v", "ñandú 🦜", '"quoted", and\nbroken', 5],
    "item_id": [None, "i9", " ", {"id": "i1"}, "物"],
    "request_id": ["", None, "r1", 3.5],
    "session_id": ["", "s", None],
    "scene": ["", None, "[not json", "home"],
    "play_time_ms": [-1, None, "12", "12.0", 12.5, "x", 3_600_001, 10**25, True, "", "-0"],
    "duration_ms": [0, -5, None, 700_000_000_000, "٣", 1e3, "45916.0"],
    "ts": ["2026-01-31", "yesterday", 1769800000, None, "2026-02-30T00:00:00Z", "1999-12-31T23:59:59Z", "2031-01-01T00:00:00Z",
           "2026-01-31t10:00:00z", "2026-01-30 10:00:00.123456789+05:30", "2026-01-31T10:00:00+19:00", "2026-01-31T24:00:00Z"],
    "request_ts": ["2026-01-31T15:59:59.999999Z", "2026-01-31T16:00:00Z", None, "2026-01-20T00:00:00Z", "now"],
    "observed_ts": ["2026-01-29T00:00:00Z", None, "2026-01-31T20:00:00Z", 0],
    "like": [1, 0, "True", "yes", None, "FALSE", 2],
    "click": [True, "false", None, []],
}  # fmt: skip
BROKEN_LINES = ["{", "null", "7", "[]", '{"a":1}{"b":2}', "{'impression_id': 'x'}", '{"impression_id": NaN}', "\ttext"]


def _row(rng: random.Random, day: dt.date, number: int) -> dict[str, Any]:
    instant = dt.datetime.combine(day, dt.time(), dt.UTC) + dt.timedelta(seconds=rng.uniform(-3 * 86400, 15.9 * 3600))
    names = [f"imp{rng.randrange(60)}", f"imp-{day}-{number}"]
    row: dict[str, Any] = {
        "impression_id": rng.choice(names),
        "user_id": f"u{rng.randrange(8)}",
        "item_id": rng.choice(ITEMS),
        "ts": instant.isoformat(),
        "play_time_ms": rng.randrange(0, 90_000),
    }
    if rng.random() < 0.5:
        row["request_ts"] = (instant - dt.timedelta(milliseconds=rng.randrange(3000))).isoformat(" ")
    if rng.random() < 0.4:
        for name in rng.sample(sorted(UGLY), rng.choice([1, 1, 2, 5])):
            row[name] = rng.choice(UGLY[name])
    return row


def _rows(seed: int) -> dict[dt.date, list[Any]]:
    rng = random.Random(seed)
    rows: dict[dt.date, list[Any]] = {}
    for day in DAYS:
        fresh: list[Any] = [_row(rng, day, number) for number in range(120)]
        again = [
            row | rng.choice([{}, {"like": True}])
            for some in rows.values()
            for row in rng.sample(some, 8)
            if isinstance(row, dict)
        ]
        rows[day] = fresh + again + rng.sample(fresh, 10) + rng.sample(BROKEN_LINES, 3)
        rng.shuffle(rows[day])
    return rows


def _text(value: Any) -> str | None:
    """A value as JSON's text, as ingest reads it."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _write(root: Path, rows: dict[dt.date, list[Any]]) -> dict[dt.date, list[Any]]:
    """Write half the rows as JSON lines, half as compressed CSV; returns them as the reference reads them."""
    read: dict[dt.date, list[Any]] = {}
    for day, some in rows.items():
        folder = root / "events" / f"date={day}"
        folder.mkdir(parents=True)
        lines = [row for number, row in enumerate(some) if number % 2 or not isinstance(row, dict)]
        table = [row for number, row in enumerate(some) if not number % 2 and isinstance(row, dict)]
        text = "\r\n".join(
            line if isinstance(line, str) else json.dumps(line, ensure_ascii=number % 2 == 0) for number, line in enumerate(lines)
        )
        (folder / "part.jsonl").write_bytes(text.encode() + b"\n\n")
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        names = list(reversed(COLUMNS))
        writer.writerow(names)
        table = [{name: _text(row.get(name)) for name in names} for row in table]
        table = [{name: value.replace("\u0000", "") if value else None for name, value in row.items()} for row in table]
        writer.writerows([row[name] for name in names] for row in table)
        (folder / "part.csv.gz").write_bytes(gzip.compress(buffer.getvalue().encode()))
        texts = [{name: _text(value) for name, value in line.items()} if isinstance(line, dict) else line for line in lines]
        read[day] = texts + [_without_nesting(row) for row in table]
    (root / "items").mkdir()
    catalogue = [{"item_id": item, "valid_from": "2020-01-01T00:00:00Z"} for item in ITEMS]
    (root / "items" / "all.jsonl").write_text("\n".join(map(json.dumps, catalogue)))
    return read


class CsvText(str):
    """A text of CSV: braces in it are text, since CSV has no nested values."""

    def __getitem__(self, key: Any) -> str:
        return " " if isinstance(key, slice) and key == slice(None, 1) else super().__getitem__(key)


def _without_nesting(row: dict[str, str | None]) -> dict[str, str | None]:
    return {name: CsvText(value) if value is not None else None for name, value in row.items()}


def _events(lake: Lake) -> list[dict[str, Any]]:
    rows = []
    for row in lake.read(EVENTS).to_pylist():
        row = {
            name: _micros(value) if isinstance(value, dt.datetime) else value
            for name, value in row.items()
            if name != "ingested_at"
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["user_id"], row["impression_id"], row["date"]))


def _micros(moment: dt.datetime) -> int:
    return (moment.astimezone(dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _quarantine(lake: Lake) -> dict[dt.date, list[tuple[str, ...]]]:
    found: dict[dt.date, list[tuple[str, ...]]] = {}
    for row in lake.read(QUARANTINE).to_pylist():
        assert row["table_name"] == "events"
        found.setdefault(row["date"], []).append(tuple(sorted(reason.split(" (found ")[0] for reason in row["reasons"])))
    return {day: sorted(reasons) for day, reasons in found.items()}


def _expected_events(expected: Expected) -> list[dict[str, Any]]:
    rows = [
        {name: str(value) if isinstance(value, CsvText) else value for name, value in event.items()} for event in expected.events
    ]
    return sorted(rows, key=lambda row: (row["user_id"], row["impression_id"], row["date"]))


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[dt.date, list[Any]]]:
    root = tmp_path_factory.mktemp("zone")
    return root, _write(root, _rows(seed=11))


@pytest.fixture(scope="module")
def ingested(spark: Any, zone: tuple[Path, dict[dt.date, list[Any]]], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = create_lake(str(tmp_path_factory.mktemp("lakes") / "in_order"), CONFIG)
    for day in DAYS:
        job.run(spark, lake, open_landing(str(zone[0])), day)
    return lake


def _reference(rows: dict[dt.date, list[Any]], order: list[dt.date]) -> Expected:
    expected = Expected(CONFIG, set(ITEMS))
    for day in order:
        expected.ingest(day, rows[day])
    return expected


def test_landings_in_order_leave_what_the_reference_says(ingested: Lake, zone: tuple[Path, dict[dt.date, list[Any]]]) -> None:
    expected = _reference(zone[1], DAYS)
    assert _quarantine(ingested) == {day: sorted(reasons) for day, reasons in expected.quarantine.items()}
    assert _events(ingested) == _expected_events(expected)
    late = [event for event in expected.events if event["date"] < event["landing_date"]]
    assert len(late) > 20, "the rows are meant to include late ones"
    assert all(expected.dropped[day]["duplicate"] > 5 for day in DAYS), "and duplicates"
    assert all(expected.dropped[day]["over_the_cap"] > 2 for day in DAYS), "and days over the cap"


def test_every_row_is_accounted_for(ingested: Lake, zone: tuple[Path, dict[dt.date, list[Any]]]) -> None:
    expected = _reference(zone[1], DAYS)
    runs = [row for row in ingested.read(PIPELINE_RUNS).to_pylist() if row["table_name"] == "events"]
    for row in runs:
        day = row["date"]
        assert row["rows_in"] == len(zone[1][day])
        assert row["rows_quarantined"] == len(expected.quarantine[day])
        assert dict(row["rows_dropped"]) == expected.dropped[day]
        assert row["rows_out"] == row["rows_in"] - row["rows_quarantined"] - sum(expected.dropped[day].values())
    assert sorted(row["date"] for row in runs) == DAYS


def test_quarantine_keeps_the_line_as_it_came(ingested: Lake, zone: tuple[Path, dict[dt.date, list[Any]]]) -> None:
    lines = {line.rstrip("\r") for path in zone[0].glob("events/*/part.jsonl") for line in path.read_bytes().decode().split("\n")}
    rows = [row for row in ingested.read(QUARANTINE).to_pylist() if row["source_file"].endswith("part.jsonl")]
    assert len(rows) > 30
    assert all(row["row_json"] in lines for row in rows)
    assert {row["source_file"] for row in rows} == {f"events/date={day}/part.jsonl" for day in DAYS}


def test_the_order_of_landings_does_not_matter_and_a_rerun_changes_nothing(
    spark: Any, ingested: Lake, zone: tuple[Path, dict[dt.date, list[Any]]], tmp_path: Path
) -> None:
    lake = create_lake(str(tmp_path / "reversed"), CONFIG)
    landing = open_landing(str(zone[0]))
    reports = [job.run(spark, lake, landing, day) for day in reversed(DAYS)]
    assert _events(lake) == _expected_events(_reference(zone[1], DAYS[::-1]))
    assert sum(report.extra["later_duplicates_removed"] for report in reports) > 0
    owners = {(row["user_id"], row["impression_id"], row["date"]): row["landing_date"] for row in _events(lake)}
    assert len(owners) == len(_events(lake)), "a user's day has an impression once"
    before = _events(lake), _quarantine(lake)
    job.run(spark, lake, landing, DAYS[1])
    assert (_events(lake), _quarantine(lake)) == before
