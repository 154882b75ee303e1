"""Our contestant: one configuration of ``RQKMeans`` for fit time, encode time and error alike."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rq_kmeans_worker import Answer, Job, timed, with_codebooks
from tokenization import arithmetic
from tokenization.kmeans import KMeans
from tokenization.lloyd import Iteration
from tokenization.rq_kmeans import RQKMeans

Floats = npt.NDArray[np.float32]
_WARM_UP_ROWS = 4096


def estimator(job: Job) -> RQKMeans:
    """The one configuration: the defaults, with fewer iterations where every contestant has fewer."""
    model = RQKMeans(n_layers=len(job.sizes), codebook_size=job.sizes, seed=job.seed, n_threads=job.threads)
    return model.set_params(iterations=min(model.iterations, job.iterations))


def fit(vectors: Floats, job: Job) -> Answer:
    """Fit, then codes by greedy and by beam search (the option ``beam``, where told).

    ``trace`` holds (seconds since the start, layer, iteration, sum of squared errors) of every iteration whose codes are those of
    encoding: the error is that of the centroids which the iteration began with, so each time is a little late, never early.
    """
    model = estimator(job)
    KMeans(16, iterations=2, n_threads=job.threads).fit(vectors[:_WARM_UP_ROWS])  # compiled kernels load, as imports do
    seconds, trace = traced(model, vectors)
    arrays: dict[str, npt.NDArray[Any]] = {"codes": model.encode(vectors)}
    if "beam" in job.options:
        arrays["codes_beam"] = model.encode_beam(vectors, job.options["beam"])
    return Answer({"seconds": seconds, "trace": trace, "path": path_of(vectors, job)}, with_codebooks(model.codebooks_, **arrays))


def path_of(vectors: Floats, job: Job) -> str:
    """The path that the assignment takes."""
    return arithmetic.described(estimator(job).backend, vectors.size * max(job.sizes))


def traced(model: RQKMeans, vectors: Floats) -> tuple[float, list[tuple[float, int, int, float]]]:
    """Fit; its seconds and its trace."""
    trace: list[tuple[float, int, int, float]] = []
    started = time.perf_counter()

    def hear(step: Iteration) -> None:
        if step.greedy:
            trace.append((time.perf_counter() - started, step.layer, step.iteration, step.inertia))

    model.fit(vectors, callback=hear)
    return time.perf_counter() - started, trace


def encode(vectors: Floats, job: Job) -> Answer:
    """Greedy codes with the codebooks that the option ``codebooks`` (a .npy file a layer) names; median of three timings."""
    model = estimator(job)
    model.codebooks_ = [np.load(path) for path in job.options["codebooks"]]
    model.n_features_in_ = vectors.shape[1]
    seconds, codes = timed(lambda: model.encode(vectors))
    return Answer({"seconds": seconds, "path": path_of(vectors, job)}, {"codes": codes})


def growth(vectors: Floats, job: Job) -> Answer:
    """Seconds of one layer with all iterations run, median of three."""
    model = KMeans(job.sizes[0], iterations=job.iterations, seed=job.seed, n_threads=job.threads, tolerance=0.0)
    seconds, _ = timed(lambda: model.fit(vectors))
    return Answer({"seconds": seconds})
