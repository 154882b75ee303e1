"""Errors, entropies and collisions of every contestant on the same vectors, scored by ``tokenization.metrics``.

Greedy codes are compared with greedy codes and a beam of 5 with a beam of 5, always ours from one fit. Where a peer has
several trainings (faiss's seedings, faiss's train types) each runs: the one of least error counts, but entropies are compared
with the highest of any of them, which that one need not have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from benchmarks.rq_kmeans_data import Dataset, PublishedCodes
from benchmarks.rq_kmeans_worker import Answer, Job, ask
from tokenization.metrics import codebook_metrics
from tokenization.residual import decode

BEAM = 5
OURS, OURS_BEAM = "ours", f"ours_beam{BEAM}"
GREEDY_PEERS = ("faiss_kmeans", "faiss_rq_beam1", "sklearn_minibatch", "rq_vae")
BEAM_PEERS = (f"faiss_rq_beam{BEAM}",)
PEERS = (*GREEDY_PEERS, *BEAM_PEERS)
SEEDINGS = ("RANDOM", "KMEANS_PLUS_PLUS")
PROGRESSIVE = ("Train_progressive_dim",)
REFINED = ("Train_default", "Train_refine_codebook")
PROGRESSIVE_REFINED = (*PROGRESSIVE, "Train_refine_codebook")
TOP_BEAM = ("Train_default", "Train_top_beam")
REFINED_TOP_BEAM = (*PROGRESSIVE_REFINED, "Train_top_beam")
TRAININGS = (PROGRESSIVE, PROGRESSIVE_REFINED, REFINED)
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """How the contestants run: ``faiss`` is the environment of faiss's children, ``rq_trainings`` the train types tried."""

    folder: Path
    faiss: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 25
    seed: int = 0
    epochs: int = 200
    rq_trainings: tuple[tuple[str, ...], ...] = TRAININGS

    def run(self, dataset: Dataset) -> dict[str, Metrics]:
        """Metrics of every contestant, ours first."""
        ours = self._ask("ours", dataset, beam=BEAM)
        table = {OURS: score(dataset, ours), OURS_BEAM: score(dataset, ours, "codes_beam")}
        table[OURS]["path"] = ours.numbers["path"]
        for name in (OURS, OURS_BEAM):
            show(dataset.name, name, table[name])
        entries: dict[str, list[Callable[[], Answer]]] = {
            "faiss_kmeans": [lambda init=init: self._ask("faiss_kmeans", dataset, init=init) for init in SEEDINGS],
            "faiss_rq_beam1": [lambda flags=flags: self._rq(dataset, 1, flags) for flags in self.rq_trainings],
            f"faiss_rq_beam{BEAM}": [lambda flags=flags: self._rq(dataset, BEAM, flags) for flags in self.rq_trainings],
            "sklearn_minibatch": [lambda: self._ask("sklearn_minibatch", dataset)],
            "rq_vae": [lambda: self._ask("rq_vae", dataset, epochs=self.epochs)],
        }
        for name, trainings in entries.items():
            table[name] = of_trainings([score(dataset, train()) for train in trainings])
            show(dataset.name, name, table[name])
        return table

    def _rq(self, dataset: Dataset, beam: int, flags: tuple[str, ...]) -> Answer:
        return self._ask("faiss_rq", dataset, beam=beam, train_type=list(flags))

    def _ask(self, task: str, dataset: Dataset, **told: Any) -> Answer:
        job = Job(task, str(dataset.vectors), dataset.sizes, self.iterations, self.seed, options=told)
        return ask(job, self.folder, self.faiss if task.startswith("faiss") else None)


def of_trainings(found: list[Metrics]) -> Metrics:
    """Metrics of the training of least error, and beside them the errors of all and their entropies, a list by layer each."""
    best = min(found, key=lambda metrics: float(metrics["reconstruction_error"]))
    return best | {
        "errors_of_trainings": [metrics["reconstruction_error"] for metrics in found],
        "entropies_of_trainings": [_layers(metrics, "entropy").tolist() for metrics in found],
    }


