"""What a Spark session costs before any work: jars resolved once, and Python workers that read no archive's directory."""

import json
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
