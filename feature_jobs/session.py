"""The Spark session of all jobs: Delta, UTC, Arrow, and the interpreter's own Python for its workers."""

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from feature_jobs.quiet_start import quiet_start
from schemas.errors import BadInput
from schemas.lake import write_atomically

DELTA_PACKAGE = "io.delta:delta-spark_4.1_2.13:4.4.0"


def spark_session(master: str | None = None, *, settings: dict[str, str] | None = None) -> SparkSession:
    """The running session, or a new one on ``master`` (``ONEREC_SPARK_MASTER``, else every core of this machine).

    Raises BadInput for a master that is none, and when no Java virtual machine starts, with the command that installs one.
    """
    chosen = master or os.environ.get("ONEREC_SPARK_MASTER")
    if chosen and not _MASTER.match(chosen):
        raise BadInput(
            f"--master {chosen}: not a Spark master; one looks like local[4], yarn, spark://HOST:7077 or k8s://HOST:443"
        )
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    builder = SparkSession.builder.appName("onerec")
    for name, value in (_defaults(chosen) | (settings or {})).items():
        builder = builder.config(name, value)
    try:
        with quiet_start() as held:
            session = builder.getOrCreate()
            _remember_jars(session)
            session.sparkContext.setLogLevel("FATAL")  # what fails is raised to the command, which says it in one line
    except Exception as error:
        if "JAVA_GATEWAY_EXITED" in str(error) or isinstance(error, FileNotFoundError):
            raise BadInput(
                f"Spark did not start ({held.telling_line()}): it needs Java 17 or 21 (`apt-get install "
                "openjdk-17-jdk-headless`) and, the first time, a network to fetch Delta's jars from; then run again"
            ) from error
        raise
    return session


_MASTER = re.compile(r"(local(\[(\*|\d+)(, *\d+)?\])?|yarn|(spark|k8s)://.+)\Z")
_TASK_SAID = re.compile(r"schemas\.errors\.BadInput: (.*)")
_UNREADABLE = re.compile(r"\[FAILED_READ_FILE\.\w+\] Encountered error while reading file (?:file:)?(.*?\.parquet)")
_CONCURRENT = re.compile(r"DELTA_CONCURRENT_\w+|DELTA_METADATA_CHANGED|DELTA_PROTOCOL_CHANGED|\bConcurrent\w+Exception")


@contextmanager
def table_failures_named() -> Iterator[None]:
    """Turn into BadInput: a lake's file that Spark cannot read, a commit that met another's, and a task's own BadInput."""
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
        if concurrent := _CONCURRENT.search(text):
            raise BadInput(
                f"another process wrote the same partitions meanwhile ({concurrent[0]}), so this run published nothing there; "
                "run it again when the other has ended"
            ) from error
        raise


def _defaults(chosen: str | None) -> dict[str, str]:
    local = chosen is None or chosen.startswith("local")
    settings = {
        "spark.master": chosen or "local[*]",
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
    jars = _resolved_jars()
    settings |= {"spark.jars": ",".join(jars)} if jars else {"spark.jars.packages": DELTA_PACKAGE}
    if local:
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": os.environ.get("ONEREC_SPARK_MEMORY", "3g"),
            "spark.sql.shuffle.partitions": "4",
            "spark.python.daemon.module": "feature_jobs.python_daemon",
            "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC {os.environ.get('ONEREC_SPARK_JAVA_OPTIONS', '')}".strip(),
        }
    return settings


def _jar_list() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "onerec" / f"{DELTA_PACKAGE.replace(':', '_')}.json"


def _resolved_jars() -> list[str]:
    """Delta's jars as Spark's resolver found them once, if they are all still there; else none.

    Not only to save the resolving (1 to 2 s a start): Spark hands what it resolves itself to Python's workers as modules,
    too, and these read the directory of each jar again before every task (0.25 s of processor time).
    """
    try:
        jars = json.loads(_jar_list().read_text())
    except (OSError, ValueError):
        return []
    known = isinstance(jars, list) and all(isinstance(jar, str) and Path(jar).is_file() for jar in jars)
    return jars if known else []


def _remember_jars(session: SparkSession) -> None:
    jars = [jar.removeprefix("file://") for jar in session.sparkContext.getConf().get("spark.jars", "").split(",") if jar]
    if session.sparkContext.getConf().contains("spark.jars.packages") and jars and all(Path(jar).is_file() for jar in jars):
        with suppress(OSError):  # a home that cannot be written: resolve again next time
            _jar_list().parent.mkdir(parents=True, exist_ok=True)
            write_atomically(str(_jar_list()), json.dumps(jars, indent=1).encode())


if __name__ == "__main__":  # the set-up fetches Delta's jars this way
    spark_session().stop()
