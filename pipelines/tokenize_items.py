"""``onerec tokenize``: tokens of every fused vector, by a frozen codebook.

Incremental: only items whose fused vector is new or changed are encoded; ranks inside a collision are recomputed over all
items of the codebook, so the partition equals what a run from nothing writes. It is replaced in one commit.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake

from pipelines import versions
from pipelines.fused_inputs import quoted
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import count, execute, query_engine, work_folder
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import TableCounts, step_run
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS
from tokenization.codebook import load_codebook
from tokenization.collisions import rank_within_code

STEP = "tokenize"


def run(
    lake: Lake,
    date: dt.date | None = None,
    *,
    codebook_version: str | None = None,
    refresh: bool = False,
    runner: str = LOCAL,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokenise every item that has a fused vector of the codebook's fusion version. Returns the step's report.

    Without ``codebook_version`` that of the live token set; with ``refresh``, or before the first token set, the newest. An
    item that was deleted since keeps its tokens (histories refer to it); the trie leaves it out. ``date`` only names the
    run. Raises BadInput without a codebook, or without fused vectors for it.
    """
    registry = Registry.of(lake)
    with step_run(lake, STEP, date) as step:
        version = versions.codebook_version(registry, codebook_version, refresh=refresh)
        # Loaded here too, so that a damaged codebook is one line and not a worker's trace.
        fusion = load_codebook(registry, version).metadata["fusion_version"]
        pinned = step.reads(lake, ITEM_VECTORS), step.reads(lake, ITEM_TOKENS)
        counts, encoded = _tokenize(lake, pinned, registry, version, fusion, runner, options)
        step.table(ITEM_TOKENS, counts)
        step.extra |= {"codebook_version": version, "fusion_version": fusion, "encoded": encoded}
    return step.to_json()


def _tokenize(
    lake: Lake,
    pinned: tuple[int, int],
    registry: Registry,
    version: str,
    fusion: str,
    runner: str,
    options: Sequence[str],
) -> tuple[TableCounts, int]:
    """Bring one codebook's partition up to date; returns its accounting and how many items were encoded."""
    from pipelines.part_transforms import CODED, EncodePart, map_parts

    with work_folder(lake, STEP) as work, query_engine() as connection:
        connection.register("vectors", lake.dataset(ITEM_VECTORS, pinned[0]))
        connection.register("all_tokens", lake.dataset(ITEM_TOKENS, pinned[1]))
        fused = f"(SELECT item_id, content_hash, vector FROM vectors WHERE kind = 'fused' AND source = {quoted(fusion)})"
        total = count(connection, f"SELECT count(*) FROM {fused}")
        if not total:
            raise BadInput(
                f"{lake.table_uri(ITEM_VECTORS)}: no fused vector of fusion {fusion}, which codebook {version} quantises; "
                f"run `onerec fuse --fusion-version {fusion}` first"
            )
        execute(connection, f"CREATE TEMP TABLE present AS SELECT * FROM all_tokens WHERE codebook_version = {quoted(version)}")
        wanted = f"SELECT * FROM {fused} ANTI JOIN present USING (item_id, content_hash) ORDER BY item_id"
        parts = work.write_parts("vectors", connection.sql(wanted).to_arrow_reader())
        kept = connection.sql(
            f"SELECT item_id, content_hash, tokens, residual_norm FROM present SEMI JOIN {fused} USING (item_id, content_hash)"
        ).to_arrow_table()
        present = count(connection, "SELECT count(*) FROM present")
        if parts:
            with open_pipeline(runner, options) as pipeline:
                map_parts(pipeline, parts, EncodePart(registry.root, version, work))
        coded = work.parts("coded", CODED)
        if parts or kept.num_rows != present:
            rows = _ranked(connection, kept, coded.to_table(), version)
            if rows.num_rows != total:
                raise RuntimeError(f"item_tokens {version}: {rows.num_rows} rows of {total} fused vectors")
            write_deltalake(
                lake.table_uri(ITEM_TOKENS), rows, mode="overwrite", predicate=f"codebook_version = {quoted(version)}"
            )
        return TableCounts(total, total), total - kept.num_rows


def _ranked(connection: duckdb.DuckDBPyConnection, kept: pa.Table, coded: pa.Table, version: str) -> pa.Table:
    """Rows of ITEM_TOKENS: kept and newly coded items, ranked together, by item_id."""
    connection.register("kept_rows", kept)
    connection.register("coded_rows", coded)
    rows = connection.sql(
        "SELECT * FROM kept_rows UNION ALL BY NAME SELECT DISTINCT ON (item_id) * FROM coded_rows ORDER BY item_id"
    ).to_arrow_table()
    codes = np.stack(rows["tokens"].to_numpy()) if rows.num_rows else np.zeros((0, 1), np.int32)
    ranks = rank_within_code(codes, rows["item_id"].to_numpy(), rows["residual_norm"].to_numpy())
    columns = {name: rows[name] for name in ("item_id", "tokens", "residual_norm", "content_hash")}
    columns |= {"rank": pa.array(ranks), "codebook_version": pc.cast(pa.repeat(version, rows.num_rows), pa.string())}
    return pa.table(columns).select(ITEM_TOKENS.schema.names).cast(ITEM_TOKENS.schema)
