"""The GPU's contestants: on PyTorch's CPU device, with stand-ins for the packages, where there is no GPU or they are absent."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from benchmarks import rq_kmeans_gpu, rq_kmeans_speed
from benchmarks.rq_kmeans_data import clustered
from benchmarks.rq_kmeans_gpu import absent_peers, gpu_figures
from benchmarks.rq_kmeans_speed import Race
from benchmarks.rq_kmeans_worker import TASKS, Answer, ChildFailed, Job, with_codebooks
from tests.tokenization.gpu_cases import by_pytorch
from tests.tokenization.vector_cases import matrix, squared_distances
from tokenization import device_vectors, nearest_triton
from tokenization.residual import decode
from tokenization.rq_kmeans import RQKMeans

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture
def vectors(monkeypatch):
    """200 vectors, and a card that is PyTorch's CPU device where there is none."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(rq_kmeans_gpu, "DEVICE", "cpu")
        monkeypatch.setattr(rq_kmeans_gpu, "_CEILING", 64)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(device_vectors, "device_for", lambda *_: "cpu")
        monkeypatch.setattr(nearest_triton, "nearest_two", by_pytorch)
    return matrix("normal", 200, 8, 1)


def job(task, **told):
    return Job(task, "", (8, 8), iterations=3, options=told)


def assert_nearest(vectors, answer):
    """Each layer's codes are the nearest of what the layers before left."""
    left = vectors.copy()
    for layer, codebook in enumerate(answer.codebooks):
        assert (answer.arrays["codes"][:, layer] == squared_distances(left, codebook).argmin(axis=1)).all()
        left -= codebook[answer.arrays["codes"][:, layer]]


def test_every_task_of_the_gpu_is_a_function_that_is_there():
    names = {task for tasks in rq_kmeans_gpu.PEERS.values() for task in tasks} | {"ours_gpu", "gpu_assignment"}
    for name in names:
        module, _, function = TASKS[name].partition(":")
        assert callable(getattr(sys.modules[module], function))


@WITHOUT_GPU
def test_without_a_gpu_every_peer_is_named_as_absent(tmp_path):
    assert gpu_figures((100, 4, 8), tmp_path, tmp_path, 0, 1) == {"absent": absent_peers()}
    assert absent_peers() == dict.fromkeys(["flash-kmeans", "fastkmeans", "faiss-gpu"], "no CUDA device")
    assert not list(tmp_path.iterdir())


def test_with_a_gpu_a_peer_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    why = absent_peers()
    assert why["flash-kmeans"] == "not installed: pip install flash-kmeans"
    assert why["fastkmeans"] == "not installed: pip install fastkmeans"


def answered(job, *_):
    """What a child would answer: all codes 0, but for the tasks whose name says that they break."""
    if "breaks" in job.task:
        raise ChildFailed(f"{job.task}: exit 1: out of memory")
    codebooks = [np.zeros((4, 4), np.float32)] * 2
    return Answer({"seconds": 2.0, "trace": [[1.0, 2, 1, 0.0]]}, with_codebooks(codebooks, codes=np.zeros((50, 2), np.uint16)))


def test_a_peer_that_fails_on_the_card_is_left_out_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(rq_kmeans_speed, "ask", answered)
    data = clustered(tmp_path, 50, 4, (4, 4), 0)
    told = {"iterations": 2, "rounds": 2, "ours": "ours_gpu", "peers": {"one": "one", "other": "other_breaks"}}
    found = Race(tmp_path, data, {}, may_fail=True, **told).fit()
    assert found["fit_time_ratio"] == {"one": 0.5}
    assert found["fit"]["failed"] == {"other_breaks": "other_breaks: exit 1: out of memory"}
    with pytest.raises(ChildFailed):
        Race(tmp_path, data, {}, **told).fit()
    with pytest.raises(ChildFailed):
        Race(tmp_path, data, {}, may_fail=True, **told | {"ours": "ours_breaks"}).fit()


def test_where_ours_fails_on_the_card_the_other_figures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(rq_kmeans_gpu, "absent_peers", dict)
    monkeypatch.setattr(rq_kmeans_gpu, "ask", lambda *_: answered(job("ours_breaks")))
    told = gpu_figures((50, 4, 4), tmp_path, tmp_path, 0, 1)
    assert told == {"absent": {}, "card": "a card", "failed": "ours_breaks: exit 1: out of memory"}


@pytest.mark.slow
def test_ours_trains_on_the_card(vectors):
    answer = rq_kmeans_gpu.ours(vectors, job("ours_gpu"))
    assert_nearest(vectors, answer)
    assert answer.numbers["trace"][-1][1] == 0, "refined, as by default"
    plain = rq_kmeans_gpu.ours(vectors, job("ours_gpu", refinements=0))
    assert [step[1] for step in plain.numbers["trace"]] == [1, 1, 1, 2, 2, 2], "every iteration of every layer"
    error = np.square(vectors - decode(plain.arrays["codes"], plain.codebooks)).sum()
    assert error <= RQKMeans(2, 8, iterations=3, refinements=0).fit(vectors).inertia_[-1] * 1.1


def test_the_assignment_is_compared_with_the_cards_ceiling(vectors):
    told = rq_kmeans_gpu.assignment(vectors, job("gpu_assignment")).numbers
    assert told["per_second"] == pytest.approx(2 * 200 * 8 * 8 / told["seconds"])
    assert told["share_of_ceiling"] == pytest.approx(told["per_second"] / told["ceiling_bf16"])


@pytest.mark.parametrize(("task", "dtype"), [("flash_kmeans", torch.float32), ("flash_kmeans_half", torch.float16)])
def test_flash_kmeans_trains_layer_by_layer(vectors, monkeypatch, task, dtype):
    made = []

    class FlashKMeans:
        def __init__(self, d, k, niter, tol, seed, dtype):
            made.append((d, k, niter, tol, seed, dtype))

        def train(self, rows):
            _, k, _, _, seed, dtype = made[-1]
            self.centroids_b = rows[None, seed * k : (seed + 1) * k].clone().to(dtype)

        def predict(self, rows):
            return torch.cdist(rows, self.centroids_b[0].float()).argmin(1)

    monkeypatch.setitem(sys.modules, "flash_kmeans", types.SimpleNamespace(FlashKMeans=FlashKMeans))
    answer = getattr(rq_kmeans_gpu, task)(vectors, job(task))
    assert_nearest(vectors, answer)
    assert made[1:] == [(8, 8, 3, -1.0, layer, dtype) for layer in range(2)]


def test_fastkmeans_trains_layer_by_layer(vectors, monkeypatch):
    made = []

    class FastKMeans:
        def __init__(self, d, k, niter, tol=1.0, seed=0):
            made.append((d, k, niter, tol, seed))
            self.places = slice(seed * k, (seed + 1) * k)

        def train(self, rows):
            self.centroids = rows[self.places].copy()

        def predict(self, rows):
            return squared_distances(rows, self.centroids).argmin(axis=1)

    monkeypatch.setitem(sys.modules, "fastkmeans", types.SimpleNamespace(FastKMeans=FastKMeans))
    assert_nearest(vectors, rq_kmeans_gpu.fastkmeans(vectors, job("fastkmeans")))
    assert made[1:] == [(8, 8, 3, -1.0, layer) for layer in range(2)]
