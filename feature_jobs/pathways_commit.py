"""Publishes a day's pathways, history and state: one commit a table, the tables of one run together."""

import datetime as dt
import random
import time
from collections.abc import Mapping, Sequence

import pyarrow.dataset as pads

from feature_jobs.bucket_files import partition_values
from feature_jobs.partition_files import FileReport, commit_files
from schemas.commits import COMMIT_ATTEMPTS
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import HISTORY, PATHWAY_POSITIVE, PATHWAY_SHORT, PATHWAY_STATIC, USER_STATE, Table

WRITTEN = (HISTORY, PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE, USER_STATE)
"""Tables of the step in the order of their commits: the state, from which the next day starts, is last."""
SECONDS_APART = 1.0


def commit_day(lake: Lake, date: dt.date, files: Mapping[str, Sequence[FileReport | None]]) -> None:
    """Make ``files`` (by table) those of the date.

    Two runs of one date may have read different inputs, and their commits may interleave. Whoever finds tables of both at
    its end commits its own again, so the tables of the run that ends last stay. Raises BadInput if runs go on meeting.
    """
    for attempt in range(COMMIT_ATTEMPTS):
        for table in WRITTEN:
            if attempt == 0 or _live(lake, table, date, files[table.name])[1]:
                commit_files(lake, table, files[table.name], pads.field("date") == date)
        own, foreign = (
            any(found) for found in zip(*(_live(lake, table, date, files[table.name]) for table in WRITTEN), strict=True)
        )
        if not (own and foreign):
            return
        time.sleep(random.uniform(0, SECONDS_APART))
    raise BadInput(f"{lake.root}: other processes keep writing the pathways of {date}; run this again when they have ended")


def _live(lake: Lake, table: Table, date: dt.date, files: Sequence[FileReport | None]) -> tuple[bool, bool]:
    """Whether a table has files of ours for the date, and whether it has others."""
    live = partition_values(lake, table, lake.table_version(table))
    paths = set(live.filter(pads.field("date") == date)["path"].to_pylist() if len(live) else ())
    ours = {file["path"] for file in files if file is not None}
    return bool(paths & ours), bool(paths - ours)
