"""Spark's Python daemon, importing pyspark from the environment instead of from the archives that Spark puts before it.

A worker clears Python's import caches before every task, and each archive on its path (``pyspark.zip``, the jar of Spark's
core) then reads its directory again, once a package: a tenth of a second of processor time a task, more than most tasks
of a small lake take. From a folder the same costs nothing. Spark starts this module where ``spark.python.daemon.module`` says.

Its workers keep the memory that a task has freed for the next one: handing it back and asking for it again costs a page
fault for each 4 KiB, on virtual machines several microseconds, in all a sixth of the work of a bucket. Spark ends a worker
that was idle for a minute, and its memory with it.
"""

import contextlib
import ctypes
import os
import re
import sys

_ARCHIVE = re.compile(r"/(python/lib/[^/]+\.zip|jars/[^/]+\.jar)(/|\Z)")


def forget_archives() -> None:
    """Take Spark's archives off the module search path, and what was learnt of them."""
    sys.path[:] = [entry for entry in sys.path if not _ARCHIVE.search(entry)]
    for entry in [entry for entry in sys.path_importer_cache if _ARCHIVE.search(entry)]:
        del sys.path_importer_cache[entry]


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt``."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell the allocators of NumPy (glibc's) and Arrow (mimalloc) to keep what is freed; before either is loaded.

    A ``MIMALLOC_PURGE_DELAY`` that is set already stays. Another C library than glibc is left as it is.
    """
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        glibc.mallopt(_TRIM_THRESHOLD, _NEVER)


def main() -> None:
    """Run Spark's daemon."""
    forget_archives()
    keep_freed_memory()
    from pyspark.daemon import manager

    manager()


if __name__ == "__main__":
    main()
