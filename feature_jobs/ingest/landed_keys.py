"""Keys of a landing's own items, in a file that the tasks of a host map: a closure would carry them to every task."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow.fs as pafs

from schemas.lake import damage_named, filesystem_of, write_atomically


@dataclass(frozen=True)
class LandedKeys:
    """``stable_key`` of items in a ``.npy`` file (int64, sorted)."""

    uri: str

    @staticmethod
    def write(uri: str, keys: np.ndarray) -> "LandedKeys":
        """Write keys (int64, any order) to a new file."""
        content = io.BytesIO()
        np.save(content, np.sort(keys))
        write_atomically(uri, content.getvalue())
        return LandedKeys(uri)

    def keys(self) -> np.ndarray:
        """The keys, mapped where the lake is mounted, else read once a process."""
        return _opened(self.uri)


@lru_cache(maxsize=1)
def _opened(uri: str) -> np.ndarray:
    filesystem, path = filesystem_of(uri)
    with damage_named(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            mapped: np.ndarray = np.load(path, mmap_mode="r")
            return mapped
        with filesystem.open_input_stream(path) as stream:
            read: np.ndarray = np.load(io.BytesIO(stream.read()))
            return read
