"""Vectors in parts whose sums a pipeline adds up: what ``RQKMeans.fit_source`` trains on past one machine's memory.

Every sum is one Beam job (``pipelines.exact_sums``); between two of them the driver moves the centroids. It holds codes
(two bytes an item and layer) and labels, never vectors but those it asks for: a seeding sample, rows to repair with.

What a job reads or writes in the work folder goes once nobody reads it any more, and never before the job is done: a bundle may
be tried again as long. So beside the vectors there are, at most, the codes of the layers before, and the labels of two steps.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.exact_sums import Job, MergeSums, SumPart, WriteSums, part_file
from pipelines.work import WorkFolder, read_part
from tokenization.assignment import Backend
from tokenization.cluster_sums import ClusterSums
from tokenization.modalities import vector_matrix
from tokenization.neighbours import worth_it
from tokenization.residual import Codes, left_by
from tokenization.vector_source import Charges, CodedSums
from tokenization.vectors import Extent, FloatArray, ScaledRows

FANOUT = 8
"""Workers that merge the sums of very many parts before the last one does."""


@dataclass(frozen=True)
class PartedVectors:
    """Vectors (n, dim) of parts (column ``vector``), in order, that hold ``part_rows`` rows each, and the last one the rest.

    ``open_job`` gives a Beam pipeline that runs when its ``with`` block ends. ``latest``: the residuals asked for last, or none.
    """

    work: WorkFolder
    parts: Sequence[str]
    part_rows: int
    n: int
    dim: int
    open_job: Callable[[], Any]
    backend: Backend = "auto"
    latest: list["PartedResiduals"] = field(default_factory=list, compare=False, repr=False)

    def extent(self) -> Extent:
        """Of all vectors."""
        return PartedResiduals(self, (), np.empty((self.n, 0), np.uint16)).extent()

    def residuals(self, codebooks: Sequence[FloatArray], codes: Codes) -> "PartedResiduals":
        """What the first layers left. Layers are trained one after the other: residuals asked for before cannot be used again."""
        for one in self.latest:
            one.remove_files()
        self.latest[:] = [PartedResiduals(self, tuple(codebooks), codes[:, : len(codebooks)])]
        return self.latest[0]

    def encode(
        self, unit: ScaledRows, codebooks: Sequence[FloatArray], charges: Charges | None = None
    ) -> tuple[CodedSums, Codes]:
        """Greedy codes and their sums."""
        output = self.work.fresh("codes")
        charged = {f"charge_{layer}": charge for layer, charge in enumerate(charges or ())}
        arrays = self.run(self.job("encode", output=output), _named(codebooks) | charged | _unit(unit))
        return CodedSums.from_arrays(arrays), self.collected(output).astype(np.uint16)

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop``, read by the driver."""
        first, last = start // self.part_rows, -(-stop // self.part_rows)
        found = np.concatenate(
            [np.empty((0, self.dim), np.float32)]
            + [vector_matrix(read_part(part)["vector"], self.dim) for part in self.parts[first:last]]
        )
        return found[start - first * self.part_rows : stop - first * self.part_rows]

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """The rows at ``indices``, fetched by the workers."""
        wanted, place = np.unique(indices, return_inverse=True)
        if not len(wanted):
            return np.empty((0, self.dim), np.float32)
        output = self.work.fresh("rows")
        numbers = np.unique(wanted // self.part_rows).tolist()
        self.run(self.job("take", output=output), {"wanted": wanted}, numbers)
        taken: FloatArray = self.collected(output, numbers)[place]
        return taken

    def job(self, operation: str, **more: Any) -> Job:
        """A pass over these vectors."""
        return Job(operation, self.n, self.dim, self.backend, **more)

    def run(
        self, job: Job, arrays: dict[str, npt.NDArray[Any]], numbers: Sequence[int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a job over the parts (or those of some ``numbers``); returns the arrays of the merged sums, if it sums."""
        import apache_beam as beam

        address, result = self.work.fresh("arrays"), self.work.fresh("sums")
        self.work.write_arrays(address, arrays)
        chosen = range(len(self.parts)) if numbers is None else numbers
        elements = [json.dumps({"uri": self.parts[one], "first_row": one * self.part_rows}) for one in chosen]
        with self.open_job() as pipeline:
            side_input = beam.pvalue.AsSingleton(pipeline | "arrays" >> beam.Create([address]))
            sums = (
                pipeline
                | "parts" >> beam.Create(elements)
                | "spread" >> beam.Reshuffle()
                | "sum" >> beam.ParDo(SumPart(job, self.work), side_input)
            )
            if job.operation != "take":
                merge = beam.CombineGlobally(MergeSums()).without_defaults()
                merged = sums | "merge" >> (merge.with_fanout(FANOUT) if len(elements) > FANOUT**2 else merge)
                merged | "write" >> beam.ParDo(WriteSums(self.work, result))
        found = self.work.read_arrays(result) if job.operation != "take" else {}
        self.work.remove(address)
        self.work.remove(result)
        return found

    def collected(self, folder: str, numbers: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """What the parts of a job that is done wrote by row, in order; their folder is removed."""
        chosen = range(len(self.parts)) if numbers is None else numbers
        files = [part_file(folder, one * self.part_rows) for one in chosen]
        found = np.concatenate([self.work.read_arrays(file)["values"] for file in files])
        self.work.remove(folder)
        return found


@dataclass(frozen=True)
class PartedResiduals:
    """What the first layers left of parted vectors (``lloyd.Source``): recomputed by the workers from the codes so far."""

    vectors: PartedVectors
    codebooks: tuple[FloatArray, ...]
    codes: Codes
    folder: str = field(default_factory=lambda: uuid.uuid4().hex)
    last: list[str] = field(default_factory=list)
    """One folder, that of the labels of the last step, or none."""

    def __post_init__(self) -> None:
        """Write the codes where the workers read their part of them."""
        if self.codebooks:
            self.vectors.work.write_bytes(self._codes_file(), np.ascontiguousarray(self.codes, np.uint16).tobytes())

    @property
    def n(self) -> int:
        """Rows."""
        return self.vectors.n

    @property
    def dim(self) -> int:
        """Columns."""
        return self.vectors.dim

    def block(self, start: int, stop: int) -> FloatArray:
        """Residuals of rows ``start`` to ``stop``, read by the driver."""
        return left_by(self.vectors.block(start, stop), self.codes[start:stop], self.codebooks)

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Residuals of the rows at ``indices``, fetched by the workers."""
        return left_by(self.vectors.take(indices), self.codes[indices], self.codebooks)

    def extent(self) -> Extent:
        """Of all rows."""
        return Extent(**self.vectors.run(self._job("extent"), _named(self.codebooks)))

    def step(self, unit: ScaledRows, centroids: FloatArray, neighbours: npt.NDArray[np.int32] | None = None) -> ClusterSums:
        """Of all rows, in scaled units."""
        arrays = _named(self.codebooks) | _unit(unit) | {"centroids": centroids}
        last = None
        if neighbours is not None:
            arrays["neighbours"], last = neighbours, self.last[-1]
        output = self.vectors.work.fresh("labels") if worth_it(len(centroids), self.n) else None
        sums = self.vectors.run(self._job("step", last=last, output=output), arrays)
        self._remove_last()
        self.last[:] = [output] if output else []
        return ClusterSums.from_arrays(sums)

    def assign(self, centroids: FloatArray) -> tuple[ClusterSums, npt.NDArray[np.int32]]:
        """Of all rows, in their own units; and their labels."""
        output = self.vectors.work.fresh("labels")
        arrays = _named(self.codebooks) | {"centroids": centroids}
        sums = ClusterSums.from_arrays(self.vectors.run(self._job("assign", output=output), arrays))
        return sums, self.vectors.collected(output)

    def remove_files(self) -> None:
        """Remove what the workers read of these residuals, which are used no more."""
        self._remove_last()
        self.vectors.work.remove(self.folder)

    def _remove_last(self) -> None:
        for folder in self.last:
            self.vectors.work.remove(folder)
        self.last.clear()

    def _job(self, operation: str, **more: Any) -> Job:
        codes = self._codes_file() if self.codebooks else None
        return self.vectors.job(operation, layers=len(self.codebooks), codes=codes, **more)

    def _codes_file(self) -> str:
        return f"{self.folder}/codes"


def _named(codebooks: Sequence[FloatArray]) -> dict[str, npt.NDArray[Any]]:
    return {f"codebook_{layer}": codebook for layer, codebook in enumerate(codebooks)}


def _unit(unit: ScaledRows) -> dict[str, npt.NDArray[Any]]:
    return {"scale": np.array(unit.scale), "shift": unit.shift}
