"""``onerec lifelong``: histories compressed to representatives, one bucket in ``lifelong.rotation`` a day.

Bucket b is refreshed on day D if b mod rotation = D's ordinal mod rotation; the first refresh, and the first after a new
fusion version, covers every bucket. Each task reads its bucket's files of ``history`` and maps the fused vectors. What was
known stays: docs/decisions/lifelong.md says how a base, the days since and a backfill fit together.

Two commits: the representatives, then the bases. A run that ended between them finds the old bases and days, and does the
same again.
"""

import datetime as dt
import statistics
from typing import Any

import pyarrow.dataset as pads
from pyspark.sql import SparkSession

from feature_jobs.bucket_files import BucketFiles, bucket_files, partition_values, run_by_bucket
from feature_jobs.lifelong_bucket import Turn, fusion_of, refresh_bucket
from feature_jobs.lifelong_vectors import vector_files
from feature_jobs.partition_files import check_unchanged, commit_files
from feature_jobs.session import table_failures_named
from feature_jobs.stale import clear_stale, read_stale
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import HISTORY, HISTORY_BASE, ITEM_VECTORS, PATHWAY_LIFELONG

STEP = "lifelong"


def buckets_to_refresh(date: dt.date, user_buckets: int, rotation: int, *, every: bool) -> list[int]:
    """Buckets whose turn it is on a day, or every bucket."""
    return [bucket for bucket in range(user_buckets) if every or bucket % rotation == date.toordinal() % rotation]


def run(spark: SparkSession, lake: Lake, date: dt.date) -> StepRun:
    """Replace the refresh of ``date`` for the buckets whose turn it is.

    Raises BadInput if no fusion model is published, or it has given no vectors yet.
    """
    with step_run(lake, STEP, date) as step, table_failures_named():
        fusion = published_fusion(lake)
        every = not refreshed_before(lake, date, fusion)
        buckets = buckets_to_refresh(date, lake.config.lake.user_buckets, lake.config.lifelong.rotation, every=every)
        step.extra |= {"buckets": buckets, "fusion_version": fusion}
        reports: dict[int, dict[str, Any]] = {}
        if buckets:
            turn = plan_turn(lake, date, step, fusion, buckets)
            reports = dict(zip(buckets, run_by_bucket(spark, buckets, lambda bucket: refresh_bucket(turn, bucket)), strict=True))
            commit_refresh(lake, date, step, reports)
        _account(step, list(reports.values()))
        clear_stale(lake, date, STEP)
    return step


def published_fusion(lake: Lake) -> str:
    """The fusion version in force. Raises BadInput before the first."""
    registry = Registry.of(lake)
    version = registry.latest("fusion")
    if version is None:
        raise BadInput(f"{registry.root}: no fusion model yet; run `onerec train-fusion`, then `onerec fuse`")
    return version


def refreshed_before(lake: Lake, date: dt.date, fusion_version: str) -> bool:
    """Whether the newest refresh of an earlier day used this fusion version."""
    version = lake.table_version(PATHWAY_LIFELONG)
    dates = [day for day in partition_values(lake, PATHWAY_LIFELONG, version)["refresh_date"].to_pylist() if day < date]
    if not dates:
        return False
    files = bucket_files(lake, PATHWAY_LIFELONG, version, pads.field("refresh_date") == max(dates))
    return fusion_of(files, files.buckets[0]) == fusion_version


def plan_turn(lake: Lake, date: dt.date, step: StepRun, fusion: str, buckets: list[int]) -> Turn:
    """What the tasks of a refresh of these buckets need to know, with the tables' versions pinned."""
    history, pathway = step.reads(lake, HISTORY), step.reads(lake, PATHWAY_LIFELONG)
    ours = pads.field("user_bucket").isin(buckets)
    return Turn(
        lake=lake,
        date=date,
        fusion=fusion,
        vectors=vector_files(lake, fusion, step.reads(lake, ITEM_VECTORS)),
        bases=bucket_files(lake, HISTORY, history, ours & (pads.field("date") == HISTORY_BASE)),
        days=bucket_files(lake, HISTORY, history, ours & (pads.field("date") > HISTORY_BASE) & (pads.field("date") <= date)),
        before=_newest_before(lake, pathway, date, buckets),
        same=bucket_files(lake, PATHWAY_LIFELONG, pathway, ours & (pads.field("refresh_date") == date)),
        stale=STEP in read_stale(lake).get(date.isoformat(), {}),
    )


