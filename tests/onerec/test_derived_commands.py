"""``onerec co-interaction|lifelong|shards|forget`` through the command line: what they print and how they fail."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.shard_files import shards_root
from onerec.command_line import run
from schemas.lake import Lake
from tests.feature_jobs import shard_lake
from tests.feature_jobs.shard_lake import DAY, ITEM_IDS
from trainer.shard_files import one_codebook, open_day


def fails_with(capsys: pytest.CaptureFixture[str], arguments: list[str], *parts: str) -> None:
    """The command ends with exit 2, nothing on standard output and one error line that holds these parts."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == ""
    assert len(lines) == 1
    assert all(part in lines[0] for part in parts)


@pytest.mark.parametrize("command", ["co-interaction", "lifelong", "shards"])
def test_a_date_that_is_none_and_a_lake_that_is_none(
    make_lake: Callable[..., Lake], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    lake = make_lake()
    fails_with(capsys, [command, "--lake", lake.root, "--date", "2026-02-30"], "--date '2026-02-30'", "not a date")
    fails_with(capsys, [command, "--lake", str(tmp_path / "none"), "--date", "2026-01-05"], "no lake here")


def test_shards_options_that_exclude_one_another(make_lake: Callable[..., Lake], capsys: pytest.CaptureFixture[str]) -> None:
    common = ["shards", "--lake", make_lake().root, "--date", "2026-01-05"]
    fails_with(capsys, [*common, "--retokenise", "--verify"], "--retokenise", "exclude")
    fails_with(capsys, [*common, "--targets", "everything"], "--targets")
    fails_with(capsys, [*common, "--catch-up", "-1"], "--catch-up")
    fails_with(capsys, [*common, "--verify"], "no shard of this day", "onerec shards")


def test_dry_runs_say_what_would_change_and_write_nothing(
    make_lake: Callable[..., Lake], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake()
    shard_lake.fill(lake, seed=1)
    shard_lake.fill(lake, seed=2, date=DAY - dt.timedelta(days=1))
    (tmp_path / "users.txt").write_text("anna\nbert\n")
    before = sorted(str(path) for path in Path(lake.root).rglob("*"))

    def planned(*arguments: str) -> dict[str, Any]:
        assert run([*arguments, "--lake", lake.root, "--dry-run", "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)["would_change"]
        return answer

    assert planned("co-interaction", "--date", "2026-01-05") == {"co_interaction": ["2026-01-05"]}
    assert list(planned("shards", "--date", "2026-01-05", "--catch-up", "3")) == [
        "shards/date=2026-01-04",
        "shards/date=2026-01-05",
    ]
    assert planned("forget", "--users", str(tmp_path / "users.txt"))["pathway_short"] == ["4 rows"]
    assert sorted(str(path) for path in Path(lake.root).rglob("*")) == before


@pytest.mark.slow
def test_forget_prints_its_proof(make_lake: Callable[..., Lake], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = make_lake()
    shard_lake.fill(lake, seed=1)
    fails_with(capsys, ["forget", "--lake", lake.root, "--users", str(tmp_path / "none")], "no such file")
    (tmp_path / "users.txt").write_text("anna\n")
    assert run(["forget", "--lake", lake.root, "--users", str(tmp_path / "users.txt"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["step"] == "forget"
    assert report["tables"]["pathway_static"]["rows_dropped"] == {"forgotten": 1}
    assert report["proof"]["daily_samples"]["found"] == 0
    assert run(["forget", "--lake", lake.root, "--users", str(tmp_path / "users.txt")]) == 0
    printed = capsys.readouterr().out
    assert "proof: 1 users looked for in every file" in printed
    assert all(name in printed for name in report["proof"])


@pytest.mark.slow
def test_shards_from_missing_days_to_masks(
    spark: Any, make_lake: Callable[..., Lake], capsys: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake()
    shard_lake.fill(lake, seed=1)
    shard_lake.fill(lake, seed=2, date=DAY - dt.timedelta(days=1))
    shard_lake.publish_tokens(lake, ITEM_IDS)

    def report(*arguments: str) -> dict[str, Any]:
        assert run(["shards", "--lake", lake.root, "--date", "2026-01-05", *arguments, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    assert [day["date"] for day in report("--catch-up", "7")["caught_up"]] == ["2026-01-04"]
    assert report("--targets", "rsft")["unit"] == "session"
    assert report("--verify")["files_verified"] > 4
    assert report("--retokenise")["counts"]["targets_without_tokens"] == 0


@pytest.mark.slow
def test_after_a_refresh_earlier_shards_get_the_new_codebook_too(
    spark: Any, make_lake: Callable[..., Lake], capsys: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake()
    days = [DAY - dt.timedelta(days=back) for back in (12, 1, 0)]
    for seed, day in enumerate(days):
        shard_lake.fill(lake, seed=seed, date=day)
    shard_lake.publish_tokens(lake, ITEM_IDS)
    command = ["shards", "--lake", lake.root, "--json"]
    for day in days:
        assert run([*command, "--date", day.isoformat()]) == 0
    codebook = shard_lake.publish_tokens(lake, ITEM_IDS, seed=1)
    capsys.readouterr()

    def caught_up(*arguments: str) -> list[tuple[str, str]]:
        assert run([*command, "--date", DAY.isoformat(), "--catch-up", "7", *arguments]) == 0
        return [(each["date"], each.get("codebook_version")) for each in json.loads(capsys.readouterr().out)["caught_up"]]

    assert [day for day, _ in caught_up("--targets", "rsft")] == ["2026-01-04"], "a mask has no tokens"
    assert caught_up() == [(day.isoformat(), codebook) for day in days[:2]], "however long ago: a new model takes all days"
    assert caught_up() == []
    opened = [open_day(shards_root(lake), day, "all") for day in days]
    assert one_codebook(opened, None, shards_root(lake))[0] == codebook
