"""A contestant in a process of its own, so that each has its threads, its BLAS kernel and a clean memory.

The parent calls ``ask``; the child (``python -m benchmarks.rq_kmeans_worker FOLDER``) reads the job from ``FOLDER/job.json``,
loads the vectors into memory before any clock starts, and leaves its arrays and ``answer.json`` in the folder.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

THREADS = 2
"""Threads of every contestant."""
TASKS = {
    "ours": "benchmarks.rq_kmeans_ours:fit",
    "ours_encode": "benchmarks.rq_kmeans_ours:encode",
    "ours_growth": "benchmarks.rq_kmeans_ours:growth",
    "faiss_kmeans": "benchmarks.rq_kmeans_peers:faiss_kmeans",
    "superkmeans": "benchmarks.rq_kmeans_peers:superkmeans",
    "faiss_rq": "benchmarks.rq_kmeans_peers:faiss_rq",
    "faiss_encode": "benchmarks.rq_kmeans_peers:faiss_encode",
    "sklearn_kmeans": "benchmarks.rq_kmeans_peers:sklearn_kmeans",
    "sklearn_minibatch": "benchmarks.rq_kmeans_peers:sklearn_minibatch",
    "rq_vae": "benchmarks.rq_kmeans_vae:fit",
    "kernel": "benchmarks.rq_kmeans_kernels:probe",
    "ours_gpu": "benchmarks.rq_kmeans_gpu:ours",
    "gpu_assignment": "benchmarks.rq_kmeans_gpu:assignment",
    "flash_kmeans": "benchmarks.rq_kmeans_gpu:flash_kmeans",
    "flash_kmeans_half": "benchmarks.rq_kmeans_gpu:flash_kmeans_half",
    "fastkmeans": "benchmarks.rq_kmeans_gpu:fastkmeans",
    "faiss_gpu": "benchmarks.rq_kmeans_gpu:faiss_gpu",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ChildFailed(RuntimeError):
    """The child ended without an answer."""


@dataclass(frozen=True)
class Job:
    """What one child does: ``vectors`` is a .npy file of (n, dim) float32, ``sizes`` one codebook size a layer."""

    task: str
    vectors: str
    sizes: tuple[int, ...]
    iterations: int = 25
    seed: int = 0
    threads: int = THREADS
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a task gives back: JSON-able numbers, and arrays by name."""

    numbers: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def codebooks(self) -> list[npt.NDArray[np.float32]]:
        """The codebooks (size, dim) in the order of their layers; empty where the contestant has none in the vectors' space."""
        names = sorted((name for name in self.arrays if name.startswith("codebook_")), key=lambda name: int(name[9:]))
        return [self.arrays[name] for name in names]


def with_codebooks(codebooks: list[npt.NDArray[np.float32]], **more: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an answer: codebooks by layer, and whatever else there is by name."""
    return {f"codebook_{layer}": codebook for layer, codebook in enumerate(codebooks)} | more


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Median seconds of some calls after one that warms up, and the last result."""
    result = work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return median(seconds), result


def ask(job: Job, folder: Path, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a job in a child below ``folder``. Raises ChildFailed with the end of its standard error."""
    place = folder / f"{len(list(folder.iterdir())):04d}-{job.task}"
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps(asdict(job)))
    threads = dict.fromkeys(_THREAD_VARIABLES, str(job.threads))
    command = [sys.executable, "-m", "benchmarks.rq_kmeans_worker", str(place)]
    env = os.environ | threads | dict(environment or {})
    ended = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    answer = place / "answer.json"
    if ended.returncode or not answer.exists():
        raise ChildFailed(f"{job.task}: exit {ended.returncode}: {ended.stderr.strip()[-400:]}")
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in place.glob("*.npy")}
    return Answer(json.loads(answer.read_text()), arrays)


def main(folder: Path) -> None:
    """Do the job of a folder."""
    told = json.loads((folder / "job.json").read_text())
    job = Job(**(told | {"sizes": tuple(told["sizes"])}))
    module, _, name = TASKS[job.task].partition(":")
    answer: Answer = getattr(importlib.import_module(module), name)(np.load(job.vectors), job)
    for key, array in answer.arrays.items():
        np.save(folder / f"{key}.npy", array)
    (folder / "answer.json").write_text(json.dumps(answer.numbers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
