"""Looking after a lake: retention of ``user_state``, removal of unneeded files, prices."""

import datetime as dt
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import yaml

from feature_jobs.stale import UNFINISHED, Marks, read_stale
from schemas.config import RetentionSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.lake_folders import CHECKPOINT_KEPT_HOURS, WORK_KEPT_HOURS, is_idle
from schemas.tables import TABLES, USER_STATE

_BUILT_FROM_STATE = {"samples", "pathways"}
"""Steps of a day that read the state of the day before."""


def user_state_days_to_drop(days: list[dt.date], retention: RetentionSection, needed: Collection[dt.date] = ()) -> list[dt.date]:
    """Days of ``user_state`` beyond the last few, the weekly checkpoints and those ``needed`` (the newest day is always kept)."""
    newest_first = sorted(days, reverse=True)
    recent = set(newest_first[: retention.user_state_days])
    weekly = [day for day in newest_first if day.weekday() == retention.user_state_checkpoint_weekday]
    return sorted(set(days) - recent - set(weekly[: retention.user_state_checkpoints]) - set(needed))


def states_for_stale_days(marks: Marks) -> set[dt.date]:
    """Days whose ``user_state`` a backfill of what is stale begins with: those before the first of several stale days on end,
    and before each that a backfill is at."""
    stale = {day: steps for day, steps in marks.items() if not _BUILT_FROM_STATE.isdisjoint(steps)}
    days = {dt.date.fromisoformat(day): UNFINISHED in steps.values() for day, steps in stale.items()}
    before = {day - dt.timedelta(days=1): unfinished for day, unfinished in days.items()}
    return {day for day, unfinished in before.items() if unfinished or day not in days}


def vacuum_lake(lake: Lake, *, dry_run: bool) -> dict[str, Any]:
    """Apply the retention: old ``user_state`` days, then what is older than ``retention.file_hours`` and needed by nobody:
    files that no version names (of old versions, of runs that were killed), what runs were killed while they prepared, and what
    killed runs worked with (``_abandoned``)."""
    state = lake.open_table(USER_STATE)
    partitions = pa.table(state.get_add_actions(flatten=True))
    days = (
        sorted({dt.date.fromisoformat(str(day)) for day in partitions["partition.date"].to_pylist()})
        if partitions.num_rows
        else []
    )
    needed = states_for_stale_days(read_stale(lake))
    drop = user_state_days_to_drop(days, lake.config.retention, needed)
    kept = set(user_state_days_to_drop(days, lake.config.retention)) - set(drop)
    if drop and not dry_run:
        state.delete(" OR ".join(f"date = '{day.isoformat()}'" for day in drop))
    hours = lake.config.retention.file_hours
    files = {
        # full: also the files of killed runs, which no version has ever named
        table.name: len(lake.open_table(table).vacuum(hours, dry_run=dry_run, enforce_retention_duration=False, full=True))
        for table in TABLES.values()
    }
    leftovers = _leftovers(lake, dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)) + _abandoned(lake, hours)
    if not dry_run:
        for filesystem, info in leftovers:
            with suppress(FileNotFoundError):  # others clean, too
                (filesystem.delete_dir if info.type is pafs.FileType.Directory else filesystem.delete_file)(info.path)
    return {
        "step": "lake vacuum",
        "dry_run": dry_run,
        "user_state_days_dropped": [day.isoformat() for day in drop],
        "user_state_days_kept_for_stale": sorted(day.isoformat() for day in kept),
        "files": files,
        "leftovers": len(leftovers),
    }


def _leftovers(lake: Lake, before: dt.datetime) -> list[tuple[pafs.FileSystem, pafs.FileInfo]]:
    """What killed runs left beside the tables, untouched since ``before``: folders that were being prepared, temporary files."""
    found = []
    for folder in ("", "work", "cache", "registry", "shards", "training"):
        filesystem, root = lake.filesystem(*filter(None, [folder]))
        deep = folder not in ("", "work")
        infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=deep, allow_not_found=True))
        tops = [info for info in infos if _is_temporary(info.base_name)]
        for top in tops:
            if any(top.path.startswith(f"{outer.path}/") for outer in tops):
                continue  # goes with it
            within = [info for info in infos if info.path.startswith(f"{top.path}/") and info.type is pafs.FileType.File]
            if all(info.mtime is not None and info.mtime < before for info in within or [top]):
                found.append((filesystem, top))
    return found


def _abandoned(lake: Lake, hours: float) -> list[tuple[pafs.FileSystem, pafs.FileInfo]]:
    """Folders of ``work`` and ``checkpoints`` into which nothing was written for so many hours, and for the least of their kind:
    a run of days uses its work folder. Without its checkpoint ``train-fusion`` begins anew, and ends in the same model."""
    found = []
    for folder, least in (("work", WORK_KEPT_HOURS), ("checkpoints", CHECKPOINT_KEPT_HOURS)):
        filesystem, root = lake.filesystem(folder)
        for info in filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
            ours = info.type is pafs.FileType.Directory and not _is_temporary(info.base_name)
            if ours and is_idle(filesystem, info, max(hours, least)):
                found.append((filesystem, info))
    return found


def _is_temporary(name: str) -> bool:
    return name.startswith(".staging-") or name.endswith(".tmp")


def read_prices(path: Path) -> float:
    """Price of a core-hour from a YAML file. Raises BadInput for a missing file or value."""
    try:
        values = yaml.safe_load(path.read_text())
        price = float(values["core_hour"])
    except OSError as error:
        raise BadInput(f"--prices {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"--prices {path}: needs a line like `core_hour: 0.04`") from error
    if not 0 <= price < float("inf"):
        raise BadInput(f"--prices {path}: core_hour is {price}; a price is not negative")
    return price