def _newest_before(lake: Lake, version: int, date: dt.date, buckets: list[int]) -> BucketFiles:
    """Each bucket's files of its newest refresh before a date."""
    newest: dict[int, dt.date] = {}
    for row in partition_values(lake, PATHWAY_LIFELONG, version).to_pylist():
        bucket, refresh = row["user_bucket"], row["refresh_date"]
        if bucket in buckets and refresh < date:
            newest[bucket] = max(newest.get(bucket, refresh), refresh)
    chosen = pads.scalar(False)
    for refresh in sorted(set(newest.values())):
        of_it = [bucket for bucket, day in newest.items() if day == refresh]
        chosen = chosen | ((pads.field("refresh_date") == refresh) & pads.field("user_bucket").isin(of_it))
    return bucket_files(lake, PATHWAY_LIFELONG, version, chosen)


def commit_refresh(lake: Lake, date: dt.date, step: StepRun, reports: dict[int, dict[str, Any]]) -> None:
    """Publish what the tasks wrote (their reports by bucket): representatives first, bases last.

    Raises BadInput if the days or bases that they read have changed meanwhile.
    """

    def written(table: str) -> list[int]:
        return [bucket for bucket, report in reports.items() if table in report["files"]]

    bucket, day = pads.field("user_bucket"), pads.field("date")
    # Also of buckets without a new base: who changes days marks this one as stale, and its mark must not go for what was before.
    version, unfolded = step.inputs[HISTORY.name], (day <= date) & ~bucket.isin(written(HISTORY.name))
    check_unchanged(lake, HISTORY, (version, (day <= date) & bucket.isin(list(reports))))
    commit_files(
        lake,
        PATHWAY_LIFELONG,
        [reports[number]["files"][PATHWAY_LIFELONG.name] for number in written(PATHWAY_LIFELONG.name)],
        (pads.field("refresh_date") == date) & bucket.isin(written(PATHWAY_LIFELONG.name)),
    )
    folded = (day <= date) & bucket.isin(written(HISTORY.name))
    commit_files(
        lake,
        HISTORY,
        [reports[number]["files"][HISTORY.name] for number in written(HISTORY.name)],
        folded,
        read=(version, folded),
    )
    check_unchanged(lake, HISTORY, (version, unfolded & bucket.isin(list(reports))))


def _account(step: StepRun, reports: list[dict[str, Any]]) -> None:
    counts = {name: _total(reports, "counts", name) for name in _COUNTS}
    waiting = counts["users"] - counts["refreshed"]
    dropped = {"nothing_observed_yet": waiting} if reports else {}
    step.table(PATHWAY_LIFELONG, TableCounts(counts["users"], counts["refreshed"], rows_dropped=dropped))
    if any(HISTORY.name in report["files"] for report in reports):
        reasons = sorted({reason for report in reports for reason in report["dropped"]})
        rows_dropped = {reason: _total(reports, "dropped", reason) for reason in reasons}
        step.table(HISTORY, TableCounts(counts["behaviours_in"], counts["behaviours_out"], rows_dropped=rows_dropped))
    audits = [ratio for report in reports for ratio in report["audits"]]
    step.extra |= {
        "behaviours": counts["history_length"],
        "behaviours_trimmed": _total(reports, "dropped", "over_max_history"),
        "behaviours_without_vectors": counts["without_vectors"],
        "users_from_scratch": counts["from_scratch"],
        "users_updated": counts["updated"],
        "users_kept": counts["kept"],
        "audits": len(audits),
        "audited_error_ratio": statistics.fmean(audits) if audits else None,
    }


_COUNTS = (
    *("users", "refreshed", "history_length", "behaviours_in", "behaviours_out"),
    *("from_scratch", "updated", "kept", "without_vectors"),
)


def _total(reports: list[dict[str, Any]], group: str, name: str) -> int:
    return sum(report[group].get(name, 0) for report in reports)
