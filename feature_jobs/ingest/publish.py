"""Writes what ingest decided, each table by one atomic commit: a run that is killed or repeated leaves the same tables."""

import datetime as dt
import uuid
from collections.abc import Iterable

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import EVENTS, QUARANTINE, Table


def append_once(lake: Lake, table: Table, pinned: int, rows: DataFrame) -> None:
    """Append rows that were compared with version ``pinned`` of the table, if that is still its newest.

    Raises BadInput if another process wrote the table meanwhile: its rows may repeat ours. Delta skips a transaction
    whose number it has seen without a word, so the commit is looked up by its mark afterwards.
    """
    mark = uuid.uuid4().hex
    options = {"txnAppId": f"ingest-{table.name}", "txnVersion": str(pinned + 1), "userMetadata": mark}
    if lake.table_version(table) == pinned:
        rows.select(*table.schema.names).write.format("delta").mode("append").options(**options).save(lake.table_uri(table))
        if lake.open_table(table, pinned + 1).history(1)[0].get("userMetadata") == mark:
            return
    raise BadInput(f"{lake.table_uri(table)}: another process wrote it meanwhile; run this again when it has ended")


def replace_events(lake: Lake, date: dt.date, rows: DataFrame, rewritten_days: Iterable[dt.date]) -> None:
    """Make ``rows`` the events of landing ``date`` and, in the same commit, of later landings on ``rewritten_days``.

    One file a day, landing and bucket; inside it rows are ordered by user and time.
    """
    where = f"landing_date = '{date}'"
    days = ", ".join(f"'{day}'" for day in sorted(rewritten_days))
    if days:
        where = f"{where} OR (landing_date > '{date}' AND date IN ({days}))"
    ordered = rows.select(*EVENTS.schema.names).repartitionById(lake.config.lake.user_buckets, F.col("user_bucket"))
    ordered = ordered.sortWithinPartitions("date", "landing_date", "user_bucket", "user_id", "request_ts", "ts", "impression_id")
    _replace(lake, EVENTS, where, ordered)


def replace_rejected(lake: Lake, date: dt.date, tables: Iterable[Table], rows: DataFrame, *, any_rows: bool) -> None:
    """Make ``rows`` the quarantined rows of ``tables`` for landing ``date``; no commit if there are and were none."""
    names = sorted(table.name for table in tables)
    there = lake.open_table(QUARANTINE).partitions()
    if any_rows or any(part["table_name"] in names and part["date"] == date.isoformat() for part in there):
        listed = ", ".join(f"'{name}'" for name in names)
        where = f"date = '{date}' AND table_name IN ({listed})"
        _replace(lake, QUARANTINE, where, rows.select(*QUARANTINE.schema.names).repartition("table_name"))


def _replace(lake: Lake, table: Table, where: str, rows: DataFrame) -> None:
    rows.write.format("delta").mode("overwrite").option("replaceWhere", where).save(lake.table_uri(table))
