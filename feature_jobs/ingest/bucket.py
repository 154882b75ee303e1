"""One bucket's share of a landing: deduplicated, ordered by user and time, written beside ``events``, not yet committed."""

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_events import sample_ids
from feature_jobs.bucket_files import BucketFiles
from feature_jobs.ingest.cap import joined_within_the_cap
from feature_jobs.ingest.catalogue import DUPLICATE, FORGOTTEN
from feature_jobs.ingest.forgotten import of_forgotten, without_forgotten
from feature_jobs.ingest.judging import in_packs
from feature_jobs.ingest.orphans import orphaned
from feature_jobs.ingest.redelivery import changed_dates
from feature_jobs.ingest.sources import input_columns
from feature_jobs.owned_by_earlier import as_metadata, ids_held, owned_by_earlier
from feature_jobs.partition_files import FileReport, PartitionFile, data_schema
from feature_jobs.samples_drops import OVER_THE_CAP
from feature_jobs.user_state_arrays import flat, integers
from schemas.lake import Lake
from schemas.suppression import Suppression
from schemas.tables import EVENTS, QUARANTINE, Table

_TIMES = ("request_ts", "ts", "observed_ts")
_EPOCH = dt.date(1970, 1, 1)
_NOTHING = np.empty(0, np.int64)
ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class BucketTask:
    """What every bucket's task of a landing knows. ``others`` are the files of other landings on the days it may touch,
    ``before`` those of the landing itself (none on its first delivery)."""

    lake: Lake
    landing_date: dt.date
    ingested_at: dt.datetime
    others: BucketFiles
    suppression: Suppression
    before: BucketFiles

    @property
    def others_dates(self) -> set[dt.date]:
        """Days on which another landing has events."""
        return {partition["date"] for partition in self.others.partitions.values()}


@dataclass
class BucketReport:
    """What a bucket's task did, by number of rows, and the files that it wrote. ``rewritten`` are paths of files that new ones
    replace: a later landing lost impressions to this earlier one. ``dates`` are the days of its good rows, of those too that
    an earlier landing has; ``changed`` those of which the landing had other rows before; ``orphaned`` are rows by later landing
    (``orphans``). JSON holds the same."""

    bucket: int
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    displaced: int = 0
    files: list[FileReport] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    dates: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    orphaned: dict[str, int] = field(default_factory=dict)


def publish_bucket(task: BucketTask, bucket: int, blocks: Iterable[pa.Table]) -> str:
    """Write a bucket's rows (LANDED, one or more blocks, any order); the BucketReport as JSON."""
    report = BucketReport(bucket)
    rows, report.dropped[OVER_THE_CAP] = joined_within_the_cap(blocks, task.lake.config.samples.user_day_cap)
    rows, report.dropped[FORGOTTEN] = without_forgotten(rows, task.suppression)
    rows, report.dropped[DUPLICATE] = without_repeated(rows)
    keys = sample_ids(rows["user_id"], rows["impression_id"]).to_numpy()
    dates = integers(rows["date"])
    days = [_EPOCH + dt.timedelta(days=number) for number in np.unique(dates).tolist()]
    report.dates = [day.isoformat() for day in days]
    brought = {day: keys[dates == (day - _EPOCH).days] for day in days}
    report.orphaned = orphaned(task.before, task.others, bucket, task.landing_date, brought)
    repeated = _settle(task, bucket, rows, keys, report)
    owned = {day: keys[repeated & (dates == (day - _EPOCH).days)] for day in days} if repeated.any() else {}
    if owned:
        rows = rows.filter(pa.array(~repeated))
        report.dropped[DUPLICATE] += int(repeated.sum())
    report.kept = len(rows)
    ordered = _stamped(rows.take(pa.array(event_order(rows))), task.ingested_at)
    parts = dict(by_date(ordered))
    report.changed = changed_dates(task.before, bucket, parts)
    for day in days:
        part = parts.get(day, ordered.slice(0, 0))
        report.files += _written(task.lake, bucket, day, task.landing_date, part, owned.get(day, _NOTHING))
    return json.dumps(asdict(report))


def without_repeated(rows: pa.Table) -> tuple[pa.Table, int]:
    """Rows with each (user, impression) once: the first by time, then by all columns in the table's order (nulls first), so
    that rows that tie are equal and the order of the files does not matter; and how many were left out."""
    keys = sample_ids(rows["user_id"], rows["impression_id"]).to_numpy()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    if not same.any():
        return rows, 0
    several = order[np.append(same, False) | np.append(False, same)]
    some = rows.take(pa.array(several)).select([column.name for column in input_columns(EVENTS)])
    names = ["user_id", "impression_id", *_TIMES]
    names += [name for name in some.column_names if name not in names]
    place = pc.sort_indices(some, [(name, "ascending", "at_start") for name in names]).to_numpy()
    users, impressions = (some[name].take(pa.array(place)) for name in ("user_id", "impression_id"))
    again = pc.and_(pc.equal(users[1:], users[:-1]), pc.equal(impressions[1:], impressions[:-1]))
    kept = np.ones(len(rows), bool)
    kept[several[place[1:][again.to_numpy()]]] = False
    return rows.filter(pa.array(kept)), int((~kept).sum())


