"""Limits of a library's threads hold inside and are lifted afterwards."""

from threading import Thread

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from tokenization.threads import one_blas_thread, one_thread_each


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
