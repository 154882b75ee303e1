"""Limits of a library's threads hold inside and are lifted afterwards."""

import os
from threading import Thread

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from tokenization.kmeans import KMeans
from tokenization.threads import one_blas_thread, one_thread_each, threads_or_cores


def blas_threads() -> set[int]:
    """Of NumPy's BLAS."""
    return {library["num_threads"] for library in threadpool_info() if "numpy" in library["filepath"]}


@pytest.fixture(autouse=True)
def two_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


def test_threads_are_as_told_or_one_for_each_core_of_the_process():
    assert threads_or_cores(3) == 3
    assert threads_or_cores(None) == len(os.sched_getaffinity(0))
    for threads in (0, -1):
        with pytest.raises(ValueError, match=rf"threads {threads}: must be at least 1"):
            KMeans(2, n_threads=threads).fit(np.eye(4))


def test_a_failure_inside_lifts_the_limit():
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        _ = 1 // 0
    assert blas_threads() == {2}


def test_threads_of_a_pool_that_multiply_by_pytorch_take_one_thread_each():
    found = []
    with one_thread_each():
        thread = Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert blas_threads() == {1}
    assert found == [1]
    assert torch.get_num_threads() == 2
