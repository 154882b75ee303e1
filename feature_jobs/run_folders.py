"""A folder of one run's own below ``LAKE/cache``, for what its tasks hand to each other."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from feature_jobs.cache_folders import remove_unused
from schemas.lake import Lake
from schemas.lake_folders import remove_folder

_FOLDER = re.compile(r"(?:samples|ingest|snapshots)-[0-9a-f]{32}")


@contextmanager
def run_folder(lake: Lake, step: str) -> Iterator[str]:
    """The URI of a folder of this run's own, removed at its end (``step``: ``samples``, ``ingest`` or ``snapshots``).

    Folders that killed runs left are removed, too, by their age alone: a process of this number, on a host of this name, may
    be another container's.
    """
    filesystem, cache = lake.filesystem("cache")
    remove_unused(filesystem, cache, _FOLDER)
    name = f"{step}-{uuid.uuid4().hex}"
    try:
        yield lake.uri("cache", name)
    finally:
        remove_folder(filesystem, f"{cache}/{name}")
