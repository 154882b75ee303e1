"""Which users of a bucket are clustered again, and what their representatives are: Arrow in, Arrow out.

A user with at most ``max_representatives`` behaviours keeps each one. Others have clusters: from scratch the first time,
updated (``lifelong_leaves``) once enough behaviours are new, and from scratch again once enough have joined since. Whoever
has too few new behaviours keeps the representatives of the refresh before.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.bucket_files import item_keys, relaxed
from feature_jobs.lifelong_clusters import hierarchical_clusters
from feature_jobs.lifelong_history import NO_LEAF, Histories
from feature_jobs.lifelong_leaves import LeafSums, representatives, update_leaves, without_gaps
from feature_jobs.lifelong_vectors import ItemVectors, VectorFiles
from feature_jobs.user_state_arrays import flat, integers
from schemas.config import LifelongSection
from schemas.shards import stable_key
from schemas.tables import PATHWAY_LIFELONG, REPRESENTATIVE

COMPRESSED = pa.schema(
    [relaxed(PATHWAY_LIFELONG.schema.field(name)) for name in ("user_id", "representatives", "history_length")]
)
"""Rows of ``pathway_lifelong`` but for what all rows of a refresh share."""
PRIOR = COMPRESSED.append(relaxed(PATHWAY_LIFELONG.schema.field("fusion_version")))
"""Rows of the refresh before."""

_NEGLIGIBLE = 0.02
"""Share of a history's spread below which a within-cluster error is as good as none: with hardly more items than clusters, most
items have one of their own, and which few share one makes no difference to a reader."""


@dataclass
class Clusters:
    """What became of the users of some histories.

    ``leaf`` (int64, n) and ``joined`` (int64, users) go into the base. ``of`` (int64, n) is the place of the behaviour that
    represents each one, −1 for those that are in no representative's count. ``kept`` users have none here: theirs are those
    of the refresh before. ``counts`` are numbers of users and behaviours by what was done.
    """

    leaf: np.ndarray
    joined: np.ndarray
    clustered: np.ndarray
    of: np.ndarray
    kept: np.ndarray
    counts: dict[str, int]
    audits: list[float] = field(default_factory=list)


def cluster_users(
    histories: Histories, prior: pa.Table, fusion: str, settings: LifelongSection, files: VectorFiles, day: int
) -> Clusters:
    """Cluster the users of ``histories`` who need it; ``prior`` (PRIOR) are their rows of the refresh before.

    An item without a vector counts as the zero vector: such behaviours cluster with one another, at the same distance from
    every unit vector. ``day``, a number, decides with the user's id who is audited.
    """
    users = len(histories.users)
    owner = np.repeat(np.arange(users), np.diff(histories.offsets))
    same_fusion = pc.fill_null(pc.equal(histories.fusion, fusion), False).to_numpy(zero_copy_only=False)
    leaf = np.where(histories.visible & same_fusion[owner], histories.leaf, NO_LEAF)
    length = np.bincount(owner, weights=histories.visible, minlength=users).astype(np.int64)
    held = np.bincount(owner, weights=leaf >= 0, minlength=users).astype(np.int64)
    whole = length <= settings.max_representatives
    leaf[whole[owner]] = NO_LEAF
    result = Clusters(
        leaf=leaf,
        joined=np.where(whole | ~same_fusion, 0, histories.joined),
        clustered=~whole,
        of=np.where(histories.visible & whole[owner], np.arange(len(owner)), -1),
        kept=np.zeros(users, bool),
        counts=dict.fromkeys(("from_scratch", "updated", "kept", "without_vectors"), 0),
    )
    new = length - held
    grown = (new > 0) & (new >= np.minimum(settings.grown_share * held, settings.grown_behaviours))
    result.kept = ~whole & (held > 0) & ~grown & ~histories.changed & _usable(histories.users, prior, fusion, settings)
    result.counts["kept"] = int(result.kept.sum())
    work = np.flatnonzero(~whole & ~result.kept)
    if len(work):
        items = files.vectors()
        rows = _rows_of_items(histories.behaviours, np.isin(owner, work), files)
        for user in work.tolist():
            span = slice(histories.offsets[user], histories.offsets[user + 1])
            _cluster_user(result, user, span, rows[span], histories, bool(grown[user]), settings, items, day)
    return result


def representative_rows(histories: Histories, clusters: Clusters, prior: pa.Table) -> pa.Table:
    """COMPRESSED rows in user order: of the users who have representatives now, and of those who keep theirs."""
    part = np.flatnonzero(clusters.of >= 0)
    is_one = np.zeros(len(clusters.of), bool)
    is_one[clusters.of[part]] = True
    representative = np.flatnonzero(is_one)
    number = (np.cumsum(is_one) - 1)[clusters.of[part]]
    count = np.bincount(number, minlength=len(representative))
    columns = _averages(histories.behaviours, part, representative, number, count)
    user = np.searchsorted(histories.offsets, representative, side="right") - 1
    order = np.lexsort((representative, columns["ts"], user))
    chosen = pa.array(representative[order])
    values = {
        **{name: histories.behaviours.field(name).take(chosen) for name in ("item_id", "author_id", "tags", "feedback")},
        "ts": pa.array(columns["ts"][order]).cast(pa.timestamp("us", tz="UTC")),
        "play_time_ms": pa.array(columns["play_time_ms"][order].astype(np.float32)),
        "duration_ms": pa.array(columns["duration_ms"][order].astype(np.float32), mask=columns["known"][order] == 0),
        "count": pa.array(count[order], pa.int32()),
    }
    kind = COMPRESSED.field("representatives").type
    entries = pa.StructArray.from_arrays([values[one.name] for one in REPRESENTATIVE], fields=list(kind.value_type))
    present, starts = np.unique(user[order], return_index=True)
    lengths = np.bincount(user[order], weights=count[order], minlength=len(histories.users)).astype(np.int64)
    lists = pa.ListArray.from_arrays(pa.array(np.append(starts, len(user)), pa.int32()), entries)
    fresh = pa.table([histories.users.take(pa.array(present)), lists.cast(kind), lengths[present]], schema=COMPRESSED)
    kept = prior.filter(pc.is_in(prior["user_id"], value_set=histories.users.filter(pa.array(clusters.kept))))
    rows = pa.concat_tables([fresh, kept.select(COMPRESSED.names)])
    return rows.take(pc.sort_indices(rows["user_id"]))


def _usable(users: pa.Array, prior: pa.Table, fusion: str, settings: LifelongSection) -> np.ndarray:
    """Which users have representatives of this fusion version, and not too many, in the refresh before."""
    few = pc.less_equal(pc.list_value_length(prior["representatives"]), settings.max_representatives)
    fit = prior.filter(pc.and_(few, pc.equal(prior["fusion_version"], fusion)))
    usable: np.ndarray = pc.is_in(users, value_set=flat(fit["user_id"])).to_numpy(zero_copy_only=False)
    return usable


def _rows_of_items(behaviours: pa.StructArray, needed: np.ndarray, files: VectorFiles) -> np.ndarray:
    """The row of each behaviour's item among the vectors (int64, −1 without one), where ``needed``."""
    places = np.flatnonzero(needed)
    item = behaviours.field("item_id").take(pa.array(places)).dictionary_encode()
    rows = np.full(len(behaviours), -1)
    rows[places] = files.rows_of(item_keys(item.dictionary).to_numpy())[item.indices.to_numpy()]
    return rows


