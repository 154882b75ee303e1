"""Exact training: Lloyd's steps summed by a pipeline give, bit for bit, the codebook of one machine."""

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from pipelines import exact_sums, exact_training
from pipelines.exact_sums import MergeSums
from pipelines.exact_training import PartedVectors
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import WorkFolder
from tests.tokenization.vector_cases import matrix
from tokenization import neighbours
from tokenization.cluster_sums import ClusterSums, fraction_bits
from tokenization.rq_kmeans import RQKMeans

RETRYING = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
ROWS, DIM = 700, 6


def parted(folder: Path, vectors: np.ndarray, part_rows: int, runner: str = LOCAL, options: Any = ()) -> PartedVectors:
    work = WorkFolder(folder.as_uri())
    values = pa.array(list(vectors), pa.list_(pa.float32()))
    parts = work.write_parts("vectors", pa.table({"vector": values}), part_rows)
    return PartedVectors(work, parts, part_rows, *vectors.shape, lambda: open_pipeline(runner, options))


def same(one: RQKMeans, other: RQKMeans) -> None:
    for mine, theirs in zip(one.codebooks_, other.codebooks_, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert (one.codes_ == other.codes_).all()
    assert (one.inertia_, one.n_iter_, one.n_refinements_) == (other.inertia_, other.n_iter_, other.n_refinements_)


def model(**more: Any) -> RQKMeans:
    return RQKMeans(**({"n_layers": 2, "codebook_size": (9, 7), "iterations": 2, "refinements": 1, "seed": 4} | more))


@pytest.mark.slow
@pytest.mark.parametrize(("part_rows", "layers"), [(97, 2), (256, 1)])
def test_parts_of_any_size_give_the_codebook_of_one_machine(tmp_path: Path, part_rows: int, layers: int) -> None:
    vectors = matrix("normal", ROWS, DIM, 1)
    heard: list[Any] = []
    how = {"n_layers": layers, "codebook_size": (9, 7)[:layers], "refinements": 5}  # all but the last charge for crowds
    found = model(**how).fit_source(parted(tmp_path, vectors, part_rows), callback=heard.append)
    same(found, model(**how).fit(vectors))
    assert [(one.layer, one.iteration) for one in heard] == [
        *((layer, iteration) for layer in range(1, layers + 1) for iteration in (1, 2)),
        *([(0, epoch) for epoch in range(1, 6)] if layers > 1 else []),
    ]


@pytest.mark.slow
def test_the_labels_of_the_step_before_go_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "WORTH_IT", 32)
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 4)
    vectors = matrix("normal", ROWS, DIM, 2)
    layers = {"n_layers": 1, "codebook_size": 40, "iterations": 7, "tolerance": 0.0}
    found = model(**layers).fit_source(parted(tmp_path, vectors, 200))
    near = model(**layers).fit(vectors)
    same(found, near)
    assert found.n_iter_ == [7], "two full steps, five among neighbours"
    monkeypatch.setattr(neighbours, "WORTH_IT", 100)
    assert model(**layers).fit(vectors).inertia_ != near.inertia_, "the case is not trivial"


@pytest.mark.slow
def test_empty_clusters_are_repaired_alike(tmp_path: Path) -> None:
    vectors = matrix("duplicates", 300, DIM, 3)
    far = np.full((4, DIM), 50, np.float32)
    first, second = np.concatenate([vectors[:5], far]), np.concatenate([vectors[:3] * 0.1, far])
    clustered = {"n_layers": 1, "codebook_size": 9, "warm_start_codebooks": [first]}
    for started in (clustered, {"warm_start_codebooks": [first, second], "iterations": 1}):
        repairs: list[int] = []
        source = parted(tmp_path / str(len(started)), vectors, 70)
        found = model(**started).fit_source(source, callback=lambda one, heard=repairs: heard.append(one.repaired))
        assert started is not clustered or sum(repairs) >= 4
        same(found, model(**started).fit(vectors))
        assert [len(np.unique(layer)) for layer in found.codes_.T] == [len(book) for book in found.codebooks_]


