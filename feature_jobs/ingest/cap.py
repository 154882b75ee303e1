"""What a user's day has over ``samples.user_day_cap``, dropped while a landing is on its way to its buckets.

A row goes if as many impressions of its user and day as the cap have a row before it, by (ts, sample_id). That leaves the
rows up to one place: the first row of the impression that comes last within the cap. A part of the rows has that place
later or not at all, so cutting parts, in any division and as often as one likes, and then the whole cuts the same rows as
cutting the whole at once: neither the rows left nor how many went depend on files or tasks, and no task holds a robot's day
(but for repetitions of impressions within the cap, which are dropped as such afterwards).
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from feature_jobs.bucket_events import sample_ids
from feature_jobs.user_state_arrays import flat, group_starts, integers

HELD_ROWS = 1 << 20
"""Rows that a bucket's task puts together before it cuts them for the first time."""


def over_the_cap(rows: pa.Table, users: pa.DictionaryArray, cap: int) -> np.ndarray:
    """Which rows (LANDED, in any order) are over the cap (bool); ``users`` is their column ``user_id``, encoded.

    Costs a count of codes, and more only for users that have more rows than the cap.
    """
    over = np.zeros(len(rows), bool)
    code = users.indices.to_numpy()
    crowded = np.bincount(code, minlength=1) > cap
    if not crowded.any():
        return over
    places = np.flatnonzero(crowded[code])
    some = rows.select(["user_id", "impression_id", "date", "ts"]).take(pa.array(places))
    keys = (
        code[places],
        integers(some["date"]),
        integers(some["ts"]),
        integers(sample_ids(some["user_id"], some["impression_id"])),
    )
    order = np.lexsort(keys[::-1])
    user, day, ts, sample_id = (key[order] for key in keys)
    by_impression = np.lexsort((sample_id, day, user))  # which leaves rows of one in the order of time
    first = np.zeros(len(order), bool)
    first[by_impression[group_starts(user[by_impression], day[by_impression], sample_id[by_impression])]] = True
    before = np.cumsum(first) - first
    before = np.maximum.accumulate(np.where(group_starts(user, day, ts, sample_id), before, 0))  # a row is not before its equals
    before -= np.maximum.accumulate(np.where(group_starts(user, day), before, 0))
    over[places[order[before >= cap]]] = True
    return over


def within_the_cap(rows: pa.Table, cap: int) -> tuple[pa.Table, pa.DictionaryArray, int]:
    """Rows without those over the cap, their column ``user_id`` encoded, and how many were over it."""
    users = flat(rows["user_id"]).dictionary_encode()
    over = over_the_cap(rows, users, cap)
    lost = int(over.sum())
    if not lost:
        return rows, users, 0
    kept = pa.array(~over)
    return rows.filter(kept), users.filter(kept), lost


def joined_within_the_cap(blocks: Iterable[pa.Table], cap: int) -> tuple[pa.Table, int]:
    """Blocks of rows as one table within the cap, and how many rows were over it.

    What is held is cut whenever it has doubled: never more than twice what is left at the end, or HELD_ROWS, and a block.
    """
    held: list[pa.Table] = []
    number = dropped = 0
    limit = HELD_ROWS
    for block in blocks:
        held.append(block)
        number += len(block)
        if number >= limit:
            rows, _, lost = within_the_cap(pa.concat_tables(held), cap)
            held, number = [rows.combine_chunks()], len(rows)
            dropped += lost
            limit = max(HELD_ROWS, 2 * number)
    rows, _, lost = within_the_cap(pa.concat_tables(held), cap)
    return rows.combine_chunks(), dropped + lost
