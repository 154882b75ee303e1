"""``onerec shards``: a day's samples and pathways as shard files, one Spark task a bucket (docs/shards.md)."""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pyspark.sql import SparkSession

from feature_jobs.bucket_files import BucketFiles, bucket_files, partition_values, run_by_bucket
from feature_jobs.partition_files import check_unchanged
from feature_jobs.session import table_failures_named
from feature_jobs.shard_files import (
    MANIFEST,
    clean,
    data_files,
    day_folder,
    read_ipc,
    read_manifest,
    shard_days,
    shards_root,
    verify_files,
    write_ipc,
    write_manifest,
    writer_lock,
)
from feature_jobs.shard_records import (
    PATHWAY_COLUMNS,
    SAMPLE_COLUMNS,
    STATIC_COLUMNS,
    Inputs,
    counts_of,
    targets_without_tokens,
    user_day_records,
)
from feature_jobs.shard_side_tables import keys_with_tokens, write_items, write_lifelong, write_tokens
from feature_jobs.stale import check_finished, clear_stale
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.shard_manifest import DayManifest, DayTokens, MaskManifest
from schemas.shards import SHARD_FORMAT, SHARD_VERSION, USER_DAY
from schemas.tables import DAILY_SAMPLES, ITEM_TOKENS, ITEMS, PATHWAY_LIFELONG, PATHWAY_POSITIVE, PATHWAY_SHORT, PATHWAY_STATIC

_DAY_TABLES = (DAILY_SAMPLES, PATHWAY_STATIC, PATHWAY_SHORT, PATHWAY_POSITIVE)
_TARGETS = pa.schema([USER_DAY.field(name) for name in ("event_item_key", "event_target")])


def run(spark: SparkSession, lake: Lake, date: dt.date) -> StepRun:
    """Build one day's shard and publish its manifest; data files that no manifest names are removed.

    Raises BadInput if the day has no samples, its pathways do not belong to them, a backfill is rebuilding it or was stopped, or
    no token set is published.
    """
    root = shards_root(lake)
    with step_run(lake, "shards", date) as step, writer_lock(root), table_failures_named():
        check_finished(lake, date)
        manifest, samples = _build(spark, lake, root, date, step)
        for table in _DAY_TABLES:
            check_unchanged(lake, table, (step.inputs[table.name], pads.field("date") == date))
        check_finished(lake, date)
        write_manifest(day_folder(root, date.isoformat()) / MANIFEST, manifest)
        _drop_stale_masks(root, date, manifest)
        step.extra["files_removed"] = clean(root)
        clear_stale(lake, date, "shards")
        step.table("shards", TableCounts(rows_in=samples, rows_out=manifest["counts"]["events"]))
        step.extra |= {"counts": manifest["counts"], "codebook_version": manifest["codebook_version"]}
    return step


def retokenise(spark: SparkSession, lake: Lake, dates: Sequence[dt.date]) -> list[StepRun]:
    """Give shards of days the tokens of the published token set: one new token table, manifests, the same data files.

    All get the same tokens, whatever is published meanwhile. Raises BadInput naming a day without a shard.
    """
    root = shards_root(lake)
    runs: list[StepRun] = []
    with writer_lock(root), table_failures_named():
        for date in dates:
            with step_run(lake, "shards", date) as step:
                manifest = existing_manifest(root, date)
                if runs:
                    step.inputs[ITEM_TOKENS.name] = runs[0].inputs[ITEM_TOKENS.name]
                else:
                    tokens = _tokens(lake, root, step)
                _retokenise_day(spark, root, manifest, tokens, step)
                if date == dates[-1]:
                    step.extra["files_removed"] = clean(root)
            runs.append(step)
    return runs


