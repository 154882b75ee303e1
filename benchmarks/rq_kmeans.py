"""RQ-KMeans against faiss, scikit-learn and an RQ-VAE: error, entropy and collisions on the same vectors, time to the same error.

Every contestant takes all points, 25 iterations a layer (ours 10, and 15 epochs of all layers) and two threads, and runs in a
process of its own; faiss under the fastest BLAS kernel that computes right there, ours under whatever the process has. Fit
time, encode time and error of ours come from one configuration: the defaults.

* The real items' vectors need ``shared/data`` beside the checkout, or ``ONEREC_REAL_DATA``; without it that data set is left out.
* faiss's ``ResidualQuantizer`` is tried with each train type of the plan; at a million rows only with those that train on the
  best of the beam's residuals, since the others train on five times as many rows.
* The full run needs two free cores for two hours or more, most of it the peers' on a million vectors. ``--parts`` measures some
  of it, and ``--keep`` puts what it finds beside what was kept of the others, each part with its date and commit.
"""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, keep_result, kept_figures, options, progress, result_of, stamp
from benchmarks.rq_kmeans_data import Dataset, clustered, industrial, published, repeated_share, simulated
from benchmarks.rq_kmeans_gpu import gpu_figures
from benchmarks.rq_kmeans_kernels import choose_kernel
from benchmarks.rq_kmeans_quality import REFINED_TOP_BEAM, TOP_BEAM, TRAININGS, Contest, figures_of, score_published, show
from benchmarks.rq_kmeans_refresh import churn
from benchmarks.rq_kmeans_speed import Growth, Race, growth
from benchmarks.rq_kmeans_worker import THREADS

NAME = "rq_kmeans"
LAYERS = 3
PARTS = ("items", "clusters", "speed", "growth", "refresh", "gpu")
"""Contests on items' vectors, and on many clustered ones; times; how they grow; churn; and the card, where there is one."""


@dataclass(frozen=True)
class Plan:
    """Sizes of everything. ``race``, ``clusters`` and ``gpu`` are (rows, dim, codes a layer); ``codes`` is of the items' data."""

    codes: int
    items: int
    clusters: tuple[int, int, int]
    race: tuple[int, int, int]
    growth: Growth
    gpu: tuple[int, int, int]
    iterations: int = 25
    epochs: int = 200
    large_epochs: int = 15
    """Most epochs of the RQ-VAE on the items, and on the clustered vectors; ``stopped`` in the tables says if it converged. An
    epoch of a million rows takes most of a minute, and after fourteen its error is below ours: more would say nothing new."""
    rounds: int = 3
    descriptions: bool = True
    """Whether the items' descriptions are embedded too; titles alone take a tenth of the time."""
    large_trainings: tuple[tuple[str, ...], ...] = (TOP_BEAM, REFINED_TOP_BEAM)


FULL = Plan(256, 12_000, (1_000_000, 128, 256), (100_000, 128, 2048), Growth(25_000, 64, 256), (2_000_000, 512, 8192))
QUICK = Plan(
    64,
    1000,
    (15_000, 64, 64),
    (20_000, 64, 256),
    Growth(5_000, 32, 64, (1, 2, 4), 3, 1),
    (200_000, 128, 1024),
    epochs=15,
    large_epochs=10,
    descriptions=False,
    large_trainings=TRAININGS,
)


class Benchmark:
    """Measures a plan part by part; ``folder`` holds the vectors and the children's answers."""

    def __init__(self, plan: Plan, seed: int, folder: Path) -> None:
        self._plan, self._seed, self._folder = plan, seed, folder
        (folder / "answers").mkdir()
        self._work = folder / "answers"
        rows, dim, codes = plan.race
        self._race_data = clustered(folder, rows, dim, (codes,) * LAYERS, seed)
        self._environment, self._kernels = choose_kernel(str(self._race_data.vectors), self._work, THREADS)

    def measure(self, part: str) -> dict[str, Any]:
        """The figures of one of PARTS."""
        figures: dict[str, Any] = getattr(self, f"_{part}")()
        return figures

    def _items(self) -> dict[str, Any]:
        plan = self._plan
        sizes = (plan.codes,) * LAYERS
        datasets: list[Dataset] = [
            found for found in (industrial(self._folder, sizes, plan.descriptions), self._simulated) if found
        ]
        contest = Contest(self._work, self._environment, plan.iterations, self._seed, plan.epochs)
        others = {codes.name: score_published(codes) for codes in published()}
        for name, metrics in others.items():
            show("published", name, metrics)
        return self._tables(contest, datasets) | {"published": others}

    def _clusters(self) -> dict[str, Any]:
        plan, (rows, dim, codes) = self._plan, self._plan.clusters
        large = clustered(self._folder, rows, dim, (codes,) * LAYERS, self._seed)
        trainings = plan.large_trainings
        contest = Contest(self._work, self._environment, plan.iterations, self._seed, plan.large_epochs, trainings)
        return self._tables(contest, [large])

    def _tables(self, contest: Contest, datasets: list[Dataset]) -> dict[str, Any]:
        tables = {dataset.name: contest.run(dataset) for dataset in datasets}
        return {
            "kernels": {"faiss": self._kernels, "ours": next(iter(tables.values()))["ours"]["path"]},
            "repeated_vectors": {dataset.name: repeated_share(dataset) for dataset in datasets},
            "tables": tables,
        }

    def _speed(self) -> dict[str, Any]:
        plan = self._plan
        race = Race(self._work, self._race_data, self._environment, plan.iterations, self._seed, plan.rounds)
        return race.fit() | race.encode()

    def _growth(self) -> dict[str, Any]:
        return growth(self._plan.growth, self._folder, self._seed)

    def _refresh(self) -> dict[str, Any]:
        return churn(self._simulated, self._plan.iterations, self._seed)

    def _gpu(self) -> dict[str, Any]:
        return {"gpu": gpu_figures(self._plan.gpu, self._folder, self._work, self._seed, self._plan.rounds)}

    @cached_property
    def _simulated(self) -> Dataset:
        return simulated(self._folder, self._plan.items, (self._plan.codes,) * LAYERS, self._seed)


def together(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Figures of parts beside those of others: of a part that both have, the new ones."""
    merged = {name: before.get(name, {}) | new.get(name, {}) for name in ("tables", "repeated_vectors", "measured")}
    return before | new | merged | figures_of(merged["tables"])


def main(plan: Plan | None = None) -> None:
    """Measure and print."""
    chosen = options(__doc__ or "", parts=PARTS)
    packages = ["numpy", "scipy", "scikit-learn", "torch", *packages_distributions()["faiss"], "sentence-transformers"]
    figures = kept_figures(NAME) if chosen.keep else {}
    with tempfile.TemporaryDirectory(prefix="rq-kmeans-") as folder:
        benchmark = Benchmark(plan or (QUICK if chosen.quick else FULL), chosen.seed, Path(folder))
        for part in chosen.parts:
            figures = together(figures, benchmark.measure(part) | ({"measured": {part: stamp()}} if chosen.keep else {}))
            if chosen.keep:  # each part when it is there: all of them take hours
                keep_result(result_of(NAME, figures, packages))
    progress(f"fit_time_ratio {figures.get('fit_time_ratio')}, encode_time_ratio {figures.get('encode_time_ratio')}")
    finish(NAME, figures, packages, keep=chosen.keep)


if __name__ == "__main__":
    main()
