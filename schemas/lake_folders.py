"""Folders that runs keep below a lake for themselves, or share: when nobody uses one any more, and how it goes.

Several runs clean the same place at once, and a run uses its folder for hours or days. So a folder goes only when nothing in it
was written for long, and to remove one that is gone already is no error.
"""

import os
import re
import shutil
import time
import uuid
from pathlib import Path

import pyarrow.fs as pafs

COMPLETE, SPARK_COMPLETE = "complete", "_SUCCESS"
"""Files that say that a folder is whole."""
WORK_KEPT_HOURS = 48
"""How long a folder of ``LAKE/work`` stays that nothing is written into: longer than a step works between two files."""
CHECKPOINT_KEPT_HOURS = 7 * 24
"""Likewise of ``LAKE/checkpoints``: a run that was killed is taken up again within the week, before the next refresh."""


def staging_path(folder: Path) -> Path:
    """Where, beside a local folder, its files are written before it gets its name, or while they are removed."""
    return folder.with_name(f".staging-{uuid.uuid4().hex}")


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


def remove_unused(filesystem: pafs.FileSystem, parent: str, names: re.Pattern[str], hours: float, own: str | None = None) -> None:
    """Remove the folders of ``parent`` that are called like ``names`` and were idle for more than ``hours``, but not ``own``."""
    for found in filesystem.get_file_info(pafs.FileSelector(parent, allow_not_found=True)):
        ours = names.fullmatch(found.base_name) and found.base_name != own
        if ours and found.type is pafs.FileType.Directory and is_idle(filesystem, found, hours):
            remove_folder(filesystem, found.path)


def is_idle(filesystem: pafs.FileSystem, folder: pafs.FileInfo, hours: float) -> bool:
    """Whether the folder and everything in it is older than ``hours``; not if nothing says how old it is.

    A folder's own time stops when its subfolders are there, and an object store gives folders none.
    """
    try:
        inside = filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    except FileNotFoundError:
        return False  # it is being removed
    ages = [time.time() - info.mtime.timestamp() for info in (folder, *inside) if info.mtime is not None]
    return bool(ages) and min(ages) > hours * 3600
