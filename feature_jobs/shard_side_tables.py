"""What many days' shards share: item versions, tokens by codebook, and the lifelong sidecars of each refresh."""

import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyspark.sql import SparkSession

from feature_jobs.bucket_files import BucketFiles, bucket_files, item_keys, partition_values, run_by_bucket
from feature_jobs.shard_files import MANIFEST, is_whole, read_ipc, read_manifest, write_ipc, write_manifest
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.shard_manifest import LIFELONG_FORMAT, RefreshManifest
from schemas.shards import ITEM_TABLE, LIFELONG, SHARD_VERSION, TOKEN_TABLE, UNKNOWN_DURATION
from schemas.tables import ITEM_TOKENS, ITEMS, PATHWAY_LIFELONG

_TOKEN_KEYS = pa.schema([TOKEN_TABLE.field("item_key")])


def item_table(items: pa.Table) -> pa.Table:
    """Rows of ``items`` as ``ITEM_TABLE``. Raises BadInput if two item ids share a key."""
    keys = item_keys(items["item_id"])
    table = pa.table(
        [
            keys,
            items["item_id"],
            items["valid_from"].cast(pa.int64()),
            items["author_id"],
            items["category"],
            items["tags"],
            items["duration_ms"].fill_null(UNKNOWN_DURATION),
            items["deleted"],
        ],
        schema=ITEM_TABLE,
    ).sort_by([("item_key", "ascending"), ("valid_from", "ascending"), ("item_id", "ascending")])
    key, name = table["item_key"], table["item_id"]
    clash = pc.and_(pc.equal(key[1:], key[:-1]), pc.not_equal(name[1:], name[:-1]))
    if pc.any(clash).as_py():
        place = pc.index(clash, True).as_py()
        raise BadInput(f"items: {name[place].as_py()!r} and {name[place + 1].as_py()!r} share the key {key[place].as_py()}")
    return table


def token_table(tokens: pa.Table, sizes: list[int], where: str) -> pa.Table:
    """Rows of ``item_tokens`` of one codebook as ``TOKEN_TABLE``. Raises BadInput for tokens outside the codebook's sizes."""
    lengths = pc.list_value_length(tokens["tokens"])
    values = pc.list_flatten(tokens["tokens"].combine_chunks()).to_numpy(zero_copy_only=False)
    fits = pc.all(pc.equal(lengths, len(sizes)), min_count=0).as_py()
    if not fits or ((values.reshape(-1, len(sizes)) < 0) | (values.reshape(-1, len(sizes)) >= sizes)).any():
        raise BadInput(
            f"{where}: an item's tokens do not fit the token set's sizes {sizes}; run `onerec tokenize` and "
            "`onerec publish tokens` again"
        )
    table = pa.table(
        [item_keys(tokens["item_id"]), tokens["tokens"].cast(pa.list_(pa.int32())), tokens["rank"]], schema=TOKEN_TABLE
    )
    return table.sort_by("item_key")


def write_items(lake: Lake, root: Path, version: int) -> dict[str, Any]:
    """Write the item versions of a version of ``items``; their entry for a manifest."""
    columns = ["item_id", "valid_from", "author_id", "category", "tags", "duration_ms", "deleted"]
    rows = lake.read(ITEMS, columns=columns, version=version)
    entry = write_ipc(item_table(rows), root / "items", "items", compressed=True)
    return entry | {"path": f"items/{entry['path']}"}


def write_tokens(lake: Lake, root: Path, version: int, codebook_version: str, sizes: list[int]) -> dict[str, Any]:
    """Write a codebook's tokens; their entry for a manifest."""
    chosen = pads.field("codebook_version") == codebook_version
    rows = lake.read(ITEM_TOKENS, columns=["item_id", "tokens", "rank"], filter=chosen, version=version)
    table = token_table(rows, sizes, f"item_tokens, codebook {codebook_version}")
    entry = write_ipc(table, root / "items", f"tokens-{codebook_version}", compressed=False)
    return entry | {"path": f"items/{entry['path']}"}


def keys_with_tokens(path: Path) -> np.ndarray:
    """Item keys (int64, sorted) of a token table, mapped rather than read. Raises BadInput for one that is missing or damaged."""
    keys: np.ndarray = read_ipc(path, _TOKEN_KEYS)["item_key"].to_numpy()
    return keys


