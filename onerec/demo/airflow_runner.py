"""Runs DAGs by Airflow's own ``dags test`` on SQLite and follows their tasks through its log.

Airflow keeps to a home of its own (``DIR/airflow``); nothing of the caller's Airflow is read.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onerec.demo.plan import DagRun
from schemas.errors import BadInput, GateFailed, OnerecError

_STARTING = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_ENDED = re.compile(r"\[DAG TEST\] end task task_id=(\S+)")
_EXITED = re.compile(r"Command exited with return code (\d+)")
_ERROR = re.compile(r"(error: .*?)\s+\[airflow\.")
_REPORT = re.compile(r"(\{\".*\})\s+\[airflow\.")


@dataclass
class TaskRun:
    """One task as it ran: ``report`` is its command's JSON."""

    dag: str
    date: str
    task: str
    seconds: float = 0.0
    exit_code: int | None = None
    report: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class AirflowRunner:
    """An Airflow home with a database, and DAG runs in it."""

    def __init__(self, home: Path, dags: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.log = home / "dags-test.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **environment,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "NO_COLOR": "1",
            "COLUMNS": "10000",
        }

    def start_migration(self) -> "subprocess.Popen[bytes]":
        """Begin to create the database; the caller waits for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "db-migrate.log").open("wb") as log:
            return subprocess.Popen(self._airflow("db", "migrate"), env=self._environment, stdout=log, stderr=log)

    def run(self, dag_run: DagRun) -> Iterator[TaskRun]:
        """Run a DAG for a date; yields each task when it starts and again when it has ended (``exit_code`` set).

        Raises the error of the command that failed, with its exit code's meaning, or RuntimeError for a fault.
        """
        command = self._airflow("dags", "test", dag_run.dag, dag_run.date.isoformat())
        current: TaskRun | None = None
        started = time.perf_counter()
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as process,
        ):
            for line in process.stdout or ():
                log.write(line)
                if match := _STARTING.search(line):
                    current, started = TaskRun(dag_run.dag, dag_run.date.isoformat(), match[1]), time.perf_counter()
                    yield current
                elif current is not None:
                    _note(current, line)
                    if _ENDED.search(line) or (current.exit_code not in (None, 0) and "failed" in line):
                        current.seconds = time.perf_counter() - started
                        if current.exit_code == 0:
                            yield current
        if current is None or current.exit_code != 0 or process.returncode != 0:
            raise self._failure(dag_run, current)

    def _failure(self, dag_run: DagRun, task: TaskRun | None) -> Exception:
        where = f"{dag_run.dag}.{task.task if task else '?'} for {dag_run.date}"
        message = f"{where}: {(task.error if task else None) or 'failed'}; the log is {self.log}"
        kinds: dict[int | None, type[OnerecError]] = {2: BadInput, 3: GateFailed}
        kind = kinds.get(task.exit_code if task else None)
        return kind(message.replace("error: ", "")) if kind else RuntimeError(message)

    def _airflow(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "airflow", *arguments]


def _note(task: TaskRun, line: str) -> None:
    """Take what one log line says about the running task."""
    if match := _EXITED.search(line):
        task.exit_code = int(match[1])
    elif task.exit_code is None and (match := _REPORT.search(line)):
        try:
            task.report = json.loads(match[1])
        except json.JSONDecodeError:
            task.error = f"a report that is no JSON: {match[1][:200]}"
    elif match := _ERROR.search(line):
        task.error = match[1]
