"""Which vectors an item's fused vector is made of, and the hash that names them together."""

from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from pipelines.work import count, execute
from schemas.config import EmbedSection
from schemas.tables import ITEM_VECTORS
from tokenization.encoders import KINDS, Kind, Unreadable, media_limits
from tokenization.encoders.media import media_hash, read_media


def of_encoders(encoders: Mapping[Kind, str]) -> str:
    """SQL condition: a row of ``item_vectors`` by one of these encoders."""
    return "(" + " OR ".join(f"(kind = '{kind}' AND source = {quoted(name)})" for kind, name in encoders.items()) + ")"


def quoted(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("'", "''") + "'"


def create_inputs(
    connection: duckdb.DuckDBPyConnection,
    vectors: pads.Dataset,
    quarantine: pads.Dataset,
    encoders: Mapping[Kind, str],
    section: EmbedSection,
) -> int:
    """Create ``inputs`` (item_id, kind, content_hash) and ``fused_keys`` (item_id, content_hash, presence_mask) of live items.

    Needs the table ``contents``; registers ``vectors`` and ``quarantine``. The vector of a text is found by its hash. An item's
    media have, as a rule, vectors of one content: that is the one. Where an item changed its picture there are several, and
    where what lies at its addresses was ever rejected the one there is may be of the picture before: then its files are read
    and hashed to know which. Returns the number of items with at least one vector.
    """
    connection.register("vectors", vectors)
    connection.register("quarantine", quarantine)
    execute(
        connection,
        f"""
        CREATE TEMP TABLE rejected AS
        SELECT DISTINCT
            row_json ->> '$.item_id' AS item_id,
            row_json ->> '$.kind' AS kind,
            from_json(row_json -> '$.uris', '["VARCHAR"]') AS uris
        FROM quarantine WHERE table_name = '{ITEM_VECTORS.name}'""",
    )
    execute(
        connection,
        f"""
        CREATE TEMP TABLE candidates AS
        SELECT DISTINCT v.item_id, v.kind, v.content_hash,
            count(*) OVER (PARTITION BY v.item_id, v.kind) > 1 OR r.item_id IS NOT NULL AS unsure,
            CASE v.kind WHEN 'image' THEN c.image_uris WHEN 'audio' THEN c.audio_uris END AS uris
        FROM (SELECT DISTINCT item_id, kind, content_hash FROM vectors WHERE {of_encoders(encoders)}) v
        JOIN contents c USING (item_id)
        LEFT JOIN rejected r ON r.item_id = v.item_id AND r.kind = v.kind
            AND r.uris = CASE v.kind WHEN 'image' THEN c.image_uris WHEN 'audio' THEN c.audio_uris END
        WHERE (v.kind = 'text' AND v.content_hash = c.text_hash)
            OR (v.kind = 'image' AND c.image_uris IS NOT NULL)
            OR (v.kind = 'audio' AND c.audio_uris IS NOT NULL)""",
    )
    changed = execute(connection, "SELECT DISTINCT item_id, kind, uris FROM candidates WHERE kind <> 'text' AND unsure")
    limits = media_limits(section)
    current: dict[str, list[str | None]] = {"item_id": [], "kind": [], "content_hash": []}
    for item_id, kind, uris in changed:
        try:
            found = media_hash([read_media(uri, limits) for uri in uris])
        except Unreadable:
            continue  # embed has put it into quarantine; the item has no such content now
        for column, value in zip(current.values(), (item_id, kind, found), strict=True):
            column.append(value)
    schema = pa.schema([(name, pa.string()) for name in current])
    connection.register("changed_media", pa.table(current, schema=schema))
    execute(
        connection,
        """
        CREATE TEMP TABLE inputs AS
        SELECT item_id, kind, content_hash FROM candidates c
        WHERE kind = 'text' OR NOT unsure
            OR EXISTS (SELECT 1 FROM changed_media m
                       WHERE m.item_id = c.item_id AND m.kind = c.kind AND m.content_hash = c.content_hash)""",
    )
    bits = " ".join(f"WHEN '{kind}' THEN {1 << bit}" for bit, kind in enumerate(KINDS))
    execute(
        connection,
        f"""
        CREATE TEMP TABLE fused_keys AS
        SELECT item_id,
            sha256(string_agg(kind || ':' || content_hash, E'\\n' ORDER BY CASE kind {bits} END)) AS content_hash,
            sum(CASE kind {bits} END)::INTEGER AS presence_mask
        FROM inputs GROUP BY item_id""",
    )
    return count(connection, "SELECT count(*) FROM fused_keys")


def input_rows(
    connection: duckdb.DuckDBPyConnection, encoders: Mapping[Kind, str], keys: str = "fused_keys"
) -> duckdb.DuckDBPyRelation:
    """item_id, content_hash, presence_mask and ``<kind>_vector`` (null where absent) of the items in ``keys``, by item_id."""
    columns, joins = [], []
    for kind, name in encoders.items():
        columns.append(f"{kind}_rows.vector AS {kind}_vector")
        joins.append(f"""
            LEFT JOIN (
                SELECT i.item_id, any_value(v.vector) AS vector
                FROM inputs i
                JOIN (SELECT item_id, content_hash, vector FROM vectors WHERE kind = '{kind}' AND source = {quoted(name)}) v
                    USING (item_id, content_hash)
                WHERE i.kind = '{kind}'
                GROUP BY i.item_id
            ) {kind}_rows ON {kind}_rows.item_id = k.item_id""")
    selected = ", ".join(["k.item_id", "k.content_hash", "k.presence_mask", *columns])
    return connection.sql(f"SELECT {selected} FROM {keys} k {' '.join(joins)} ORDER BY k.item_id")
