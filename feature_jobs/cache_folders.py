"""Folders below ``LAKE/cache``: each run's own, and those that runs share; how they are kept in use, and go.

Several runs clean the cache at once, and tasks of a run use a folder for hours. So a folder goes only when nothing in it was
written, and no run began with it, for ``KEPT_HOURS`` (``schemas.lake_folders``), and a task whose folder was removed all the
same says so.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs

from schemas import lake_folders
from schemas.errors import BadInput

KEPT_HOURS = 24
"""How long a folder stays that no run has begun to use: longer than any step takes. What a killed run left goes then, too."""
_USED = "used"


def mark_used(filesystem: pafs.FileSystem, path: str) -> None:
    """Say that a run begins to use a folder."""
    with in_use(path), filesystem.open_output_stream(f"{path}/{_USED}") as mark:
        mark.write(b"")


@contextmanager
def in_use(where: str) -> Iterator[None]:
    """Turn the failure to find a file of a cached folder into BadInput that names the folder."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"{where}: this folder of the cache was removed while it was in use; run the step again") from error


def remove_unused(filesystem: pafs.FileSystem, cache: str, names: re.Pattern[str], own: str | None = None) -> None:
    """Remove the folders of ``cache`` that are called like ``names`` and were not used for KEPT_HOURS, but not ``own``."""
    lake_folders.remove_unused(filesystem, cache, names, KEPT_HOURS, own)
