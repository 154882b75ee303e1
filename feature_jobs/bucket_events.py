"""A bucket's events as the labels want them: with ``sample_id`` and the item version that held before each request."""

import pyarrow as pa

from feature_jobs.bucket_files import BucketFiles, relaxed
from feature_jobs.item_versions import ItemVersions
from feature_jobs.samples_labels import EVENT_COLUMNS
from feature_jobs.text_hashes import text_hashes
from feature_jobs.user_state_arrays import flat, integers
from schemas.tables import EVENTS

READ = pa.schema([relaxed(column) for column in EVENTS.schema if column.name != "ingested_at"])
"""Columns of events that labelling reads."""


def read_events(files: BucketFiles, bucket: int, items: ItemVersions) -> pa.Table:
    """A bucket's events (EVENT_COLUMNS) in file order. Raises BadInput naming a file that is missing or damaged."""
    return with_items(files.read(bucket, READ), items)


def with_items(events: pa.Table, items: ItemVersions) -> pa.Table:
    """Events (READ) with ``sample_id`` and the attributes of the item version that held before the request: the latest
    ``valid_from`` < ``request_ts``, deleted or not; nulls and ``item_version_missing`` if none did."""
    attributes, missing = items.before(events["item_id"], integers(events["request_ts"]))
    added = {
        "sample_id": sample_ids(events["user_id"], events["impression_id"]),
        "author_id": attributes["author_id"],
        "category": attributes["category"],
        "tags": attributes["tags"],
        "item_duration_ms": attributes["duration_ms"],
        "item_version_missing": pa.array(missing),
    }
    columns = [added[name] if name in added else events[name] for name in EVENT_COLUMNS.names]
    return pa.table([column.cast(field.type) for column, field in zip(columns, EVENT_COLUMNS, strict=True)], schema=EVENT_COLUMNS)


def sample_ids(users: pa.ChunkedArray | pa.Array, impressions: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Spark's ``xxhash64(user_id, impression_id)`` (int64): the hash of the impression, seeded with the user's."""
    encoded = flat(users)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    seeds = text_hashes(encoded.dictionary)[encoded.indices.to_numpy()]
    return pa.array(text_hashes(flat(impressions), seeds))
