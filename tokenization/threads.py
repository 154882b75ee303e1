"""How many threads PyTorch takes for one operation."""

from collections.abc import Iterator
from contextlib import contextmanager


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
