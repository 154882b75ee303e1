"""The Spark session of all jobs: Delta, UTC, Arrow, and the interpreter's own Python for its workers."""

import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from feature_jobs.quiet_start import quiet_start
from schemas.errors import BadInput

DELTA_PACKAGE = "io.delta:delta-spark_4.1_2.13:4.4.0"


def spark_session(master: str | None = None, *, settings: dict[str, str] | None = None) -> SparkSession:
    """The running session, or a new one on ``master`` (``ONEREC_SPARK_MASTER``, else every core of this machine).

    Raises BadInput when no Java virtual machine starts, with the command that installs one.
    """
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    builder = SparkSession.builder.appName("onerec")
    for name, value in (_defaults(master) | (settings or {})).items():
        builder = builder.config(name, value)
    try:
        with quiet_start():
            session = builder.getOrCreate()
            session.sparkContext.setLogLevel("FATAL")  # what fails is raised to the command, which says it in one line
    except Exception as error:
        if "JAVA_GATEWAY_EXITED" in str(error) or isinstance(error, FileNotFoundError):
            raise BadInput(
                "Spark found no working Java 17 or 21 (or could not fetch Delta's jars, see above): "
                "install one with `apt-get install openjdk-17-jdk-headless`, then run again"
            ) from error
        raise
    return session


_TASK_SAID = re.compile(r"schemas\.errors\.BadInput: (.*)")
_UNREADABLE = re.compile(r"\[FAILED_READ_FILE\.\w+\] Encountered error while reading file (?:file:)?(.*?\.parquet)")


@contextmanager
def unreadable_tables_named() -> Iterator[None]:
    """Turn Spark's failure to read a file of the lake, and a task's own BadInput, into BadInput in one line."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:  # a failed task reaches Python as either
        text = str(error)
        if said := _TASK_SAID.search(text):
            raise BadInput(said[1]) from error
        if unreadable := _UNREADABLE.search(text):
            path = urllib.parse.unquote(unreadable[1])
            raise BadInput(
                f"{path}: missing or damaged, it cannot be read; restore it, or run the step that writes it"
            ) from error
        raise


def _defaults(master: str | None) -> dict[str, str]:
    chosen = master or os.environ.get("ONEREC_SPARK_MASTER")
    local = chosen is None or chosen.startswith("local")
    settings = {
        "spark.master": chosen or "local[*]",
        "spark.jars.packages": DELTA_PACKAGE,
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
    }
    if local:
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": os.environ.get("ONEREC_SPARK_MEMORY", "3g"),
            "spark.sql.shuffle.partitions": "4",
            "spark.driver.extraJavaOptions": "-XX:+UseParallelGC -XX:TieredStopAtLevel=4",
        }
    return settings


if __name__ == "__main__":  # the set-up fetches Delta's jars this way
    spark_session().stop()
