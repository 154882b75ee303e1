"""``onerec embed``: a vector for every item's text, pictures and sound that has none yet.

A vector is keyed by content hash and encoder and is never computed twice: an item that has it is left alone, an item that
shares the content of another gets a copy. All new vectors are appended in one commit, after the last worker is done.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import write_deltalake

from pipelines.contents import create_contents, date_or_newest, end_of
from pipelines.fused_inputs import of_encoders, quoted
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import WorkFolder, as_declared, count, execute, query_engine, work_folder
from schemas.commits import ON_THIS_VERSION, commit_on_newest
from schemas.errors import GateFailed
from schemas.lake import Lake
from schemas.runs import StepRun, TableCounts, replace_quarantine, step_run
from schemas.tables import ITEM_VECTORS, ITEMS, QUARANTINE
from tokenization.encoders import Kind, encoder_set, load_encoder

STEP = "embed"


def run(
    lake: Lake,
    date: dt.date | None = None,
    *,
    runner: str = LOCAL,
    options: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Embed the items of the lake as they are at the end of ``date`` (None: as they are). Returns the step's report.

    Raises BadInput (no items, an encoder that cannot be had) and GateFailed (more media rejected than
    ``embed.quarantine_limit``; then nothing is appended).
    """
    section = lake.config.embed
    encoders = encoder_set(section)
    with step_run(lake, STEP, date) as step, work_folder(lake, STEP) as work, query_engine() as connection:
        items = lake.dataset(ITEMS, step.reads(lake, ITEMS))
        day = date_or_newest(lake, items, date)
        live = create_contents(connection, items, end_of(date, lake.config))
        known = lake.dataset(ITEM_VECTORS, step.reads(lake, ITEM_VECTORS))
        for name in encoders.values():
            load_encoder(name)  # here rather than only in the workers: what cannot be loaded is one line, at once
        absent = sum(count(connection, f"SELECT count(*) FROM contents WHERE {_column(kind)} IS NULL") for kind in encoders)
        progress(f"embed: {live} items; " + "; ".join(f"{kind} by {name}" for kind, name in encoders.items()))
        parts = work.write_parts(
            "contents",
            connection.sql("SELECT item_id, text, text_hash, image_uris, audio_uris FROM contents").to_arrow_reader(),
            rows=512,
        )
        known_parts = work.write_parts("known", _known_keys(connection, known, encoders))
        _encode(parts, known_parts, encoders, lake, work, runner, options)
        step.extra["encoders"] = dict(encoders)
        _commit(lake, step, work, connection, encoders, day, rows_in=live * len(encoders), absent=absent)
    return step.to_json()


def _encode(
    parts: list[str],
    known_parts: list[str],
    encoders: Mapping[Kind, str],
    lake: Lake,
    work: WorkFolder,
    runner: str,
    options: Sequence[str],
) -> None:
    section = lake.config.embed
    with open_pipeline(runner, options) as pipeline:
        from pipelines.embed_transforms import embed_contents

        embed_contents(pipeline, parts, known_parts, encoders, section, work)


def _column(kind: Kind) -> str:
    return "text" if kind == "text" else f"{kind}_uris"


def _known_keys(
    connection: duckdb.DuckDBPyConnection, vectors: pads.Dataset, encoders: Mapping[Kind, str]
) -> pa.RecordBatchReader:
    connection.register("known_vectors", vectors)
    return connection.sql(
        f"SELECT kind, content_hash, item_id FROM known_vectors WHERE {of_encoders(encoders)}"
    ).to_arrow_reader()


