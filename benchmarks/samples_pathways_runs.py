"""Runs the product's commands in this process tree and measures them: wall time, processor time, task times of the stages."""

import contextlib
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from onerec.command_line import run as run_command

CORES = 2
"""Threads of ours and of the peer; a core-second is a second of wall time on one of them, idle or not."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """``wall`` and ``processor`` seconds (the latter of this process and all below it: the JVM, Spark's Python workers)."""

    wall: float
    processor: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.processor + other.processor)


def processor_seconds() -> float:
    """Processor time so far of this process, its live descendants, and what they have waited for."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)], spent[int(folder.name)] = int(fields[1]), sum(int(ticks) for ticks in fields[11:15])
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(spent[process] for process in ours) / _TICKS


@contextlib.contextmanager
def measured(costs: list[Cost]) -> Iterator[None]:
    """Append the cost of what runs inside."""
    wall, processor = time.perf_counter(), processor_seconds()
    yield
    costs.append(Cost(time.perf_counter() - wall, processor_seconds() - processor))


def median_cost(costs: list[Cost]) -> Cost:
    """Medians, each by itself."""
    return Cost(median(cost.wall for cost in costs), median(cost.processor for cost in costs))


def _import_jobs(_: int) -> None:
    import feature_jobs.ingest.bucket
    import feature_jobs.pathways_bucket
    import feature_jobs.samples_bucket  # noqa: F401


class Product:
    """The commands ``ingest``, ``samples`` and ``pathways`` on one warm Spark session, as a warm worker runs them."""

    def __init__(self, events: Path, memory: str = "4g") -> None:
        from feature_jobs.session import spark_session

        events.mkdir(parents=True, exist_ok=True)
        os.environ["ONEREC_SPARK_MEMORY"] = memory
        log = {"enabled": "true", "dir": f"file://{events}", "rolling.enabled": "false", "compress": "false"}
        self._events = events
        self._session = spark_session(f"local[{CORES}]", settings={f"spark.eventLog.{key}": value for key, value in log.items()})

    def wake(self) -> None:
        """Have Python workers started and their modules imported: Spark ends workers that were idle for a minute (while the peer
        runs, say), and a round after that would pay their start."""
        from feature_jobs.bucket_files import run_by_bucket

        run_by_bucket(self._session, range(2 * CORES), _import_jobs)

    def step(self, name: str, lake: str, day: Any, *options: str) -> tuple[Cost, dict[str, Any]]:
        """Run a step of a day; its cost and its report. Raises RuntimeError if the command did not end with 0."""
        costs: list[Cost] = []
        printed = io.StringIO()
        with measured(costs), contextlib.redirect_stdout(printed):
            code = run_command([name, "--lake", lake, "--date", str(day), "--json", *options])
        if code != 0:
            raise RuntimeError(f"onerec {name} ended with {code}")
        return costs[0], json.loads(printed.getvalue())

    def straggling(self, since: float) -> dict[str, float]:
        """Of each stage that started at or after ``since`` (seconds since the epoch) with at least four tasks and a tenth of the
        longest stage's work: the longest task ÷ the median."""
        self._session.sparkContext._jsc.sc().listenerBus().waitUntilEmpty()  # what has ended is in the log by then
        tasks: dict[str, list[float]] = defaultdict(list)
        for path in self._events.iterdir():
            with path.open() as lines:
                for line in lines:
                    if '"SparkListenerTaskEnd"' not in line:
                        continue
                    event = json.loads(line)
                    if event["Task Info"]["Launch Time"] >= since * 1000:
                        tasks[str(event["Stage ID"])].append(event["Task Metrics"]["Executor Run Time"] / 1000)
        heavy = max((sum(times) for times in tasks.values()), default=0.0) / 10
        return {stage: max(times) / median(times) for stage, times in tasks.items() if len(times) >= 4 and sum(times) >= heavy}

    def stop(self) -> None:
        """End the session."""
        self._session.stop()
