"""Fit time until the peer's final error, encode time with identical codes, and how cost grows.

All times are of children with equally many threads, two unless told, on the same vectors; rounds of all contestants take turns,
so that a neighbour's load falls on each. Ours is the configuration whose errors ``rq_kmeans_quality`` reports. A ratio is None
where ours did not come down to the peer's error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import growth_exponent, progress
from benchmarks.rq_kmeans_data import Dataset, clustered
from benchmarks.rq_kmeans_worker import THREADS, Answer, ChildFailed, Job, ask
from tokenization.residual import left_by
from tokenization.vectors import ArrayRows, blocks

FIT_PEERS = {
    "faiss": "faiss_kmeans",
    "superkmeans": "superkmeans",
    "sklearn": "sklearn_kmeans",
    "sklearn_minibatch": "sklearn_minibatch",
    "faiss_rq": "faiss_rq",
}
_TOLD: Mapping[str, Mapping[str, Any]] = {"faiss_rq": {"beam": 1}}
_BY_FAISS = ("faiss_kmeans", "superkmeans", "faiss_rq", "faiss_encode")
_ROUNDING = 1e-6
"""Errors closer than this share are equal: they are sums of float32 products."""


@dataclass(frozen=True)
class Growth:
    """A base of rows, dimension and clusters, and what each is multiplied by in turn."""

    rows: int
    dim: int
    clusters: int
    factors: tuple[float, ...] = (1, 2, 4, 8, 16)
    iterations: int = 5
    rounds: int = 3

    def sizes(self, varied: str) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Each size of ``n``, ``k`` or ``d`` in turn, and the rows, dimension and clusters that go with it."""
        for factor in self.factors:
            size = {"n": self.rows, "d": self.dim, "k": self.clusters}
            size[varied] = int(size[varied] * factor)
            yield size[varied], (size["n"], size["d"], size["k"])


@dataclass(frozen=True)
class Race:
    """Contestants on one data set: our task, and theirs by name; ``faiss`` is the environment of faiss's children. With
    ``may_fail`` a peer whose child fails is left out, and named with what it said."""

    folder: Path
    dataset: Dataset
    faiss: Mapping[str, str]
    iterations: int = 25
    seed: int = 0
    rounds: int = 3
    ours: str = "ours"
    peers: Mapping[str, str] = field(default_factory=lambda: FIT_PEERS)
    threads: int = THREADS
    may_fail: bool = False

    def fit(self) -> dict[str, Any]:
        """fit_time_ratio, and the seconds and errors behind it."""
        answers, failed = self._rounds((self.ours, *self.peers.values()))
        vectors = np.load(self.dataset.vectors, mmap_mode="r")
        errors = {task: squared_error(vectors, found[0]) for task, found in answers.items()}
        seconds = {task: median(found.numbers["seconds"] for found in runs) for task, runs in answers.items()}
        layers = len(self.dataset.sizes)
        ratios, until = {}, {}
        for name, task in self.peers.items():
            if task in failed:
                continue
            reached = [seconds_until(found.numbers["trace"], layers, errors[task]) for found in answers[self.ours]]
            times = [time for time in reached if time is not None]
            until[name] = median(times) if len(times) == len(reached) else None
            ratios[name] = None if until[name] is None else until[name] / seconds[task]
            progress(f"fit: ours at the error of {task} after {until[name]} s, {task} {seconds[task]:.2f} s")
        whole = variance(vectors)
        return {
            "fit_time_ratio": ratios,
            "fit": {
                "rows": len(vectors),
                "dim": vectors.shape[1],
                "sizes": list(self.dataset.sizes),
                "seconds": seconds,
                "seconds_until_peers_error": until,
                "error": {task: error / whole for task, error in errors.items()},
                **({"failed": failed} if self.may_fail else {}),
            },
        }

    def _rounds(self, tasks: Sequence[str]) -> tuple[dict[str, list[Answer]], dict[str, str]]:
        """Answers of each task, round by round; and of tasks that failed, if they may, what they said."""
        answers: dict[str, list[Answer]] = {task: [] for task in tasks}
        failed: dict[str, str] = {}
        for number in range(self.rounds):
            for task in (task for task in tasks if task not in failed):
                try:
                    answers[task].append(self._ask(task))
                except ChildFailed as error:
                    if not self.may_fail or task == self.ours:
                        raise
                    failed[task] = str(error)
                    progress(f"left out: {error}")
                    continue
                progress(f"fit, round {number + 1}: {task} {answers[task][-1].numbers['seconds']:.2f} s")
        return {task: found for task, found in answers.items() if task not in failed}, failed

    def encode(self) -> dict[str, Any]:
        """encode_time_ratio with our codebooks, and how many codes differ."""
        fitted = self._ask("ours")
        paths = [str(self.folder / f"codebook-{layer}.npy") for layer in range(len(self.dataset.sizes))]
        for path, codebook in zip(paths, fitted.codebooks, strict=True):
            np.save(path, codebook)
        tasks = ("ours_encode", "faiss_encode")
        rounds = [[self._ask(task, codebooks=paths) for task in tasks] for _ in range(self.rounds)]
        ours, theirs = rounds[0]
        difference = differences(np.load(self.dataset.vectors, mmap_mode="r"), fitted, ours, theirs)
        ours_seconds, faiss_seconds = (median(answer.numbers["seconds"] for answer in by) for by in zip(*rounds, strict=True))
        seconds = {"ours": ours_seconds, "faiss": faiss_seconds}
        progress(f"encode: {seconds}; {difference}; path: {ours.numbers['path']}")
        return {
            "encode_time_ratio": {"faiss": seconds["ours"] / seconds["faiss"]},
            "encode": {"seconds": seconds, "path": ours.numbers["path"], **difference},
        }

    def _ask(self, task: str, **told: Any) -> Answer:
        told = {**_TOLD.get(task, {}), **told}
        job = Job(task, str(self.dataset.vectors), self.dataset.sizes, self.iterations, self.seed, self.threads, told)
        return ask(job, self.folder, self.faiss if task in _BY_FAISS else None)