def _settle(task: BucketTask, bucket: int, rows: pa.Table, keys: np.ndarray, report: BucketReport) -> np.ndarray:
    """Which rows an earlier landing has on the same day (bool). A later landing's are taken out of its file,
    which notes their ids (``owned_by_earlier``)."""
    repeated = np.zeros(len(rows), bool)
    dates = integers(rows["date"])
    of_date = {date: np.flatnonzero(dates == (date - _EPOCH).days) for date in task.others_dates}
    paths = task.others.paths.get(bucket, ())
    for path in sorted(paths, key=lambda path: task.others.partitions[path]["landing_date"]):  # the earlier ones first
        partition = task.others.partitions[path]
        of_day = of_date[partition["date"]]
        if not len(of_day):
            continue
        theirs = ids_held(task.others, path)
        if partition["landing_date"] < task.landing_date:
            repeated[of_day] |= np.isin(keys[of_day], theirs)
        elif (lost := np.isin(theirs, keys[of_day[~repeated[of_day]]])).any():
            report.displaced += int(lost.sum())
            report.rewritten.append(path)
            rest = task.others.read_file(path, data_schema(EVENTS)).filter(pa.array(~lost))
            owned = np.append(owned_by_earlier(task.others, path), theirs[lost])
            report.files += _written(task.lake, bucket, partition["date"], partition["landing_date"], rest, owned)
    return repeated


def event_order(rows: pa.Table) -> np.ndarray:
    """The order of rows in a file: by date, user (UTF-8 bytes), request_ts, ts, impression_id."""
    encoded = flat(rows["user_id"]).dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int32)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(encoded.dictionary), dtype=np.int32)
    keys = [integers(rows["ts"]), integers(rows["request_ts"]), rank[encoded.indices.to_numpy()], integers(rows["date"])]
    order = np.lexsort(keys)
    tied = np.logical_and.reduce([key[order[1:]] == key[order[:-1]] for key in keys])
    if tied.any():
        group = np.cumsum(np.append(True, ~tied))
        several = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
        names = rows["impression_id"].take(pa.array(order[several])).to_pylist()
        places = sorted(range(len(several)), key=lambda place: (group[several[place]], names[place].encode()))
        order[several] = order[several[places]]
    return order


def by_date(rows: pa.Table) -> Iterator[tuple[dt.date, pa.Table]]:
    """Rows that are in the order of their dates, a date at a time."""
    dates = integers(rows["date"])
    for number in np.unique(dates).tolist():
        start, end = np.searchsorted(dates, [number, number + 1])
        yield _EPOCH + dt.timedelta(days=number), rows.slice(start, end - start)


def _stamped(rows: pa.Table, moment: dt.datetime) -> pa.Table:
    column = EVENTS.schema.field("ingested_at")
    return rows.append_column(column, pa.repeat(pa.scalar(moment, column.type), len(rows)))


def _written(
    lake: Lake, bucket: int, date: dt.date, landing_date: dt.date, rows: pa.Table, owned: np.ndarray
) -> list[FileReport]:
    """``owned``: ids (int64) of what the landing brought and an earlier one has; with some there is a file even without rows."""
    partition = {"date": date.isoformat(), "landing_date": landing_date.isoformat(), "user_bucket": str(bucket)}
    noted = as_metadata(owned, f"events of {date} in landing {landing_date}, user bucket {bucket}")
    return write_whole(PartitionFile(lake, EVENTS, partition, noted), rows)


def write_whole(file: PartitionFile, rows: pa.Table) -> list[FileReport]:
    """Write rows as a file in row groups; its report, if there is anything to write."""
    for start in range(0, len(rows), ROW_GROUP_ROWS):
        file.write(rows.slice(start, ROW_GROUP_ROWS))
    report = file.close()
    return [] if report is None else [report]


def publish_rejected(lake: Lake, table: Table, landing_date: dt.date, suppression: Suppression, parts: Iterable[pa.Table]) -> str:
    """Write rejected rows (REJECTED, some at a time: there may be more of them than memory holds) beside ``quarantine``; as
    JSON, how many, why, how many of forgotten people, the file."""
    reasons: Counter[str] = Counter()
    forgotten = rejected = 0
    file = PartitionFile(lake, QUARANTINE, {"table_name": table.name, "date": landing_date.isoformat()})
    for rows in in_packs(parts):
        theirs = of_forgotten(rows, suppression)
        rows = rows.filter(pa.array(~theirs))
        forgotten += int(theirs.sum())
        rejected += len(rows)
        for bare in pc.split_pattern(pc.list_flatten(rows["reasons"]), " (found ", max_splits=1).to_pylist():
            reasons[bare[0]] += 1
        names = pa.repeat(pa.scalar(table.name), len(rows))
        if len(rows):
            file.write(rows.drop_columns(["user_id"]).append_column("table_name", names))
    report = file.close()
    files = [] if report is None else [report]
    return json.dumps({"rejected": rejected, "reasons": reasons, "forgotten": forgotten, "files": files})
