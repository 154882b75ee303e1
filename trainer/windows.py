"""The exact window of each request, rebuilt with NumPy for a whole block of user-days at once (DESIGN: visibility, storage).

Of (the pathway at the start of the day ++ pending behaviours ++ the day's own events) a request sees those with
``observed_ts < request_ts``, in (observed_ts, sample_id) order, and of these the last ``length``. Shape suffixes: U
user-days, E entries, Q requests, S places of a window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

BEHAVIOUR_COLUMNS = ("sample_id", "item_key", "ts", "observed_ts", "play_time_ms", "duration_ms", "feedback")


@dataclass(frozen=True)
class Ragged:
    """Lists of behaviours, one a user-day: flat int64 columns and where each list begins."""

    offsets: Array
    """(U + 1,) int64."""
    columns: Mapping[str, Array]
    """Column → (E,) int64."""

    @property
    def owners(self) -> Array:
        """(E,) the user-day that each entry belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def where(self, keep_E: Array) -> "Ragged":
        """Only the entries marked True."""
        kept_before = np.concatenate([[0], np.cumsum(keep_E)])
        return Ragged(kept_before[self.offsets], {name: values[keep_E] for name, values in self.columns.items()})


def merged(parts: Sequence[Ragged], names: Sequence[str] = BEHAVIOUR_COLUMNS) -> Ragged:
    """The lists of several sources joined a user-day, each in (observed_ts, sample_id) order."""
    owner_E = np.concatenate([part.owners for part in parts])
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
    order_E = np.lexsort((columns["sample_id"], columns["observed_ts"], owner_E))
    counts = np.bincount(owner_E, minlength=len(parts[0].offsets) - 1)
    return Ragged(np.concatenate([[0], np.cumsum(counts)]), {name: values[order_E] for name, values in columns.items()})


@dataclass(frozen=True)
class TimeIndex:
    """Answers "how many entries of this owner are strictly earlier than that moment" for many queries at once.

    Times are replaced by their ranks, so that owner and time fit one integer and one binary search answers all queries.
    """

    offsets: Array
    distinct_times: Array
    owner_and_rank_E: Array

    @classmethod
    def of(cls, offsets: Array, times_E: Array) -> "TimeIndex":
        """Index lists whose times ascend within each owner (``offsets``: (U + 1,))."""
        distinct, rank_E = np.unique(times_E, return_inverse=True)
        owner_E = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        return cls(offsets, distinct, owner_E * (len(distinct) + 1) + rank_E)

    def count_before(self, owner_Q: Array, time_Q: Array) -> Array:
        """(Q,) int64."""
        rank_Q = np.searchsorted(self.distinct_times, time_Q)
        found_Q = np.searchsorted(self.owner_and_rank_E, owner_Q * (len(self.distinct_times) + 1) + rank_Q)
        return found_Q - self.offsets[owner_Q]


def tail_indices(starts_Q: Array, ends_Q: Array, length: int) -> tuple[Array, Array]:
    """The last ``length`` of each range [start, end), right-aligned: indices (Q, S) int64 and a mask, False where there is
    none (there the index is 0)."""
    indices_QS = ends_Q[:, None] - length + np.arange(length)
    mask_QS = indices_QS >= starts_Q[:, None]
    return np.where(mask_QS, indices_QS, 0), mask_QS


@dataclass(frozen=True)
class History:
    """Merged behaviours of user-days, ready for the windows of any of their requests."""

    entries: Ragged
    index: TimeIndex

    @classmethod
    def of(cls, parts: Sequence[Ragged]) -> "History":
        """Merge sources (pathway, pending, the day's events) in (observed_ts, sample_id) order."""
        entries = merged(parts)
        return cls(entries, TimeIndex.of(entries.offsets, entries.columns["observed_ts"]))

    def visible_tail(self, owner_Q: Array, request_ts_Q: Array, length: int) -> tuple[Array, Array]:
        """What each request sees: indices into the entries' columns (Q, S) and the mask, oldest first."""
        starts_Q = self.entries.offsets[owner_Q]
        return tail_indices(starts_Q, starts_Q + self.index.count_before(owner_Q, request_ts_Q), length)
