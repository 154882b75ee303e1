"""Late events of a user bucket: events of earlier days (or of the day itself) that no state and no samples have taken in."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_events import read_events
from feature_jobs.bucket_files import BucketFiles
from feature_jobs.item_versions import ItemVersions
from feature_jobs.samples_drops import DUPLICATE
from feature_jobs.samples_labels import STATE_COLUMNS, label_samples
from feature_jobs.user_state_arrays import flat
from feature_jobs.user_state_files import state_of
from schemas.config import Config
from schemas.tables import EVENTS

_KEYS = pa.schema([EVENTS.schema.field(name) for name in ("date", "user_id", "impression_id")])


@dataclass(frozen=True)
class LateInputs:
    """Files of ``events`` in the late (date, landing) pairs, and in the pairs of the same dates that were taken in before;
    the catalogue to label them with."""

    late: BucketFiles
    earlier: BucketFiles
    items: ItemVersions

    def read(self, bucket: int, state: BucketFiles, config: Config) -> tuple[pa.Table, dict[str, int]]:
        """The bucket's late behaviours labelled as samples are, given its users' ``state``, and how many rows were
        dropped by reason: a repetition of an impression taken in before is a duplicate, whatever it says."""
        events = read_events(self.late, bucket, self.items)
        again = self._taken_before(bucket, events)
        events = events.filter(pc.invert(again))
        users = flat(events["user_id"]).unique()
        labelled = label_samples(events, state_of(state, bucket, users, STATE_COLUMNS), config)
        dropped = {DUPLICATE: pc.sum(again).as_py() or 0}
        for count in labelled["dropped"].drop_null().value_counts().to_pylist():
            dropped[count["values"]] = dropped.get(count["values"], 0) + count["counts"]
        return labelled.filter(pc.is_null(labelled["dropped"])), dropped

    def _taken_before(self, bucket: int, events: pa.Table) -> pa.Array:
        """Whether each event's impression is among the earlier ones of its date, read a file at a time."""
        if not len(events):
            return pa.array([], pa.bool_())
        keys = events.select(_KEYS.names)
        found: set[tuple[object, ...]] = set()
        for path in self.earlier.paths.get(bucket, ()):
            one = BucketFiles(self.earlier.uri, {bucket: (path,)}, self.earlier.partitions)
            rows = one.read(bucket, _KEYS)
            rows = rows.filter(pc.is_in(rows["impression_id"], value_set=flat(keys["impression_id"])))
            found.update(zip(*(rows[name].to_pylist() for name in _KEYS.names), strict=True))
        return pa.array([key in found for key in zip(*(keys[name].to_pylist() for name in _KEYS.names), strict=True)], pa.bool_())
