"""``onerec tokenize``: tokens of every fused vector, by a frozen codebook.

Incremental: only items whose fused vector is new or changed are encoded; the others keep their tokens. Ranks inside a collision
are recomputed over all items of the codebook. With ``codebook.collisions: keep`` the partition equals what a run from nothing
writes; with the other policies, items that came earlier keep the places that they got (docs/decisions/collisions.md). The
partition is replaced in one commit, and only as long as it is the one that was read: where another run has replaced it
meanwhile, everything is done again from what is there now.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable, write_deltalake

from pipelines import versions
from pipelines.code_collisions import Array, CodedItems, in_words, resolve, spill_parts, take_spilled
from pipelines.fused_inputs import quoted
from pipelines.part_transforms import CODED, SPILLED, EncodePart, SpillPart, int_lists, map_parts
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import count, execute, query_engine, work_folder
from schemas.commits import COMMIT_ATTEMPTS, ON_THIS_VERSION, commit_on_newest
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS
from tokenization.arithmetic import described
from tokenization.codebook import Codebook, load_codebook
from tokenization.collisions import rank_within_code

STEP = "tokenize"
Outcome = tuple[TableCounts, int, dict[str, Any]]
"""Accounting, items encoded, figures of collisions."""


def run(
    lake: Lake,
    date: dt.date | None = None,
    *,
    codebook_version: str | None = None,
    refresh: bool = False,
    retokenise: bool = False,
    runner: str = LOCAL,
    options: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Tokenise every item that has a fused vector of the codebook's fusion version. Returns the step's report.

    Without ``codebook_version`` that of the live token set; with ``refresh``, or before the first token set, the newest.
    ``retokenise`` encodes every item, also those that have tokens. An item that was deleted since keeps its tokens (histories
    refer to it); the trie leaves it out. ``date`` only names the run. Raises BadInput without a codebook, for one that names no
    fusion version, without fused vectors for it, or where items have another number of tokens than ``codebook.collisions`` gives;
    GateFailed where a code has more items than suffixes.
    """
    registry = Registry.of(lake)
    with step_run(lake, STEP, date) as step:
        version = versions.codebook_version(registry, codebook_version, refresh=refresh)
        # Loaded here too, so that a damaged codebook is one line and not a worker's trace.
        codebook = load_codebook(registry, version)
        task = _Tokenizing(lake, registry, codebook, retokenise, runner, options, progress)
        counts, encoded, figures = task.run_alone(step)
        step.table(ITEM_TOKENS, counts)
        step.remark = in_words(figures)
        step.extra |= {"codebook_version": version, "fusion_version": task.fusion, "encoded": encoded, "collisions": figures}
    return step.to_json()


