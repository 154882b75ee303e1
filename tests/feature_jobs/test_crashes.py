"""Every step, killed at any point and run again, leaves the tables of a run that was left alone."""

import random
from pathlib import Path
from typing import Any

import pytest

from onerec.command_line import run
from schemas.lake import open_lake
from tests.feature_jobs.crash_stages import Stage, make_stages
from tests.feature_jobs.killed_runs import (
    SECONDS,
    Point,
    copied,
    days_of,
    differences,
    run_killed,
    run_killed_at_work,
    seconds_at_work,
    start,
    torn,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

FILE_CLOSED, COMMIT = "feature_jobs.partition_files:PartitionFile.close", "feature_jobs.partition_files:commit_files"
IPC, MANIFEST = "feature_jobs.shard_files:write_ipc", "feature_jobs.shard_files:write_manifest"
RECORDED = "schemas.runs:_record"
APPENDED = "feature_jobs.ingest.catalogue:append_once"
POINTS = {
    "ingest": [Point(FILE_CLOSED, 1), Point(APPENDED, 0, "after"), Point(COMMIT, 0), Point(COMMIT, 0, "after")],
    "samples": [Point(FILE_CLOSED, 1), Point(COMMIT, 0), Point(RECORDED)],
    "pathways": [Point(FILE_CLOSED, 6), Point(COMMIT, 0), Point(COMMIT, 4), Point(COMMIT, 4, "after")],
    "co-interaction": [Point("pyspark.sql.readwriter:DataFrameWriter.save"), Point(RECORDED)],
    "lifelong": [Point(FILE_CLOSED), Point(COMMIT, 0), Point(COMMIT, 0, "after"), Point(COMMIT, 1, "after")],
    "shards": [Point(IPC, 2, "after"), Point(MANIFEST, 0, "after")],
    "mask": [Point(MANIFEST, 0)],
    "backfill": [Point(FILE_CLOSED, 4), Point(COMMIT, 7), Point(COMMIT, 11, "after")],
    "forget": [
        Point("schemas.suppression:suppress", 0, "after"),
        Point(FILE_CLOSED, 4),
        Point(COMMIT, 0),
        Point(COMMIT, 0, "after"),
        Point(COMMIT, 5),
        Point(MANIFEST, 0),
        Point(MANIFEST, 1, "after"),
        Point("feature_jobs.forget_log:drop_old_files", 2, "after"),
        Point("feature_jobs.forget_log:_carry_notes", 1, "after"),
        Point("feature_jobs.forget:prove"),
    ],
}
"""For each step where it is killed: among its tasks' files, between files and commit, between the commits of two tables, and
between the last commit and the run's record."""


@pytest.fixture(scope="module")
def stages(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    return make_stages(tmp_path_factory.mktemp("crashes"))


@pytest.mark.parametrize(("step", "point"), [pytest.param(s, p, id=f"{s}, {p}") for s, points in POINTS.items() for p in points])
def test_killed_and_run_again_it_leaves_the_tables_of_a_clean_run(
    stages: dict[str, Stage], tmp_path: Path, step: str, point: Point
) -> None:
    stage = stages[step]
    with copied(open_lake(str(stage.before)), tmp_path / "lake") as lake:
        before = days_of(lake)
        run_killed(stage.of(lake), point)
        assert torn(lake, before, stage.clean) == [], "a reader met half a day"
        assert run(stage.of(lake)) == 0
        assert differences(lake, stage.clean) == []


@pytest.mark.parametrize("step", ["ingest", "backfill"])
def test_killed_at_any_time_and_run_again_it_leaves_the_tables_of_a_clean_run(
    stages: dict[str, Stage], tmp_path: Path, step: str
) -> None:
    """Two runs, one killed in the first half of its work and the next one in the second, counted from its first file below the
    tables, at times that are drawn and printed if the test fails. (A backfill is samples and pathways, of two days.)"""
    stage, seed = stages[step], random.randrange(2**32)
    with copied(open_lake(str(stage.before)), tmp_path / "alone") as lake:
        at_work = seconds_at_work(stage.of(lake), lake)
    draw = random.Random(seed)
    moments = [at_work * draw.uniform(0, 0.5), at_work * draw.uniform(0.5, 1)]
    drawn = f"seed {seed}: alone it worked {at_work:.2f} s, to be killed after {moments}"
    with copied(open_lake(str(stage.before)), tmp_path / "lake") as lake:
        killed = [run_killed_at_work(stage.of(lake), lake, moment) for moment in moments]
        assert any(killed), f"no run was killed; {drawn}"
        assert run(stage.of(lake)) == 0, f"{drawn}: {killed}"
        assert differences(lake, stage.clean) == [], f"{drawn}: {killed}"


@pytest.mark.parametrize(
    "step", ["ingest", "samples", "pathways", "co-interaction", "lifelong", "shards", "mask", "backfill", "forget"]
)
def test_two_runs_at_once_leave_the_tables_of_one(stages: dict[str, Stage], tmp_path: Path, step: str) -> None:
    """Whoever comes second either does it all again or says in one line that it did not."""
    stage = stages[step]
    with copied(open_lake(str(stage.before)), tmp_path / "lake") as lake:
        before = days_of(lake)
        assert differences(lake, stage.clean), "the step has nothing to do"
        runs = [start(stage.of(lake)) for _ in range(2)]
        ends = [(run.communicate(timeout=SECONDS)[1], run.returncode) for run in runs]
        assert 0 in [code for _, code in ends], ends
        for said, code in ends:
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert (code, len(errors)) in [(0, 0), (2, 1)], said
        assert differences(lake, stage.clean) == []
        assert torn(lake, before, stage.clean) == [], "a reader met half a day"
