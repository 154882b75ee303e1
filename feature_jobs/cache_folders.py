"""Folders below ``LAKE/cache``: each run's own, and those that runs share; how they are kept in use, and go.

Several runs clean the cache at once, and tasks of a run use a folder for hours. So a folder goes only when nothing in it was
written, and no run began with it, for ``KEPT_HOURS``; to remove one that is gone already is no error; and a task whose folder
was removed all the same says so.
"""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from schemas.errors import BadInput

KEPT_HOURS = 24
"""How long a folder stays that no run has begun to use: longer than any step takes. What a killed run left goes then, too."""
COMPLETE, SPARK_COMPLETE = "complete", "_SUCCESS"
"""Files that say that a folder is whole."""
_USED = "used"


def staging_path(folder: Path) -> Path:
    """Where, beside a local folder, its files are written before it gets its name, or while they are removed."""
    return folder.with_name(f".staging-{uuid.uuid4().hex}")


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


def remove_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Remove a folder, which others may be removing, too. It is never seen whole when it is not: a local one loses its name
    first, one on an object store the files that say that it is whole."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        aside = staging_path(Path(path))
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)  # what stays goes with `onerec lake vacuum`, as what a killed run staged
        return
    for remove in (
        lambda: filesystem.delete_file(f"{path}/{COMPLETE}"),
        lambda: filesystem.delete_file(f"{path}/{SPARK_COMPLETE}"),
        lambda: filesystem.delete_dir(path),
    ):
        try:
            remove()
        except FileNotFoundError:
            continue


def remove_unused(filesystem: pafs.FileSystem, cache: str, names: re.Pattern[str], own: str | None = None) -> None:
    """Remove the folders of ``cache`` that are called like ``names`` and were not used for KEPT_HOURS, but not ``own``."""
    for found in filesystem.get_file_info(pafs.FileSelector(cache, allow_not_found=True)):
        ours = names.fullmatch(found.base_name) and found.base_name != own
        if ours and found.type is pafs.FileType.Directory and _unused(filesystem, found):
            remove_folder(filesystem, found.path)


def _unused(filesystem: pafs.FileSystem, folder: pafs.FileInfo) -> bool:
    """Whether the folder and everything in it is older than KEPT_HOURS; not if nothing says how old it is."""
    try:
        inside = filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    except FileNotFoundError:
        return False  # it is being removed
    ages = [time.time() - info.mtime.timestamp() for info in (folder, *inside) if info.mtime is not None]
    return bool(ages) and min(ages) > KEPT_HOURS * 3600
