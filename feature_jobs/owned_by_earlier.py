"""Impressions that a landing brought for a day and that an earlier landing owns: a file of ``events`` remembers their ids.

``events`` holds an impression of a user's day once, under the earliest landing that brought it, whatever the order in which
landings arrive. A state may have taken it in from a later landing before the earlier one came, so the later landing's file
keeps the ``sample_id`` of what it has lost, in the file's own metadata: published and replaced with its rows, never apart.
"""

import base64
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.bucket_events import sample_ids
from feature_jobs.bucket_files import BucketFiles
from schemas.errors import BadInput
from schemas.lake import filesystem_of, first_line

KEY = "onerec.owned_by_earlier"
"""Key in a Parquet file's metadata: base64 of distinct sample_ids (int64, little-endian), ascending."""
_KEYS = pa.schema([("user_id", pa.string()), ("impression_id", pa.string())])
MOST_IDS = 8_000_000
"""Of one file: more would pass the 100 MB that Parquet readers allow a text of the footer."""


def ids_held(files: BucketFiles, path: str) -> np.ndarray:
    """The ids (int64, in the order of the rows) of the impressions that one file of ``events`` holds."""
    rows = files.read_file(path, _KEYS)
    return np.asarray(sample_ids(rows["user_id"], rows["impression_id"]).to_numpy())


def as_metadata(ids: np.ndarray, name: str) -> dict[str, str]:
    """Metadata of a file with these ids (int64, any order, may repeat), empty without any.

    Raises BadInput, saying which file by ``name``, if they are more than a footer may hold.
    """
    distinct = np.unique(ids)
    if len(distinct) > MOST_IDS:
        raise BadInput(
            f"{name}: {len(distinct)} rows repeat what an earlier landing has, more than {MOST_IDS} that a file can note; land "
            "them without the repetitions, or use a lake with more lake.user_buckets"
        )
    return {KEY: base64.b64encode(distinct.astype("<i8").tobytes()).decode()} if len(distinct) else {}


def from_metadata(metadata: Mapping[bytes, bytes] | None) -> np.ndarray:
    """The ids (int64, ascending) that a file's metadata holds, of which most have none."""
    return np.frombuffer(base64.b64decode((metadata or {}).get(KEY.encode(), b"")), "<i8").astype(np.int64)


def owned_by_earlier(files: BucketFiles, path: str) -> np.ndarray:
    """The ids of one file of ``events``. Raises BadInput naming a file that is missing or damaged."""
    filesystem, root = filesystem_of(files.uri)
    try:
        with filesystem.open_input_file(f"{root}/{path}") as stream:
            return from_metadata(pq.read_metadata(stream).metadata)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(
            f"{root}/{path}: missing or damaged ({first_line(error)}); restore it, or run the step that writes it"
        ) from error
