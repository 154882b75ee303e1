"""Runs our commands in processes of their own that are killed: at a named point of the code, or from outside at any time.

A command is killed with everything it started (its Java virtual machine and, at the latest with that, its workers), as by
a machine that is switched off. ``sitecustomize`` puts the point into every Python of the run, so it may lie in a task.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from schemas.lake import Lake, open_lake
from schemas.tables import PIPELINE_RUNS, TABLES, Table

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 300
UNLIKE = {"ingested_at", "users_version"}
"""Columns that differ between two lakes of one content: when a row came in, and a table's count of its commits."""
_SITE = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

module, _, name = os.environ["KILLED_AT"].partition(":")
nth, when, counter = int(os.environ["KILLED_NTH"]), os.environ["KILLED_WHEN"], os.environ["KILLED_COUNTER"]
os.environ.setdefault("KILLED_GROUP", str(os.getpgrp()))

def die():
    stream = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(stream, b".")
    if os.fstat(stream).st_size == nth + 1:
        os.killpg(int(os.environ["KILLED_GROUP"]), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

def deadly(function):
    def call(*arguments, **options):
        if when == "before":
            die()
        result = function(*arguments, **options)
        if when == "after":
            die()
        return result
    return call

class Finder(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module
        def patched(loaded):
            execute(loaded)
            *owners, last = name.split(".")
            owner = loaded
            for part in owners:
                owner = getattr(owner, part)
            setattr(owner, last, deadly(getattr(owner, last)))
        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class Point:
    """A call of a function (``package.module:name``) before or after which a run is killed; calls are counted from 0 over all
    of the run's processes."""

    at: str
    nth: int = 0
    when: str = "before"

    def __str__(self) -> str:
        return f"{self.when} call {self.nth} of {self.at.partition(':')[2]}"


def start(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    """Start ``onerec`` with these arguments, in a process group of its own."""
    command = [sys.executable, "-m", "onerec", *arguments]
    pipe = subprocess.PIPE
    env = os.environ | environment
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def run_killed(arguments: list[str], point: Point) -> None:
    """Run ``onerec`` until it is killed at the point. Fails if it never got there."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(_SITE)
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        at = {"KILLED_AT": point.at, "KILLED_NTH": str(point.nth), "KILLED_WHEN": point.when}
        run = start(arguments, PYTHONPATH=path, KILLED_COUNTER=f"{folder}/calls", **at)
        _, said = run.communicate(timeout=SECONDS)
        assert run.returncode == -signal.SIGKILL, f"never came to {point}: exit {run.returncode}\n{said[-2000:]}"


def run_killed_at_work(arguments: list[str], lake: Lake, seconds: float) -> bool:
    """Run ``onerec`` and kill it so many seconds after it began to write the lake's tables; whether it was still running.

    Fails if it never began."""
    there, run = table_files(lake), start(arguments)
    try:
        _wait_for_work(run, lake, there)
        run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=SECONDS)
        return True
    return False


def seconds_at_work(arguments: list[str], lake: Lake) -> float:
    """How long ``onerec`` takes that is left alone, from when it begins to write the lake's tables to its end."""
    there, run = table_files(lake), start(arguments)
    _wait_for_work(run, lake, there)
    began = time.monotonic()
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said[-2000:]
    return time.monotonic() - began


def table_files(lake: Lake) -> set[str]:
    """Data files below the tables, committed or not, and commits; not of the runs' own records, which come last."""
    folders = [folder for table in TABLES.values() if table is not PIPELINE_RUNS for folder in os.walk(lake.table_uri(table))]
    return {f"{folder}/{name}" for folder, _, names in folders for name in names if name.endswith((".parquet", ".json"))}


def _wait_for_work(run: "subprocess.Popen[str]", lake: Lake, there: set[str]) -> None:
    """Wait for a data file or a commit that is not among those that were there. Fails if the run ends without one."""
    deadline = time.monotonic() + SECONDS
    while True:
        ended = run.poll() is not None or time.monotonic() > deadline
        if table_files(lake) - there:
            return
        if ended:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            _, said = run.communicate(timeout=SECONDS)
            raise AssertionError(f"it wrote nothing below the tables: exit {run.returncode}\n{said[-2000:]}")
        time.sleep(0.02)


@contextmanager
def copied(lake: Lake, to: Path) -> Iterator[Lake]:
    """A copy of a lake, removed at the end."""
    shutil.copytree(lake.root, to)
    try:
        yield open_lake(str(to))
    finally:
        shutil.rmtree(to, ignore_errors=True)


Days = dict[str, dict[tuple[str, ...], list[str]]]
"""By table, by day (its partition columns but for the bucket): the rows, sorted."""


def contents(lake: Lake) -> dict[str, Any]:
    """Every table's days and what the manifests of shards name; not the runs' own records."""
    shards = Path(lake.root) / "shards"
    manifests = {}
    for path in sorted([*shards.glob("date=*/*.json"), *shards.glob("lifelong/*/*.json")]):
        manifest = json.loads(path.read_text())
        manifests[str(path.relative_to(shards))] = [json.dumps(manifest.get(key)) for key in ("counts", "files", "lifelong")]
    return days_of(lake) | manifests


def differences(lake: Lake, clean: dict[str, Any]) -> list[str]:
    """Names of the tables and manifests that are not as in a clean run."""
    found = contents(lake)
    return [name for name in sorted(found.keys() | clean.keys()) if found.get(name) != clean.get(name)]


def days_of(lake: Lake, only: Table | None = None, version: int | None = None) -> Days:
    """The rows of every table (or of one, at a version), without the columns UNLIKE."""
    found: Days = {}
    for table in [only] if only else [table for table in TABLES.values() if table is not PIPELINE_RUNS]:
        rows = lake.read(table, version=version)
        names = [name for name in table.partition_by if name != "user_bucket"]
        kept = rows.select([name for name in rows.column_names if name not in UNLIKE]).to_pylist()
        days: dict[tuple[str, ...], list[str]] = {}
        for row in kept:
            days.setdefault(tuple(str(row[name]) for name in names), []).append(repr(row))
        found[table.name] = {day: sorted(of_day) for day, of_day in days.items()}
    return found


def torn(lake: Lake, before: Days, after: Days) -> list[str]:
    """Tables of which some version since the newest was ``before`` holds a day that is neither as before nor as after."""
    found = []
    for table in TABLES.values():
        if table.name not in before or "date" not in "".join(table.partition_by):
            continue
        was, will_be = before[table.name], after[table.name]
        for version in range(lake.table_version(table), -1, -1):
            try:
                days = days_of(lake, table, version)[table.name]
            except BadInput:
                break  # its log was cut here: nobody can read an older one
            if days == was:
                break
            if any(of_day not in (was.get(day, []), will_be.get(day, [])) for day, of_day in days.items()):
                found.append(f"{table.name} at version {version}")
    return found