def _retokenise_day(spark: SparkSession, root: Path, manifest: dict[str, Any], tokens: dict[str, Any], step: StepRun) -> None:
    path = day_folder(root, manifest["date"]) / MANIFEST
    files = data_files(root, manifest)
    missing = run_by_bucket(spark, sorted(files), _recount_task(files, root / tokens["tokens"]["path"]))
    counts = manifest["counts"] | {"targets_without_tokens": sum(part["targets_without_tokens"] for part in missing)}
    inputs = manifest["inputs"] | {ITEM_TOKENS.name: step.inputs[ITEM_TOKENS.name]}
    write_manifest(path, {**manifest, **tokens, "counts": counts, "inputs": inputs})
    step.table("shards", TableCounts(rows_in=counts["events"], rows_out=counts["events"]))
    step.extra |= {"counts": counts, "codebook_version": tokens["codebook_version"]}


def days_to_catch_up(lake: Lake, date: dt.date, days: int) -> list[dt.date]:
    """Those of the ``days`` days before ``date`` that have samples and no manifest, oldest first."""
    root = shards_root(lake)
    held = set(partition_values(lake, DAILY_SAMPLES, lake.table_version(DAILY_SAMPLES))["date"].to_pylist())
    before = [date - dt.timedelta(days=back) for back in range(days, 0, -1)]
    return [day for day in before if day in held and not (day_folder(root, day.isoformat()) / MANIFEST).is_file()]


def days_of_other_tokens(lake: Lake, date: dt.date) -> list[dt.date]:
    """All days before ``date`` whose shard has tokens of another codebook than the published token set's, oldest first: a model
    trains on days of one codebook. Without a token set there are none."""
    registry = Registry.of(lake)
    if registry.latest("token_set") is None:
        return []
    published = _codebook_of(registry)
    root = shards_root(lake)
    days = [day for day in shard_days(lake) if day < date]
    manifests = ((day, read_manifest(day_folder(root, day.isoformat()) / MANIFEST, DayTokens) or {}) for day in days)
    ours = ((day, manifest) for day, manifest in manifests if manifest.get("version") == SHARD_VERSION)
    return [day for day, manifest in ours if (manifest.get("codebook_version"), manifest.get("codebook_sizes")) != published]


def verify(lake: Lake, date: dt.date) -> int:
    """Check every file that a day's manifests name, masks included; how many. Raises BadInput naming a damaged one."""
    root = shards_root(lake)
    manifest = existing_manifest(root, date)
    folder = day_folder(root, date.isoformat())
    data = {entry["sha256"] for entry in manifest["files"]}
    checked = verify_files(root, folder / MANIFEST)
    for mask in sorted(folder.glob("targets-*.json")):
        checked += verify_files(root, mask)
        for entry in (read_manifest(mask, MaskManifest) or {}).get("files", []):
            if entry["data_sha256"] not in data:
                raise BadInput(
                    f"{folder / entry['path']}: a mask of other data than the day's; run `onerec shards --targets rsft`"
                )
    return checked


def existing_manifest(root: Path, date: dt.date) -> dict[str, Any]:
    """A day's manifest. Raises BadInput if there is none, or it is damaged, of another format or of another day."""
    path = day_folder(root, date.isoformat()) / MANIFEST
    manifest = read_manifest(path, DayManifest)
    if manifest is None:
        raise BadInput(f"{path}: no shard of this day; run `onerec shards --date {date}` first")
    if (manifest.get("format"), manifest.get("version")) != (SHARD_FORMAT, SHARD_VERSION):
        raise BadInput(
            f"{path}: format {manifest.get('format')!r} version {manifest.get('version')!r}, not ours; build the day again"
        )
    if manifest["date"] != date.isoformat():
        raise BadInput(f"{path}: is of {manifest['date']}, not {date}; build the day again")
    return manifest


