"""The Beam side of fuse and tokenize: one part in, one part out, with a model that each worker loads once."""

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.work import WorkFolder, read_part
from schemas.errors import BadInput
from schemas.registry import Registry
from tokenization.assignment import Backend
from tokenization.codebook import load_codebook
from tokenization.encoders.base import KINDS
from tokenization.fusion_model import load_fusion
from tokenization.modalities import by_kind, presence, vector_matrix
from tokenization.spilling import spill
from tokenization.vectors import LARGEST, rows_beyond

_NAMED = 5
"""Items that a message names."""
_LISTED_VALUES = 2**30
"""Values of a piece of a list column, whose offsets have 32 bits."""

FUSED = pa.schema(
    [
        ("item_id", pa.string()),
        ("content_hash", pa.string()),
        ("presence_mask", pa.int32()),
        ("vector", pa.list_(pa.float32())),
    ]
)
CODED = pa.schema(
    [
        ("item_id", pa.string()),
        ("content_hash", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("residual_norm", pa.float32()),
    ]
)

SPILL = pa.schema(
    [
        ("row", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("residual_norm", pa.float32()),
        ("vector", pa.list_(pa.float32())),
        ("held", pa.int32()),
    ]
)
"""Items that leave their codes (``row`` stands for the item, in the order of the ids), and, where ``row`` is null, codes that
``held`` other items have. A part holds whole prefixes."""
SPILLED = pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.int32())), ("residual_norm", pa.float32())])


def map_parts(pipeline: Any, parts: list[str], work: beam.DoFn) -> None:
    """Build the pipeline that gives each part to a worker."""
    pipeline | "parts" >> beam.Create(parts) | "spread" >> beam.Reshuffle() | "work" >> beam.ParDo(work)


class FusePart(beam.DoFn):
    """Writes FUSED rows, stage ``fused``, for a part of fusion inputs."""

    def __init__(self, registry: Path, version: str, work: WorkFolder) -> None:
        self._registry = registry
        self._version = version
        self._work = work

    def setup(self) -> None:
        """Load the model, once a worker."""
        _, self._model = load_fusion(Registry(self._registry), self._version)

    def process(self, part: str) -> None:
        """Fuse one part."""
        rows = read_part(part)
        shape = self._model.shape
        present = presence(rows["presence_mask"].to_numpy(), shape.kinds, KINDS)
        fused = self._model.fuse(by_kind(rows, shape.inputs), present)
        vectors = _lists(fused, pa.float32())
        self._work.write_part(
            "fused", pa.table([rows["item_id"], rows["content_hash"], rows["presence_mask"], vectors], schema=FUSED)
        )


class EncodePart(beam.DoFn):
    """Writes CODED rows, stage ``coded``, for a part of ``rows`` fused vectors in all (item_id, content_hash, vector)."""

    def __init__(self, registry: Path, version: str, work: WorkFolder, rows: int, backend: Backend = "auto") -> None:
        self._registry = registry
        self._version = version
        self._work = work
        self._rows = rows
        self._backend = backend

    def setup(self) -> None:
        """Load the codebook, once a worker."""
        self._codebook = load_codebook(Registry(self._registry), self._version)
        self._encode = self._codebook.encoder(self._rows, self._backend)

    def process(self, part: str) -> None:
        """Encode one part."""
        rows = read_part(part)
        vectors = vector_matrix(rows["vector"], self._codebook.dim)
        bad = rows_beyond(vectors)
        if len(bad):
            named = ", ".join(rows["item_id"].take(pa.array(bad[:_NAMED])).to_pylist())
            more = " and more" if len(bad) > _NAMED else ""
            raise BadInput(
                f"item_vectors: fused vectors hold NaN, infinity or a number beyond {LARGEST:.0e}, of items {named}{more}; "
                "remove these rows and run `onerec fuse` again"
            )
        codes = self._encode(vectors)
        norms = self._codebook.residual_norms(vectors, codes)
        columns = [
            rows["item_id"],
            rows["content_hash"],
            int_lists(codes),
            pa.array(norms, pa.float32()),
        ]
        self._work.write_part("coded", pa.table(columns, schema=CODED))


class SpillPart(beam.DoFn):
    """Writes SPILLED rows, stage ``spilled``, for a part of SPILL rows: each item's new code, or its old one."""

    def __init__(self, registry: Path, version: str, work: WorkFolder, cap: int, max_error: float | None) -> None:
        self._registry = registry
        self._version = version
        self._work = work
        self._cap = cap
        self._max_error = max_error

    def setup(self) -> None:
        """Load the codebook, once a worker."""
        self._codebook = load_codebook(Registry(self._registry), self._version)

    def process(self, part: str) -> None:
        """Give the items of one part their codes."""
        rows = read_part(part)
        leaving, held = rows.filter(pc.is_valid(rows["row"])), rows.filter(pc.is_null(rows["row"]))
        vectors = vector_matrix(leaving["vector"], self._codebook.dim)
        numbers, norms = leaving["row"].to_numpy(), leaving["residual_norm"].to_numpy()
        codes = spill(
            vectors,
            *(self._codes(leaving), numbers, norms, self._codebook.codebooks),
            *(self._codes(held), held["held"].to_numpy(), self._cap, self._max_error),
        )
        found = self._codebook.residual_norms(vectors, codes)
        self._work.write_part("spilled", pa.table([leaving["row"], int_lists(codes), pa.array(found)], schema=SPILLED))

    def _codes(self, rows: pa.Table) -> np.ndarray:
        codes: np.ndarray = pc.list_flatten(rows["tokens"]).to_numpy().reshape(-1, len(self._codebook.sizes))
        return codes


def int_lists(matrix: np.ndarray) -> pa.ChunkedArray:
    """The rows of a matrix of whole numbers (n, width) as Arrow lists of int32."""
    return _lists(matrix.astype(np.int32), pa.int32())


def _lists(matrix: np.ndarray, kind: pa.DataType) -> pa.ChunkedArray:
    """The rows of a matrix (n, width) as Arrow lists, in as many pieces as their 32-bit offsets ask for."""
    rows = max(1, _LISTED_VALUES // matrix.shape[1])
    pieces = [matrix[start : start + rows] for start in range(0, len(matrix), rows)]
    return pa.chunked_array([_list_piece(piece, kind) for piece in pieces], type=pa.list_(kind))


def _list_piece(matrix: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(matrix).reshape(-1), kind))