@pytest.fixture
def few_neighbours(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of a small model whose steps look at neighbours, and so leave labels to each other."""
    monkeypatch.setattr(neighbours, "WORTH_IT", 32)
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 4)
    return {"codebook_size": 40, "iterations": 3, "tolerance": 0.0}


@pytest.mark.slow
def test_a_bundle_that_fails_and_is_tried_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_neighbours: dict[str, Any]
) -> None:
    """Each part of each job fails once: what it reads is still there then, the labels of the step before, too."""
    whole, failed = exact_sums.SumPart.process, set()

    def failing(self: Any, element: str, address: str) -> Any:
        found = list(whole(self, element, address))  # its files are written
        if (self._job, element) not in failed:
            failed.add((self._job, element))
            raise RuntimeError("this worker was lost")
        yield from found

    vectors = matrix("normal", 400, DIM, 5)
    with monkeypatch.context() as patch:
        patch.setattr(exact_sums.SumPart, "process", failing)
        found = model(**few_neighbours).fit_source(parted(tmp_path, vectors, 160, RETRYING))
    same(found, model(**few_neighbours).fit(vectors))
    assert {job.operation for job, _ in failed} == {"extent", "step", "assign", "take", "encode"}
    assert any(job.last for job, _ in failed), "some steps look at neighbours"


@pytest.mark.slow
def test_what_jobs_leave_in_the_work_folder_goes_when_nobody_reads_it_any_more(
    tmp_path: Path, few_neighbours: dict[str, Any]
) -> None:
    heard: list[tuple[int, list[str]]] = []

    def look(done: Any) -> None:
        files = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()]
        kinds = {"labels" if parts[0] == "labels" else parts[-1] for parts in files if parts[0] != "vectors"}
        heard.append((done.layer, sorted(kinds)))
        assert len({parts[1] for parts in files if parts[0] == "labels"}) == 1, "those of one step"
        assert sum(parts[-1] == "codes" for parts in files) <= 1, "those of one layer"

    model(**few_neighbours, n_layers=3).fit_source(parted(tmp_path, matrix("normal", 400, DIM, 9), 160), callback=look)
    layers = [one for one in heard if one[0]]
    assert layers == [(1, ["labels"])] * 3 + [(layer, ["codes", "labels"]) for layer in (2, 2, 2, 3, 3, 3)]
    assert {tuple(kinds) for layer, kinds in heard if not layer} == {("codes", "labels")}


@pytest.mark.slow
def test_workers_that_merge_sums_before_the_last_one_does_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = beam.CombineGlobally.with_fanout, set()

    def with_fanout(self: Any, fanout: int) -> Any:
        asked.add(fanout)
        return whole(self, fanout)

    monkeypatch.setattr(beam.CombineGlobally, "with_fanout", with_fanout)
    monkeypatch.setattr(exact_training, "FANOUT", 2)  # one would merge nothing before
    vectors = matrix("normal", ROWS, DIM, 8)
    found = model().fit_source(parted(tmp_path, vectors, 97))
    same(found, model().fit(vectors))
    assert asked == {2}, "there are more than four parts"


def test_sums_merge_in_any_order_and_leave_what_they_merge() -> None:
    vectors, centroids = matrix("normal", 90, 3, 6), matrix("normal", 4, 3, 7)
    parts = []
    for start in range(0, 90, 30):
        sums = ClusterSums.none(4, 3, fraction_bits(90))
        block = vectors[start : start + 30]
        labels = ((block[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        sums.add(block, labels, centroids, start)
        parts.append(sums)
    before = parts[0].to_arrays()["sums"].copy()
    merge = MergeSums()
    forward = merge.merge_accumulators([merge.add_input(None, parts[0]), None, merge.merge_accumulators(parts[1:])])
    backward = merge.merge_accumulators(reversed(parts))
    assert (parts[0].sums == before).all()
    for name, array in forward.to_arrays().items():
        assert (array == backward.to_arrays()[name]).all()
    assert ClusterSums.from_arrays(forward.to_arrays()).inertia == forward.inertia
    assert merge.merge_accumulators([None, merge.create_accumulator()]) is None
