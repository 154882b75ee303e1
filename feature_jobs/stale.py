"""Marks of what a backfill left outdated: ``LAKE/stale.json``, ``{date: {step: reason}}``.

Dates are YYYY-MM-DD, steps as their commands are named. A backfill writes its marks before it changes anything, so one
that was killed leaves them. Whoever makes a stale thing anew takes its mark away with ``clear_stale``. One process at a time
changes the file, where the filesystem has locks.
"""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs

from schemas.errors import BadInput
from schemas.json_files import JsonFiles
from schemas.lake import Lake, write_atomically
from schemas.suppression import locked

STALE_FILE = "stale.json"
MAX_STALE_BYTES = 16 * 2**20
_FILES = JsonFiles(
    MAX_STALE_BYTES,
    larger=f"larger than {MAX_STALE_BYTES} bytes; not one of ours, remove it",
    foreign="not JSON; remove it and run the backfill again",
)
_LOCK = "stale"
UNFINISHED = "a backfill that rebuilds it has not ended; run it again if it was stopped"
"""The reason on the dates that a backfill is rebuilding: their tables may be of two runs."""
Marks = dict[str, dict[str, str]]
"""date → step → reason."""


def read_stale(lake: Lake) -> Marks:
    """Everything marked as stale: date → step → reason. Raises BadInput for a file that is not ours."""
    filesystem, path = lake.filesystem(STALE_FILE)
    found = filesystem.get_file_info(path)
    if found.type is not pafs.FileType.File:
        return {}
    content = _FILES.read_found(filesystem, found, lake.uri(STALE_FILE))
    if not (isinstance(content, dict) and all(map(_are_reasons, content.values()))):
        raise BadInput(f"{lake.uri(STALE_FILE)}: not marks of ours (date → step → reason); remove it")
    marks: Marks = content
    return marks


def _are_reasons(steps: Any) -> bool:
    return isinstance(steps, dict) and all(isinstance(reason, str) for reason in steps.values())


def mark_stale(lake: Lake, marks: Mapping[str, Mapping[str, str]]) -> None:
    """Add marks (date → step → reason) to those there are. One that is UNFINISHED stays: it says more than any other."""
    if marks:
        with locked(lake, _LOCK):
            merged = read_stale(lake)
            for date, steps in marks.items():
                there = merged.setdefault(date, {})
                there.update({step: reason for step, reason in steps.items() if there.get(step) != UNFINISHED})
            _write(lake, merged)


def replace_unfinished(lake: Lake, reasons: Mapping[str, Mapping[str, str | None]]) -> None:
    """Give marks that are UNFINISHED another reason (date → step → reason), or take them away (None)."""
    with locked(lake, _LOCK):
        marks = read_stale(lake)
        for date, steps in reasons.items():
            for step, reason in steps.items():
                if marks.get(date, {}).get(step) == UNFINISHED:
                    del marks[date][step]
                    marks[date] |= {} if reason is None else {step: reason}
        _write(lake, {day: steps for day, steps in marks.items() if steps})


def clear_stale(lake: Lake, date: dt.date, step: str) -> None:
    """Take away the mark of a step on a date, once it was made anew; nothing happens if there is none."""
    with locked(lake, _LOCK):
        marks = read_stale(lake)
        if marks.get(date.isoformat(), {}).pop(step, None) is not None:
            _write(lake, {day: steps for day, steps in marks.items() if steps})


def check_finished(lake: Lake, date: dt.date) -> None:
    """Raise BadInput if a backfill has begun to rebuild a date and has not ended (stopped or not)."""
    for step, reason in read_stale(lake).get(date.isoformat(), {}).items():
        if reason == UNFINISHED:
            raise BadInput(f"{lake.root}: {step} of {date}: {reason}")


def _write(lake: Lake, marks: Marks) -> None:
    write_atomically(lake.uri(STALE_FILE), json.dumps(marks, indent=1, sort_keys=True, ensure_ascii=False).encode())
