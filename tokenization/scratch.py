"""Memory for blocks of scores that is used again, block after block.

Fresh memory is handed out page by page, at its first touch; for the scores of a block that takes longer than the products do.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


class Scratch:
    """Arrays by name, with whatever their last user left in them; of one thread at a time."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, Any], npt.NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """An array of that shape, which lasts until the name is asked for again."""
        size, key = prod(shape), (name, dtype)
        if key not in self._flat or len(self._flat[key]) < size:
            self._flat[key] = np.empty(size, dtype)
        return self._flat[key][:size].reshape(shape)


_idle: deque[Scratch] = deque()


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Memory that is this caller's while it lasts; as many are kept as were ever in use at once."""
    try:
        lent = _idle.pop()
    except IndexError:
        lent = Scratch()
    try:
        yield lent
    finally:
        _idle.append(lent)