def score(dataset: Dataset, answer: Answer, codes: str = "codes") -> Metrics:
    """Metrics of an answer's codes; the seconds and other numbers of its fit are beside them."""
    vectors = np.load(dataset.vectors, mmap_mode="r")
    tokens = np.asarray(answer.arrays[codes])
    decoded: Any = answer.arrays.get("decoded")
    if decoded is None:
        books = [np.asarray(codebook) for codebook in answer.codebooks]
        decoded = [decode(tokens, books, depth) for depth in range(1, len(books) + 1)]
    metrics = codebook_metrics(tokens, dataset.sizes, vectors, decoded, dataset.labels, dataset.pairs)
    return metrics | {"fit": {name: value for name, value in answer.numbers.items() if name not in ("trace", "path")}}


def score_published(codes: PublishedCodes) -> Metrics:
    """Metrics of published codes: no vectors are published with them, so no error."""
    return codebook_metrics(codes.codes, codes.sizes, labels=codes.labels, pairs=codes.pairs)


def show(dataset: str, name: str, metrics: Metrics) -> None:
    """One line of the table."""
    error = metrics.get("reconstruction_error")
    layers = metrics["layers"]
    progress(
        f"{dataset:>12} {name:>28}  error {'   –   ' if error is None else f'{error:.5f}'}"
        f"  used {_each(layers, 'utilization')}  entropy ratio {_each(layers, 'entropy_ratio')}"
        f"  gini {_each(layers, 'gini')}  collisions {metrics['collision_share']:.3f}  largest {metrics['largest_bucket']}"
    )


def _each(layers: list[Metrics], name: str) -> str:
    return " ".join(f"{layer[name]:.3f}" for layer in layers)


def figures_of(tables: Mapping[str, dict[str, Metrics]]) -> dict[str, Any]:
    """The figures of DESIGN §9 that are about quality, by dataset.

    ``entropy_margin`` is the mean entropy of our layers less the highest that any training of any peer has, in nats: greedy codes
    against greedy codes, a beam of 5 against a beam of 5, and the smaller margin counts. ``entropy_margin_layers`` has it layer
    by layer, each against the training that is best there.
    """
    return {
        "error_ratio": {name: error_ratios(table) for name, table in tables.items()},
        "utilization": {name: _layers(table[OURS], "utilization").tolist() for name, table in tables.items()},
        "entropy_ratio": {name: _layers(table[OURS], "entropy_ratio").tolist() for name, table in tables.items()},
        "entropy_margin": {name: min(_margins(table, lambda row: row.mean(keepdims=True))) for name, table in tables.items()},
        "entropy_margin_layers": {name: _margins(table, lambda row: row) for name, table in tables.items()},
        "collision_share": {
            name: {contestant: metrics["collision_share"] for contestant, metrics in table.items()}
            for name, table in tables.items()
        },
    }


def error_ratios(table: Mapping[str, Metrics]) -> dict[str, float]:
    """Our error ÷ the peer's, at the peer's beam."""
    return {
        peer: table[OURS_BEAM if peer in BEAM_PEERS else OURS]["reconstruction_error"] / table[peer]["reconstruction_error"]
        for peer in PEERS
    }


def _margins(table: Mapping[str, Metrics], of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> list[float]:
    """Our entropies less the highest of all trainings of all peers, after ``of`` them, the smaller of the two beams."""
    margins = [
        of(_layers(table[ours], "entropy"))
        - np.max([of(np.array(found)) for peer in peers for found in table[peer]["entropies_of_trainings"]], axis=0)
        for ours, peers in ((OURS, GREEDY_PEERS), (OURS_BEAM, BEAM_PEERS))
    ]
    smaller: list[float] = np.min(margins, axis=0).tolist()
    return smaller


def _layers(metrics: Metrics, name: str) -> npt.NDArray[np.float64]:
    return np.array([layer[name] for layer in metrics["layers"]], np.float64)
