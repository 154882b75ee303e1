"""``codebook.training: exact``: a codebook of every fused vector, by sums over a pipeline (docs/decisions/exact-training.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.codebook_refresh import Previous, published_codes, train_from
from pipelines.exact_training import PartedVectors
from pipelines.runner import open_pipeline
from pipelines.work import WorkFolder
from schemas.config import CodebookSection
from schemas.registry import Registry
from tokenization.codebook import publish_codebook
from tokenization.lloyd import Iteration
from tokenization.metrics import codebook_metrics
from tokenization.rq_kmeans import RQKMeans
from tokenization.vectors import scaled

PART_VALUES = 2**23
"""Numbers in a part: 32 MiB, what a worker holds of the vectors at a time."""


@dataclass(frozen=True)
class ExactTraining:
    """What an exact training needs beside the vectors; the runner and its options as for every step."""

    registry: Registry
    work: WorkFolder
    section: CodebookSection
    previous: Previous | None
    runner: str
    options: Sequence[str]
    progress: Callable[[str], None]

    def publish(
        self,
        vectors: pa.RecordBatchReader,
        size: tuple[int, int],
        categories: Sequence[str | None],
        tokens: pa.ChunkedArray,
        pairs: npt.NDArray[np.int64],
        metadata: dict[str, Any],
    ) -> str:
        """Train on ``vectors`` (column ``vector``; ``size`` is (n, dim)) and publish, which is the first trace in the registry.

        ``categories`` (n,) and ``pairs`` (m, 2) row numbers are for the metrics, ``tokens`` (n,) those of unchanged items.
        Returns the version.
        """
        n, dim = size
        part_rows = max(1, PART_VALUES // dim)
        parts = self.work.write_parts("vectors", vectors, part_rows)
        backend = self.section.backend
        source = PartedVectors(self.work, parts, part_rows, n, dim, lambda: open_pipeline(self.runner, self.options), backend)
        published = published_codes(tokens, len(self.section.sizes))
        model, refresh = train_from(self.section, source, self.previous, published, self._tell)
        metrics = codebook_metrics(model.codes_, self.section.sizes, labels=categories, pairs=pairs)
        _add_errors(metrics, model, total_variance(source))
        return publish_codebook(self.registry, model, metadata | {"metrics": metrics} | refresh).version

    def _tell(self, done: Iteration) -> None:
        where = f"layer {done.layer}, iteration" if done.layer else "refinement"
        moved = f", {done.repaired} empty tokens moved" if done.repaired else ""
        self.progress(f"train-codebook: {where} {done.iteration} of {done.iterations}, inertia {done.inertia:.6g}{moved}")


def total_variance(source: PartedVectors) -> float:
    """Sum of squared distances from the mean."""
    rows = source.residuals((), np.empty((source.n, 0), np.uint16))
    unit = scaled(source, source.extent())
    start = np.zeros((1, source.dim), np.float32)
    mean = unit.back(rows.step(unit, start).means(start))
    return rows.assign(mean)[0].distance


def _add_errors(metrics: dict[str, Any], model: RQKMeans, variance: float) -> None:
    """The reconstruction errors that ``codebook_metrics`` finds where it has the vectors."""
    for prefix, inertia in zip(metrics["prefixes"], model.inertia_, strict=True):
        prefix["reconstruction_error"] = inertia / variance if variance else None
    metrics["reconstruction_error"] = metrics["prefixes"][-1]["reconstruction_error"]
