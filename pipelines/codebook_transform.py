"""The Beam side of train-codebook: one worker trains and publishes."""

import json
from pathlib import Path

import apache_beam as beam
import numpy as np

from pipelines.codebook_refresh import Previous, published_codes, train_from
from pipelines.work import WorkFolder, read_part
from schemas.config import CodebookSection
from schemas.registry import Registry
from tokenization.codebook import publish_codebook
from tokenization.metrics import codebook_metrics
from tokenization.modalities import vector_matrix
from tokenization.progress import progress_bar
from tokenization.vector_source import vectors_of
from tokenization.vectors import ArrayRows

PUBLISHED = "published"
"""The file of the work folder that names the version."""


class TrainCodebook(beam.DoFn):
    """Trains on a part (vector, category, tokens), publishes and writes the version to the file PUBLISHED; safe to try twice,
    since versions are content hashes.

    An element is the JSON of ``training`` and ``pairs`` (parts), ``section`` (configuration), ``metadata``, ``previous`` (the
    metadata of ``Previous``, whose codebooks lie in the work folder, or null) and ``progress_bar``, whether to draw one.
    """

    def __init__(self, registry: Path, work: WorkFolder) -> None:
        self._registry = registry
        self._work = work

    def process(self, element: str) -> None:
        """Train one codebook."""
        task = json.loads(element)
        section = CodebookSection.model_validate(task["section"])
        rows = read_part(task["training"])
        vectors = vector_matrix(rows["vector"])
        previous = Previous.load(self._work, task["previous"]) if task["previous"] else None
        layers = len(section.sizes)
        steps = section.iterations, layers, section.refinements, layers if section.balance else 0
        with progress_bar(*steps, enabled=task["progress_bar"]) as bar:
            published = published_codes(rows["tokens"], len(section.sizes))
            source = vectors_of(ArrayRows(vectors), max(section.sizes), section.backend)
            model, refresh = train_from(section, source, previous, published, bar)
        pairs = read_part(task["pairs"])
        metrics = codebook_metrics(
            model.codes_,
            section.sizes,
            vectors=vectors,
            decoded=[model.decode(model.codes_, layers) for layers in range(1, len(section.sizes) + 1)],
            labels=rows["category"].to_pylist(),
            pairs=np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()], axis=1),
        )
        artefact = publish_codebook(Registry(self._registry), model, task["metadata"] | {"metrics": metrics} | refresh)
        self._work.write_bytes(PUBLISHED, artefact.version.encode())
