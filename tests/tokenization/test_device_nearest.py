"""The GPU's search, against float64: its kernel interpreted where there is no GPU, and compiled for one wherever Triton is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.gpu_cases import by_pytorch
from tests.tokenization.vector_cases import KINDS, matrices, matrix, nearly_equal_lengths, squared_distances
from tokenization.assignment import NearestCentroid
from tokenization.candidates import FINDERS
from tokenization.device_nearest import FusedFinder
from tokenization.scratch import Scratch

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="the fused kernel needs Triton, which PyTorch's CUDA builds for Linux bring")


def finder(centroids):
    squares = (centroids.astype(np.float64) ** 2).sum(axis=1)
    return FusedFinder(centroids, squares, "cuda" if ON_GPU else "cpu")


def found(centroids, rows):
    """Labels, −1 where the finder is not certain."""
    norms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
    candidates = finder(centroids)(rows, norms, Scratch())
    return np.where(candidates.counts == 1, candidates.kept[:, 0], -1)


def watched(monkeypatch):
    """Rows that each pass was asked about, filled in as they are."""
    asked = {}
    for name in ("_by_float16", "_by_float32", "_by_float64"):

        def passed(self, rows, *norms, name=name, whole=getattr(FusedFinder, name)):
            asked[name] = len(rows)
            return whole(self, rows, *norms)

        monkeypatch.setattr(FusedFinder, name, passed)
    return asked


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(vectors=matrices(), kind=st.sampled_from(KINDS), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_what_it_is_certain_of_is_the_one_nearest_centroid(vectors, kind, size, seed):
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    vectors, centroids = vectors[(norms > 1e-12) & (norms < 1e12)], matrix(kind, size, vectors.shape[1], seed)
    if not len(vectors) or not 1e-12 < np.sqrt((centroids.astype(np.float64) ** 2).sum(axis=1).max()) < 1e12:
        return
    labels = found(centroids, vectors)
    expected = squared_distances(vectors, centroids)
    certain = np.flatnonzero(labels >= 0)
    chosen = expected[certain, labels[certain]]
    others = np.where(np.arange(size) == labels[certain, None], np.inf, expected[certain])
    assert (chosen[:, None] < others).all()


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "size", "dim"), [(300, 200, 70), (129, 257, 128), (1, 1, 1)])
def test_rows_with_one_clearly_nearest_centroid_are_certain_whatever_the_sizes(monkeypatch, rows, size, dim):
    asked = watched(monkeypatch)
    vectors, centroids = matrix("normal", rows, dim, 1), matrix("normal", size, dim, 2)
    labels = found(centroids, vectors)
    assert (labels >= 0).mean() > 0.99
    assert asked.get("_by_float32", 0) <= 0.1 * rows, "float16 is enough for nearly all"
    assert (labels[labels >= 0] == squared_distances(vectors, centroids).argmin(axis=1)[labels >= 0]).all()


@pytest.mark.parametrize("scale", [1e-11, 1e-4, 1e6, 1e10])
def test_rows_and_centroids_of_any_size_fit_its_float16(monkeypatch, scale):
    asked = watched(monkeypatch)
    vectors, centroids = matrix("normal", 100, 24, 1) * np.float32(scale), matrix("normal", 50, 24, 2) * np.float32(scale)
    labels = found(centroids, vectors)
    assert (labels == squared_distances(vectors, centroids).argmin(axis=1)).all()
    assert asked.get("_by_float32", 0) <= 10


@pytest.mark.parametrize(
    ("apart", "passes"), [(2e-4, ["_by_float16", "_by_float32"]), (4e-7, ["_by_float16", "_by_float32", "_by_float64"])]
)
def test_what_one_pass_cannot_tell_the_next_can(monkeypatch, apart, passes):
    """Centroids that float16 rounds to the same numbers, or that three TF32 products cannot tell apart."""
    asked = watched(monkeypatch)
    direction = matrix("normal", 1, 32, 3)[0]
    centroids = np.stack([direction, direction * np.float32(1 + apart)])
    vectors = np.stack([direction * np.float32(0.5), direction * np.float32(2)])
    assert found(centroids, vectors).tolist() == [0, 1]
    assert asked == dict.fromkeys(passes, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "gap"), [(1024, 60), (4096, 250)])
def test_of_lengths_that_float64_cannot_tell_it_is_not_certain(dim, gap):
    row = np.eye(1, dim + 8, dim + 7, dtype=np.float32) * np.float32(1.5e-12)
    assert found(nearly_equal_lengths(dim, gap), row).tolist() == [-1]


def test_of_rows_so_long_that_their_distances_round_to_the_same_it_is_not_certain():
    vectors, centroids = matrix("normal", 50, 8, 1) * np.float32(1e11), matrix("normal", 2, 8, 2)
    vectors -= (vectors @ (between := centroids[0] - centroids[1]))[:, None] / (between @ between) * between  # on the bisector
    labels, exactly = found(centroids, vectors), squared_distances(vectors, centroids)
    certain = labels >= 0
    assert (exactly[certain, labels[certain]] < exactly[certain, 1 - labels[certain]]).all()
    assert not certain.all()


def test_equal_distances_are_nobodys():
    vectors = np.array([[0, 1], [3, 3]], np.float32)
    assert found(np.array([[1, 0], [-1, 0]], np.float32), vectors).tolist() == [-1, 0]


def test_the_search_decides_in_float64_what_is_not_certain(monkeypatch):
    """Lattices are full of ties, and of rows of norm 0."""
    monkeypatch.setitem(FINDERS, "torch", lambda centroids, _: finder(centroids))
    vectors, centroids = matrix("lattice", 200, 3, 1), matrix("lattice", 60, 3, 2)
    assert (NearestCentroid(centroids, "torch")(vectors) == squared_distances(vectors, centroids).argmin(axis=1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_the_kernel_compiles_for_tensor_cores(kind):
    """In a process of its own, where Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.tokenization.kernel_for_gpu", kind]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    kernel = json.loads(done.stdout)
    assert kernel["tensor_cores"]
    assert kernel["fetches_ahead"]
    assert kernel["shared_memory"] <= 227 * 1024, "a block's on an H100"


@pytest.mark.parametrize("dim", [1, 15, 16, 33])
def test_the_kernel_gets_as_many_features_as_it_can_read_at_once(monkeypatch, dim):
    from tokenization import nearest_triton

    widths = []

    def seen(rows, centroids, *others):
        widths.append((rows.shape[1] % 16, centroids.shape[1] % 16))
        return by_pytorch(rows, centroids, *others)

    monkeypatch.setattr(nearest_triton, "nearest_two", seen)
    vectors, centroids = matrix("normal", 60, dim, 1), matrix("normal", 9, dim, 2)
    centroids[1] = centroids[0] * np.float32(1 + 1e-4)  # float16 cannot tell these
    labels = found(centroids, vectors)
    assert len(widths) == 2
    assert set(widths) == {(0, 0)}
    assert (labels[labels >= 0] == squared_distances(vectors, centroids).argmin(axis=1)[labels >= 0]).all()
