"""Ingest on real rows and in the formats' details: days, duplicates, files, reruns, formats that agree."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.ingest import job, settings
from feature_jobs.ingest.landing import open_landing
from schemas.config import Config
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake, open_lake, parse_date
from schemas.suppression import suppress
from schemas.tables import EVENTS, ITEMS, PIPELINE_RUNS, QUARANTINE, TABLES, USERS, Table

MakeLake = Callable[..., Lake]
DAY = "2026-01-31"
EVENT = {"impression_id": "a", "user_id": "u", "item_id": "i", "ts": f"{DAY}T10:00:00Z", "play_time_ms": 5}
ITEM = {"item_id": "i", "valid_from": "2025-01-01T00:00:00Z"}


def _write(root: Path, table: str, rows: list[dict[str, Any]], name: str = "part.jsonl", day: str | None = None) -> None:
    folder = root / table / f"date={day}" if day else root / table
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(spark: Any, lake: Lake, root: Path, day: str = DAY) -> dict[str, Any]:
    return job.run(spark, lake, open_landing(str(root)), parse_date(day)).to_json()


def _rows(lake: Lake, table: Table) -> list[dict[str, Any]]:
    rows = [{name: value for name, value in row.items() if name != "ingested_at"} for row in lake.read(table).to_pylist()]
    return sorted(rows, key=lambda row: tuple(str(row[name]) for name in table.key or table.schema.names))


@pytest.mark.slow
def test_kuairand_day_has_3564_rows_and_3552_events(spark: Any, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    from onerec.importers import kuairand

    kuairand.run(real_data("kuairand"), tmp_path / "zone")
    landing = open_landing(str(tmp_path / "zone"))
    lake = settings.open_or_create(str(tmp_path / "lake"), None, None, landing.day_timezone)
    assert lake.config.lake.day_timezone == "Asia/Shanghai"
    report = job.run(spark, lake, landing, parse_date("2022-04-09")).to_json()
    assert report["tables"]["events"] == {
        "rows_in": 3564, "rows_out": 3552, "rows_quarantined": 0, "rows_dropped": {"duplicate": 12},
    }  # fmt: skip
    assert report["tables"]["items"]["rows_out"] == 16_829
    assert report["tables"]["users"]["rows_out"] == 27_285
    assert report["dates"] == ["2022-04-09"], "every request lies in its Shanghai day"


@pytest.mark.slow
def test_a_bucket_is_one_file_in_user_order(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    lake = make_lake(lake={"user_buckets": 4})
    rows = [EVENT | {"impression_id": str(n), "user_id": f"u{n * 7 % 50}", "ts": f"{DAY}T{n % 24:02}:00:00Z"} for n in range(400)]
    rows += [EVENT | {"impression_id": f"late{n}", "user_id": f"u{n}", "ts": "2026-01-30T12:00:00Z"} for n in range(50)]
    _write(tmp_path / "zone", "events", rows, day=DAY)
    _write(tmp_path / "zone", "items", [ITEM])
    _run(spark, lake, tmp_path / "zone")
    files = lake.open_table(EVENTS).file_uris()
    assert len(files) == 2 * 4
    for file in files:
        table = pq.ParquetFile(file.removeprefix("file://")).read(columns=["user_id", "request_ts", "ts", "impression_id"])
        found = [tuple(row.values()) for row in table.to_pylist()]
        assert found == sorted(found)


@pytest.mark.slow
def test_the_three_formats_give_the_same_tables(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    rows = [
        EVENT | {"impression_id": "a", "like": True, "duration_ms": 123_456_789, "scene": 'feed, "main"'},
        EVENT | {"impression_id": "b", "ts": f"{DAY}T10:00:00.123456Z", "request_ts": f"{DAY}T09:59:59Z"},
        EVENT | {"impression_id": "c", "play_time_ms": -3},
    ]
    names = ["impression_id", "user_id", "item_id", "ts", "request_ts", "play_time_ms", "duration_ms", "like", "scene"]
    tags = ["x", "y, z"]
    zones = {kind: tmp_path / kind for kind in ("jsonl", "csv.gz", "parquet", "typed.parquet")}
    for kind, zone in zones.items():
        _write(zone, "events", rows if kind == "jsonl" else [], day=DAY)
        _write(zone, "items", [ITEM | {"tags": tags}] if kind == "jsonl" else [])
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([names, *([row.get(name) for name in names] for row in rows)])
    (zones["csv.gz"] / "events" / f"date={DAY}" / "part.csv.gz").write_bytes(gzip.compress(buffer.getvalue().encode()))
    (zones["csv.gz"] / "items" / "part.csv").write_text('item_id,valid_from,tags\ni,2025-01-01T00:00:00Z,"[""x"",""y, z""]"\n')
    texts = pa.table({name: [str(row[name]) if name in row else None for row in rows] for name in names})
    pq.write_table(texts, zones["parquet"] / "events" / f"date={DAY}" / "part.parquet")
    pq.write_table(
        pa.table({**{name: [value] for name, value in ITEM.items()}, "tags": [tags]}), zones["parquet"] / "items" / "p.parquet"
    )
    moments = {name: texts[name].cast(pa.timestamp("us", tz="UTC")) for name in ("ts", "request_ts")}
    numbers = {
        "play_time_ms": pa.array([5, 5, -3], pa.int32()),
        "duration_ms": pa.array([123_456_789.0, None, None], pa.float64()),
        "like": pa.array([True, None, None]),
    }
    typed = pa.table({name: {**moments, **numbers}.get(name, texts[name]) for name in names})
    pq.write_table(typed, zones["typed.parquet"] / "events" / f"date={DAY}" / "part.parquet")
    pq.write_table(
        pa.table({"item_id": ["i"], "valid_from": pa.array([1735689600_000_000], pa.timestamp("us")), "tags": [tags]}),
        zones["typed.parquet"] / "items" / "p.parquet",
    )
    events, items = {}, {}
    for kind, zone in zones.items():
        lake = make_lake(f"lake-{kind}", ingest={"quarantine_limit": 0.5})
        assert _run(spark, lake, zone)["tables"]["events"]["rows_quarantined"] == 1
        assert lake.read(QUARANTINE)["reasons"].to_pylist() == [["play_time_ms: negative (found -3)"]]
        events[kind], items[kind] = _rows(lake, EVENTS), _rows(lake, ITEMS)
    assert events["jsonl"][0]["duration_ms"] == 123_456_789
    assert items["jsonl"][0]["tags"] == tags
    for kind in zones:
        assert events[kind] == events["jsonl"], kind
        assert items[kind] == items["jsonl"], kind


@pytest.mark.slow
def test_items_and_users_are_appended_once_and_a_killed_run_is_finished(
    spark: Any, make_lake: MakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, lake = tmp_path / "zone", make_lake()
    _write(root, "events", [EVENT, EVENT | {"impression_id": "b", "item_id": "j"}], day=DAY)
    _write(root, "items", [ITEM, ITEM | {"title": "twice"}])
    _write(root, "items", [{"item_id": "j", "valid_from": f"{DAY}T00:00:00Z"}], day=DAY)
    _write(root, "users", [{"user_id": "u", "date": "2026-01-30", "gender": "f"}])
    with monkeypatch.context() as patch:
        patch.setattr(job, "commit_files", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _run(spark, lake, root)
    assert [lake.read(table).num_rows for table in (ITEMS, USERS, EVENTS)] == [2, 1, 0], "events come last"
    report = _run(spark, lake, root)
    assert report["tables"]["items"] == {"rows_in": 3, "rows_out": 0, "rows_quarantined": 0, "rows_dropped": {"duplicate": 3}}
    assert report["tables"]["users"] == {"rows_in": 1, "rows_out": 0, "rows_quarantined": 0, "rows_dropped": {"duplicate": 1}}
    before = [_rows(lake, table) for table in (EVENTS, ITEMS, USERS)]
    versions = [lake.table_version(table) for table in (ITEMS, USERS, QUARANTINE)]
    _run(spark, lake, root)
    assert [_rows(lake, table) for table in (EVENTS, ITEMS, USERS)] == before
    assert [lake.table_version(table) for table in (ITEMS, USERS, QUARANTINE)] == versions, "nothing new, no commit"
    assert before[1][0]["title"] is None, "of two versions at one instant the one that sorts first stays (null first)"
    assert {row["item_id"] for row in before[0]} == {"i", "j"}


@pytest.mark.slow
def test_a_mended_landing_clears_its_quarantine_and_no_other(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    root, lake = tmp_path / "zone", make_lake(ingest={"quarantine_limit": 0.5})
    _write(root, "items", [ITEM])
    for day in ("2026-01-30", DAY):
        _write(root, "events", [EVENT | {"impression_id": day, "ts": f"{day}T01:00:00Z"}, {"impression_id": "bad"}], day=day)
        _run(spark, lake, root, day)
    assert [str(row["date"]) for row in _rows(lake, QUARANTINE)] == ["2026-01-30", DAY]
    _write(root, "events", [EVENT | {"ts": f"{DAY}T01:00:00Z"}], day=DAY)
    _run(spark, lake, root)
    assert [str(row["date"]) for row in _rows(lake, QUARANTINE)] == ["2026-01-30"]
    assert [row["impression_id"] for row in _rows(lake, EVENTS)] == ["2026-01-30", "a"], "the landing's rows were replaced"


SNAPSHOT = {"user_id": "u", "date": "2026-01-30"}
GOOD: dict[str, list[dict[str, Any]]] = {
    "events": [EVENT, EVENT | {"impression_id": "b"}],
    "items": [ITEM, ITEM | {"item_id": "j"}],
    "users": [SNAPSHOT, SNAPSHOT | {"user_id": "v"}],
}
NEW = {"events": EVENT | {"impression_id": "c"}, "items": ITEM | {"item_id": "k"}, "users": SNAPSHOT | {"user_id": "w"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "identity", "wrong", "reason"),
    [
        ("events", "impression_id", {"play_time_ms": -1}, "play_time_ms: negative (found -1)"),
        ("items", "item_id", {"duration_ms": -1}, "duration_ms: not positive (found -1)"),
        ("users", "user_id", {"date": "1999-12-31"}, "date: not between the years 2000 and 2100 (found 1999-12-31)"),
    ],
)
def test_a_redelivery_with_too_many_bad_rows_of_one_table_changes_none_but_quarantine(
    spark: Any, make_lake: MakeLake, tmp_path: Path, table: str, identity: str, wrong: dict[str, Any], reason: str
) -> None:
    """Every table would get a new row; one of them has three bad rows beside three good ones."""
    root, lake = tmp_path / "zone", make_lake(lake={"user_buckets": 2}, ingest={"quarantine_limit": 0.4})
    bad = [GOOD[table][0] | wrong | {identity: f"bad{number}"} for number in range(4)]
    published = (EVENTS, ITEMS, USERS)

    def deliver(rows: dict[str, list[dict[str, Any]]]) -> None:
        for name, of_table in rows.items():
            _write(root, name, of_table, day=DAY if name == "events" else None)

    def state() -> list[Any]:
        files = {path for one in published for path in (Path(lake.root) / one.name).rglob("*.parquet")}
        return [*(_rows(lake, one) for one in published), *(lake.table_version(one) for one in published), files]

    deliver(GOOD | {table: [*GOOD[table], bad[3]]})
    _run(spark, lake, root)
    assert [json.loads(row["row_json"]) for row in _rows(lake, QUARANTINE)] == [bad[3]]
    before = state()
    deliver({name: [*rows, NEW[name]] for name, rows in GOOD.items()} | {table: [*GOOD[table], NEW[table], *bad[:3]]})
    with pytest.raises(GateFailed, match=rf"^{table} of \S+, landing day {DAY}: 3 of 6 rows \(50\.0%\) are bad") as refused:
        _run(spark, lake, root)
    assert refused.value.exit_code == 3
    assert state() == before
    rejected = _rows(lake, QUARANTINE)
    assert [json.loads(row["row_json"]) for row in rejected] == bad[:3]
    assert {(row["table_name"], str(row["date"]), *row["reasons"]) for row in rejected} == {(table, DAY, reason)}
    runs = [row for row in lake.read(PIPELINE_RUNS).to_pylist() if row["attempt"] == 2]
    assert {(row["table_name"], row["status"], row["rows_out"]) for row in runs} == {(name, "gate", 0) for name in GOOD}


@pytest.mark.slow
def test_rows_of_people_who_were_forgotten_are_dropped_and_counted(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    """Also a row that would be quarantined: it would name them there."""
    root, lake = tmp_path / "zone", make_lake(ingest={"quarantine_limit": 0.5})
    suppress(lake, ["李雷"])
    late = {"user_id": "李雷", "ts": "2026-01-30T10:00:00Z"}
    rows = [EVENT, EVENT | late | {"impression_id": "b"}, EVENT | late | {"impression_id": "c", "play_time_ms": -1}]
    _write(root, "events", [*rows, EVENT | {"impression_id": "d", "play_time_ms": -1}], day=DAY)
    _write(root, "items", [ITEM])
    _write(root, "users", [{"user_id": "李雷", "date": "2026-01-30"}, {"user_id": "u", "date": "2026-01-30"}])
    tables = _run(spark, lake, root)["tables"]
    assert tables["events"] == {"rows_in": 4, "rows_out": 1, "rows_quarantined": 1, "rows_dropped": {"forgotten": 2}}
    assert tables["users"] == {"rows_in": 2, "rows_out": 1, "rows_quarantined": 0, "rows_dropped": {"forgotten": 1}}
    assert [row["user_id"] for table in (EVENTS, USERS) for row in _rows(lake, table)] == ["u", "u"]
    (rejected,) = _rows(lake, QUARANTINE)
    assert "李雷" not in rejected["row_json"]


@pytest.mark.slow
def test_broken_rows_of_people_who_were_forgotten_are_not_quarantined(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    """What is left of a cut line still names them."""
    root, lake = tmp_path / "zone", make_lake(ingest={"quarantine_limit": 0.9})
    suppress(lake, ["anna", "李雷"])
    for table in ("events", "users"):
        folder = root / table / f"date={DAY}"
        folder.mkdir(parents=True)
        good = EVENT if table == "events" else {"user_id": "u", "date": "2026-01-30"}
        cut = ['{"user_id":"anna","item', json.dumps({"user_id": "李雷"})[:-1], '{"user_id":"bert","item_id":"anna-lena"', "{"]
        (folder / "part.jsonl").write_text("\n".join([json.dumps(good), *cut]))
    _write(root, "items", [ITEM, {"item_id": "anna"}])
    tables = _run(spark, lake, root)["tables"]
    for table in ("events", "users"):
        assert tables[table] == {"rows_in": 5, "rows_out": 1, "rows_quarantined": 1, "rows_dropped": {"forgotten": 3}}, table
    assert tables["items"]["rows_quarantined"] == 1, "a row of items is nobody's"
    assert sorted(row["row_json"] for row in _rows(lake, QUARANTINE)) == ["{", "{", '{"item_id": "anna"}']


@pytest.mark.slow
def test_a_landing_of_bad_rows_is_refused_and_quarantined_in_packs(
    spark: Any, make_lake: MakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task holds all of them: neither where they are judged nor where they are written."""
    root, lake = tmp_path / "zone", make_lake()
    rows = [EVENT | {"impression_id": str(n), "play_time_ms": -n} for n in range(130_000)]
    _write(root, "events", rows, day=DAY)
    _write(root, "items", [ITEM])
    with pytest.raises(GateFailed, match="129999 of 130000 rows"):
        _run(spark, lake, root)
    assert len({row["row_json"] for row in lake.read(QUARANTINE).to_pylist()}) == 129_999
    (file,) = lake.open_table(QUARANTINE).file_uris()
    groups = pq.ParquetFile(file.removeprefix("file://")).metadata
    assert groups.num_row_groups > 1
    assert max(groups.row_group(n).num_rows for n in range(groups.num_row_groups)) < 120_000
    assert [path.name for path in lake.local_path("cache").iterdir() if path.name.startswith("ingest-")] == []


