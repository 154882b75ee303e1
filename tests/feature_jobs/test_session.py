"""What a Spark session costs before any work: jars resolved once, and Python workers that read no archive's directory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_jobs import session
from feature_jobs.python_daemon import forget_archives


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


@pytest.mark.slow
def test_workers_import_pyspark_from_a_folder(spark: Any) -> None:
    def where(_: Any) -> str:
        import pyspark

        return str(pyspark.__file__)

    (path,) = spark.sparkContext.parallelize([0], 1).map(where).collect()
    assert Path(path).is_file()


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
