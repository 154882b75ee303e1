"""Every step, killed at any point and run again, leaves the tables of a run that was left alone."""

from pathlib import Path
from typing import Any

import pytest

from onerec.command_line import run
from schemas.lake import open_lake
from tests.feature_jobs.crash_stages import Stage, make_stages
from tests.feature_jobs.killed_runs import Point, copied, differences, run_killed

pytestmark = pytest.mark.slow

FILE_CLOSED, COMMIT = "feature_jobs.partition_files:PartitionFile.close", "feature_jobs.partition_files:commit_files"
RECORDED, WRITTEN = "schemas.runs:_record", "schemas.lake:write_atomically"
IPC, MANIFEST, CLEAN = (f"feature_jobs.shard_files:{name}" for name in ("write_ipc", "write_manifest", "clean"))
POINTS = {
    "ingest": [
        Point(FILE_CLOSED, 1),
        Point("feature_jobs.ingest.catalogue:append_once"),
        Point("feature_jobs.ingest.catalogue:append_once", 0, "after"),
        Point(COMMIT, 0),
        Point(COMMIT, 0, "after"),
        Point(RECORDED),
    ],
    "samples": [Point(FILE_CLOSED, 1), Point(COMMIT, 0), Point(COMMIT, 0, "after")],
    "pathways": [Point(FILE_CLOSED, 6), Point(COMMIT, 0), Point(COMMIT, 0, "after"), Point(COMMIT, 4), Point(RECORDED)],
    "co-interaction": [Point("feature_jobs.co_interaction:_publish"), Point(RECORDED)],
    "lifelong": [Point(FILE_CLOSED, 1), Point(COMMIT, 0), Point(COMMIT, 0, "after")],
    "shards": [Point(IPC, 2, "after"), Point(MANIFEST, 0), Point(MANIFEST, 0, "after"), Point(CLEAN)],
    "mask": [Point(IPC, 1, "after"), Point(MANIFEST, 0)],
    "backfill": [Point(COMMIT, 0), Point(COMMIT, 2), Point(COMMIT, 7), Point(RECORDED, 1)],
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


@pytest.fixture(scope="module")
def stages(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    return make_stages(tmp_path_factory.mktemp("crashes"))


@pytest.mark.parametrize(("step", "point"), [pytest.param(s, p, id=f"{s}, {p}") for s, points in POINTS.items() for p in points])
def test_killed_and_run_again_it_leaves_the_tables_of_a_clean_run(
    stages: dict[str, Stage], tmp_path: Path, step: str, point: Point
) -> None:
    stage = stages[step]
    with copied(open_lake(str(stage.before)), tmp_path / "lake") as lake:
        run_killed(stage.of(lake), point)
        assert run(stage.of(lake)) == 0
        assert differences(lake, stage.clean) == []
