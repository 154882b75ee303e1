"""One user bucket's part of a day's samples, in Spark tasks: first its cells for the day's quantile, then its file."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_events import READ, durations, read_event_slices, sample_ids
from feature_jobs.bucket_files import BucketFiles, item_keys
from feature_jobs.gates import COLUMNS, LABELS
from feature_jobs.item_versions import ItemVersions
from feature_jobs.partition_files import PartitionFile
from feature_jobs.samples_arrays import encoded, encoded_users
from feature_jobs.samples_cells import CellCounter, CellFolder, DayQuantile, cell_keys
from feature_jobs.samples_drops import REASONS, drops
from feature_jobs.samples_labels import label_samples
from feature_jobs.samples_sketch import PartedSketch
from feature_jobs.samples_slices import ActiveState, event_slices
from feature_jobs.user_state_arrays import integers, log_bucket
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, FEEDBACK

_CELL_COLUMNS = pa.schema([column for column in READ if column.name not in (*FEEDBACK, "user_bucket")])
"""What decides which rows are kept and their cells; of equal rows by these, either gives the same cell."""


@dataclass(frozen=True)
class SampleInputs:
    """What every task of a day knows: the lake, the day, its events, yesterday's state, the catalogue, the run's folder."""

    lake: Lake
    date: dt.date
    events: BucketFiles
    state: BucketFiles
    items: ItemVersions
    folder: CellFolder


def count_bucket(day: SampleInputs, bucket: int) -> list[int]:
    """Write the cells and the sketches of items of a bucket's samples; what ``CellFolder.write`` returns."""
    settings = day.lake.config.samples
    counter, sketch = CellCounter(), PartedSketch()
    for events in event_slices(day.events, bucket, _CELL_COLUMNS):
        _, owner = encoded_users(events["user_id"])
        events = events.append_column("sample_id", sample_ids(events["user_id"], events["impression_id"]))
        dropped = drops(events, owner, settings.user_day_cap)
        if dropped.any():
            events = events.filter(pa.array(dropped == 0))
        length = log_bucket(durations(events, day.items), settings.duration_log_base)
        counter.add(cell_keys(length, integers(events["play_time_ms"])))
        items = encoded(events["item_id"])
        shown = np.unique(items.indices.to_numpy())
        sketch.add(integers(item_keys(items.dictionary.take(pa.array(shown)))))
    return day.folder.write(bucket, counter.cells(), sketch)


def write_bucket(day: SampleInputs, bucket: int) -> dict[str, Any]:
    """Write the bucket's samples to a file that nothing names yet. Returns the file, and counts for gates and accounting."""
    file = PartitionFile(day.lake, DAILY_SAMPLES, {"date": day.date.isoformat(), "user_bucket": str(bucket)})
    counts = dict.fromkeys(("rows", "users", "items_without_a_version"), 0)
    nulls, labels = dict.fromkeys(COLUMNS, 0), dict.fromkeys(LABELS, 0)
    dropped = dict.fromkeys(REASONS, 0)
    state, quantiles = ActiveState(day.state, bucket), DayQuantile(day.folder)
    try:
        for events in read_event_slices(day.events, bucket, day.items):
            users = encoded(events["user_id"]).dictionary
            labelled = label_samples(events, state.of(users), day.lake.config)
            samples = labelled.slice(0, labelled["dropped"].null_count)
            for count in labelled["dropped"].slice(len(samples)).value_counts().to_pylist():
                dropped[count["values"]] += count["counts"]
            quantile = quantiles.of(integers(samples["duration_bucket"]), integers(samples["play_time_ms"]))
            samples = samples.append_column("watch_quantile_day", pa.array(quantile, from_pandas=True))
            counts["rows"] += len(samples)
            counts["users"] += len(pc.unique(encoded(samples["user_id"]).indices))
            counts["items_without_a_version"] += pc.sum(samples["item_version_missing"]).as_py() or 0
            for name in nulls:
                nulls[name] += samples[name].null_count
            for name in labels:
                labels[name] += pc.sum(samples[name]).as_py() or 0
            file.write(samples)
    except BaseException:
        file.discard()
        raise
    return {"file": file.close(), "counts": counts, "nulls": nulls, "labels": labels, "dropped": dropped}
