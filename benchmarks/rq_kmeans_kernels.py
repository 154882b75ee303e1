"""The fastest BLAS kernel that computes right, for the peers that bring their own OpenBLAS (faiss's wheel may pick a poor one).

Each kernel is tried in a child of its own: one that the processor does not have kills only that child. Where
``OPENBLAS_CORETYPE`` is already set it is set for a reason, and stays.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from benchmarks.rq_kmeans_worker import Answer, ChildFailed, Job, ask, timed

VARIABLE = "OPENBLAS_CORETYPE"
CANDIDATES = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids")
_ROWS, _SIZE = 8192, 1024
_ODD = ((33, 17), (1000, 129), (257, 64))


def probe(vectors: npt.NDArray[np.float32], job: Job) -> Answer:
    """Seconds of faiss's search under this process's kernel, and the largest error of its distances, relative to float64."""
    import faiss
    from threadpoolctl import threadpool_info

    faiss.omp_set_num_threads(job.threads)
    rows, centroids = vectors[:_ROWS], vectors[-_SIZE:]
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(centroids)
    seconds, found = timed(lambda: index.search(rows, 1))
    error = _error(rows, centroids, found[0][:, 0])
    random = np.random.default_rng(0)
    for count, width in _ODD:  # shapes that leave a kernel's edges over
        few, others = (random.standard_normal((size, width)).astype(np.float32) for size in (count, 47))
        odd = faiss.IndexFlatL2(width)
        odd.add(others)
        error = max(error, _error(few, others, odd.search(few, 1)[0][:, 0]))
    built = [entry for entry in threadpool_info() if "faiss" in entry["filepath"] and entry["internal_api"] == "openblas"]
    names = [str(entry.get("architecture")) for entry in built]
    return Answer({"seconds": seconds, "error": error, "architecture": names[0] if names else "unknown"})


def _error(rows: npt.NDArray[Any], centroids: npt.NDArray[Any], distances: npt.NDArray[Any]) -> float:
    wide, others = rows.astype(np.float64), centroids.astype(np.float64)
    squares = (wide**2).sum(1)[:, None] + (others**2).sum(1)
    exact = (squares - 2 * wide @ others.T).min(axis=1)
    return float(np.abs(distances - exact).max() / squares.max())


def choose_kernel(vectors: str, folder: Path, threads: int) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment for faiss's children, and what to print: kernel chosen, seconds of each, and those refused."""
    set_already = os.environ.get(VARIABLE)
    tried: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name in ("as installed", *(() if set_already else CANDIDATES)):
        environment = {} if name == "as installed" else {VARIABLE: name}
        try:
            found = ask(Job("kernel", vectors, (_SIZE,), threads=threads), folder, environment).numbers
        except ChildFailed as failure:
            refused[name] = str(failure).splitlines()[0][:80]
            continue
        if found["error"] > 1e-5:
            refused[name] = f"wrong by {found['error']:.1e} of the largest square"
        else:
            tried[name] = found
    if not tried:
        raise ChildFailed(f"faiss computes right under no BLAS kernel: {refused}")
    best = min(tried, key=lambda name: float(tried[name]["seconds"]))
    report = {
        "set_already": set_already,
        "chosen": best,
        "architecture": tried[best]["architecture"],
        "seconds": {name: found["seconds"] for name, found in tried.items()},
        "refused": refused,
    }
    progress(f"faiss's BLAS kernel: {best} ({tried[best]['architecture']}); tried {list(tried)}, refused {list(refused)}")
    return ({} if best == "as installed" else {VARIABLE: best}), report
