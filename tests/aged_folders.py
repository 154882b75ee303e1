"""Folders that were written some time ago."""

import os
import time
from pathlib import Path

import pyarrow.fs as pafs

LOCAL = pafs.LocalFileSystem()
STORE = pafs.SubTreeFileSystem("/", LOCAL)
"""Not a local filesystem to the code: it stands for an object store."""


def aged_folder(path: Path, hours: float, *names: str) -> Path:
    """A folder with files that were written so long ago."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    moment = time.time() - hours * 3600
    for entry in [path, *path.rglob("*")]:
        os.utime(entry, (moment, moment))
    return path