@pytest.mark.slow
def test_a_row_that_is_lost_on_the_way_is_noticed_before_anything_is_published(
    spark: Any, make_lake: MakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, lake = tmp_path / "zone", make_lake()
    _write(root, "events", [EVENT, EVENT | {"impression_id": "b"}], day=DAY)
    _write(root, "items", [ITEM])
    publish = job.publish_bucket
    monkeypatch.setattr(job, "publish_bucket", lambda task, bucket, blocks: publish(task, bucket, [next(blocks).slice(1)]))
    with pytest.raises(RuntimeError, match="events: 2 rows in, 1 accounted for"):
        _run(spark, lake, root)
    assert [lake.read(table).num_rows for table in (ITEMS, EVENTS)] == [0, 0]


@pytest.mark.slow
def test_a_table_that_was_written_meanwhile_is_not_appended_to(spark: Any, make_lake: MakeLake, tmp_path: Path) -> None:
    from feature_jobs.ingest.catalogue import append_once
    from tests.lake_rows import utc, write_rows

    lake = make_lake()
    pinned = lake.table_version(ITEMS)
    write_rows(lake, ITEMS, [{"item_id": "other", "valid_from": utc("2026-01-01 00:00:00")}])
    frame = spark.read.format("delta").load(lake.table_uri(ITEMS))
    with pytest.raises(BadInput, match="another process wrote it"):
        append_once(lake, ITEMS, pinned, frame)
    assert lake.read(ITEMS).num_rows == 1


def test_a_new_lake_takes_the_landings_time_zone_and_the_given_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("lake: {user_buckets: 2}\ningest: {max_late_days: 3}\n")
    uri, file = str(tmp_path / "lake"), str(tmp_path / "settings.yaml")
    settings.open_or_create(uri, file, ["ingest.max_late_days=4"], "Asia/Shanghai")
    stored = open_lake(uri).config
    assert (stored.lake.day_timezone, stored.lake.user_buckets, stored.ingest.max_late_days) == ("Asia/Shanghai", 2, 4)
    assert set(TABLES) == {path.name for path in (tmp_path / "lake").iterdir() if path.is_dir()}
    again = settings.open_or_create(uri, None, ["ingest.max_late_days=9"], "Asia/Shanghai")
    assert again.config.ingest.max_late_days == 9
    assert open_lake(uri).config == stored, "an override of one run is not kept"


def test_two_time_zones_for_a_new_lake_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Asia/Shanghai"):
        settings.open_or_create(str(tmp_path / "lake"), None, ["lake.day_timezone=Europe/Paris"], "Asia/Shanghai")
    assert settings.new_config(None, ["lake.day_timezone=Asia/Shanghai"], "Asia/Shanghai").lake.day_timezone == "Asia/Shanghai"
    assert settings.new_config(None, None, None) == Config()


def test_landing_files_are_the_days_and_the_plain_ones_in_order(tmp_path: Path) -> None:
    _write(tmp_path, "events", [EVENT], day=DAY)
    _write(tmp_path, "items", [ITEM], name="b.jsonl")
    _write(tmp_path, "items", [ITEM], name="a.jsonl")
    _write(tmp_path, "items", [ITEM], day="2026-01-30")
    _write(tmp_path, "items", [ITEM], day=DAY)
    (tmp_path / "items" / "_SUCCESS").touch()
    landing = open_landing(str(tmp_path))
    assert [file.name for file in landing.files(ITEMS, parse_date(DAY))] == [
        "items/a.jsonl",
        "items/b.jsonl",
        f"items/date={DAY}/part.jsonl",
    ]
    assert landing.files(USERS, parse_date(DAY)) == []
