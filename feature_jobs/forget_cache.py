"""Removes from ``LAKE/cache`` what holds people: files that a step dealt to buckets and did not live to remove."""

import contextlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from feature_jobs.forget_files import Tasks
from feature_jobs.forget_text import USER_COLUMN
from schemas.lake import Lake


def forget_in_cache(lake: Lake, users: pa.Array, tasks: Tasks) -> int:
    """Remove every folder of the cache that has some of ``users`` in a user column, or a file that cannot be read; how many.

    A step that is using it fails, and makes it anew when it is run again.
    """
    filesystem, root = lake.filesystem("cache")
    doomed = {path[len(root) + 1 :].split("/")[0] for path in _search(lake, users, tasks)["in"]}
    for name in sorted(doomed):
        with contextlib.suppress(FileNotFoundError):  # its run ended, and took it away
            filesystem.delete_dir(f"{root}/{name}")
    return len(doomed)


def search_cache(lake: Lake, users: pa.Array, tasks: Tasks) -> dict[str, int]:
    """Search every user column below the cache: files, values, and how many of ``users`` were found."""
    report = _search(lake, users, tasks)
    return {name: report[name] for name in ("files", "values", "found")}


def _search(lake: Lake, users: pa.Array, tasks: Tasks) -> dict[str, Any]:
    filesystem, root = lake.filesystem("cache")
    files = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    paths = [info.path for info in files if info.type is pafs.FileType.File and info.path.endswith(".parquet")]
    reports = [report for report in tasks.each(paths, lambda path: _search_file(filesystem, path, users)) if report["files"]]
    totals = {name: sum(report[name] for report in reports) for name in ("files", "values", "found")}
    return totals | {"in": [report["path"] for report in reports if report["found"]]}


def _search_file(filesystem: pafs.FileSystem, path: str, users: pa.Array) -> dict[str, Any]:
    try:
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            if USER_COLUMN not in file.schema_arrow.names:
                return {"files": 0}
            column = file.read(columns=[USER_COLUMN]).column(0)
    except FileNotFoundError:
        return {"files": 0}  # its run ended meanwhile
    except (OSError, pa.ArrowException):
        return {"files": 1, "values": 0, "found": 1, "path": path}  # of a run that was killed while it wrote: nobody knows
    found = pc.sum(pc.is_in(column, value_set=users)).as_py() or 0
    return {"files": 1, "values": len(column), "found": found, "path": path}