def growth(plan: Growth, folder: Path, seed: int) -> dict[str, Any]:
    """Exponent of one layer's cost in rows n, clusters k and dimension d, each varied alone.

    Medians of rounds that each go over all sizes: a minute in which the machine is slow falls on every size alike.
    """
    shapes = {(rows, dim) for name in "nkd" for _, (rows, dim, _) in plan.sizes(name)}
    made = {(rows, dim): clustered(folder, rows, dim, (1,), seed) for rows, dim in shapes}
    seconds = {name: {size: [0.0] * plan.rounds for size, _ in plan.sizes(name)} for name in ("n", "k", "d")}
    for number in range(plan.rounds):
        for name, by in seconds.items():
            for size, (rows, dim, clusters) in plan.sizes(name):
                job = Job("ours_growth", str(made[rows, dim].vectors), (clusters,), plan.iterations, seed)
                by[size][number] = ask(job, folder).numbers["seconds"]
            found = {size: times[number] for size, times in by.items()}
            progress(f"round {number + 1}, one layer's seconds by {name}: {found}")
    middle = {name: {size: median(times) for size, times in by.items()} for name, by in seconds.items()}
    return {
        "growth_exponent": {name: growth_exponent(list(by), list(by.values())) for name, by in middle.items()},
        "growth_seconds": {name: {str(size): value for size, value in by.items()} for name, by in middle.items()},
    }


def seconds_until(trace: Sequence[Sequence[float]], layers: int, error: float) -> float | None:
    """When the sum of squared errors after all layers was first at or below ``error``; None if never.

    Iterations of the last layer count, and the epochs of the refinement of all layers, which go by layer 0.
    """
    for seconds, layer, _, inertia in trace:
        if layer in (0, layers) and inertia <= error * (1 + _ROUNDING):
            return float(seconds)
    return None


def squared_error(vectors: npt.NDArray[Any], answer: Answer) -> float:
    """Sum of squared distances between vectors and what the answer's codes stand for."""
    codes, books = answer.arrays["codes"], answer.codebooks
    left = (left_by(block, codes[start:stop], books) for start, stop, block in blocks(ArrayRows(vectors)))
    return sum(float((block.astype(np.float64) ** 2).sum()) for block in left)


def variance(vectors: npt.NDArray[Any]) -> float:
    """Sum of squared distances from the mean."""
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    return sum(float(((block - mean) ** 2).sum()) for _, _, block in blocks(ArrayRows(vectors)))


def differences(vectors: npt.NDArray[Any], fitted: Answer, ours: Answer, theirs: Answer) -> dict[str, int]:
    """Rows whose codes differ, and at how many of these, by float64 at the first layer that differs, each is nearer."""
    one, other = np.asarray(ours.arrays["codes"]), np.asarray(theirs.arrays["codes"])
    rows = np.flatnonzero((one != other).any(axis=1))
    first = (one[rows] != other[rows]).argmax(axis=1)
    nearer = np.zeros(len(rows), np.int64)
    for place, (row, layer) in enumerate(zip(rows, first, strict=True)):
        left = left_by(vectors[row : row + 1].astype(np.float32), one[row : row + 1], fitted.codebooks[:layer])
        book = fitted.codebooks[layer].astype(np.float64)
        distances = ((left.astype(np.float64) - book[[one[row, layer], other[row, layer]]]) ** 2).sum(axis=1)
        nearer[place] = np.sign(distances[1] - distances[0])
    return {
        "rows": len(one),
        "different_codes": len(rows),
        "ours_nearer": int((nearer > 0).sum()),
        "faiss_nearer": int((nearer < 0).sum()),
    }
