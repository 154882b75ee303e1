"""What a codebook training takes over from the codebook before it, and how much of it is left afterwards (DESIGN §4).

The previous codebook is that of the live token set, which is what models know, or before the first token set the newest one.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.exceptions import ConvergenceWarning

from pipelines.fused_inputs import quoted
from pipelines.work import WorkFolder
from schemas.config import CodebookSection
from schemas.registry import Registry
from tokenization import residual
from tokenization.codebook import Codebook, load_codebook
from tokenization.inspection import churn
from tokenization.lloyd import Callback
from tokenization.modalities import vector_matrix
from tokenization.refresh import match_tokens, renumbered, rotation
from tokenization.residual import Codes
from tokenization.rq_kmeans import RQKMeans
from tokenization.vector_source import VectorSource
from tokenization.vectors import FloatArray, scaled

ROTATION_ROWS = 65_536
"""Unchanged items that the turn between two fused spaces is found from."""
_TINY = 1e-12
"""Errors below are rounding, of vectors that the codebook holds exactly."""
_FILE = "start/codebooks.npz"


@dataclass(frozen=True)
class Previous:
    """The codebook before, for a training of the same sizes.

    ``codebooks``: its layers in the space of the new vectors, to start from, or None where the spaces have too little in common:
    then tokens are only matched. ``metadata``: what the new codebook's say of it, its ``version``, ``rotation_error`` and
    ``rotation_loss`` (None where nothing was turned).
    """

    codebooks: list[FloatArray] | None
    metadata: dict[str, Any]

    def save(self, work: WorkFolder) -> None:
        """For the worker that trains."""
        layers = {f"layer_{number}": layer for number, layer in enumerate(self.codebooks or [])}
        work.write_arrays(_FILE, layers)

    @classmethod
    def load(cls, work: WorkFolder, metadata: dict[str, Any]) -> "Previous":
        """Of ``save``."""
        layers = work.read_arrays(_FILE)
        return cls([layers[f"layer_{number}"] for number in range(len(layers))] or None, metadata)


def find_previous(
    connection: duckdb.DuckDBPyConnection,
    registry: Registry,
    version: str | None,
    fusion_version: str,
    dim: int,
    section: CodebookSection,
) -> Previous | None:
    """The previous codebook, turned into the space of ``fusion_version`` (table ``vectors``); None without one of these sizes.

    Raises BadInput where it is damaged.
    """
    if version is None:
        return None
    codebook = load_codebook(registry, version)
    if tuple(codebook.sizes) != tuple(section.sizes):
        return None
    metadata = {"version": version, "rotation_error": None, "rotation_loss": None}
    if section.start == "scratch":
        return Previous(None, metadata)
    if codebook.metadata.get("fusion_version") == fusion_version:
        return Previous(codebook.codebooks if codebook.dim == dim else None, metadata)
    return _turned(connection, codebook, fusion_version, dim, section, metadata)


def _turned(
    connection: duckdb.DuckDBPyConnection,
    codebook: Codebook,
    fusion_version: str,
    dim: int,
    section: CodebookSection,
    metadata: dict[str, Any],
) -> Previous:
    of_before = codebook.metadata.get("fusion_version")
    if codebook.dim != dim or not of_before:
        return Previous(None, metadata)
    fused = "SELECT item_id, content_hash, vector FROM vectors WHERE kind = 'fused' AND source ="
    old, new = f"{fused} {quoted(of_before)}", f"{fused} {quoted(fusion_version)}"
    both = connection.sql(
        f"SELECT o.vector AS before, n.vector AS after FROM ({old}) o JOIN ({new}) n USING (item_id, content_hash) "
        f"ORDER BY md5(item_id) LIMIT {ROTATION_ROWS}"
    ).to_arrow_table()
    if both.num_rows < dim:
        return Previous(None, metadata)
    before, after = vector_matrix(both["before"]), vector_matrix(both["after"])
    turn = rotation(before, after)
    turned = turn(codebook.codebooks)
    loss = _error(after, turned) / max(_error(before, codebook.codebooks), _TINY) - 1
    metadata = metadata | {"rotation_error": turn.error, "rotation_loss": loss}
    return Previous(turned if loss <= section.max_rotation_loss else None, metadata)


def _error(vectors: FloatArray, codebooks: Sequence[FloatArray]) -> float:
    """Sum of squared residuals, relative to the vectors' variance."""
    left = residual.residual_norms(vectors, residual.encode(vectors, codebooks), codebooks).astype(np.float64)
    return float((left**2).mean() / max(vectors.var(axis=0, dtype=np.float64).sum(), _TINY))