def _cluster_user(
    result: Clusters,
    user: int,
    span: slice,
    rows: np.ndarray,
    histories: Histories,
    grown: bool,
    settings: LifelongSection,
    items: ItemVectors,
    day: int,
) -> None:
    """Give a user's behaviours leaves and representatives, in place in ``result``."""
    visible = np.flatnonzero(histories.visible[span])
    rows, leaf = rows[visible], result.leaf[span][visible]
    key = stable_key(histories.users[user].as_py()) % 2**64
    seed = abs(settings.seed) * 2**64 + key
    new = int(np.count_nonzero(leaf < 0))
    joined = int(result.joined[user]) + new
    held = len(leaf) - new
    too_many = held > 0 and int(leaf.max()) >= settings.max_representatives
    if held == 0 or too_many or (grown and joined > settings.rebuild_share * len(leaf)):
        leaf = hierarchical_clusters(items.take(rows), settings.max_representatives, seed)
        result.joined[user] = 0
        result.counts["from_scratch"] += 1
    elif grown:
        leaf = update_leaves(items, rows, leaf, settings.max_representatives, seed)
        result.joined[user] = joined
        result.counts["updated"] += 1
        if (key + day) % settings.audit_one_in == 0:
            scratch = hierarchical_clusters(items.take(rows), settings.max_representatives, seed)
            ratio = error_ratio(items, rows, leaf, scratch)
            result.audits.append(ratio)
            if ratio > settings.error_limit:
                leaf, result.joined[user] = scratch, 0
    members = np.flatnonzero(leaf >= 0)  # all, unless too few are new and only what was lost has to be seen to
    compact = leaf.copy()
    compact[members], _ = without_gaps(leaf[members])
    result.leaf[span.start + visible] = compact
    result.counts["without_vectors"] += int(np.count_nonzero(rows[members] < 0))
    chosen = members[representatives(items, rows[members], compact[members])]
    result.of[span.start + visible[members]] = span.start + visible[chosen[compact[members]]]


def error_ratio(items: ItemVectors, rows: np.ndarray, leaf: np.ndarray, reference: np.ndarray) -> float:
    """Within-cluster error of one clustering of a history divided by that of a reference, or by 2 % of the history's spread
    (the squared distances to its mean) where the reference has less."""
    ours, theirs = (LeafSums.of(items, rows, labels, int(labels.max()) + 1) for labels in (leaf, reference))
    spread = ours.squares.sum() - float(np.square(ours.sums.sum(axis=0, dtype=np.float64)).sum()) / len(rows)
    least = max(_NEGLIGIBLE * spread, 1e-9 * len(rows))
    return float(ours.errors().sum() / max(theirs.errors().sum(), least))


def _averages(
    behaviours: pa.StructArray, part: np.ndarray, representative: np.ndarray, number: np.ndarray, count: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean ts (µs, rounded), play time and known duration of each cluster; ``known``: members of known duration.

    ``part`` are the behaviours that take part, ``number`` the cluster of each, ``count`` how many a cluster has.
    """
    ts = integers(behaviours.field("ts"))
    duration = behaviours.field("duration_ms")
    is_known = duration.is_valid().to_numpy(zero_copy_only=False)[part]
    size = len(representative)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, weights=values, minlength=size)

    known = total(is_known)
    # around the representative's own time, since a sum of absolute microseconds has no room in 64 bits
    shift = np.rint(total(ts[part] - ts[representative][number]) / count).astype(np.int64)
    return {
        "ts": ts[representative] + shift,
        "play_time_ms": total(integers(behaviours.field("play_time_ms"))[part]) / count,
        "duration_ms": total(integers(duration)[part]) / np.maximum(known, 1),
        "known": known,
    }
