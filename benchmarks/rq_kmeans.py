"""RQ-KMeans against faiss, scikit-learn and an RQ-VAE: error, entropy and collisions on the same vectors, time to the same error.

Every contestant takes all points, 25 iterations a layer (ours 10, and 15 epochs of all layers) and two threads, and runs in a
process of its own; faiss under the fastest BLAS kernel that computes right there, ours under whatever the process has. Fit
time, encode time and error of ours come from one configuration: the defaults.

* The real items' vectors need ``shared/data`` beside the checkout, or ``ONEREC_REAL_DATA``; without it that data set is left out.
* faiss's ``ResidualQuantizer`` is tried with each train type of the plan; at a million rows only with those that train on the
  best of the beam's residuals, since the others train on five times as many rows.
* The full run needs two free cores for the better part of an hour, most of it the peers' on a million vectors.
"""

import argparse
import tempfile
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, options, progress
from benchmarks.rq_kmeans_data import Dataset, clustered, industrial, published, repeated_share, simulated
from benchmarks.rq_kmeans_gpu import gpu_figures
from benchmarks.rq_kmeans_kernels import choose_kernel
from benchmarks.rq_kmeans_quality import REFINED_TOP_BEAM, TOP_BEAM, TRAININGS, Contest, figures_of, score_published, show
from benchmarks.rq_kmeans_refresh import churn
from benchmarks.rq_kmeans_speed import Growth, Race, growth
from benchmarks.rq_kmeans_worker import THREADS

LAYERS = 3


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
    large_epochs: int = 40
    """Most epochs of the RQ-VAE on the items, and on the clustered vectors; ``stopped`` in the tables says if it converged."""
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
    Growth(5_000, 32, 64, (1, 2, 4), 3),
    (200_000, 128, 1024),
    epochs=15,
    large_epochs=10,
    descriptions=False,
    large_trainings=TRAININGS,
)


def measure(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """All figures of the plan; ``folder`` holds the vectors and the children's answers."""
    sizes = (plan.codes,) * LAYERS
    rows, dim, codes = plan.race
    race_data = clustered(folder, rows, dim, (codes,) * LAYERS, seed)
    (work := folder / "answers").mkdir()
    environment, kernels = choose_kernel(str(race_data.vectors), work, THREADS)

    rows, dim, codes = plan.clusters
    large = clustered(folder, rows, dim, (codes,) * LAYERS, seed)
    items = simulated(folder, plan.items, sizes, seed)
    datasets: list[Dataset] = [found for found in (industrial(folder, sizes, plan.descriptions), items) if found]
    contest = Contest(work, environment, plan.iterations, seed, plan.epochs)
    tables = {dataset.name: contest.run(dataset) for dataset in datasets}
    contest = Contest(work, environment, plan.iterations, seed, plan.large_epochs, plan.large_trainings)
    tables[large.name] = contest.run(large)
    others = {codes.name: score_published(codes) for codes in published()}
    for name, metrics in others.items():
        show("published", name, metrics)

    race = Race(work, race_data, environment, plan.iterations, seed, plan.rounds)
    return (
        figures_of(tables)
        | race.fit()
        | race.encode()
        | growth(plan.growth, folder, seed)
        | churn(items, plan.iterations, seed)
        | {
            "kernels": {"faiss": kernels, "ours": next(iter(tables.values()))["ours"]["path"]},
            "gpu": gpu_figures(plan.gpu, folder, work, seed, plan.rounds),
            "repeated_vectors": {dataset.name: repeated_share(dataset) for dataset in (*datasets, large)},
            "tables": tables,
            "published": others,
        }
    )


def main(plan: Plan | None = None) -> None:
    """Measure and print."""
    chosen: argparse.Namespace = options(__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="rq-kmeans-") as name:
        figures = measure(plan or (QUICK if chosen.quick else FULL), chosen.seed, Path(name))
    progress(f"fit_time_ratio {figures['fit_time_ratio']}, encode_time_ratio {figures['encode_time_ratio']}")
    packages = ["numpy", "scipy", "scikit-learn", "torch", *packages_distributions()["faiss"], "sentence-transformers"]
    finish("rq_kmeans", figures, packages, keep=chosen.keep)


if __name__ == "__main__":
    main()
