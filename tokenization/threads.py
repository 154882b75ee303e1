"""How many threads work takes, and a matrix library for one operation."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


def threads_or_cores(threads: int | None) -> int:
    """``threads``; for None one for each core that this process may use. Raises ValueError below 1."""
    if threads is None:
        return len(os.sched_getaffinity(0))
    if threads < 1:
        raise ValueError(f"threads {threads}: must be at least 1 (None: one a core)")
    return threads


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit NumPy's BLAS to one thread while it lasts: for callers that have threads of their own.

    The libraries are looked for once a process, which takes 5 ms, as long as a small product. NumPy's is there by then.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limit NumPy's BLAS, and PyTorch if it is loaded, to one thread while it lasts: for pools whose threads multiply."""
    with one_blas_thread():
        if "torch" in sys.modules:
            with torch_threads(1):
                yield
        else:
            yield


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Limit PyTorch to so many threads while it lasts (None: leave it as it is).

    More threads than free cores make small operations many times slower, since each waits for all the others.
    """
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
