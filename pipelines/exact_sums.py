"""The Beam side of exact training: a part of vectors in, its exact sums out, merged in any order by a CombineFn.

Elements are addresses of parts. What a job needs beside them is small or by token (centroids, codebooks): arrays in one file,
whose address is a side input and which a worker reads once. What it gives by row (labels, codes, vectors asked for) goes to files
named by the part, so a bundle that is tried twice writes the same bytes twice.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from pipelines.work import WorkFolder, read_part
from tokenization.assignment import Backend
from tokenization.kmeans import LocalSource
from tokenization.modalities import vector_matrix
from tokenization.vector_source import LocalVectors
from tokenization.vectors import ArrayRows, Extent, FloatArray, ScaledRows


@dataclass(frozen=True)
class Job:
    """One pass over the vectors: ``operation`` is extent, step, assign, encode or take; ``codes``, the file of the codes
    of the layers before (``layers`` of them); ``last``, the folder of the rows' labels of the step before;
    ``output``, the folder of what comes out by row."""

    operation: str
    rows: int
    dim: int
    backend: Backend
    layers: int = 0
    codes: str | None = None
    last: str | None = None
    output: str | None = None


class SumPart(beam.DoFn):
    """Sums of a part. An element is the JSON of ``uri`` and ``first_row``; the side input, the address of the arrays."""

    def __init__(self, job: Job, work: WorkFolder) -> None:
        self._job = job
        self._work = work
        self._arrays: tuple[str, dict[str, npt.NDArray[Any]]] | None = None

    def process(self, element: str, address: str) -> Iterator[Any]:
        """Read a part and sum it."""
        part, arrays = json.loads(element), self._read(address)
        vectors = vector_matrix(read_part(part["uri"])["vector"], self._job.dim)
        result = getattr(self, f"_{self._job.operation}")(part, vectors, arrays)
        if result is not None:
            yield result

    def _read(self, address: str) -> dict[str, npt.NDArray[Any]]:
        if self._arrays is None or self._arrays[0] != address:
            self._arrays = address, self._work.read_arrays(address)
        return self._arrays[1]

    def _residuals(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> LocalSource:
        job, first = self._job, part["first_row"]
        codes = np.empty((len(vectors), 0), np.uint16)
        if job.codes:
            width = 2 * job.layers
            values = self._work.read_bytes(job.codes, first * width, len(vectors) * width)
            codes = np.frombuffer(values, np.uint16).reshape(-1, job.layers)
        return self._vectors(first, vectors).residuals(_layers(arrays, "codebook"), codes)

    def _vectors(self, first_row: int, vectors: FloatArray) -> LocalVectors:
        return LocalVectors(ArrayRows(vectors), self._job.backend, None, first_row, self._job.rows)

    def _extent(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> Extent:
        return self._residuals(part, vectors, arrays).extent()

    def _step(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> Any:
        source = self._residuals(part, vectors, arrays)
        if self._job.last:
            source.last.labels = self._work.read_arrays(f"{self._job.last}/{_name(part)}")["values"]
        sums = source.step(_unit(source, arrays), arrays["centroids"], arrays.get("neighbours"))
        if self._job.output:
            self._put(part, source.last.labels)
        return sums

    def _assign(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> Any:
        sums, labels = self._residuals(part, vectors, arrays).assign(arrays["centroids"])
        self._put(part, labels)
        return sums

    def _encode(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> Any:
        source = self._vectors(part["first_row"], vectors)
        sums, codes = source.encode(_unit(source, arrays), _layers(arrays, "codebook"), _layers(arrays, "charge") or None)
        self._put(part, codes)
        return sums

    def _take(self, part: dict[str, Any], vectors: FloatArray, arrays: dict[str, Any]) -> None:
        first = part["first_row"]
        low, high = np.searchsorted(arrays["wanted"], [first, first + len(vectors)])
        self._put(part, vectors[arrays["wanted"][low:high] - first])

    def _put(self, part: dict[str, Any], values: npt.NDArray[Any]) -> None:
        self._work.write_arrays(f"{self._job.output}/{_name(part)}", {"values": values})


class MergeSums(beam.CombineFn):
    """Merges exact sums, which gives the same in any order; None stands for no rows."""

    def create_accumulator(self) -> Any:
        """Of no rows."""
        return None

    def add_input(self, mutable_accumulator: Any, element: Any, *_: Any, **__: Any) -> Any:
        """Add the sums of a part."""
        # Merging grows in place: an element must stay as it is, since a bundle that is tried again reads it again.
        return copy.deepcopy(element) if mutable_accumulator is None else mutable_accumulator.merge(element)

    def merge_accumulators(self, accumulators: Any, *_: Any, **__: Any) -> Any:
        """Add up."""
        total = None
        for one in accumulators:
            total = total if one is None else self.add_input(total, one)
        return total

    def extract_output(self, accumulator: Any, *_: Any, **__: Any) -> Any:
        """The sums of all rows."""
        return accumulator


class WriteSums(beam.DoFn):
    """Writes merged sums where the driver reads them."""

    def __init__(self, work: WorkFolder, uri: str) -> None:
        self._work = work
        self._uri = uri

    def process(self, sums: Any) -> None:
        """Write one result."""
        if sums is not None:
            self._work.write_arrays(self._uri, sums.to_arrays())


def part_file(folder: str, first_row: int) -> str:
    """The file of what a part gave by row."""
    return f"{folder}/{first_row:012d}.npz"


def _name(part: dict[str, Any]) -> str:
    return part_file("", part["first_row"])[1:]


def _layers(arrays: dict[str, npt.NDArray[Any]], name: str) -> list[npt.NDArray[Any]]:
    """The arrays of that name, by layer."""
    return [arrays[f"{name}_{layer}"] for layer in range(sum(one.startswith(f"{name}_") for one in arrays))]


def _unit(rows: Any, arrays: dict[str, npt.NDArray[Any]]) -> ScaledRows:
    return ScaledRows(rows, float(arrays["scale"]), arrays["shift"])
