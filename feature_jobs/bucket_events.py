"""A bucket's events as the labels want them: with ``sample_id`` and the item version that held before each request."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import BucketFiles, relaxed
from feature_jobs.item_versions import ItemVersions
from feature_jobs.samples_labels import EVENT_COLUMNS
from feature_jobs.samples_slices import event_slices
from feature_jobs.text_hashes import text_hashes
from feature_jobs.user_state_arrays import flat, integers
from schemas.tables import EVENTS

READ = pa.schema([relaxed(column) for column in EVENTS.schema if column.name != "ingested_at"])
"""Columns of events that labelling reads."""


def read_events(files: BucketFiles, bucket: int, items: ItemVersions) -> pa.Table:
    """A bucket's events (EVENT_COLUMNS) in file order. Raises BadInput naming a file that is missing or damaged."""
    return with_items(files.read(bucket, READ), items).cast(EVENT_COLUMNS)


def read_event_slices(files: BucketFiles, bucket: int, items: ItemVersions) -> Iterator[pa.Table]:
    """The same in slices of whole users, texts that repeat as dictionary arrays (``event_slices``)."""
    for events in event_slices(files, bucket, READ):
        yield with_items(events, items)


def with_items(events: pa.Table, items: ItemVersions) -> pa.Table:
    """Events (READ) with ``sample_id`` and the attributes of the item version that held before the request: the latest
    ``valid_from`` < ``request_ts``, deleted or not; nulls and ``item_version_missing`` if none did. Texts of items come as
    dictionary arrays."""
    used, place = items.used_before(events["item_id"], integers(events["request_ts"]))
    rows = pa.array(place, pa.int32(), mask=place < 0)
    added = {
        "sample_id": sample_ids(events["user_id"], events["impression_id"]),
        "author_id": _repeated(used["author_id"], rows),
        "category": _repeated(used["category"], rows),
        "tags": flat(used["tags"]).take(rows),
        "item_duration_ms": flat(used["duration_ms"]).take(rows),
        "item_version_missing": pa.array(place < 0),
    }
    return pa.table({name: added[name] if name in added else events[name] for name in EVENT_COLUMNS.names})


def _repeated(texts: pa.ChunkedArray, rows: pa.Array) -> pa.DictionaryArray:
    distinct = flat(texts).dictionary_encode()
    return pa.DictionaryArray.from_arrays(distinct.indices.take(rows), distinct.dictionary)


def durations(events: pa.Table, items: ItemVersions) -> np.ndarray:
    """The length of each event's item (int64, ms): the event's, else that of the version before the request; −1 if unknown."""
    length = integers(events["duration_ms"], null=-1)
    unknown = np.flatnonzero(length < 0)
    if len(unknown):
        asked = events["item_id"].take(pa.array(unknown))
        used, place = items.used_before(asked, integers(events["request_ts"])[unknown])
        lengths = np.append(integers(used["duration_ms"], null=-1), -1)  # the last stands for no version
        length = length.copy()
        length[unknown] = lengths[place]
    return length


def sample_ids(users: pa.ChunkedArray | pa.Array, impressions: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Spark's ``xxhash64(user_id, impression_id)`` (int64): the hash of the impression, seeded with the user's."""
    encoded = flat(users)
    if not pa.types.is_dictionary(encoded.type):
        encoded = pc.dictionary_encode(encoded)
    seeds = text_hashes(encoded.dictionary)[encoded.indices.to_numpy()]
    return pa.array(text_hashes(flat(impressions), seeds))