def lifelong_records(rows: pa.Table) -> pa.Table:
    """Rows of ``pathway_lifelong`` (``user_id``, ``representatives``) as ``LIFELONG``, ordered by user_id."""
    ordered = rows.sort_by("user_id").combine_chunks()
    lists = ordered["representatives"].combine_chunks()
    flat = lists.flatten()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
    unknown = pa.scalar(float(UNKNOWN_DURATION), pa.float32())
    values = {
        "item_key": item_keys(pc.struct_field(flat, "item_id")),
        "ts": pc.struct_field(flat, "ts").cast(pa.int64()),
        "play_time_ms": pc.struct_field(flat, "play_time_ms"),
        "duration_ms": pc.struct_field(flat, "duration_ms").fill_null(unknown),
        "feedback": pc.struct_field(flat, "feedback").cast(pa.int16()),
        "count": pc.struct_field(flat, "count"),
    }
    columns = {"user_id": ordered["user_id"]} | {name: pa.ListArray.from_arrays(offsets, array) for name, array in values.items()}
    return pa.table([columns[name] for name in LIFELONG.names], schema=LIFELONG)


def write_lifelong(spark: SparkSession, lake: Lake, root: Path, date: dt.date, version: int) -> dict[str, dict[str, Any]]:
    """Write the sidecars of each bucket's latest refresh before ``date``; the ``lifelong`` part of the day's manifest.

    A sidecar whose table files have not changed since it was written is kept.
    """
    latest: dict[int, tuple[dt.date, BucketFiles]] = {}
    for refresh in _refreshes(lake, version, date):
        files = bucket_files(lake, PATHWAY_LIFELONG, version, pads.field("refresh_date") == refresh)
        latest |= dict.fromkeys(files.buckets, (refresh, files))
    result = {}
    for refresh in sorted({refresh for refresh, _ in latest.values()}):
        files = next(files for when, files in latest.values() if when == refresh)
        buckets = [bucket for bucket, (when, _) in latest.items() if when == refresh]
        entries = _write_refresh(spark, root, refresh, files, buckets)
        for bucket in buckets:
            folder = _refresh_folder(refresh)
            kept = {name: entries[bucket][name] for name in ("bytes", "sha256")}
            result[str(bucket)] = {"refresh_date": refresh.isoformat(), "path": f"{folder}/{entries[bucket]['path']}", **kept}
    return dict(sorted(result.items(), key=lambda pair: int(pair[0])))


def _write_refresh(
    spark: SparkSession, root: Path, refresh: dt.date, files: BucketFiles, buckets: list[int]
) -> dict[int, dict[str, Any]]:
    folder = root / _refresh_folder(refresh)
    known = read_manifest(folder / MANIFEST, RefreshManifest) or {"files": []}
    entries = {entry["user_bucket"]: entry for entry in known["files"]}
    sources = {bucket: hashlib.sha256("\n".join(files.paths[bucket]).encode()).hexdigest() for bucket in buckets}

    def current(bucket: int) -> bool:
        entry = entries.get(bucket)
        return (
            entry is not None
            and entry["source"] == sources[bucket]
            and is_whole(root, {**entry, "path": f"{_refresh_folder(refresh)}/{entry['path']}"})
        )

    stale = [bucket for bucket in buckets if not current(bucket)]
    for bucket, entry in zip(stale, run_by_bucket(spark, stale, _sidecar_task(files, folder)), strict=True):
        entries[bucket] = {**entry, "user_bucket": bucket, "source": sources[bucket]}
    if stale:
        listed = [entries[bucket] for bucket in sorted(entries)]
        header = {"format": LIFELONG_FORMAT, "version": SHARD_VERSION, "refresh_date": refresh.isoformat()}
        write_manifest(folder / MANIFEST, {**header, "files": listed})
    return entries


def _sidecar_task(files: BucketFiles, folder: Path) -> Callable[[int], dict[str, Any]]:
    schema = pa.schema([PATHWAY_LIFELONG.schema.field(name) for name in ("user_id", "representatives")])

    def work(bucket: int) -> dict[str, Any]:
        records = lifelong_records(files.read(bucket, schema))
        return {**write_ipc(records, folder, f"bucket={bucket:05d}", compressed=False), "users": len(records)}

    return work


def _refresh_folder(refresh: dt.date) -> str:
    return f"lifelong/refresh_date={refresh.isoformat()}"


def _refreshes(lake: Lake, version: int, date: dt.date) -> list[dt.date]:
    """Refresh dates before a day, oldest first."""
    dates = set(partition_values(lake, PATHWAY_LIFELONG, version)["refresh_date"].to_pylist())
    return sorted(refresh for refresh in dates if refresh < date)
