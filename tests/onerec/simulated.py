"""Simulated worlds for the tests, written without a JVM: the tasks are plain functions, Spark only spreads them."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from onerec.simulate.parameters import Parameters
from onerec.simulate.tasks import list_tasks, run_task


def write_world(parameters: Parameters, root: Path) -> Counter:
    """Every file of a world below ``root``; returns the true counts by (landing date, kind)."""
    total: Counter = Counter()
    for task in list_tasks(parameters):
        for count in run_task(parameters, task, root):
            total[count.landing_date.isoformat(), count.kind] += count.rows
    return total


def read_lines(folder: Path) -> list[str]:
    """All lines of a folder's gzipped files, files in order of their names."""
    return [
        line for file in sorted(folder.glob("*.jsonl.gz")) for line in gzip.decompress(file.read_bytes()).decode().splitlines()
    ]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The same, parsed; lines that are not JSON are left out."""
    rows = []
    for line in read_lines(folder):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
