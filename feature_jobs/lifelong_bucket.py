"""One bucket's turn, in one Spark task: reads the base and the days since, writes a new base and the representatives.

Users stream by, some dozens at a time, so memory follows neither the bucket's users nor its days. Files are written beside
the tables' others and belong to no table until the driver commits them.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from feature_jobs.bucket_files import BucketFiles
from feature_jobs.lifelong_history import BASE, DAY, Histories, Upto, merge_histories
from feature_jobs.lifelong_streams import user_ranges, user_streams
from feature_jobs.lifelong_users import PRIOR, Clusters, cluster_users, representative_rows
from feature_jobs.lifelong_vectors import VectorFiles
from feature_jobs.partition_files import PartitionFile
from schemas.lake import Lake, day_start
from schemas.tables import HISTORY, HISTORY_BASE, PATHWAY_LIFELONG

_USERS_AHEAD = 48


@dataclass(frozen=True)
class Turn:
    """What every task of a refresh knows: files of ``history`` (the bases, and the days up to the date), and of
    ``pathway_lifelong`` (the newest refresh before the date, by bucket, and the date's own, if it was refreshed already).
    ``stale``: the date's refresh has to be made anew even if later ones exist."""

    lake: Lake
    date: dt.date
    fusion: str
    vectors: VectorFiles
    bases: BucketFiles
    days: BucketFiles
    before: BucketFiles
    same: BucketFiles
    stale: bool


@threadpool_limits.wrap(limits=1, user_api="blas")
def refresh_bucket(turn: Turn, bucket: int) -> dict[str, Any]:
    """Write the bucket's part of a refresh. Returns the files by table and the counts.

    A bucket that a later date refreshed holds no base of this one any more. Its refresh stays as it is if there is one of
    this fusion version; else it is made from scratch, and the base is left alone (``files`` then lacks ``history``).
    """
    refreshed = _base_date(turn.bases, bucket)
    late = refreshed is not None and refreshed > turn.date
    if late and not turn.stale and fusion_of(turn.same, bucket) == turn.fusion:
        return {"files": {}, "counts": {}, "dropped": {}, "audits": []}
    prior = turn.same if refreshed == turn.date else turn.before
    partition = {"user_bucket": str(bucket)}
    pathway = PartitionFile(turn.lake, PATHWAY_LIFELONG, partition | {"refresh_date": turn.date.isoformat()})
    base = PartitionFile(turn.lake, HISTORY, partition | {"date": HISTORY_BASE.isoformat()})
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    audits: list[float] = []
    for histories, kept in _slices(turn, bucket, prior):
        clusters = cluster_users(
            _without_clusters(histories) if late else histories,
            kept,
            turn.fusion,
            turn.lake.config.lifelong,
            turn.vectors,
            turn.date.toordinal(),
        )
        rows = representative_rows(histories, clusters, kept)
        pathway.write(_shared(rows, fusion_version=turn.fusion))
        if not late:
            base.write(base_rows(histories, clusters, turn.fusion, turn.date))
        audits += clusters.audits
        _add(dropped, histories.dropped)
        _add(counts, clusters.counts | _counted(histories, rows))
    files = {PATHWAY_LIFELONG.name: pathway.close()} | ({} if late else {HISTORY.name: base.close()})
    return {"files": files, "counts": counts, "dropped": dropped, "audits": audits}


def base_rows(histories: Histories, clusters: Clusters, fusion: str, date: dt.date) -> pa.Table:
    """BASE rows of the users who have behaviours."""
    offsets = pa.array(histories.offsets, pa.int32())
    lists = [
        pa.ListArray.from_arrays(offsets, values)
        for values in (
            histories.behaviours,
            pa.array(histories.landed).view(pa.date32()),
            pa.array(clusters.leaf.astype(np.int16)),
        )
    ]
    users = len(histories.users)
    clustered = pa.array(clusters.clustered)
    columns = [
        histories.users,
        *lists,
        pa.array(clusters.joined, mask=~clusters.clustered),
        pc.if_else(clustered, pa.scalar(fusion), pa.scalar(None, pa.string())),
        pa.repeat(pa.scalar(date), users),
    ]
    rows = pa.table([column.cast(kind.type) for column, kind in zip(columns, BASE, strict=True)], schema=BASE)
    return rows if np.diff(histories.offsets).all() else rows.filter(pa.array(np.diff(histories.offsets) > 0))


def _slices(turn: Turn, bucket: int, prior: BucketFiles) -> Iterator[tuple[Histories, pa.Table]]:
    """Histories of some users at a time, in user order, and their rows of the refresh before."""
    config = turn.lake.config
    end = int(day_start(turn.date + dt.timedelta(days=1), config).timestamp()) * 1_000_000
    upto = Upto(turn.date, end, config.lifelong.max_history)
    written = sorted({turn.days.partitions[path]["date"] for path in turn.days.paths.get(bucket, ())})
    bases = user_streams(turn.bases, bucket, BASE, _USERS_AHEAD)
    days = user_streams(turn.days, bucket, DAY, _USERS_AHEAD)
    before = user_streams(prior, bucket, PRIOR, _USERS_AHEAD)
    for last, parts in user_ranges([*bases, *days]):
        base = pa.concat_tables([BASE.empty_table(), *parts[: len(bases)]]).sort_by("user_id")
        kept = pa.concat_tables([PRIOR.empty_table(), *(stream.take(last) for stream in before)])
        yield merge_histories(base.combine_chunks(), parts[len(bases) :], written, upto), kept.combine_chunks()


def _without_clusters(histories: Histories) -> Histories:
    return replace(histories, fusion=pa.nulls(len(histories.users), pa.string()))


def _base_date(bases: BucketFiles, bucket: int) -> dt.date | None:
    dates = bases.read(bucket, pa.schema([BASE.field("refresh_date")]))["refresh_date"]
    return pc.max(dates).as_py() if len(dates) else None


def fusion_of(pathway: BucketFiles, bucket: int) -> str | None:
    """The fusion version of a bucket's refresh, None if there is no refresh of it."""
    versions = pathway.read(bucket, pa.schema([PRIOR.field("fusion_version")]))["fusion_version"]
    return versions[0].as_py() if len(versions) else None


def _shared(rows: pa.Table, **values: str) -> pa.Table:
    for name, value in values.items():
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), len(rows)))
    return rows


def _counted(histories: Histories, rows: pa.Table) -> dict[str, int]:
    return {
        "users": len(histories.users),
        "refreshed": len(rows),
        "history_length": pc.sum(rows["history_length"]).as_py() or 0,
        "behaviours_in": histories.rows_in,
        "behaviours_out": len(histories.behaviours),
    }


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, number in more.items():
        total[name] = total.get(name, 0) + number
