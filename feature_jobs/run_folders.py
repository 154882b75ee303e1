"""A folder of one run's own below ``LAKE/cache``, for what its tasks hand to each other."""

import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs

from schemas.lake import Lake

_FOLDER = re.compile(r"(?:samples|ingest)-(\d+)-(\d+)-[0-9a-f]{8}-(.+)")
"""When the run began, its process, what tells it from others, its host."""
_ABANDONED_SECONDS = 24 * 3600


@contextmanager
def run_folder(lake: Lake, step: str) -> Iterator[str]:
    """The URI of a folder of this run's own, removed at its end (``step``: ``samples`` or ``ingest``). Folders that killed
    runs left are removed, too: of this host at once, of other hosts after a day."""
    filesystem, cache = lake.filesystem("cache")
    for found in filesystem.get_file_info(pafs.FileSelector(cache, allow_not_found=True)):
        if _abandoned(found.base_name):
            filesystem.delete_dir(found.path)
    name = f"{step}-{int(time.time())}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{socket.gethostname()}"
    try:
        yield lake.uri("cache", name)
    finally:
        if filesystem.get_file_info(f"{cache}/{name}").type is pafs.FileType.Directory:
            filesystem.delete_dir(f"{cache}/{name}")


def _abandoned(name: str) -> bool:
    parts = _FOLDER.fullmatch(name)
    if parts is None:
        return False
    began, process, host = int(parts[1]), int(parts[2]), parts[3]
    if host == socket.gethostname():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return time.time() - began > _ABANDONED_SECONDS
