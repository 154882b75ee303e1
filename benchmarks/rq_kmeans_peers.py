"""The k-means peers, each with its own seeding and all points: faiss ``Kmeans``, ``SuperKMeans`` and ``ResidualQuantizer``,
scikit-learn's ``KMeans`` and ``MiniBatchKMeans``.

A fit's seconds are those of training every layer and of the residuals between them; the codes after the last layer are not
counted. faiss takes 256 points a centroid unless told otherwise: here it takes all.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rq_kmeans_worker import Answer, Job, timed, with_codebooks

Floats = npt.NDArray[np.float32]
Fitted = tuple[Floats, npt.NDArray[Any]]
"""Centroids (size, dim) of a layer, and labels (n,)."""
ALL_POINTS = {"max_points_per_centroid": 2**31 - 1, "min_points_per_centroid": 1}
FAISS_MEMORY = 2**30
"""Bytes that faiss's beam search may take for distances."""


def layered(
    vectors: Floats, job: Job, train: Callable[[Floats, int, int], Callable[[], Fitted]], count_residuals: bool = True
) -> Answer:
    """Layer by layer on residuals. ``train`` (rows, size, seed) fits and returns what gives centroids and labels. The seconds are
    of fitting, and between layers of assigning and, unless told otherwise, of subtracting."""
    residual = vectors.copy()
    codebooks, codes, seconds = [], np.empty((len(vectors), len(job.sizes)), np.uint16), 0.0
    for layer, size in enumerate(job.sizes):
        clock = [time.perf_counter()]
        assigned = train(residual, size, job.seed + layer)
        clock.append(time.perf_counter())
        centroids, labels = assigned()
        clock.append(time.perf_counter())
        residual -= centroids[labels]
        clock.append(time.perf_counter())
        last = layer + 1 == len(job.sizes)
        seconds += clock[1 if last else 3 if count_residuals else 2] - clock[0]
        codes[:, layer] = labels
        codebooks.append(np.ascontiguousarray(centroids, np.float32))
    return Answer({"seconds": seconds}, with_codebooks(codebooks, codes=codes))


def faiss_kmeans(vectors: Floats, job: Job) -> Answer:
    """faiss ``Kmeans`` per layer; the option ``init`` is a name of faiss's ``ClusteringInitMethod``."""
    import faiss

    init = getattr(faiss, f"ClusteringInitMethod_{job.options.get('init', 'RANDOM')}")
    return _by_faiss(vectors, job, faiss.Kmeans, init_method=init)


def superkmeans(vectors: Floats, job: Job) -> Answer:
    """faiss ``SuperKMeans`` per layer."""
    import faiss

    return _by_faiss(vectors, job, faiss.SuperKmeans)


def _by_faiss(vectors: Floats, job: Job, kind: Any, **settings: Any) -> Answer:
    import faiss

    faiss.omp_set_num_threads(job.threads)

    def train(rows: Floats, size: int, seed: int) -> Callable[[], Fitted]:
        model = kind(rows.shape[1], size, niter=job.iterations, seed=seed, **ALL_POINTS, **settings)
        model.train(rows)
        return lambda: (model.centroids, model.assign(rows)[1])

    return layered(vectors, job, train)


def faiss_rq(vectors: Floats, job: Job) -> Answer:
    """faiss ``ResidualQuantizer``, trained and encoding at the option ``beam``; ``train_type`` sums names of faiss's flags.

    Sizes must be powers of two.
    """
    import faiss

    faiss.omp_set_num_threads(job.threads)
    bits = [size.bit_length() - 1 for size in job.sizes]
    widths = faiss.UInt64Vector()
    faiss.copy_array_to_vector(np.array(bits, np.uint64), widths)
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], widths)
    quantizer.max_beam_size = job.options["beam"]
    quantizer.max_mem_distances = FAISS_MEMORY
    flags = job.options.get("train_type", ["Train_progressive_dim"])
    quantizer.train_type = sum(getattr(faiss.ResidualQuantizer, flag) for flag in flags)
    settings = {"niter": job.iterations, "seed": job.seed, **ALL_POINTS}
    for name, value in settings.items():
        setattr(quantizer.cp, name, value)
    started = time.perf_counter()
    quantizer.train(vectors)
    seconds = time.perf_counter() - started
    codes = unpacked(quantizer.compute_codes(vectors), bits)
    whole = faiss.vector_to_array(quantizer.codebooks).reshape(-1, vectors.shape[1])
    codebooks = np.split(whole[: sum(job.sizes)], np.cumsum(job.sizes)[:-1])
    return Answer({"seconds": seconds}, with_codebooks(codebooks, codes=codes))


def unpacked(packed: npt.NDArray[np.uint8], bits: list[int]) -> npt.NDArray[np.uint16]:
    """Tokens (n, layers) of faiss's codes (n, bytes): bits in little-endian order, the first layer in the lowest."""
    flat = np.unpackbits(packed, axis=1, bitorder="little")
    codes = np.zeros((len(packed), len(bits)), np.uint16)
    first = 0
    for layer, width in enumerate(bits):
        for bit in range(width):
            codes[:, layer] |= flat[:, first + bit].astype(np.uint16) << bit
        first += width
    return codes


def faiss_encode(vectors: Floats, job: Job) -> Answer:
    """Greedy codes by ``IndexFlatL2`` per layer with the option ``codebooks``; median of three timings."""
    import faiss

    faiss.omp_set_num_threads(job.threads)
    codebooks = [np.load(path) for path in job.options["codebooks"]]
    indexes = []
    for codebook in codebooks:
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(codebook)
        indexes.append(index)

    def work() -> npt.NDArray[np.uint16]:
        codes = np.empty((len(vectors), len(codebooks)), np.uint16)
        residual = vectors.copy()
        for layer, index in enumerate(indexes):
            labels = index.search(residual, 1)[1][:, 0]
            codes[:, layer] = labels
            if layer + 1 < len(indexes):
                residual -= codebooks[layer][labels]
        return codes

    seconds, codes = timed(work)
    return Answer({"seconds": seconds}, {"codes": codes})


def sklearn_kmeans(vectors: Floats, job: Job) -> Answer:
    """scikit-learn's ``KMeans`` (Lloyd) per layer, every iteration run."""
    from sklearn.cluster import KMeans

    def train(rows: Floats, size: int, seed: int) -> Callable[[], Fitted]:
        model = KMeans(size, max_iter=job.iterations, tol=0, n_init=1, random_state=seed).fit(rows)
        return lambda: (model.cluster_centers_, model.labels_)

    return layered(vectors, job, train)


def sklearn_minibatch(vectors: Floats, job: Job) -> Answer:
    """scikit-learn's ``MiniBatchKMeans`` per layer: as many passes over all points as the others have iterations."""
    from sklearn.cluster import MiniBatchKMeans

    def train(rows: Floats, size: int, seed: int) -> Callable[[], Fitted]:
        model = MiniBatchKMeans(
            size,
            max_iter=job.iterations,
            batch_size=max(1024, 2 * size),
            max_no_improvement=None,
            n_init=1,
            compute_labels=False,
            random_state=seed,
        ).fit(rows)
        return lambda: (model.cluster_centers_, model.predict(rows))

    return layered(vectors, job, train)
