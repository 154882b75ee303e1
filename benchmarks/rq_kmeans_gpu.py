"""On a GPU: training against flash-kmeans, fastkmeans and faiss's GPU build, the assignment against the card's matrix ceiling.

Everyone starts from vectors in the host's memory, with all its cores, and ends with codebooks there, after a run that
compiles, or loads, what is compiled and loaded once. Of peers no clock counts the codes of the last layer, nor, where their rows
come from the host, subtracting there; ours counts all. Without a CUDA device, or where a peer is not installed or fails, the
answer says so.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from benchmarks.rq_kmeans_data import clustered
from benchmarks.rq_kmeans_ours import estimator, traced
from benchmarks.rq_kmeans_peers import ALL_POINTS, Fitted, layered
from benchmarks.rq_kmeans_speed import Race
from benchmarks.rq_kmeans_worker import Answer, ChildFailed, Job, ask, with_codebooks
from tokenization.rq_kmeans import RQKMeans

Floats = npt.NDArray[np.float32]
DEVICE = "cuda"
PACKAGES = {"flash-kmeans": "flash_kmeans", "fastkmeans": "fastkmeans"}
PEERS = {
    "flash-kmeans": ("flash_kmeans", "flash_kmeans_half"),
    "fastkmeans": ("fastkmeans",),
    "faiss-gpu": ("faiss_gpu",),
}
"""Package → its tasks: flash-kmeans computes in the precision that it is given, so it takes part twice."""
_LAYERS, _ITERATIONS = 3, 20
_WARM_UP_ROWS = 4096
_CEILING = 16_384
_TRIES = 5


def absent_peers() -> dict[str, str]:
    """GPU peer → why it is not compared; told in one line."""
    import faiss
    import torch

    if not torch.cuda.is_available():
        why = dict.fromkeys(PEERS, "no CUDA device")
    else:
        why = {
            name: f"not installed: pip install {name}"
            for name, module in PACKAGES.items()
            if importlib.util.find_spec(module) is None
        }
        if not hasattr(faiss, "StandardGpuResources"):
            why["faiss-gpu"] = "not installed: the extra gpu in place of cpu"
    if why:
        progress("not compared: " + ", ".join(f"{name} ({reason})" for name, reason in why.items()))
    return why


def gpu_figures(size: tuple[int, int, int], folder: Path, work: Path, seed: int, rounds: int) -> dict[str, Any]:
    """All figures of the GPU at ``size``, (rows, dim, codes a layer); ``absent`` says which peers are missing, and why."""
    import torch

    absent = absent_peers()
    if not torch.cuda.is_available():
        return {"absent": absent}
    rows, dim, codes = size
    data = clustered(folder, rows, dim, (codes,) * _LAYERS, seed)
    peers = {task: task for name, tasks in PEERS.items() if name not in absent for task in tasks}
    threads = len(os.sched_getaffinity(0))
    race = Race(work, data, {}, _ITERATIONS, seed, rounds, "ours_gpu", peers, threads, may_fail=True)
    told = {"absent": absent, "card": torch.cuda.get_device_name()}
    try:
        layers = ask(Job("ours_gpu", str(data.vectors), data.sizes, _ITERATIONS, seed, threads, {"refinements": 0}), work)
        assignment = ask(Job("gpu_assignment", str(data.vectors), (codes,), seed=seed), work)
        return told | {"layers_seconds": layers.numbers["seconds"], "assignment": assignment.numbers} | race.fit()
    except ChildFailed as error:  # what was measured without a card is worth keeping
        progress(f"on the GPU: {error}")
        return told | {"failed": str(error)}


def ours(vectors: Floats, job: Job) -> Answer:
    """``RQKMeans`` with its vectors on the GPU; the option ``refinements`` may be other than the default, and then every
    iteration of a layer runs."""
    RQKMeans(2, 16, iterations=2, refinements=3, backend="torch").fit(vectors[:_WARM_UP_ROWS])  # the kernels compile
    model = estimator(job).set_params(backend="torch")
    if "refinements" in job.options:
        model.set_params(refinements=job.options["refinements"], iterations=job.iterations, tolerance=0.0)
    seconds, trace = traced(model, vectors)
    return Answer({"seconds": seconds, "trace": trace}, with_codebooks(model.codebooks_, codes=model.codes_))


def assignment(vectors: Floats, job: Job) -> Answer:
    """The assignment of all rows to random ones of them, its products a second, and those of the largest plain product."""
    import torch

    from tokenization.device_nearest import NarrowedRows
    from tokenization.device_vectors import DeviceNearest, DeviceRows
    from tokenization.vectors import ArrayRows

    rows = DeviceRows.of(ArrayRows(vectors), DEVICE)
    parts = [NarrowedRows.of(rows.values[part]) for part in rows.chunks()]
    chosen = np.random.default_rng(job.seed).choice(len(vectors), job.sizes[0], replace=False)
    nearest = DeviceNearest(rows.take(np.sort(chosen)), DEVICE)
    seconds = _seconds(lambda: [nearest(part) for part in parts])
    square = torch.randn(_CEILING, _CEILING, device=DEVICE, dtype=torch.bfloat16)
    ceiling = 2 * _CEILING**3 / _seconds(lambda: square @ square)
    rate = 2 * vectors.size * job.sizes[0] / seconds
    return Answer({"seconds": seconds, "per_second": rate, "ceiling_bf16": ceiling, "share_of_ceiling": rate / ceiling})


def _seconds(work: Callable[[], Any]) -> float:
    """Median of some runs after one that warms up."""
    import torch

    seconds = []
    for _ in range(_TRIES + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def flash_kmeans(vectors: Floats, job: Job) -> Answer:
    """flash-kmeans in float32, which its kernel multiplies as TF32."""
    return _flash(vectors, job, "float32")


def flash_kmeans_half(vectors: Floats, job: Job) -> Answer:
    """flash-kmeans in float16."""
    return _flash(vectors, job, "float16")


def _flash(vectors: Floats, job: Job, kind: str) -> Answer:
    """Layer by layer, residuals in float32 on the card; every iteration runs. It compiles a kernel for each number of rows, so
    all of them warm it up."""
    import torch
    from flash_kmeans import FlashKMeans

    def fitted(rows: torch.Tensor, size: int, seed: int, iterations: int) -> Any:
        model = FlashKMeans(rows.shape[1], size, niter=iterations, tol=-1.0, seed=seed, dtype=getattr(torch, kind))
        model.train(rows)
        return model

    warm = torch.from_numpy(vectors).to(DEVICE)
    fitted(warm, job.sizes[0], 0, 1).predict(warm)
    torch.cuda.synchronize()
    del warm
    started = time.perf_counter()
    left = torch.from_numpy(vectors).to(DEVICE, copy=True)
    codebooks, codes = [], np.empty((len(vectors), len(job.sizes)), np.uint16)
    for layer, size in enumerate(job.sizes):
        model = fitted(left, size, job.seed + layer, job.iterations)
        centroids = model.centroids_b[0].float()
        codebooks.append(centroids.cpu().numpy())
        seconds = time.perf_counter() - started
        labels = model.predict(left).long()
        left -= centroids[labels]
        codes[:, layer] = labels.cpu().numpy()
    return Answer({"seconds": seconds}, with_codebooks(codebooks, codes=codes))


def fastkmeans(vectors: Floats, job: Job) -> Answer:
    """fastkmeans in the precision that it chooses."""
    from fastkmeans import FastKMeans

    FastKMeans(vectors.shape[1], 16, niter=2).train(vectors[:_WARM_UP_ROWS])

    def train(rows: Floats, size: int, seed: int) -> Callable[[], Fitted]:
        model = FastKMeans(rows.shape[1], size, niter=job.iterations, tol=-1.0, seed=seed)
        model.train(rows)
        return lambda: (model.centroids, model.predict(rows))

    return layered(vectors, job, train, count_residuals=False)


def faiss_gpu(vectors: Floats, job: Job) -> Answer:
    """faiss ``Kmeans`` on one card."""
    import faiss

    faiss.omp_set_num_threads(job.threads)

    def trained(rows: Floats, size: int, seed: int, iterations: int) -> Any:
        model = faiss.Kmeans(rows.shape[1], size, niter=iterations, seed=seed, gpu=1, **ALL_POINTS)
        model.train(rows)
        return model

    def train(rows: Floats, size: int, seed: int) -> Callable[[], Fitted]:
        model = trained(rows, size, seed, job.iterations)
        return lambda: (model.centroids, model.assign(rows)[1])

    trained(vectors[:_WARM_UP_ROWS], 16, 0, 2)
    return layered(vectors, job, train, count_residuals=False)