def _build(spark: SparkSession, lake: Lake, root: Path, date: dt.date, step: StepRun) -> tuple[dict[str, Any], int]:
    """Write everything a day's manifest names; the manifest, and the samples read."""
    versions = {table.name: step.reads(lake, table) for table in (*_DAY_TABLES, ITEMS, PATHWAY_LIFELONG)}
    tables = {table.name: bucket_files(lake, table, versions[table.name], pads.field("date") == date) for table in _DAY_TABLES}
    if not tables[DAILY_SAMPLES.name].buckets:
        raise BadInput(f"{lake.table_uri(DAILY_SAMPLES)}: no samples of {date}; run `onerec samples --date {date}` first")
    tokens = _tokens(lake, root, step)
    items = write_items(lake, root, versions[ITEMS.name])
    lifelong = write_lifelong(spark, lake, root, date, versions[PATHWAY_LIFELONG.name])
    buckets = sorted({bucket for files in tables.values() for bucket in files.buckets})
    folder = day_folder(root, date.isoformat())
    parts = run_by_bucket(spark, buckets, _day_task(tables, date, folder, root / tokens["tokens"]["path"]))
    names = ("users", "requests", "events", "targets", "targets_without_tokens")
    manifest = {
        "format": SHARD_FORMAT,
        "version": SHARD_VERSION,
        "date": date.isoformat(),
        "day_timezone": lake.config.lake.day_timezone,
        "user_buckets": lake.config.lake.user_buckets,
        **tokens,
        "counts": {name: sum(part["counts"][name] for part in parts) for name in names},
        "files": [part["file"] for part in parts],
        "items": items,
        "lifelong": lifelong,
        "inputs": dict(sorted(step.inputs.items())),
        "config_version": lake.config.version,
    }
    return manifest, sum(part["samples"] for part in parts)


def _day_task(tables: dict[str, BucketFiles], date: dt.date, folder: Path, tokens: Path) -> Callable[[int], dict[str, Any]]:
    def work(bucket: int) -> dict[str, Any]:
        inputs = Inputs(
            samples=tables[DAILY_SAMPLES.name].read(bucket, SAMPLE_COLUMNS),
            static=tables[PATHWAY_STATIC.name].read(bucket, STATIC_COLUMNS),
            short=tables[PATHWAY_SHORT.name].read(bucket, PATHWAY_COLUMNS),
            positive=tables[PATHWAY_POSITIVE.name].read(bucket, PATHWAY_COLUMNS),
        )
        records = user_day_records(inputs, f"shards of {date}, bucket {bucket}")
        counts = counts_of(records) | {"targets_without_tokens": targets_without_tokens(records, keys_with_tokens(tokens))}
        file = write_ipc(records, folder, f"bucket={bucket:05d}", compressed=True)
        described = {name: counts[name] for name in ("users", "requests", "events")}
        return {"counts": counts, "file": {**file, "user_bucket": bucket, **described}, "samples": len(inputs.samples)}

    return work


def _recount_task(files: dict[int, Path], tokens: Path) -> Callable[[int], dict[str, Any]]:
    def work(bucket: int) -> dict[str, Any]:
        records = read_ipc(files[bucket], _TARGETS)
        return {"targets_without_tokens": targets_without_tokens(records, keys_with_tokens(tokens))}

    return work


def _tokens(lake: Lake, root: Path, step: StepRun) -> dict[str, Any]:
    """Write the published token set's token table; the parts of a manifest that speak of tokens."""
    registry = Registry.of(lake)
    if registry.latest("token_set") is None:
        raise BadInput(f"{registry.root}: no token set is published; run `onerec tokenize`, then `onerec publish tokens`")
    codebook_version, sizes = _codebook_of(registry)
    entry = write_tokens(lake, root, step.reads(lake, ITEM_TOKENS), codebook_version, sizes)
    return {"codebook_version": codebook_version, "codebook_sizes": sizes, "tokens": entry}


def _codebook_of(registry: Registry) -> tuple[str, list[int]]:
    """Version of the published token set's codebook; sizes of the tokens, a suffix's too, which the codebook does not know."""
    token_set = registry.load("token_set").metadata
    return token_set["codebook_version"], [int(size) for size in token_set["codebook_sizes"]]


def _drop_stale_masks(root: Path, date: dt.date, manifest: dict[str, Any]) -> None:
    """Remove masks of data files that the new manifest no longer names: their order would not fit."""
    data = {entry["sha256"] for entry in manifest["files"]}
    for path in day_folder(root, date.isoformat()).glob("targets-*.json"):
        masks = (read_manifest(path, MaskManifest) or {}).get("files", [])
        if {entry["data_sha256"] for entry in masks} != data:
            path.unlink()
