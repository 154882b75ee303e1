"""Pair scores of one block of items, from the lists of the users who engaged with them: NumPy and SciPy in and out.

Notation of the reference (§1): I_u the items of user u, U_i the users of item i, w_u = |I_u|^(−1/2).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

MAX_DENSE_CELLS = 4_000_000
PAIRS = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("item_a", pa.string()),
        pa.field("item_b", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("support", pa.int64()),
        pa.field("dropped", pa.int64()),
    ]
)
"""Pairs of a block. ``dropped`` is, on the first row of an item and kind, the number of its pairs over the cap; else 0."""


@dataclass(frozen=True)
class UserLists:
    """Users' item lists as compressed rows: users ascending by id, items numbered ascending by id.

    Entry e of user u (``offsets[u] <= e < offsets[u + 1]``): ``item[e]``, whether u is in the sample of that item's users,
    when u last asked for it (µs), when u's first positive feedback on it was known (µs). ``item_users``: |U_i| by item.
    """

    item_ids: list[str]
    offsets: np.ndarray
    item: np.ndarray
    sampled: np.ndarray
    requested: np.ndarray
    observed: np.ndarray
    item_users: np.ndarray


def user_lists(users: pa.Table) -> UserLists:
    """Build from rows ``user_id``, ``items``: list of (item_id, sampled, item_users, requested, observed)."""
    ordered = users.sort_by("user_id").combine_chunks()
    lists = ordered["items"].combine_chunks()
    flat = lists.flatten()
    ids = pc.struct_field(flat, "item_id").dictionary_encode()
    by_id = np.argsort(np.array(ids.dictionary.to_pylist(), dtype=object))
    place = np.empty(len(by_id), np.int64)
    place[by_id] = np.arange(len(by_id))
    item = place[ids.indices.to_numpy()]
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    item_users = np.zeros(len(by_id), np.int64)
    item_users[item] = pc.struct_field(flat, "item_users").to_numpy()
    return UserLists(
        item_ids=ids.dictionary.take(pa.array(by_id)).to_pylist(),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        item=item,
        sampled=pc.struct_field(flat, "sampled").to_numpy(zero_copy_only=False),
        requested=pc.struct_field(flat, "requested").to_numpy(),
        observed=pc.struct_field(flat, "observed").to_numpy(),
        item_users=item_users,
    )


def block_pairs(lists: UserLists, wanted: np.ndarray, alpha: float, max_pairs: int) -> pa.Table:
    """``PAIRS`` whose first item is among ``wanted`` (item numbers), at most ``max_pairs`` an item and kind."""
    users = len(lists.offsets) - 1
    shape = (users, len(lists.item_ids))
    row = np.repeat(np.arange(users), np.diff(lists.offsets))
    everything = sparse.csr_matrix((np.ones(len(row), np.float32), (row, lists.item)), shape=shape)
    entries = np.flatnonzero(lists.sampled)
    sampled = sparse.csr_matrix((np.ones(len(entries)), (row[entries], lists.item[entries])), shape=shape)
    by_item = entries[np.argsort(lists.item[entries], kind="stable")]
    starts = np.searchsorted(lists.item[by_item], np.arange(shape[1] + 1))
    weight = np.diff(lists.offsets) ** -0.5
    builder = _Builder(lists.item_ids, max_pairs)
    for item in wanted.tolist():
        own = by_item[starts[item] : starts[item + 1]]
        rows = row[own]
        if len(rows) == 0:
            continue
        together = sampled[rows]
        support = np.asarray(together.sum(axis=0)).ravel().astype(np.int64)
        support[item] = 0
        swing = _swing(everything[rows], together, support, weight[rows], alpha)
        others = np.flatnonzero(support)
        cosine = support[others] / np.sqrt(float(lists.item_users[item]) * lists.item_users[others])
        builder.add("co_occurrence", item, others, cosine, support[others])
        similar = np.flatnonzero(swing > 0)
        builder.add("swing", item, similar, swing[similar], support[similar])
        chosen, users_behind = _chosen(lists, rows, lists.requested[own], item, swing)
        builder.add("user_to_item", item, chosen, swing[chosen], users_behind)
    return builder.table()


def _swing(
    everything: sparse.csr_matrix, together: sparse.csr_matrix, support: np.ndarray, weight: np.ndarray, alpha: float
) -> np.ndarray:
    """Σ over ordered pairs of different users of the item and of each other item: w_u w_v ÷ (α + |I_u ∩ I_v|)."""
    overlap = np.asarray((everything @ everything.T).todense(), dtype=np.float64)
    pair = np.outer(weight, weight) / (alpha + overlap)
    np.fill_diagonal(pair, 0.0)
    result = np.zeros(len(support))
    columns = np.flatnonzero(support >= 2)
    step = max(1, MAX_DENSE_CELLS // len(weight))
    narrow = together[:, columns].tocsc()
    for start in range(0, len(columns), step):
        dense = narrow[:, start : start + step].toarray()
        result[columns[start : start + step]] = ((pair @ dense) * dense).sum(axis=0)
    return result


def _chosen(
    lists: UserLists, rows: np.ndarray, requested: np.ndarray, item: int, swing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each user's most similar earlier item: the distinct items chosen, and how many users chose each."""
    lengths = lists.offsets[rows + 1] - lists.offsets[rows]
    first = np.repeat(lists.offsets[rows] - (np.cumsum(lengths) - lengths), lengths)
    entry = first + np.arange(len(first))
    user = np.repeat(np.arange(len(rows)), lengths)
    other = lists.item[entry]
    earlier = (lists.observed[entry] < requested[user]) & (other != item) & (swing[other] > 0)
    user, other = user[earlier], other[earlier]
    order = np.lexsort((other, -swing[other], user))
    user, other = user[order], other[order]
    best = np.ones(len(user), bool)
    best[1:] = user[1:] != user[:-1]
    return np.unique(other[best], return_counts=True)


class _Builder:
    """Collects each item's best pairs."""

    def __init__(self, item_ids: list[str], max_pairs: int) -> None:
        self._item_ids = pa.array(item_ids, pa.string())
        self._max_pairs = max_pairs
        self._parts: list[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, kind: str, item: int, others: np.ndarray, scores: np.ndarray, support: np.ndarray) -> None:
        """Keep the highest scores, equal ones by item id."""
        if len(others) == 0:
            return
        best = np.lexsort((others, -scores))[: self._max_pairs]
        dropped = np.zeros(len(best), np.int64)
        dropped[0] = len(others) - len(best)
        self._parts.append((kind, np.full(len(best), item), others[best], scores[best], support[best], dropped))

    def table(self) -> pa.Table:
        if not self._parts:
            return PAIRS.empty_table()
        kinds, first, second, scores, support, dropped = zip(*self._parts, strict=True)
        names = pa.array([kind for kind, part in zip(kinds, first, strict=True) for _ in range(len(part))], pa.string())
        ids = [self._item_ids.take(pa.array(np.concatenate(part))) for part in (first, second)]
        numbers = [pa.array(np.concatenate(part)) for part in (scores, support, dropped)]
        return pa.table([names, *ids, *numbers], schema=PAIRS)
