"""The main job: a simulated landing zone, a warm worker, the six DAGs over the days, a report.

Steps are the same commands that a person types, run by Airflow; ``ONEREC_WORKER`` lets them share one warm process.
"""

import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onerec.demo.airflow_runner import AirflowRunner, TaskRun
from onerec.demo.plan import DemoPlan
from onerec.demo.progress import DemoProgress
from schemas.errors import BadInput
from schemas.lake import create_lake, write_atomically

MARKER = "demo.json"
TASKS = {
    "daily_samples": 4,
    "tokenizer_refresh": 7,
    "tokenize_items": 3,
    "lifelong_refresh": 1,
    "train_daily": 4,
    "post_train": 6,
}


def find_dags(named: Path | None) -> Path:
    """The folder with ``onerec_dags.py``: as named, else the checkout's. Raises BadInput if it is not there."""
    folder = named or Path(__file__).resolve().parents[2] / "airflow_dags"
    if not (folder / "onerec_dags.py").is_file():
        raise BadInput(f"{folder}: holds no onerec_dags.py (the wheel leaves the DAGs out); say --dags CHECKOUT/airflow_dags")
    return folder.resolve()


def run_demo(out: Path, plan: DemoPlan, *, dags: Path | None = None) -> dict[str, Any]:
    """Run the demo into ``out`` and return its summary; an earlier demo there is replaced.

    Raises BadInput if ``out`` holds something else, and what the first failing step raised.
    """
    folder = find_dags(dags)
    out = out.resolve()
    _clear(out)
    started = time.perf_counter()
    steps: list[TaskRun] = []
    runs = plan.runs()
    with DemoProgress(2 + sum(TASKS[run.dag] for run in runs)) as progress, _worker(out) as socket_path:
        environment = {
            "ONEREC_LAKE": str(out / "lake"),
            "ONEREC_LANDING": str(out / "landing"),
            "ONEREC_COMMAND": f"{sys.executable} -m onerec",
            "ONEREC_WORKER": socket_path,
        }
        airflow = AirflowRunner(out / "airflow", folder, environment)
        migration = airflow.start_migration()
        create_lake(str(out / "lake"), plan.config())
        steps.append(_simulate(out, plan, environment, progress))
        if migration.wait() != 0:
            raise RuntimeError(f"airflow db migrate failed; its log is {out}/airflow/db-migrate.log")
        for run in runs:
            for task in airflow.run(run):
                if task.exit_code is None:
                    progress.start(f"{task.dag}.{task.task}", task.date)
                else:
                    progress.finish(f"{task.dag}.{task.task}", task.date, task.seconds)
                    steps.append(task)
        progress.start("report", "")
        from onerec.report.build import build_report

        report_started = time.perf_counter()
        build_report(out / "lake", out / "report.html", [asdict(step) for step in steps])
        progress.finish("report", "", time.perf_counter() - report_started)
    summary = {
        "step": "demo",
        "seconds": round(time.perf_counter() - started, 1),
        "report": str(out / "report.html"),
        "steps": [asdict(step) for step in steps],
    }
    write_atomically(str(out / MARKER), json.dumps(summary, indent=1, default=str).encode())
    return summary


def _clear(out: Path) -> None:
    """Remove an earlier demo's output; anything else is the user's."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise BadInput(f"--out {out}: holds something that is no demo's output; name an empty folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps({"step": "demo", "started": dt.datetime.now(dt.UTC).isoformat()}))


@contextlib.contextmanager
def _worker(out: Path) -> Iterator[str]:
    """A warm worker for the time of the demo; yields its socket. Its log is ``worker.log``."""
    socket_path = f"/tmp/onerec-{os.getpid()}.sock"  # short: a Unix socket's path has at most 107 bytes
    environment = {name: value for name, value in os.environ.items() if name != "ONEREC_WORKER"}
    with (out / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "onerec", "worker", "--socket", socket_path], env=environment, stdout=log, stderr=log
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a killed demo leaves no worker behind
    try:
        deadline = time.monotonic() + 60
        while not os.path.exists(socket_path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start; its log is {out}/worker.log")
            time.sleep(0.05)
        yield socket_path
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _simulate(out: Path, plan: DemoPlan, environment: dict[str, str], progress: DemoProgress) -> TaskRun:
    """``onerec simulate``, through the worker, so that the Spark session is warm for the first ingest."""
    progress.start("simulate", "")
    arguments = ["simulate", "--out", str(out / "landing"), "--users", str(plan.users), "--items", str(plan.items)]
    arguments += ["--days", str(plan.days), "--start", plan.start.isoformat(), "--seed", str(plan.seed), "--json"]
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "onerec", *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"simulate failed (exit {result.returncode}): {result.stderr.strip()[-2000:]}")
    seconds = time.perf_counter() - started
    progress.finish("simulate", "", seconds)
    report = json.loads(result.stdout.splitlines()[-1])
    return TaskRun("simulate", plan.start.isoformat(), "simulate", seconds, 0, report)
