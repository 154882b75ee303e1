"""Importers: the landing zones that public logs become, and the count of every quirk."""

import datetime as dt
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from onerec.command_line import run
from onerec.importers import amazon, kuairand, movielens
from onerec.importers.amazon import join_windows
from schemas.errors import BadInput

FindData = Callable[[str], Path]


def _rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob(f"{table}/**/*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


@pytest.mark.slow
def test_kuairand_days_are_shanghai_days_and_quirks_are_counted(real_data: FindData, tmp_path: Path) -> None:
    report = kuairand.run(real_data("kuairand"), tmp_path / "zone")
    expected = {
        "rows": 41_828, "duplicates": 124, "duration_zero": 7_738, "date_column_disagrees": 312, "label_split": 41_828,
        "time_unreadable": 0, "item_rows_from_table": 7_583, "video_duration_zero": 0, "users": 27_285,
        "users_without_features": 0, "user_snapshot_date": "2022-04-06",
    }  # fmt: skip
    assert {name: report[name] for name in expected} == expected
    assert report["landing_days"]["2022-04-09"] == 3_564
    assert sum(report["landing_days"].values()) == 41_828
    assert json.loads((tmp_path / "zone" / "landing.json").read_text()) == {
        "source": "kuairand",
        "day_timezone": "Asia/Shanghai",
        "import_report": report,
    }


@pytest.mark.slow
def test_kuairand_rows_are_the_logs_rows(real_data: FindData, tmp_path: Path) -> None:
    source, zone = real_data("kuairand"), tmp_path / "zone"
    report = kuairand.run(source, zone)
    lines = (source / "processed_standard_kcore_15.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    log = [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]

    def summary(rows: list[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
        return Counter(rows)

    def instant(text: str) -> int:
        return (dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)

    landed = summary(
        [
            (
                row["user_id"],
                row["item_id"],
                instant(row["ts"]),
                row["play_time_ms"],
                row["duration_ms"],
                row["like"],
                row["dislike"],
            )
            for row in _rows(zone, "events")
        ]
    )
    assert landed == summary(
        [
            (
                row["user_id"], row["video_id"], int(row["time_ms"]), row["play_time_ms"],
                None if row["duration_ms"] == "0" else row["duration_ms"],
                "true" if row["label"] == "1" else "false", "true" if row["label"] == "0" else "false",
            )
            for row in log
        ]
    )  # fmt: skip
    durations: dict[str, set[int]] = defaultdict(set)
    for row in log:
        durations[row["video_id"]].add(int(row["duration_ms"]))
    items = {row["item_id"]: row for row in _rows(zone, "items")}
    table = {line.split(",")[0] for line in (source / "video_features_basic_pure.csv").read_text().splitlines()[1:]}
    made = set(durations) - table
    assert set(items) == table | set(durations)
    assert report["item_rows_made"] == len(made)
    for video in made:
        longest = max(durations[video])
        assert items[video]["duration_ms"] == (str(longest) if longest else None)


FULL_FORM = """user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,\
play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
1,7,20220408,1200,1649390400000,1,1,0,0,0,0,1,-5,1000,0,0,1,0,4
1,8,20220408,1200,1649390400001,0,0,0,0,0,1,0,30,0,0,0,0,0,1
2,8,20220408,1200,noon,0,0,0,0,0,0,0,30,900,0,0,0,0,1
"""


def _full_form(source: Path, log: str = FULL_FORM) -> None:
    _write(source / "log_standard_4_08_to_4_21_1k.csv", log)
    _write(source / "user_features_1k.csv", "user_id,register_days\n1,10\n")
    _write(source / "video_features_basic_1k.csv", 'video_id,author_id,upload_dt,video_duration,tag\n7,70,2022-04-01,0,"3,4"\n')


def test_kuairand_full_form_has_likes_hates_and_tabs(tmp_path: Path) -> None:
    _full_form(tmp_path / "src")
    report = kuairand.run(tmp_path / "src", tmp_path / "zone")
    by_id = {row["impression_id"]: row for row in _rows(tmp_path / "zone", "events")}
    first, second, third = by_id["1-7-1649390400000"], by_id["1-8-1649390400001"], by_id["2-8-noon"]
    assert (first["like"], first["dislike"], first["scene"], first["profile_enter"]) == ("1", "0", "4", "1")
    assert (second["like"], second["dislike"], second["duration_ms"]) == ("0", "1", None)
    assert first["play_time_ms"] == "-5", "no rule covers it: ingest judges it"
    assert third["ts"] == "noon"
    assert report["landing_days"] == {"2022-04-08": 3}
    assert (report["time_unreadable"], report["users_without_features"], report["video_duration_zero"]) == (1, 1, 1)
    items = {row["item_id"]: row for row in _rows(tmp_path / "zone", "items")}
    assert items["7"] == {
        "item_id": "7", "valid_from": "2000-01-01T00:00:00Z", "author_id": "70", "category": "3", "tags": ["3", "4"],
        "duration_ms": None, "upload_ts": "2022-04-01T00:00:00+08:00",
    }  # fmt: skip
    assert items["8"]["duration_ms"] == "900"
    (user,) = _rows(tmp_path / "zone", "users")
    assert user == {"user_id": "1", "date": "2022-04-07", "register_ts": "2022-03-28T16:00:00Z"}


@pytest.mark.parametrize("missing", ["log_standard_4_08_to_4_21_1k.csv", "user_features_1k.csv", "video_features_basic_1k.csv"])
def test_kuairand_names_a_missing_file(tmp_path: Path, missing: str) -> None:
    _full_form(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(BadInput, match=missing.split("_")[0]):
        kuairand.run(tmp_path, tmp_path / "zone")
    assert not (tmp_path / "zone").exists()


def test_kuairand_names_a_missing_column(tmp_path: Path) -> None:
    _full_form(tmp_path, FULL_FORM.replace("play_time_ms", "played"))
    with pytest.raises(BadInput, match=r"log_standard.*'play_time_ms'"):
        kuairand.run(tmp_path, tmp_path / "zone")


@pytest.mark.slow
def test_amazon_rebuilds_sequences_and_texts(real_data: FindData, tmp_path: Path) -> None:
    source = real_data("amazon-industrial")
    report = amazon.run(source, tmp_path / "zone")
    assert (report["rows"], report["users"], report["items"]) == (22_743, 3_285, 3_686)
    assert (report["windows_without_overlap"], report["items_without_row"]) == (0, 0)
    items = {row["item_id"]: row for row in _rows(tmp_path / "zone", "items")}
    published = json.loads((source / "item.json").read_text())
    assert {item: row["title"] for item, row in items.items()} == {item: facts["title"] for item, facts in published.items()}
    assert items["1"]["author_id"] == "Stanley"
    assert items["1"]["caption"].startswith("Heavy-duty staples are ideal for jobs")
    assert len(items["1"]["caption"].splitlines()) == 2, "a description's paragraphs are lines"
    events = _rows(tmp_path / "zone", "events")
    user = sorted((row["ts"], row["item_id"]) for row in events if row["user_id"] == "A4042")
    assert user[:2] == [("2018-10-01T00:00:00+00:00", "3112"), ("2018-10-01T00:00:01+00:00", "114")]


def test_overlapping_windows_become_one_sequence() -> None:
    assert join_windows([["a", "b"], ["a", "b", "c"], ["b", "c", "d"]]) == (["a", "b", "c", "d"], 0)
    assert join_windows([["a", "a"], ["a", "a", "a"]]) == (["a", "a", "a"], 0)
    assert join_windows([["a", "b"], ["x", "y"]]) == (["a", "b", "x", "y"], 1)


@pytest.mark.slow
def test_amazon_sequences_keep_every_interaction(real_data: FindData, tmp_path: Path) -> None:
    source = real_data("amazon-beauty")
    report = amazon.run(source, tmp_path / "zone")
    assert (report["rows"], report["users"], report["items"]) == (198_502, 22_363, 12_101)
    landed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in _rows(tmp_path / "zone", "events"):
        landed[row["user_id"]].append((row["ts"], row["item_id"]))
    for line in (source / "Beauty.txt").read_text().splitlines():
        user, *items = line.split()
        assert [item for _, item in sorted(landed[user])] == items


@pytest.mark.parametrize(
    ("cell", "found"),
    [("__import__('os').system('true')", "not a list"), ("[1, 2", "not a list"), ("7", "not a list of ids"), ("[[1]]", "of ids")],
)
def test_amazon_evaluates_nothing(tmp_path: Path, cell: str, found: str) -> None:
    _write(tmp_path / "item.json", '{"1": {"title": "t", "description": "[]", "brand": ""}}')
    for name in ("valid.csv", "test.csv"):
        _write(tmp_path / name, f'user_id,history_item_id,item_id\nA,"{cell}",1\n')
    with pytest.raises(BadInput, match=f"valid.csv, line 2: history_item_id is {found}|{found}"):
        amazon.run(tmp_path, tmp_path / "zone")


def test_movielens_csv_ratings_become_events(tmp_path: Path) -> None:
    _write(
        tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,10,4.0,964982703\n1,11,2.5,964982224\n2,10,0.5,1000000000\n"
    )
    _write(
        tmp_path / "movies.csv", 'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n11,Élisa (1995),Drama\n'
    )
    report = movielens.run(tmp_path, tmp_path / "zone")
    events = {row["impression_id"]: row for row in _rows(tmp_path / "zone", "events")}
    assert events["1-10-964982703"] == {
        "impression_id": "1-10-964982703", "user_id": "1", "item_id": "10", "ts": "2000-07-30T18:45:03Z", "play_time_ms": "0",
        "click": "true", "like": "true", "dislike": "false",
    }  # fmt: skip
    assert (events["1-11-964982224"]["like"], events["1-11-964982224"]["dislike"]) == ("false", "false")
    assert (events["2-10-1000000000"]["like"], events["2-10-1000000000"]["dislike"]) == ("false", "true")
    assert report["landing_days"] == {"2000-07-30": 2, "2001-09-09": 1}
    items = {row["item_id"]: row for row in _rows(tmp_path / "zone", "items")}
    assert (items["10"]["title"], items["10"]["tags"]) == ("American President, The (1995)", ["Comedy", "Drama"])
    assert items["11"]["title"] == "Élisa (1995)"


def test_movielens_dat_has_users_and_latin_titles(tmp_path: Path) -> None:
    _write(tmp_path / "ratings.dat", "1::10::5::978300760\n1::11::2::978302109\n")
    _write(tmp_path / "movies.dat", '10::Misérables, Les (1995)::Drama\n11::Say "Hi" (1990)::Comedy|Drama\n', encoding="latin-1")
    _write(tmp_path / "users.dat", "1::F::25::10::48067\n")
    report = movielens.run(tmp_path, tmp_path / "zone")
    assert (report["rows"], report["likes"], report["dislikes"]) == (2, 1, 1)
    assert [row["title"] for row in _rows(tmp_path / "zone", "items")] == ["Misérables, Les (1995)", 'Say "Hi" (1990)']
    assert _rows(tmp_path / "zone", "users") == [{"user_id": "1", "date": "2000-12-30", "gender": "F", "age_band": "25"}]


def _fails(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(["import", *arguments])
    lines = capfd.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_missing_source_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "zone")
    for name in ("kuairand", "amazon", "movielens"):
        assert "nowhere" in _fails(capfd, name, str(tmp_path / "nowhere"), "--out", out)
    (tmp_path / "empty").mkdir()
    assert "item.json" in _fails(capfd, "amazon", str(tmp_path / "empty"), "--out", out)
    assert "ratings.csv" in _fails(capfd, "movielens", str(tmp_path / "empty"), "--out", out)
    assert "log_*.csv" in _fails(capfd, "kuairand", str(tmp_path / "empty"), "--out", out)


def test_an_import_replaces_only_an_earlier_import(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _full_form(tmp_path / "src")
    _write(tmp_path / "precious" / "notes.txt", "mine")
    assert "not empty" in _fails(capfd, "kuairand", str(tmp_path / "src"), "--out", str(tmp_path / "precious"))
    assert (tmp_path / "precious" / "notes.txt").read_text() == "mine"
    for _ in range(2):
        assert run(["import", "kuairand", str(tmp_path / "src"), "--out", str(tmp_path / "zone"), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["report"]["rows"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "src", "zone"], "no working folder is left"


def test_a_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _full_form(tmp_path / "src")
    assert run(["import", "kuairand", str(tmp_path / "src"), "--out", str(tmp_path / "zone"), "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["dry_run"] is True
    assert not (tmp_path / "zone").exists()


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _full_form(tmp_path / "src")
    (tmp_path / "src" / "user_features_1k.csv").write_bytes(gzip.compress(b"user_id\n1\n") * 20)
    _fails(capfd, "kuairand", str(tmp_path / "src"), "--out", str(tmp_path / "zone"))
