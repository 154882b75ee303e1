"""Spark's Python daemon, importing pyspark from the environment instead of from the archives that Spark puts before it.

A worker clears Python's import caches before every task, and each archive on its path (``pyspark.zip``, the jar of Spark's
core) then reads its directory again, once a package: a tenth of a second of processor time a task, more than most tasks
of a small lake take. From a folder the same costs nothing. Spark starts this module where ``spark.python.daemon.module`` says.
"""

import re
import sys

_ARCHIVE = re.compile(r"/(python/lib/[^/]+\.zip|jars/[^/]+\.jar)(/|\Z)")


def forget_archives() -> None:
    """Take Spark's archives off the module search path, and what was learnt of them."""
    sys.path[:] = [entry for entry in sys.path if not _ARCHIVE.search(entry)]
    for entry in [entry for entry in sys.path_importer_cache if _ARCHIVE.search(entry)]:
        del sys.path_importer_cache[entry]


def main() -> None:
    """Run Spark's daemon."""
    forget_archives()
    from pyspark.daemon import manager

    manager()


if __name__ == "__main__":
    main()
