"""Fixtures shared by all tests: one Spark session for the run, lakes in temporary folders, the real data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from schemas.config import Config
from schemas.lake import Lake, create_lake

os.environ.setdefault("ONEREC_SPARK_MEMORY", "1500m")
# Tests' JVMs live for seconds: without the optimising compiler they take two thirds of the time.
os.environ.setdefault("ONEREC_SPARK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
if not Path("/dev/nvidiactl").exists():  # Triton's kernels run interpreted then; it looks when it is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("untimed", deadline=None)  # how fast an example is depends on what else the machine does
settings.load_profile("untimed")
REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test of many minutes come first: started last, one would keep a worker busy while the others have no work."""
    files = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in files)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """The project's own Spark session, started once for the run."""
    from feature_jobs.session import spark_session

    session = spark_session("local[2]")
    yield session
    session.stop()


@pytest.fixture
def make_lake(tmp_path: Path) -> Callable[..., Lake]:
    """Creates a lake in a temporary folder; keyword arguments are sections of the configuration."""

    def make(name: str = "lake", **sections: Any) -> Lake:
        return create_lake(str(tmp_path / name), Config.model_validate(sections))

    return make


@pytest.fixture(scope="session")
def simulated_lake(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Lake:
    """A lake of two simulated days with samples and pathways, made once by the commands themselves; read-only."""
    from onerec.command_line import run
    from schemas.lake import open_lake

    folder = tmp_path_factory.mktemp("simulated")
    landing, lake = str(folder / "landing"), str(folder / "lake")
    days = ("2026-01-01", "2026-01-02")
    world = ["--users", "60", "--items", "120", "--days", "2", "--start", days[0], "--seed", "3"]
    assert run(["simulate", "--out", landing, *world, "--json"]) == 0
    for day in days:
        assert run(["ingest", "--lake", lake, "--landing", landing, "--date", day, "--json"]) == 0
        assert run(["samples", "--lake", lake, "--date", day, "--json"]) == 0
        assert run(["pathways", "--lake", lake, "--date", day, "--json"]) == 0
    return open_lake(lake)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a folder of real data; skips by name where it is absent."""

    def find(name: str) -> Path:
        folder = REAL_DATA / name
        if not folder.is_dir():
            pytest.skip(f"needs the real data in {folder}, which is absent here")
        return folder

    return find
