"""What there is to encode of each item: the content of its version at the end of a day.

The text of an item is its title, caption, tags (joined by ``, ``), text read off the picture and text heard in the sound, in
this order, without those that are missing or blank, joined by line breaks. Its pictures are the cover and the frames.
"""

import datetime as dt

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipelines.work import count, execute
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake, day_start
from schemas.tables import ITEMS

_BLANKS = "E' \\t\\r\\n'"
_PARTS = [f"nullif(trim({column}, {_BLANKS}), '')" for column in ("title", "caption")]
_PARTS += [
    f"nullif(array_to_string(list_filter(list_transform(tags, lambda t: trim(t, {_BLANKS})), lambda t: t <> ''), ', '), '')"
]
_PARTS += [f"nullif(trim({column}, {_BLANKS}), '')" for column in ("ocr_text", "asr_text")]
_TEXT = f"nullif(concat_ws(E'\\n', {', '.join(_PARTS)}), '')"


def end_of(date: dt.date | None, config: Config) -> dt.datetime | None:
    """The instant before which a version must be valid to count; None without a date."""
    return None if date is None else day_start(date + dt.timedelta(days=1), config)


def create_contents(connection: duckdb.DuckDBPyConnection, items: pads.Dataset, before: dt.datetime | None) -> int:
    """Create the table ``contents`` of live items: item_id, category, text, text_hash, image_uris, audio_uris (lists).

    An item's version is its latest with ``valid_from`` before ``before`` (None: its latest); an item whose version says
    deleted is not live. Content that is absent is null. Returns the number of live items.
    """
    connection.register("item_versions", items)
    known = "" if before is None else f"WHERE valid_from < TIMESTAMPTZ '{before.isoformat()}'"
    execute(
        connection,
        f"""
        CREATE TEMP TABLE contents AS
        SELECT *, sha256(text) AS text_hash FROM (
            SELECT
                item_id,
                category,
                {_TEXT} AS text,
                CASE WHEN len(pictures) > 0 THEN pictures END AS image_uris,
                CASE WHEN audio_uri <> '' THEN [audio_uri] END AS audio_uris
            FROM (
                SELECT *, list_filter(list_prepend(cover_uri, coalesce(frame_uris, [])), lambda u: u <> '') AS pictures
                FROM item_versions {known}
                QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from DESC) = 1
            )
            WHERE NOT deleted
        )
        ORDER BY item_id""",
    )
    return count(connection, "SELECT count(*) FROM contents")


def date_or_newest(lake: Lake, items: pads.Dataset, date: dt.date | None) -> dt.date:
    """The date, or where none is given the day, in the lake's time zone, of the newest item version.

    Raises BadInput for a lake without item versions by the end of that day.
    """
    end = end_of(date, lake.config)
    wanted = None if end is None else pads.field("valid_from") < pa.scalar(end, ITEMS.schema.field("valid_from").type)
    batches = items.to_batches(columns=["valid_from"], filter=wanted)
    newest = max((pc.max(batch["valid_from"]).as_py() for batch in batches if len(batch)), default=None)
    if newest is None:
        when = "" if date is None else f" by the end of {date}"
        raise BadInput(f"{lake.table_uri(ITEMS)}: holds no item{when}; run `onerec ingest` first")
    return date or newest.astimezone(lake.config.lake.zone).date()
