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
from scipy.optimize import nnls

RESULTS = Path(__file__).with_name("results")
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "i8mm")
"""Vector units that decide how fast products of matrices are."""
_KIND = ("processor", "instructions", "cores")
"""What figures that are kept together must have in common."""


def options(description: str, arguments: Sequence[str] | None = None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """``--quick``, ``--seed N`` and ``--keep`` (write the result into ``results/``); ``--parts`` of a benchmark that has some."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less data, every comparison, under five minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the result, with date and commit, in benchmarks/results")
    if parts:
        said = "measure these only; with --keep, beside what was kept of the others on this kind of machine"
        parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help=said)
    chosen = parser.parse_args(arguments)
    if chosen.quick and chosen.keep:
        parser.error("--keep keeps figures of the whole work; leave --quick out")
    return chosen


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
    """Exponent e, from 0.5 to 2, of the cost above the fixed start: seconds = a + b · size^e with a, b ≥ 0; 1 is linear.

    Least squares of the relative errors. Each e of a grid (steps of 0.001) has its best a and b, so there is no local minimum
    to end in. Raises ValueError for fewer than three different sizes: these determine no curve.
    """
    if len(set(sizes)) < 3:
        raise ValueError(f"an exponent above a fixed start needs three different sizes, not {list(sizes)}")
    times, relative = np.asarray(seconds, float), np.asarray(sizes, float) / max(sizes)
    target = np.ones(len(times))

    def error(exponent: float) -> float:
        terms = np.column_stack([np.ones(len(times)), relative**exponent])
        return float(nnls(terms / times[:, None], target)[1])

    return float(min(_EXPONENTS, key=error))


_EXPONENTS = np.linspace(0.5, 2, 1501)


def machine() -> dict[str, Any]:
    """What the figures were measured on. Kinds that a model's name does not tell apart differ in ``instructions``."""
    known = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "processor": known.get("model name", platform.processor()),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


def finish(name: str, figures: dict[str, Any], packages: Iterable[str], *, keep: bool) -> None:
    """Print the closing object; with ``keep`` also write it, with date and commit, into ``results/NAME.json``."""
    result = result_of(name, figures, packages)
    if keep:
        keep_result(result)
    print(json.dumps(result), flush=True)


def result_of(name: str, figures: dict[str, Any], packages: Iterable[str]) -> dict[str, Any]:
    """Figures with the benchmark's name, the machine and the versions of some packages."""
    versions = {package: version(package) for package in packages}
    return {"benchmark": name, "machine": machine(), "versions": versions, "figures": figures}


def keep_result(result: dict[str, Any]) -> None:
    """Write a result, with date and commit, into ``results``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result['benchmark']}.json").write_text(json.dumps(stamp() | result, indent=1) + "\n")


def stamp() -> dict[str, str]:
    """Today's date and the commit that is measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {"date": dt.datetime.now(dt.UTC).date().isoformat(), "commit": commit}


def kept_figures(name: str) -> dict[str, Any]:
    """Figures that were kept of a benchmark, to keep more beside them. Exits with a line where they are of another kind of
    machine: hours of them would be lost."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    if any(kept["machine"].get(key) != value for key, value in machine().items() if key in _KIND):
        raise SystemExit(f"{path}: of another kind of machine ({kept['machine']}); move it away to keep figures of this one")
    return dict(kept["figures"])
