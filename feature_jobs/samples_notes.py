"""What a commit of ``daily_samples`` notes of the day it publishes: the landings that went in, distinct users and items.

A note is there exactly when the rows are, and costs a later run no reading of them.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltalake import DeltaTable

from feature_jobs.partition_files import commit_notes

_KEY = "onerec.daily_samples"
COVERED = ("users", "items")
"""What is counted distinct."""


@dataclass(frozen=True)
class SamplesNote:
    """Of a published day: the landings its samples were made from; distinct users and items (None if not noted)."""

    landings: list[dt.date]
    coverage: Mapping[str, int] | None


def samples_note(date: dt.date, landings: Sequence[dt.date], coverage: Mapping[str, int] | None = None) -> str:
    """The note of a day as the commit's ``userMetadata`` holds it."""
    noted = {"date": date.isoformat(), "landings": [landing.isoformat() for landing in landings]}
    return json.dumps({_KEY: noted | ({"coverage": dict(coverage)} if coverage else {})})


def newest_notes(opened: DeltaTable) -> dict[dt.date, SamplesNote]:
    """The newest note of each day, from the history of a table version."""
    found: dict[dt.date, SamplesNote] = {}
    for text in commit_notes(opened):
        noted = json.loads(text).get(_KEY) if _KEY in text else None
        if noted:
            landings = [dt.date.fromisoformat(landing) for landing in noted["landings"]]
            found.setdefault(dt.date.fromisoformat(noted["date"]), SamplesNote(landings, noted.get("coverage")))
    return found
