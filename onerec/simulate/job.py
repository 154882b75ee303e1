"""``onerec simulate``: runs a world's tasks on Spark and publishes the landing zone whole, or not at all."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from onerec.simulate.arrivals import Count
from onerec.simulate.parameters import Parameters
from onerec.simulate.tasks import list_tasks, run_task, write_whole
from schemas.errors import BadInput

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SOURCE = "simulate"
_MARKER = "simulate.unfinished"
_TASKS_PER_PARTITION = 6
"""Enough that a Spark task's fixed cost (some 50 ms) does not show, few enough that a lost one is soon made again."""
_COUNTS = pa.schema([("landing_date", pa.date32()), ("kind", pa.string()), ("rows", pa.int64())])


def run(spark: "SparkSession", parameters: Parameters, out: str, *, partitions: int | None = None) -> dict[str, Any]:
    """Write the landing zone of a world to ``out``, a local or mounted folder; returns the step's report.

    A landing zone of this simulator that lies there is replaced; it stays whole until the new one is. ``partitions``
    of the Spark job change nothing about the files. Raises BadInput for arguments out of range, or for an
    ``out`` that holds anything else.
    """
    begin = time.monotonic()
    parameters.check()
    target = check_target(out)
    staging = target.with_name(target.name + ".staging")
    previous = target.with_name(target.name + ".previous")
    _clear(previous)
    _clear(staging)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--out {target}: {target.parent} cannot be written to ({error.strerror}); name another") from error
    (staging / _MARKER).write_text("a simulation is being written here\n")
    counts = _run_tasks(spark, parameters, staging, partitions)
    table = pa.Table.from_pylist([vars(count) for count in counts], schema=_COUNTS)
    (staging / "truth").mkdir(exist_ok=True)
    pq.write_table(table, staging / "truth" / "landings.parquet")
    about = {"source": SOURCE, "day_timezone": "UTC", "parameters": parameters.to_json()}
    write_whole(staging / "landing.json", (json.dumps(about, indent=2) + "\n").encode())
    (staging / _MARKER).unlink()
    _publish(staging, target, previous)
    return _report(parameters, counts, target, time.monotonic() - begin)


def check_target(out: str) -> Path:
    """The folder to write. Raises BadInput if it is no local folder, or holds something that is not ours to replace."""
    if "://" in out:
        raise BadInput(f"--out {out}: must be a local or mounted folder; simulate there and copy it")
    target = Path(os.path.abspath(out.removeprefix("file:")))
    if target.exists() and not target.is_dir():
        raise BadInput(f"--out {target}: is a file; name a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise BadInput(f"--out {target}: holds files that no simulation wrote; name an empty or new folder")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--out {target}: {parent} is no folder that can be written to; name another")
    return target


def _is_ours(folder: Path) -> bool:
    try:
        about = json.loads((folder / "landing.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("source") == SOURCE


def _clear(folder: Path) -> None:
    """Throw away what a killed run left beside the target. Raises BadInput if no simulation wrote it."""
    if not folder.exists():
        return
    if not folder.is_dir() or not ((folder / _MARKER).is_file() or _is_ours(folder)):
        raise BadInput(f"{folder}: is in the way of the simulation's unfinished files, and no simulation wrote it; move it away")
    shutil.rmtree(folder)


def _publish(staging: Path, target: Path, previous: Path) -> None:
    if target.exists():
        target.rename(previous)
    staging.rename(target)
    if previous.exists():
        shutil.rmtree(previous)


def _run_tasks(spark: "SparkSession", parameters: Parameters, root: Path, partitions: int | None) -> list[Count]:
    """One Spark action: every task writes its files, and their counts come back summed."""
    tasks = list_tasks(parameters)
    hands = partitions or -(-len(tasks) // _TASKS_PER_PARTITION)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for hand in batch.column(0).to_pylist():
                for task in tasks[hand::hands]:  # dealt like cards: tasks of a kind lie together in the list
                    counts = run_task(parameters, task, root)
                    yield pa.RecordBatch.from_pylist([vars(count) for count in counts], schema=_COUNTS)

    numbers = spark.range(0, hands, 1, hands)
    done = numbers.mapInArrow(work, "landing_date date, kind string, rows bigint").groupBy("landing_date", "kind").sum("rows")
    return sorted((Count(*row) for row in done.collect()), key=lambda count: (count.landing_date, count.kind))


def _report(parameters: Parameters, counts: list[Count], target: Path, seconds: float) -> dict[str, Any]:
    landings: dict[str, dict[str, int]] = {date.isoformat(): {} for date in parameters.dates}
    for count in counts:
        landings[count.landing_date.isoformat()][count.kind] = count.rows

    def total(kind: str) -> int:
        return sum(kinds.get(kind, 0) for kinds in landings.values())

    def table(rows_out: int, **dropped: int) -> dict[str, Any]:
        return {"rows_in": rows_out + sum(dropped.values()), "rows_out": rows_out, "rows_quarantined": 0, "rows_dropped": dropped}

    return {
        "step": "simulate",
        "date": None,
        "seconds": round(seconds, 3),
        "tables": {
            "events": table(total("rows"), not_arrived=total("not_arrived")),
            "items": table(total("item_versions")),
            "users": table(total("user_snapshots")),
        },
        "out": str(target),
        "landings": landings,
    }
