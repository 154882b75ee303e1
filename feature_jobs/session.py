"""The Spark session of all jobs: Delta, UTC, Arrow, and the interpreter's own Python for its workers."""

import os
import sys

from pyspark.sql import SparkSession

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
        session = builder.getOrCreate()
    except Exception as error:
        if "JAVA_GATEWAY_EXITED" in str(error) or isinstance(error, FileNotFoundError):
            raise BadInput(
                "Spark found no working Java 17 or 21 (or could not fetch Delta's jars, see above): "
                "install one with `apt-get install openjdk-17-jdk-headless`, then run again"
            ) from error
        raise
    session.sparkContext.setLogLevel("FATAL")  # what fails is raised to the command, which says it in one line
    return session


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
