"""Runs days through the pure transforms without Spark, as the jobs do, so that many random days cost seconds."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from feature_jobs.pathways import oldest_landing, taken_in
from feature_jobs.samples_inputs import sample_landings
from feature_jobs.samples_labels import EVENT_COLUMNS, label_samples
from feature_jobs.user_state import STATE, Fresh, Marks, advance, align, fresh_rows, static_rows
from feature_jobs.user_state_arrays import flat
from feature_jobs.user_state_facts import PROFILE, latest_of_each
from schemas.config import Config
from schemas.tables import FEEDBACK
from tests.feature_jobs.reference_pathways import text_hash

Row = dict[str, Any]


def event_table(rows: Sequence[Row], items: Sequence[Row], buckets: int) -> pa.Table:
    """Events joined with their items, as the Spark join hands them to the labels (EVENT_COLUMNS)."""
    full = []
    for row in rows:
        versions = [item for item in items if item["item_id"] == row["item_id"] and item["valid_from"] < row["request_ts"]]
        item = max(versions, key=lambda item: item["valid_from"], default=None)
        values = {name: row.get(name, False if name in FEEDBACK else None) for name in EVENT_COLUMNS.names}
        values["sample_id"] = text_hash(row["user_id"], row["impression_id"])
        values["user_bucket"] = text_hash(row["user_id"]) % buckets
        values["item_version_missing"] = item is None
        for name in ("author_id", "category", "tags"):
            values[name] = item[name] if item else None
        values["item_duration_ms"] = item["duration_ms"] if item else None
        full.append(values)
    return pa.Table.from_pylist(full, schema=EVENT_COLUMNS)


@dataclass(frozen=True)
class ArrowDay:
    """A day's samples, and for its users (``prior``, ``static``) what was known when it began."""

    samples: pa.Table
    prior: pa.Table
    static: pa.Table


@dataclass
class ArrowDays:
    """State carried from day to day by ``label_samples`` and ``advance``; ``users`` holds the snapshots that have landed."""

    config: Config
    items: Sequence[Row]
    users: Sequence[Row] = ()
    state: pa.Table = field(default_factory=STATE.empty_table)
    seen: list[dt.date] = field(default_factory=list)
    snapshots: list[Row] = field(default_factory=list)

    def day(self, day: dt.date, events: Sequence[Row], every: bool = False) -> ArrowDay:
        """Take in a day, after the days before it; ``every`` is a backfill's view of landings."""
        pairs = {(row["date"], row["landing_date"]) for row in events}
        sampled = sample_landings(day, {landing for date, landing in pairs if date == day}, self.seen, every=every)
        rows = [row for row in events if row["date"] == day and row["landing_date"] in sampled]
        samples = self._labelled(rows)
        snapshots = self._new_snapshots(day)
        prior = align(self.state, snapshots, flat(samples["user_id"]).unique())
        seen, late_pairs = taken_in(day, pairs, self.seen, sampled, oldest_landing(day, None, 30), every=every)
        late = [row for row in events if (row["date"], row["landing_date"]) in late_pairs]
        had = {
            (row["date"], row["user_id"], row["impression_id"])
            for row in events
            if row["landing_date"] in (sampled if row["date"] == day else self.seen)
        }
        late = [row for row in late if (row["date"], row["user_id"], row["impression_id"]) not in had]
        before = Counter((user, date) for date, user, _ in had)
        taken = np.array([before[row["user_id"], row["date"]] for row in late], np.int64)
        rows_in = pa.concat_tables([fresh_rows(samples), fresh_rows(self._labelled(late, taken))])
        fresh = Fresh.of(rows_in, self.config.samples)
        self.state = advance(self.state, fresh, snapshots, day, Marks(seen, None, None), self.config)
        self.seen = seen
        return ArrowDay(samples, prior, static_rows(prior, day, self.config))

    def _labelled(self, rows: Sequence[Row], taken: np.ndarray | None = None) -> pa.Table:
        events = event_table(rows, self.items, self.config.lake.user_buckets)
        labelled = label_samples(events, self.state, self.config, taken)
        return labelled.filter(labelled["dropped"].is_null())

    def _new_snapshots(self, day: dt.date) -> pa.Table:
        landed = [row for row in self.users if row["date"] < day]
        new = [row | {"snapshot_date": row["date"]} for row in landed if row not in self.snapshots]
        self.snapshots = landed
        return latest_of_each(pa.Table.from_pylist(new, schema=PROFILE))
