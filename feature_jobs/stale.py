"""Marks of what a backfill left outdated: ``LAKE/stale.json``, ``{date: {step: reason}}``.

Dates are YYYY-MM-DD, steps as their commands are named. A backfill writes its marks before it changes anything, so one
that was killed leaves them. Whoever makes a stale thing anew takes its mark away with ``clear_stale``.
"""

import datetime as dt
import json
from collections.abc import Mapping

import pyarrow.fs as pafs

from schemas.errors import BadInput
from schemas.lake import Lake, write_atomically

STALE_FILE = "stale.json"
MAX_STALE_BYTES = 16 * 2**20
Marks = dict[str, dict[str, str]]
"""date → step → reason."""


def read_stale(lake: Lake) -> Marks:
    """Everything marked as stale: date → step → reason. Raises BadInput for a file that is not ours."""
    filesystem, path = lake.filesystem(STALE_FILE)
    found = filesystem.get_file_info(path)
    if found.type is not pafs.FileType.File:
        return {}
    if found.size > MAX_STALE_BYTES:
        raise BadInput(f"{lake.uri(STALE_FILE)}: larger than {MAX_STALE_BYTES} bytes; not one of ours, remove it")
    with filesystem.open_input_stream(path) as stream:
        try:
            marks: Marks = json.loads(stream.read())
        except ValueError as error:
            raise BadInput(f"{lake.uri(STALE_FILE)}: not JSON; remove it and run the backfill again") from error
    if not (isinstance(marks, dict) and all(isinstance(steps, dict) for steps in marks.values())):
        raise BadInput(f"{lake.uri(STALE_FILE)}: not marks of ours (date → step → reason); remove it")
    return marks


def mark_stale(lake: Lake, marks: Mapping[str, Mapping[str, str]]) -> None:
    """Add marks (date → step → reason) to those there are."""
    if marks:
        merged = read_stale(lake)
        for date, steps in marks.items():
            merged.setdefault(date, {}).update(steps)
        _write(lake, merged)


def clear_stale(lake: Lake, date: dt.date, step: str) -> None:
    """Take away the mark of a step on a date, once it was made anew; nothing happens if there is none."""
    marks = read_stale(lake)
    if marks.get(date.isoformat(), {}).pop(step, None) is not None:
        _write(lake, {day: steps for day, steps in marks.items() if steps})


def _write(lake: Lake, marks: Marks) -> None:
    write_atomically(lake.uri(STALE_FILE), json.dumps(marks, indent=1, sort_keys=True, ensure_ascii=False).encode())
