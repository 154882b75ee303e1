"""Rows read block by block: Arrow columns as arrays, memory maps that are never loaded whole."""

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from tests.tokenization.vector_cases import matrix
from tokenization.kmeans import KMeans, cluster
from tokenization.rq_kmeans import RQKMeans
from tokenization.vectors import ArrayRows, ArrowRows, BadVectors, Extent, scaled


def column(vectors: np.ndarray, cuts: tuple[int, ...] = ()) -> pa.ChunkedArray:
    """The rows as fixed-size lists, in chunks that end at ``cuts``."""
    whole = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    edges = [0, *cuts, len(vectors)]
    return pa.chunked_array([whole.slice(a, b - a) for a, b in itertools.pairwise(edges)], type=whole.type)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    kind=st.sampled_from((np.float16, np.float32, np.float64)),
    data=st.data(),
)
def test_an_arrow_column_is_read_like_the_array(rows, cuts, kind, data):
    vectors = matrix("normal", rows, 3, 1).astype(kind)
    read = ArrowRows(column(vectors, tuple(sorted(min(cut, rows) for cut in cuts))))
    assert (read.n, read.dim) == (rows, 3)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    block = read.block(start, stop)
    assert block.dtype == np.float32
    assert (block == vectors[start:stop].astype(np.float32)).all()
    taken = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=5)) if rows else [], np.int64)
    assert (read.take(taken) == vectors[taken].astype(np.float32)).all()


def test_estimators_take_arrow_columns():
    vectors = matrix("normal", 300, 4, 2)
    arrow = column(vectors, (90, 91))
    assert (KMeans(7).fit(arrow).centroids_ == KMeans(7).fit(vectors).centroids_).all()
    model = RQKMeans(2, 5).fit(arrow)
    assert (model.codes_ == RQKMeans(2, 5).fit(vectors).codes_).all()
    assert (model.encode(arrow.chunk(1)) == model.codes_[90:91]).all()
    with pytest.raises(BadVectors, match="found 3 features; RQKMeans was trained on 4"):
        model.encode(column(vectors[:, :3].copy()))


def test_columns_that_are_no_vectors_are_refused():
    vectors = matrix("normal", 6, 2, 2)
    vectors[4, 1] = np.nan
    with pytest.raises(BadVectors, match="row 4"):
        KMeans(2).fit(column(vectors, (3,)))
    with pytest.raises(BadVectors, match="cast it to fixed_size_list"):
        KMeans(2).fit(pa.array([[1.0, 2.0]]))
    with pytest.raises(BadVectors, match="holds nulls"):
        KMeans(2).fit(pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)))
    for table in (pa.table([column(vectors)], ["vector"]), pa.record_batch([column(vectors).chunk(0)], ["vector"])):
        with pytest.raises(BadVectors, match=rf"found an Arrow {type(table).__name__}; give one column of it"):
            KMeans(2).fit(table)
    with pytest.raises(BadVectors, match="holds nulls"):
        KMeans(2).fit(pa.array([[1.0, None]], pa.list_(pa.float32(), 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [KMeans(12, iterations=2), RQKMeans(2, 12, iterations=2, refinements=2)], ids=["one", "layers"]
)
@pytest.mark.parametrize("form", ["numpy", "arrow"])
def test_a_memory_map_is_never_loaded_whole(
    tmp_path: Path, form: str, estimator: KMeans | RQKMeans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenization.vectors._BLOCK_VALUES", 2**18)
    monkeypatch.setattr("tokenization.vector_source._KEPT_VALUES", 0)
    rows, dim = 60_000, 64
    path = tmp_path / "vectors"
    if form == "numpy":
        written = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
        for start in range(0, rows, 5000):
            written[start : start + 5000] = matrix("normal", 5000, dim, start)
        del written
        mapped = np.load(path, mmap_mode="r")
    else:
        kind = pa.schema([("vector", pa.list_(pa.float32(), dim))])
        with pa.ipc.new_file(path, kind) as file:
            for start in range(0, rows, 5000):
                file.write_table(pa.table([column(matrix("normal", 5000, dim, start))], schema=kind))
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["vector"]
    clone(estimator).fit(matrix("normal", 50, dim, 0))  # compiles
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        estimator.fit(mapped)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < rows * dim * 4
    assert pa.total_allocated_bytes() == arrow_before


def test_training_asks_for_blocks_and_samples_only():
    vectors = matrix("normal", 50_000, 8, 3)
    asked = []

    class Watched(ArrayRows):
        def block(self, start, stop):
            asked.append(stop - start)
            return super().block(start, stop)

        def take(self, indices):
            asked.append(len(indices))
            return super().take(indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenization.vectors._BLOCK_VALUES", 2**14)
        cluster(Watched(vectors), 20, iterations=3)
    assert max(asked) == 8192  # the seeding sample
    assert sorted(set(asked))[-3] <= 2048


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(("normal", "huge", "tiny", "far from zero", "zeros")), cut=st.integers(1, 39), seed=st.integers(0, 99)
)
def test_scaled_rows_lie_near_one_whatever_the_blocks(kind, cut, seed):
    vectors = matrix(kind, 40, 3, seed)
    whole = Extent.of(ArrayRows(vectors))
    parts = [Extent.of(ArrayRows(part)) for part in (vectors[cut:], vectors[:cut])]
    merged = parts[0].merge(parts[1])
    assert (merged.low == vectors.min(axis=0)).all()
    assert (merged.high == whole.high).all()
    unit = scaled(ArrayRows(vectors), merged)
    largest = float(np.abs(unit.block(0, 40)).max())
    assert largest < 8
    assert kind == "zeros" or largest > 0.9
    back = unit.back(unit.block(0, 40))
    np.testing.assert_allclose(back, vectors, rtol=1e-5, atol=1e-5 / unit.scale)
