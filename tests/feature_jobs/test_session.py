"""What a Spark session costs before any work: jars resolved once, and Python workers that read no archive's directory; and which
of its failures are one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import PySparkException

from feature_jobs import session
from feature_jobs.python_daemon import forget_archives
from schemas.errors import BadInput


def test_jars_are_resolved_again_only_if_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert session._resolved_jars() == []
    assert "spark.jars.packages" in session._defaults(None)
    jar = tmp_path / "a.jar"
    jar.touch()
    session._jar_list().parent.mkdir(parents=True)
    session._jar_list().write_text(json.dumps([str(jar)]))
    assert session._defaults(None)["spark.jars"] == str(jar)
    assert "spark.jars.packages" not in session._defaults(None)
    jar.unlink()
    assert session._resolved_jars() == []
    session._jar_list().write_text("{not json")
    assert session._resolved_jars() == []


def test_spark_archives_leave_the_search_path_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ["/env/lib/python311.zip", "/env/site-packages", "/own/code.zip"]
    sparks = ["/spark/python/lib/pyspark.zip", "/spark/python/lib/py4j-0.10.9.9-src.zip", "/spark/jars/spark-core_2.13-4.1.4.jar"]
    monkeypatch.setattr(sys, "path", [*sparks, *ours])
    inside = [f"{archive}/pyspark" for archive in sparks]
    monkeypatch.setattr(sys, "path_importer_cache", dict.fromkeys([*sparks, *inside, *ours]))
    forget_archives()
    assert sys.path == ours
    assert list(sys.path_importer_cache) == ours


@pytest.mark.parametrize(
    ("said", "conflict"),
    [
        (
            "[DELTA_CONCURRENT_APPEND] ConcurrentAppendException: Files were added by a concurrent update.",
            "DELTA_CONCURRENT_APPEND",
        ),
        ("[DELTA_CONCURRENT_DELETE_READ] It deleted a\nfile that was read.", "DELTA_CONCURRENT_DELETE_READ"),
        ("[DELTA_METADATA_CHANGED] The metadata was changed.", "DELTA_METADATA_CHANGED"),
        ("io.delta.exceptions.ConcurrentWriteException: A concurrent transaction wrote.", "ConcurrentWriteException"),
    ],
)
def test_a_commit_that_met_another_is_one_line_that_says_what_to_do(said: str, conflict: str) -> None:
    with pytest.raises(BadInput) as failure, session.table_failures_named():
        raise PySparkException(said)
    assert str(failure.value) == (
        f"another process wrote the same partitions meanwhile ({conflict}), so this run published nothing there; "
        "run it again when the other has ended"
    )


def test_a_failure_of_another_kind_stays_what_it_is() -> None:
    failure = PySparkException("[UNRESOLVED_COLUMN] A column `a` cannot be resolved.")
    with pytest.raises(PySparkException) as raised, session.table_failures_named():
        raise failure
    assert raised.value is failure


@pytest.mark.slow
def test_workers_import_pyspark_from_a_folder(spark: Any) -> None:
    def where(_: Any) -> str:
        import pyspark

        return str(pyspark.__file__)

    (path,) = spark.sparkContext.parallelize([0], 1).map(where).collect()
    assert Path(path).is_file()


@pytest.mark.slow
def test_a_worker_keeps_the_memory_that_a_task_has_freed():
    """In a child, since allocators are told once: a second array of the same size takes no new pages."""
    code = """
import resource
from feature_jobs.python_daemon import keep_freed_memory
keep_freed_memory()
import numpy as np, pyarrow as pa
def faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for work in (lambda: np.ones(3 << 20), lambda: pa.array(range(1 << 20), pa.int64()).cast(pa.float64())):
    first, again = faults(work), faults(work)
    assert first > 500 and again < first / 10, (first, again)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
