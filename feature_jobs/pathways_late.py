"""Late events of a user bucket: events of earlier days (or of the day itself) that no state and no samples have taken in."""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_events import read_events, sample_ids
from feature_jobs.bucket_files import BucketFiles
from feature_jobs.item_versions import ItemVersions
from feature_jobs.owned_by_earlier import owned_by_earlier
from feature_jobs.samples_arrays import order_by
from feature_jobs.samples_drops import DUPLICATE
from feature_jobs.samples_labels import STATE_COLUMNS, label_samples
from feature_jobs.user_state_arrays import flat, group_starts, integers
from feature_jobs.user_state_files import state_of
from schemas.config import Config
from schemas.tables import EVENTS

_KEYS = pa.schema([EVENTS.schema.field(name) for name in ("user_id", "impression_id")])
_EPOCH = dt.date(1970, 1, 1)


@dataclass(frozen=True)
class LateInputs:
    """Files of ``events`` in the late (date, landing) pairs, and in the pairs of the same dates that were taken in before;
    the catalogue to label them with."""

    late: BucketFiles
    earlier: BucketFiles
    items: ItemVersions

    def read(self, bucket: int, state: BucketFiles, config: Config) -> tuple[pa.Table, dict[str, int]]:
        """The bucket's late behaviours labelled as samples are, given its users' ``state``, and how many rows were
        dropped by reason: a repetition of an impression taken in before is a duplicate, whatever it says, and the cap of a
        user's day counts what was taken in before."""
        events = read_events(self.late, bucket, self.items)
        again, taken = self._taken_before(bucket, events, config.samples.user_day_cap)
        events, taken = events.filter(pa.array(~again)), taken[~again]
        users = flat(events["user_id"]).unique()
        labelled = label_samples(events, state_of(state, bucket, users, STATE_COLUMNS), config, taken)
        dropped = {DUPLICATE: int(again.sum())}
        for count in labelled["dropped"].drop_null().value_counts().to_pylist():
            dropped[count["values"]] = dropped.get(count["values"], 0) + count["counts"]
        return labelled.filter(pc.is_null(labelled["dropped"])), dropped

    def _taken_before(self, bucket: int, events: pa.Table, cap: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each event's impression (bool) is among the earlier ones of its date, read a file at a time: those that the
        file holds, and those that it held, or would have, before a landing ahead of its own brought them; and how many
        impressions of its user and date were taken in before (int64), where these and the new ones may be more than ``cap``."""
        again, taken = np.zeros(len(events), bool), np.zeros(len(events), np.int64)
        ids, dates = integers(events["sample_id"]), integers(events["date"])
        users = flat(events["user_id"]).dictionary_encode()
        code = users.indices.to_numpy()
        held: dict[int, list[np.ndarray]] = {}
        for path in self.earlier.paths.get(bucket, ()):
            date = (self.earlier.partitions[path]["date"] - _EPOCH).days
            of_day = np.flatnonzero(dates == date)
            if not len(of_day):
                continue
            rows = self.earlier.read_file(path, _KEYS)
            keys = sample_ids(rows["user_id"], rows["impression_id"]).to_numpy()
            again[of_day] |= np.isin(ids[of_day], keys) | np.isin(ids[of_day], owned_by_earlier(self.earlier, path))
            owner = integers(pc.index_in(flat(rows["user_id"]), value_set=users.dictionary), null=-1)
            held.setdefault(date, []).append(np.stack([owner, keys])[:, owner >= 0])
        for date, pairs in held.items():
            of_day = np.flatnonzero(dates == date)
            repeated = of_day[again[of_day]]  # some of which an earlier landing has taken from the files above
            owner, keys = np.concatenate([*pairs, np.stack([code[repeated], ids[repeated]])], axis=1)
            new = np.bincount(code[of_day[~again[of_day]]], minlength=len(users.dictionary))
            taken[of_day] = _distinct_where_crowded(owner, keys, new, cap)[code[of_day]]
        return again, taken


def _distinct_where_crowded(owner: np.ndarray, keys: np.ndarray, new: np.ndarray, cap: int) -> np.ndarray:
    """How many keys each owner has: of those who might have more than ``cap`` with the ``new`` ones, distinct keys."""
    counts = np.bincount(owner, minlength=len(new))
    crowded = counts + new > cap
    some = crowded[owner]
    if some.any():
        order = order_by(owner[some], keys[some])
        owner, keys = owner[some][order], keys[some][order]
        counts[crowded] = np.bincount(owner[group_starts(owner, keys)], minlength=len(new))[crowded]
    return counts
