"""What ``onerec tokenize`` does with items that share a code: ``codebook.collisions`` (docs/decisions/collisions.md).

Items that have tokens keep them; only those that come new are spread or numbered. Prefixes are independent of each other, so a
part holds whole prefixes: the items that leave their codes, with their vectors, and how many others have each code.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.part_transforms import SPILL, int_lists
from pipelines.work import PART_ROWS, WorkFolder
from schemas.config import CodebookSection
from schemas.errors import BadInput, GateFailed
from tokenization.collisions import collision_figures, over_cap, over_full, suffixes
from tokenization.metrics import prefix_keys

Array = npt.NDArray[Any]


@dataclass
class CodedItems:
    """All items of one codebook version, by item id.

    ``codes`` (n, layers) int32, ``norms`` (n,) float32, ``kept`` (n,): the item had these tokens before, ``suffix`` (n,) int32:
    its further token, −1 where it has none yet; None unless the policy is ``suffix``.
    """

    item_ids: pa.ChunkedArray
    content_hashes: pa.ChunkedArray
    codes: Array
    norms: Array
    kept: Array
    suffix: Array | None

    @classmethod
    def of(cls, rows: pa.Table, layers: int, section: CodebookSection, where: str) -> "CodedItems":
        """From rows (item_id, content_hash, tokens, residual_norm, kept).

        Raises BadInput if the tokens that items have are not as many as the policy gives.
        """
        kept = rows["kept"].to_numpy()
        width = layers + (section.collisions == "suffix")
        lengths = pc.list_value_length(rows["tokens"]).to_numpy()
        other = lengths[kept & (lengths != width)]
        if len(other):
            raise BadInput(
                f"{where}: {len(other)} items have {other[0]} tokens, codebook.collisions: {section.collisions} gives "
                f"{width}; add --retokenise to give all items new ones"
            )
        codes = np.empty((rows.num_rows, layers), np.int32)
        tokens = rows["tokens"].combine_chunks()
        old, new = (pc.list_flatten(tokens.filter(pa.array(mask))).to_numpy() for mask in (kept, ~kept))
        codes[~kept] = new.reshape(-1, layers)
        codes[kept] = old.reshape(-1, width)[:, :layers]
        suffix = None
        if section.collisions == "suffix":
            suffix = np.full(rows.num_rows, -1, np.int32)
            suffix[kept] = old.reshape(-1, width)[:, layers]
        return cls(rows["item_id"], rows["content_hash"], codes, rows["residual_norm"].to_numpy().copy(), kept, suffix)

    @property
    def numbers(self) -> Array:
        """(n,): stand for the item ids, in their order."""
        return np.arange(len(self.codes))

    @property
    def whole_codes(self) -> Array:
        """(n, layers, and one for a suffix)."""
        return self.codes if self.suffix is None else np.column_stack([self.codes, self.suffix])


def resolve(
    items: CodedItems,
    section: CodebookSection,
    spread: Callable[[CodedItems, Array, int], None],
    where: str,
) -> dict[str, Any]:
    """Bring ``items`` to what the policy asks; returns figures before and after.

    ``spread(items, leaving, cap)`` gives the items (n,) bool that leave their codes new ones. Raises GateFailed where a code has
    more items than ``codebook.collision_suffixes``.
    """
    before, error = collision_figures(items.codes), float(items.norms.mean(dtype=np.float64))
    moved = 0
    cap = {"cap": section.collision_cap, "unique": 1}.get(section.collisions)
    if cap is not None:
        leaving = over_full(items.codes, items.numbers, items.norms, cap, items.kept)
        if leaving.any():
            last = items.codes[:, -1].copy()
            spread(items, leaving, cap)
            moved = int((items.codes[:, -1] != last).sum())
    elif items.suffix is not None:
        items.suffix = suffixes(items.codes, items.numbers, items.norms, items.suffix)
        _check_suffixes(items, section.collision_suffixes, where)
    increase = float(items.norms.mean(dtype=np.float64)) / error - 1 if error else 0.0
    return {
        "policy": section.collisions,
        "cap": cap,
        "moved": moved,
        "over_cap": over_cap(items.codes, cap) if cap is not None else 0,
        "residual_increase": increase,
        "before": before,
        "after": collision_figures(items.whole_codes),
    }


def in_words(figures: dict[str, Any]) -> str:
    """The figures on one line, for ``pipeline_runs``."""
    before, after = figures["before"], figures["after"]
    return (
        f"collisions {figures['policy']}: share {before['collision_share']:.4f} → {after['collision_share']:.4f}, largest bucket "
        f"{before['largest_bucket']} → {after['largest_bucket']}, moved {figures['moved']}, over the cap {figures['over_cap']}, "
        f"residual {figures['residual_increase']:+.4%}"
    )


def spill_parts(
    connection: duckdb.DuckDBPyConnection, fused: str, items: CodedItems, leaving: Array, work: WorkFolder
) -> list[str]:
    """Write the parts (SPILL) that SpillPart works on; ``fused`` is the query of the vectors. Returns their URIs."""
    prefixes = prefix_keys(items.codes)[-2] if items.codes.shape[1] > 1 else np.zeros(len(items.codes), np.int64)
    rows = np.flatnonzero(leaving)
    rows = rows[np.lexsort((items.norms[rows], prefixes[rows]))]
    movers = pa.table(
        {
            "row": rows,
            "place": np.arange(len(rows)),
            "item_id": items.item_ids.take(pa.array(rows)),
            "content_hash": items.content_hashes.take(pa.array(rows)),
            "tokens": int_lists(items.codes[rows]),
            "residual_norm": items.norms[rows],
        }
    )
    connection.register("movers", movers)
    query = f"SELECT row, tokens, residual_norm, vector FROM movers JOIN {fused} USING (item_id, content_hash) ORDER BY place"
    beside = np.flatnonzero(~leaving & np.isin(prefixes, prefixes[rows]))
    groups, held_codes, held_counts = _held(prefixes[beside], items.codes[beside])
    uris, read = [], 0
    for part in _whole_groups(connection.sql(query).to_arrow_reader(), prefixes):
        read += part.num_rows
        first, last = prefixes[part["row"][0].as_py()], prefixes[part["row"][-1].as_py()]
        here = slice(np.searchsorted(groups, first), np.searchsorted(groups, last, side="right"))
        others = pa.table({"tokens": int_lists(held_codes[here]), "held": held_counts[here].astype(np.int32)})
        whole = pa.concat_tables([part, others], promote_options="default")
        uris.append(work.write_part("spill", whole.select(SPILL.names).cast(SPILL)))
    if read != len(rows):
        raise RuntimeError(f"{read} vectors for {len(rows)} items that leave their codes")
    return uris


def take_spilled(items: CodedItems, leaving: Array, spilled: pa.Table) -> None:
    """Take in what the workers found (SPILLED; a bundle that was tried twice leaves equal rows twice)."""
    rows = spilled["row"].to_numpy()
    if len(np.unique(rows)) != leaving.sum():
        raise RuntimeError(f"{len(np.unique(rows))} new codes for {leaving.sum()} items that leave theirs")
    items.codes[rows] = pc.list_flatten(spilled["tokens"]).to_numpy().reshape(-1, items.codes.shape[1])
    items.norms[rows] = spilled["residual_norm"].to_numpy()


def _check_suffixes(items: CodedItems, limit: int, where: str) -> None:
    assert items.suffix is not None
    beyond = items.suffix >= limit
    if beyond.any():
        row = int(items.suffix.argmax())
        most = collision_figures(items.codes)["largest_bucket"]
        raise GateFailed(
            f"{where}: {most} items share the code {items.codes[row].tolist()} (one is "
            f"{items.item_ids[row].as_py()!r}) and codebook.collision_suffixes is {limit}; train a larger codebook, or raise it"
        )


def _held(prefixes: Array, codes: Array) -> tuple[Array, Array, Array]:
    """Distinct codes by prefix: prefix keys (ascending), codes, and how many items have each."""
    keys = prefix_keys(codes)[-1] if len(codes) else np.zeros(0, np.int64)
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = np.argsort(prefixes[first], kind="stable")
    return prefixes[first][order], codes[first][order], counts[order]


def _whole_groups(batches: pa.RecordBatchReader, prefixes: Array) -> Iterator[pa.Table]:
    """Rows in parts of about PART_ROWS that never divide a prefix."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) < PART_ROWS:
            continue
        table = pa.Table.from_batches(waiting)
        keys = prefixes[table["row"].to_numpy()]
        starts = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        begin = 0
        while (later := starts[starts >= begin + PART_ROWS]).size:
            yield table.slice(begin, int(later[0]) - begin)
            begin = int(later[0])
        waiting = table.slice(begin).to_batches()
    if waiting and sum(part.num_rows for part in waiting):
        yield pa.Table.from_batches(waiting)