def published_codes(tokens: pa.ChunkedArray, layers: int) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """Codes (n, layers) uint16 that items have in the lake, and bool (n,), which of them have any.

    ``tokens`` is a list of ``layers`` a row, null for a new or changed item.
    """
    known = tokens.is_valid().to_numpy()
    codes = np.zeros((len(tokens), layers), np.uint16)
    if known.any():
        codes[known] = vector_matrix(tokens.drop_null())
    return codes, known


def train_from(
    section: CodebookSection,
    source: VectorSource,
    previous: Previous | None,
    published: tuple[Codes, npt.NDArray[np.bool_]],
    callback: Callback | None,
) -> tuple[RQKMeans, dict[str, Any]]:
    """The model fitted as the configuration asks, and what to tell of its start: ``refresh`` in the codebook's metadata.

    Churn there is the share of unchanged items (those with published codes) whose nearest tokens are other than those that the
    lake has for them, which collisions may have spread.
    """
    if previous is None:
        return _fitted(new_model(section), source, callback), {"warm_started_from": None, "refresh": None}
    codes, known = published
    start = previous.codebooks
    bounded = start is not None and known.any()  # without unchanged items there is nothing to keep
    model = new_model(section).set_params(warm_start_codebooks=start, max_churn=section.max_churn if bounded else None)
    _fitted(model, source, callback, known)
    if start is None:
        _match(model, source, codes, known)
    refresh = previous.metadata | {
        "start": "matched" if start is None else "previous" if previous.metadata["rotation_error"] is None else "rotated",
        "share_of_the_way": model.refresh_.share if model.refresh_ else None,
        "churn": churn(codes[known], model.codes_[known]),
        "churn_cold": None,
    }
    if section.report_cold_churn:
        cold = model if start is None else _match(_fitted(new_model(section), source, callback), source, codes, known)
        refresh["churn_cold"] = churn(codes[known], cold.codes_[known])
        refresh["inertia_cold"] = cold.inertia_[-1]
    return model, {"warm_started_from": previous.metadata["version"] if start else None, "refresh": refresh}


def _fitted(
    model: RQKMeans, source: VectorSource, callback: Callback | None, unchanged: npt.NDArray[np.bool_] | None = None
) -> RQKMeans:
    """The model, fitted; its codes and inertia are of the nearest tokens, which items will get, also where training bounded
    clusters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of tokens that stay empty: the metrics count them, the gate judges
        model.fit_source(source, unchanged=unchanged, callback=callback)
    return model if model.balance is None else _encoded(model, source)


def _encoded(model: RQKMeans, source: VectorSource) -> RQKMeans:
    """The model with the codes and inertia that its codebooks give the vectors."""
    sums, model.codes_ = source.encode(scaled(source, source.extent()), model.codebooks_)
    model.inertia_ = [layer.distance for layer in sums.layers]
    return model


def new_model(section: CodebookSection) -> RQKMeans:
    """The model that the configuration asks for, not yet fitted."""
    return RQKMeans(
        n_layers=len(section.sizes),
        codebook_size=section.sizes,
        iterations=section.iterations,
        seed=section.seed,
        backend=section.backend,
        refinements=section.refinements,
        evenness=section.evenness,
        balance=section.balance,
    )


def _match(model: RQKMeans, source: VectorSource, codes: Codes, known: npt.NDArray[np.bool_]) -> RQKMeans:
    """Tokens of the model renumbered to be those of ``codes`` as far as they can."""
    if not known.any():
        return model
    sizes: Sequence[int] = [len(codebook) for codebook in model.codebooks_]
    numbers = match_tokens(codes[known], model.codes_[known], sizes)
    model.codebooks_, _ = renumbered(model.codebooks_, model.codes_, numbers)
    return _encoded(model, source)  # a row as near to two centroids has the first of them, which may be the other one now