def _commit(
    lake: Lake,
    step: StepRun,
    work: WorkFolder,
    connection: duckdb.DuckDBPyConnection,
    encoders: Mapping[Kind, str],
    day: dt.date,
    *,
    rows_in: int,
    absent: int,
) -> None:
    """Account for every outcome, quarantine what was rejected, append what is new."""
    from pipelines.embed_transforms import OUTCOME, OUTCOMES

    connection.register("outcome_parts", work.parts(OUTCOMES, OUTCOME))
    execute(connection, "CREATE TEMP TABLE outcomes AS SELECT DISTINCT ON (item_id, kind) * FROM outcome_parts")
    rejected = connection.sql(
        "SELECT item_id, kind, uris, reasons FROM outcomes WHERE outcome = 'rejected' ORDER BY item_id, kind"
    ).to_arrow_table()
    done = count(connection, "SELECT count(*) FROM outcomes WHERE outcome <> 'rejected'")
    _quarantine(lake, day, rejected, encoders)
    limit = lake.config.embed.quarantine_limit
    considered = rows_in - absent
    if considered and rejected.num_rows / considered > limit:
        raise GateFailed(
            f"embed: {rejected.num_rows} of {considered} contents rejected, more than embed.quarantine_limit ({limit:.2%}); "
            f"no vector was appended; see quarantine, table_name='{ITEM_VECTORS.name}', date={day}"
        )
    written = commit_on_newest(lake, ITEM_VECTORS, lambda: _append(lake, connection, encoders))
    step.table(
        ITEM_VECTORS,
        TableCounts(rows_in, written, rejected.num_rows, {"no_content": absent, "unchanged": done - written}),
    )
    step.extra["copied"] = count(connection, "SELECT count(*) FROM new_keys WHERE outcome = 'copied'")


def _append(lake: Lake, connection: duckdb.DuckDBPyConnection, encoders: Mapping[Kind, str]) -> int:
    """Append the vectors that the table has not; how many.

    Against its newest version, not the one pinned at the start: what another run appended meanwhile is not appended twice.
    Raises CommitFailedError if another process commits before ours.
    """
    table = lake.open_table(ITEM_VECTORS)
    connection.register("present", lake.dataset(ITEM_VECTORS, table.version()))
    sources = " ".join(f"WHEN '{kind}' THEN {quoted(name)}" for kind, name in encoders.items())
    execute(
        connection,
        f"""
        CREATE OR REPLACE TEMP TABLE new_keys AS
        SELECT o.item_id, o.kind, CASE o.kind {sources} END AS source, o.content_hash, o.outcome
        FROM outcomes o
        WHERE o.outcome IN ('encoded', 'copied') AND NOT EXISTS (
            SELECT 1 FROM (SELECT item_id, kind, content_hash FROM present WHERE {of_encoders(encoders)}) p
            WHERE p.item_id = o.item_id AND p.kind = o.kind AND p.content_hash = o.content_hash)""",
    )
    new = count(connection, "SELECT count(*) FROM new_keys")
    if new:
        rows = connection.sql(f"""
            SELECT k.item_id, k.kind, k.source, k.content_hash, 0::INTEGER AS presence_mask, v.vector
            FROM new_keys k JOIN (
                SELECT item_id, kind, content_hash, vector FROM outcomes WHERE outcome = 'encoded'
            ) v USING (item_id, kind, content_hash)
            WHERE k.outcome = 'encoded'
            UNION ALL
            SELECT k.item_id, k.kind, k.source, k.content_hash, 0::INTEGER, v.vector
            FROM new_keys k JOIN (
                SELECT kind, content_hash, arg_min(vector, item_id) AS vector FROM known_vectors
                WHERE {of_encoders(encoders)} GROUP BY kind, content_hash
            ) v USING (kind, content_hash)
            WHERE k.outcome = 'copied'
            ORDER BY kind, item_id""").to_arrow_reader()
        declared = as_declared(rows, ITEM_VECTORS.schema)
        write_deltalake(table, declared, mode="append", commit_properties=ON_THIS_VERSION)
    return new


def _quarantine(lake: Lake, day: dt.date, rejected: pa.Table, encoders: Mapping[Kind, str]) -> None:
    """Make the rejected contents the only quarantined ones of this table and day."""
    name = ITEM_VECTORS.name
    of_day = (pads.field("table_name") == name) & (pads.field("date") == day)
    if not rejected.num_rows and not lake.dataset(QUARANTINE).count_rows(filter=of_day):
        return
    rows = [
        {
            "table_name": name,
            "date": day,
            "row_json": json.dumps(
                {"item_id": row["item_id"], "kind": row["kind"], "source": encoders[row["kind"]], "uris": row["uris"]},
                ensure_ascii=False,
            ),
            "reasons": row["reasons"],
            "source_file": row["uris"][0] if row["uris"] else None,
        }
        for row in rejected.to_pylist()
    ]
    replace_quarantine(lake, ITEM_VECTORS, day, pa.Table.from_pylist(rows, schema=QUARANTINE.schema))
