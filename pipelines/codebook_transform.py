"""The Beam side of train-codebook: one worker trains and publishes."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from pipelines.work import read_part
from schemas.config import CodebookSection
from schemas.registry import Registry
from tokenization.codebook import load_codebook, publish_codebook
from tokenization.metrics import codebook_metrics
from tokenization.modalities import vector_matrix
from tokenization.rq_kmeans import RQKMeans


class TrainCodebook(beam.DoFn):
    """Trains on a part (vector, category) and publishes the codebook; safe to try twice, since versions are content hashes.

    An element is the JSON of ``training`` and ``pairs`` (parts), ``section`` (configuration), ``metadata``, ``start_from``
    (codebook version or null) and ``progress_bar``, whether to draw one.
    """

    def __init__(self, registry: Path) -> None:
        self._registry = registry

    def process(self, task: str) -> None:
        """Train one codebook."""
        told = json.loads(task)
        section = CodebookSection.model_validate(told["section"])
        registry = Registry(self._registry)
        rows = read_part(told["training"])
        vectors = vector_matrix(rows["vector"])
        warm = start_codebooks(registry, told["start_from"], section.sizes, vectors.shape[1])
        model = new_model(section, warm).set_params(verbose=told["progress_bar"])
        with warnings.catch_warnings():
            # Of tokens that stay empty: the metrics count them, and the gate judges.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(vectors)
        codes = model.encode(vectors)
        pairs = read_part(told["pairs"])
        metrics = codebook_metrics(
            codes,
            section.sizes,
            vectors=vectors,
            decoded=[model.decode(codes, layers) for layers in range(1, len(section.sizes) + 1)],
            labels=rows["category"].to_pylist(),
            pairs=np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()], axis=1),
        )
        metadata = told["metadata"] | {"metrics": metrics, "warm_started_from": told["start_from"] if warm else None}
        publish_codebook(registry, model, metadata)


def new_model(section: CodebookSection, warm: list[Any] | None) -> RQKMeans:
    """The model that the configuration asks for, not yet fitted."""
    return RQKMeans(
        n_layers=len(section.sizes),
        codebook_size=section.sizes,
        iterations=section.iterations,
        seed=section.seed,
        backend=section.backend,
        warm_start_codebooks=warm,
    )


def start_codebooks(registry: Registry, version: str | None, sizes: Sequence[int], dim: int) -> list[Any] | None:
    """The layers of the previous codebook, to start from, or None where it has other sizes or another dimension."""
    if version is None:
        return None
    previous = load_codebook(registry, version)
    return previous.codebooks if tuple(previous.sizes) == tuple(sizes) and previous.dim == dim else None
