"""What all benchmarks share: their options, the machine, repeated timings, slopes, and the closing JSON object.

Costs are slopes over growing sizes, so that fixed starts (a JVM, an import) do not distort them; times are medians.
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

RESULTS = Path(__file__).with_name("results")


def options(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """``--quick``, ``--seed N`` and ``--keep`` (write the result into ``results/``)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less data, every comparison, under five minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the result, with date and commit, in benchmarks/results")
    return parser.parse_args(arguments)


def progress(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr, flush=True)


def median_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of some calls, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Seconds a unit of size: least squares with an intercept, so that the fixed start is left out."""
    return float(np.polyfit(np.asarray(sizes, float), np.asarray(seconds, float), 1)[0])


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent e of seconds ∝ size^e, by least squares in logarithms; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "python": platform.python_version()}


def finish(name: str, figures: dict[str, Any], packages: Iterable[str], *, keep: bool) -> None:
    """Print the closing object; with ``keep`` also write it, with date and commit, into ``results/NAME.json``."""
    result = {
        "benchmark": name,
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
        "figures": figures,
    }
    if keep:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        kept = {"date": dt.datetime.now(dt.UTC).date().isoformat(), "commit": commit, **result}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(result), flush=True)