@dataclass(frozen=True)
class _Tokenizing:
    """Brings one codebook's partition up to date."""

    lake: Lake
    registry: Registry
    codebook: Codebook
    retokenise: bool
    runner: str
    options: Sequence[str]
    progress: Callable[[str], None]

    @property
    def fusion(self) -> str:
        """The fusion version whose vectors the codebook quantises. Raises BadInput where its metadata name none."""
        version = self.codebook.metadata.get("fusion_version")
        if not version:
            raise BadInput(
                f"{self.registry.root / 'codebook' / self.codebook.version}: names no fusion version whose vectors it quantises; "
                "publish it again with fusion_version in its metadata, or run `onerec train-codebook`"
            )
        return str(version)

    def run_alone(self, step: StepRun) -> Outcome:
        """``run`` until no other run has replaced the partition meanwhile. Raises BadInput if others go on doing so."""
        for _ in range(COMMIT_ATTEMPTS):
            outcome = self.run((step.reads(self.lake, ITEM_VECTORS), step.reads(self.lake, ITEM_TOKENS)))
            if outcome:
                return outcome
            self.progress("tokenize: another run has tokenised these items meanwhile; once more, from its tokens")
        raise BadInput(
            f"{self.lake.table_uri(ITEM_TOKENS)}: other processes keep tokenising by codebook {self.codebook.version}; run this "
            "again when they have ended"
        )

    def run(self, pinned: tuple[int, int]) -> Outcome | None:
        """Tokenise from versions of ITEM_VECTORS and ITEM_TOKENS. None, with nothing written, where another run was faster."""
        lake, version, section = self.lake, self.codebook.version, self.lake.config.codebook
        where = f"{lake.table_uri(ITEM_TOKENS)}, codebook {version}"
        with work_folder(lake, STEP) as work, query_engine() as connection:
            connection.register("vectors", lake.dataset(ITEM_VECTORS, pinned[0]))
            connection.register("all_tokens", lake.dataset(ITEM_TOKENS, pinned[1]))
            fused = f"(SELECT item_id, content_hash, vector FROM vectors WHERE kind = 'fused' AND source = {quoted(self.fusion)})"
            total = count(connection, f"SELECT count(*) FROM {fused}")
            if not total:
                raise BadInput(
                    f"{lake.table_uri(ITEM_VECTORS)}: no fused vector of fusion {self.fusion}, which codebook {version} "
                    f"quantises; run `onerec fuse --fusion-version {self.fusion}` first"
                )
            present = self._create_present(connection)
            kept = connection.sql(
                "SELECT item_id, content_hash, tokens, residual_norm FROM present "
                f"SEMI JOIN {fused} USING (item_id, content_hash)"
            ).to_arrow_table()
            wanted = f"SELECT * FROM {fused} ANTI JOIN present USING (item_id, content_hash) ORDER BY item_id"
            parts = work.write_parts("vectors", connection.sql(wanted).to_arrow_reader())
            new = total - len(kept)
            if self.runner == LOCAL:
                path = described(section.backend, new * self.codebook.dim * max(self.codebook.sizes))
                self.progress(f"tokenize: {new} of {total} vectors, assignment by {path}")
            self._map(parts, EncodePart(self.registry.root, version, work, new, section.backend))
            items = CodedItems.of(_union(connection, kept, work.parts("coded", CODED)), len(self.codebook.sizes), section, where)
            if len(items.codes) != total:
                raise RuntimeError(f"{where}: {len(items.codes)} rows of {total} fused vectors")

            def spread(items: CodedItems, leaving: Array, cap: int) -> None:
                parts = spill_parts(connection, fused, items, leaving, work)
                self._map(parts, SpillPart(self.registry.root, version, work, cap, section.collision_max_error))
                take_spilled(items, leaving, work.parts("spilled", SPILLED).to_table())

            figures = resolve(items, section, spread, where)
            if (parts or kept.num_rows != present) and not self._replace(_rows(items, version), pinned[1]):
                return None
            return TableCounts(total, total), total - kept.num_rows, figures

    def _replace(self, rows: pa.Table, read: int) -> bool:
        """Make these the codebook's rows; False where they are no longer those of the version that was read."""
        lake, version = self.lake, self.codebook.version
        before = _files(lake.open_table(ITEM_TOKENS, read), version)

        def commit() -> bool:
            table = lake.open_table(ITEM_TOKENS)
            if _files(table, version) != before:
                return False
            where = f"codebook_version = {quoted(version)}"
            write_deltalake(table, rows, mode="overwrite", predicate=where, commit_properties=ON_THIS_VERSION)
            return True

        return commit_on_newest(lake, ITEM_TOKENS, commit)

    def _create_present(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Create ``present``, the rows whose tokens stay if their vectors do; returns how many rows the partition has."""
        chosen = f"SELECT * FROM all_tokens WHERE codebook_version = {quoted(self.codebook.version)}"
        execute(connection, f"CREATE TEMP TABLE present AS {chosen}{' LIMIT 0' if self.retokenise else ''}")
        return count(connection, f"SELECT count(*) FROM ({chosen})")

    def _map(self, parts: list[str], work: Any) -> None:
        if parts:
            with open_pipeline(self.runner, self.options) as pipeline:
                map_parts(pipeline, parts, work)


def _files(tokens: DeltaTable, codebook_version: str) -> set[str]:
    """Addresses of a codebook's files."""
    return set(tokens.file_uris(partition_filters=[("codebook_version", "=", codebook_version)]))


def _union(connection: duckdb.DuckDBPyConnection, kept: pa.Table, coded: pads.Dataset) -> pa.Table:
    """Kept and newly coded items by item_id, with ``kept`` to tell them apart."""
    connection.register("kept_rows", kept)
    connection.register("coded_rows", coded)
    return connection.sql(
        "SELECT *, true AS kept FROM kept_rows UNION ALL BY NAME "
        "SELECT DISTINCT ON (item_id) *, false AS kept FROM coded_rows ORDER BY item_id"
    ).to_arrow_table()


def _rows(items: CodedItems, version: str) -> pa.Table:
    """Rows of ITEM_TOKENS, ranked, by item_id."""
    codes = items.whole_codes
    columns = {
        "item_id": items.item_ids,
        "tokens": int_lists(codes),
        "rank": rank_within_code(codes, items.numbers, items.norms),
        "residual_norm": items.norms,
        "content_hash": items.content_hashes,
        "codebook_version": pc.cast(pa.repeat(version, len(codes)), pa.string()),
    }
    return pa.table(columns).select(ITEM_TOKENS.schema.names).cast(ITEM_TOKENS.schema)
