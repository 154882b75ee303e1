"""Impressions that a landing loses by being delivered again, and that a later landing had brought too: noticed, marked, told.

``events`` holds an impression once, under the earliest landing that brought it; a later one's file only notes its id
(``owned_by_earlier``). If the earlier landing is delivered again without it, no landing has it, though the later one's files
in the landing zone do: the later landing must be ingested again. Its ingest is marked as stale before the rows go.
"""

import datetime as dt
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from feature_jobs.bucket_files import BucketFiles
from feature_jobs.owned_by_earlier import ids_held, owned_by_earlier
from feature_jobs.stale import Marks

STEP = "ingest"
_NOTHING = np.empty(0, np.int64)


def orphaned(
    before: BucketFiles, others: BucketFiles, bucket: int, landing: dt.date, brought: Mapping[dt.date, np.ndarray]
) -> dict[str, int]:
    """How many impressions of a bucket later landings (YYYY-MM-DD) had left to this one, which no longer brings them.

    ``before`` are the landing's files so far, ``others`` those of other landings; ``brought`` has the sample_ids (int64) of
    what the landing brings now, by date. Reads no rows where no later landing has left any to an earlier one.
    """
    noted: list[tuple[dt.date, str, np.ndarray]] = []
    dates = {before.partitions[path]["date"] for path in before.paths.get(bucket, ())}
    for path in others.paths.get(bucket, ()):
        date, later = (others.partitions[path][name] for name in ("date", "landing_date"))
        if date in dates and later > landing and len(ids := owned_by_earlier(others, path)):
            noted.append((date, str(later), ids))
    found: Counter[str] = Counter()
    gone = _gone(before, bucket, brought, {date for date, _, _ in noted})
    for date, later, ids in noted:
        found[later] += int(np.isin(ids, gone[date]).sum())
    return {later: number for later, number in found.items() if number}


def _gone(
    before: BucketFiles, bucket: int, brought: Mapping[dt.date, np.ndarray], dates: Collection[dt.date]
) -> dict[dt.date, np.ndarray]:
    """The ids that files hold of these dates and that are not brought, by date."""
    held: dict[dt.date, list[np.ndarray]] = {date: [] for date in dates}
    for path in before.paths.get(bucket, ()):
        if before.partitions[path]["date"] in held:
            held[before.partitions[path]["date"]].append(ids_held(before, path))
    return {date: np.setdiff1d(np.concatenate(ids), brought.get(date, _NOTHING)) for date, ids in held.items()}


def orphans_told(landing: dt.date, found: Mapping[str, int]) -> tuple[Marks, str] | None:
    """Marks of the later landings' ingest, and a warning of one line; None if ``found`` (rows by landing) is empty."""
    if not found:
        return None
    counts = ", ".join(f"{number} of landing {later}" for later, number in sorted(found.items()))
    reason = f"landing {landing} was delivered again without rows that this one brought too; ingest it again"
    commands = " and ".join(f"`onerec ingest --date {later}`" for later in sorted(found))
    warning = (
        f"warning: landing {landing} was delivered again without rows that later landings had brought too ({counts}); no landing "
        f"has them now: run {commands} again (until then `onerec status` shows it as stale)"
    )
    return {later: {STEP: reason} for later in found}, warning
