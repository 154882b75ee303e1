"""What a step has read and another process replaces before it publishes: it publishes nothing, and marks of its day stay."""

import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from feature_jobs import pathways, samples
from feature_jobs.partition_files import PartitionFile, commit_files
from feature_jobs.stale import UNFINISHED, mark_stale, read_stale
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, EVENTS, ITEMS, PATHWAY_STATIC, USER_STATE, Table
from tests.feature_jobs.without_spark import NO_SPARK, ingest, run_day, run_in_turn
from tests.lake_rows import utc, write_rows

DAYS = [dt.date(2026, 1, day) for day in (10, 11, 12)]
OF_DAY_BEFORE, OF_DAY = (pads.field("date") == day for day in DAYS[1:])
LANDED_ON_DAY = pads.field("landing_date") == DAYS[2]
CONFIG: dict[str, Any] = {
    "lake": {"user_buckets": 2},
    "samples": {"gates": {"min_rows": 0, "label_rate": {}, "volume_min_days": 30}},
}


@pytest.fixture
def lake(make_lake: Callable[..., Lake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Days 10 and 11 were made; day 12 has landed, with a row of day 11 that is late, by a user of its own."""
    run_in_turn(monkeypatch)
    made = make_lake(**CONFIG)
    write_rows(made, ITEMS, [{"item_id": "i", "valid_from": utc("2020-01-01 00:00:00")}])
    for day in DAYS:
        folder = tmp_path / "zone" / "events" / f"date={day}"
        folder.mkdir(parents=True)
        rows = [
            {"impression_id": f"{day}-{user}", "user_id": user, "item_id": "i", "ts": f"{day}T12:00:00Z", "play_time_ms": 5}
            for user in "uvwxyz"
        ]
        if day == DAYS[2]:
            rows.append(
                {"impression_id": "late", "user_id": "l", "item_id": "i", "ts": f"{DAYS[1]}T12:00:00Z", "play_time_ms": 5}
            )
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ingest(made, str(tmp_path / "zone"), day)
        if day != DAYS[-1]:
            run_day(made, day)
    return made


def rewritten(lake: Lake, table: Table, where: pads.Expression) -> None:
    """Replace the partitions' files by others of the same rows, as a run of the step that writes them does. A user has one row
    there."""
    files = []
    for part in lake.read(table).filter(where).to_pylist():
        file = PartitionFile(lake, table, {name: str(part[name]) for name in table.partition_by})
        file.write(lake.read(table).filter(where).filter(pads.field("user_id") == part["user_id"]))
        files.append(file.close())
    assert files
    commit_files(lake, table, files, where)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "table", "where"),
    [
        pytest.param("samples", USER_STATE, OF_DAY_BEFORE, id="samples: the state before"),
        pytest.param("samples", EVENTS, OF_DAY, id="samples: the day's events"),
        pytest.param("pathways", USER_STATE, OF_DAY_BEFORE, id="pathways: the state before"),
        pytest.param("pathways", DAILY_SAMPLES, OF_DAY, id="pathways: the day's samples"),
        pytest.param("pathways", EVENTS, OF_DAY_BEFORE & LANDED_ON_DAY, id="pathways: late events"),
    ],
)
def test_nothing_is_made_public_of_inputs_that_were_replaced(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str, table: Table, where: pads.Expression
) -> None:
    module, published = (samples, DAILY_SAMPLES) if step == "samples" else (pathways, PATHWAY_STATIC)
    if step == "pathways":
        samples.run_samples(NO_SPARK, lake, DAYS[2])
    mark_stale(lake, {str(DAYS[2]): {step: "made before a backfill"}})
    work = module.run_by_bucket

    def interrupted(spark: Any, buckets: Sequence[int], of_bucket: Callable[[int], Any]) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_by_bucket", work)
            reports = work(spark, buckets, of_bucket)
        if not already:
            already.append(True)
            rewritten(lake, table, where)
        return reports

    already: list[bool] = []
    run = getattr(module, f"run_{step}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_by_bucket", interrupted)
        with pytest.raises(BadInput, match=rf"{table.name}: another process wrote partitions that .* run it again"):
            run(NO_SPARK, lake, DAYS[2])
    assert DAYS[2] not in lake.read(published, columns=["date"])["date"].to_pylist()
    assert step in read_stale(lake)[str(DAYS[2])]
    run(NO_SPARK, lake, DAYS[2])
    assert DAYS[2] in lake.read(published, columns=["date"])["date"].to_pylist()
    assert read_stale(lake) == {}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["samples", "pathways"])
def test_a_day_after_one_that_a_backfill_has_not_finished_waits(lake: Lake, step: str) -> None:
    run = samples.run_samples if step == "samples" else pathways.run_pathways
    if step == "pathways":
        samples.run_samples(NO_SPARK, lake, DAYS[2])
    mark_stale(lake, {str(DAYS[1]): {"pathways": UNFINISHED}})
    with pytest.raises(BadInput, match=f"pathways of {DAYS[1]}: a backfill that rebuilds it has not ended"):
        run(NO_SPARK, lake, DAYS[2])
    pathways.run_pathways(NO_SPARK, lake, DAYS[1])
    run(NO_SPARK, lake, DAYS[2])


@pytest.mark.slow
def test_days_that_the_run_did_not_read_may_change(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    work = samples.run_by_bucket

    def meanwhile(spark: Any, buckets: Sequence[int], of_bucket: Callable[[int], Any]) -> list[Any]:
        rewritten(lake, EVENTS, pads.field("date") == DAYS[0])
        return work(spark, buckets, of_bucket)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "run_by_bucket", meanwhile)
        samples.run_samples(NO_SPARK, lake, DAYS[2])
    assert DAYS[2] in lake.read(DAILY_SAMPLES, columns=["date"])["date"].to_pylist()


@pytest.mark.slow
def test_a_refusal_is_told_also_where_the_files_to_discard_are_gone(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """``onerec forget`` removes uncommitted files of people, and writes their events anew."""
    work, removed = samples.run_by_bucket, []

    def forgotten(spark: Any, buckets: Sequence[int], of_bucket: Callable[[int], Any]) -> list[Any]:
        reports = work(spark, buckets, of_bucket)
        for path in Path(lake.root, DAILY_SAMPLES.name).rglob(f"date={DAYS[2]}/**/*.parquet"):
            path.unlink()
            removed.append(path)
        return reports

    with monkeypatch.context() as patch:
        patch.setattr(samples, "run_by_bucket", forgotten)
        patch.setattr(samples, "check_gates", lambda *_: rewritten(lake, EVENTS, pads.field("date") == DAYS[2]))
        with pytest.raises(BadInput, match=r"events: another process wrote partitions .* run it again"):
            samples.run_samples(NO_SPARK, lake, DAYS[2])
    assert removed
