"""``onerec fuse``: one unit vector an item, from its text, image and audio vectors, by a published fusion model.

Incremental: an item is fused again only when what it is made of changed. A fusion version holds one vector an item; where an
item has changed, its old vector is replaced in the same commit. An item of which nothing is left to fuse (its only picture was
replaced by a broken one, say) keeps the vector that it has.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import duckdb
from deltalake import write_deltalake

from pipelines import versions
from pipelines.contents import create_contents, end_of
from pipelines.fused_inputs import create_inputs, input_rows, quoted
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import as_declared, count, execute, query_engine, work_folder
from schemas.commits import ON_THIS_VERSION, commit_on_newest
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import TableCounts, step_run
from schemas.tables import ITEM_VECTORS, ITEMS, QUARANTINE
from tokenization.fusion_model import load_fusion

STEP = "fuse"


def run(
    lake: Lake,
    date: dt.date | None = None,
    *,
    fusion_version: str | None = None,
    refresh: bool = False,
    runner: str = LOCAL,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Fuse the items of the lake as they are at the end of ``date`` (None: as they are). Returns the step's report.

    Without ``fusion_version`` that of the live token set; with ``refresh``, or before the first token set, the newest.
    Raises BadInput without a fusion model, or with one that no item has vectors for.
    """
    registry = Registry.of(lake)
    with step_run(lake, STEP, date) as step:
        version = versions.fusion_version(registry, fusion_version, refresh=refresh)
        items = step.reads(lake, ITEMS)
        vectors = step.reads(lake, ITEM_VECTORS)
        rejected = step.reads(lake, QUARANTINE)
        step.table(ITEM_VECTORS, _fuse(lake, (items, vectors, rejected), date, registry, version, runner, options))
        step.extra["fusion_version"] = version
    return step.to_json()


def _fuse(
    lake: Lake,
    pinned: tuple[int, int, int],
    date: dt.date | None,
    registry: Registry,
    version: str,
    runner: str,
    options: Sequence[str],
) -> TableCounts:
    from pipelines.part_transforms import FUSED, FusePart, map_parts

    artefact, _ = load_fusion(registry, version)  # also here, so that a damaged one is one line and not a worker's trace
    encoders = artefact.metadata["encoders"]
    with work_folder(lake, STEP) as work, query_engine() as connection:
        live = create_contents(connection, lake.dataset(ITEMS, pinned[0]), end_of(date, lake.config))
        usable = create_inputs(
            connection, lake.dataset(ITEM_VECTORS, pinned[1]), lake.dataset(QUARANTINE, pinned[2]), encoders, lake.config.embed
        )
        if not usable:
            raise BadInput(
                f"{lake.table_uri(ITEM_VECTORS)}: no item has a vector of {', '.join(encoders.values())}, the encoders of fusion "
                f"{version}; run `onerec embed` with these first"
            )
        execute(
            connection,
            f"""
            CREATE TEMP TABLE present AS
            SELECT item_id, content_hash FROM vectors WHERE kind = 'fused' AND source = {quoted(version)}""",
        )
        execute(
            connection, "CREATE TEMP TABLE wanted AS SELECT * FROM fused_keys ANTI JOIN present USING (item_id, content_hash)"
        )
        new = count(connection, "SELECT count(*) FROM wanted")
        if new:
            parts = work.write_parts("inputs", input_rows(connection, encoders, "wanted").to_arrow_reader())
            with open_pipeline(runner, options) as pipeline:
                map_parts(pipeline, parts, FusePart(registry.root, version, work))
            connection.register("fused_parts", work.parts("fused", FUSED))
            new = commit_on_newest(lake, ITEM_VECTORS, lambda: _commit(lake, connection, version))
        return TableCounts(live, new, 0, {"unchanged": usable - new, "no_vectors": live - usable})


def _commit(lake: Lake, connection: duckdb.DuckDBPyConnection, version: str) -> int:
    """Append the new rows; where they replace some, write the version's rows anew in the same commit. How many are new.

    Against the newest version of the table, not the one pinned at the start: what another run wrote meanwhile is not written
    twice. Raises CommitFailedError if another process commits before ours.
    """
    table = lake.open_table(ITEM_VECTORS)
    connection.register("newest", lake.dataset(ITEM_VECTORS, table.version()))
    of_version = f"kind = 'fused' AND source = {quoted(version)}"
    execute(
        connection,
        f"""
        CREATE OR REPLACE TEMP TABLE missing AS
        SELECT DISTINCT item_id, content_hash FROM fused_parts
        ANTI JOIN (SELECT item_id, content_hash FROM newest WHERE {of_version}) USING (item_id, content_hash)""",
    )
    new = count(connection, "SELECT count(*) FROM missing")
    if not new:
        return 0
    replaced = count(connection, f"SELECT count(*) FROM newest SEMI JOIN missing USING (item_id) WHERE {of_version}")
    columns = ", ".join(ITEM_VECTORS.schema.names)
    fresh = f"""
        SELECT item_id, 'fused' AS kind, {quoted(version)} AS source, content_hash, presence_mask, vector
        FROM (SELECT DISTINCT ON (item_id) * FROM fused_parts) SEMI JOIN missing USING (item_id)"""
    kept = f"SELECT {columns} FROM newest WHERE {of_version} AND item_id NOT IN (SELECT item_id FROM missing)"
    query = f"SELECT {columns} FROM ({fresh})" + (f" UNION ALL {kept}" if replaced else "") + " ORDER BY item_id"
    rows = as_declared(connection.sql(query).to_arrow_reader(), ITEM_VECTORS.schema)
    if replaced:
        write_deltalake(table, rows, mode="overwrite", predicate=of_version, commit_properties=ON_THIS_VERSION)
    else:
        write_deltalake(table, rows, mode="append", commit_properties=ON_THIS_VERSION)
    return new
