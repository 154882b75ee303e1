"""What a lake holds and how its steps fare: read-only figures behind ``onerec lake``, ``status`` and ``cost``."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from feature_jobs.samples_inputs import published_landings
from feature_jobs.stale import read_stale
from schemas.errors import BadInput
from schemas.lake import Lake, damage_named
from schemas.tables import DAILY_SAMPLES, EVENTS, PIPELINE_RUNS, TABLES, Table, column_doc

DAILY_STEPS = (
    "ingest",
    "samples",
    "pathways",
    "co-interaction",
    "embed",
    "fuse",
    "tokenize",
    "lifelong",
    "shards",
    "train",
    "evaluate",
)


def table_summaries(lake: Lake) -> list[dict[str, Any]]:
    """Each table's rows, live files, bytes and version."""
    summaries = []
    for table in TABLES.values():
        delta = lake.open_table(table)
        files = pa.table(delta.get_add_actions(flatten=True))
        summaries.append(
            {
                "table": table.name,
                "grain": table.grain,
                "rows": sum(value or 0 for value in files["num_records"].to_pylist()),
                "files": files.num_rows,
                "bytes": sum(files["size_bytes"].to_pylist()),
                "version": delta.version(),
            }
        )
    return summaries


def describe_table(lake: Lake, table: Table) -> dict[str, Any]:
    """A table's columns, constraints and newest commits."""
    delta = lake.open_table(table)
    return {
        "table": table.name,
        "grain": table.grain,
        "partition_by": list(table.partition_by),
        "columns": [
            {"name": column.name, "type": str(column.type), "required": not column.nullable, "doc": column_doc(column)}
            for column in table.schema
        ],
        "checks": dict(table.checks),
        "history": [
            {
                "version": commit.get("version"),
                "operation": commit.get("operation"),
                "timestamp": _instant(commit.get("timestamp")),
            }
            for commit in delta.history(10)
        ],
    }


def _instant(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")


def runs(lake: Lake, *, step: str | None = None, date: dt.date | None = None) -> list[dict[str, Any]]:
    """Rows of ``pipeline_runs``, oldest first."""
    chosen: pads.Expression | None = None
    for name, value in (("step", step), ("date", date)):
        if value is not None:
            condition = pads.field(name) == value
            chosen = condition if chosen is None else chosen & condition
    rows: list[dict[str, Any]] = lake.read(PIPELINE_RUNS, filter=chosen).to_pylist()
    for row in rows:
        row["rows_dropped"] = dict(row["rows_dropped"] or [])
        row["input_versions"] = dict(row["input_versions"] or [])
    return sorted(rows, key=lambda row: (row["started_at"], row["table_name"] or ""))


@dataclass(frozen=True)
class StepStatus:
    """One step on one day: done, late, failed, stale or missing, and why."""

    step: str
    state: str
    detail: str


def day_status(lake: Lake, date: dt.date) -> tuple[list[StepStatus], int]:
    """The day's steps, and how many of its events came in landings that its samples were not made from: these are late."""
    rows = runs(lake, date=date)
    stale = read_stale(lake).get(date.isoformat(), {})
    late = _late_events(lake, date)
    statuses = []
    for step in DAILY_STEPS:
        attempts = [row for row in rows if row["step"] == step]
        if not attempts:
            statuses.append(StepStatus(step, "missing", "no run recorded"))
            continue
        last = attempts[-1]
        if last["status"] != "succeeded":
            statuses.append(StepStatus(step, "failed", last["message"] or last["status"]))
        elif step in stale:
            statuses.append(StepStatus(step, "stale", str(stale[step])))
        elif step == "samples" and late:
            detail = f"{late:,} events landed since; `onerec backfill --from {date} --to {date}` takes them in"
            statuses.append(StepStatus(step, "late", detail))
        else:
            statuses.append(StepStatus(step, "done", f"attempt {last['attempt']}, {last['seconds']:.1f} s"))
    return statuses, late


def _late_events(lake: Lake, date: dt.date) -> int:
    """Events of a date in landings that its published samples were not made from (without samples: in later landings)."""
    try:
        made_from = published_landings(lake, date, lake.table_version(DAILY_SAMPLES))
    except BadInput:  # another program wrote the samples and left no note
        made_from = None
    landing = pads.field("landing_date")
    late = landing > date if made_from is None else ~landing.isin(made_from)
    with damage_named(lake.table_uri(EVENTS)):
        return int(lake.dataset(EVENTS).count_rows(filter=(pads.field("date") == date) & late))


def costs(rows: Sequence[dict[str, Any]], *, cores: int, target_rows: int, core_hour_price: float) -> list[dict[str, Any]]:
    """Cost of a day by step: the median of its succeeded runs, scaled from the lake's day to ``target_rows`` impressions.

    The scaling supposes a world that is larger in everything by the same factor (users, items and impressions), the median
    day's impressions ingested being 1. It is linear and keeps every fixed start in, so on a small lake it is an upper
    bound; slopes over growing sizes are the benchmarks' (DESIGN: benchmarks).
    """
    succeeded = [row for row in rows if row["status"] == "succeeded" and row["date"] is not None]
    ingested = {row["date"]: row["rows_in"] for row in succeeded if (row["step"], row["table_name"]) == ("ingest", EVENTS.name)}
    factor = target_rows / median(ingested.values()) if ingested and median(ingested.values()) else None
    measured: dict[str, dict[str, tuple[float, int]]] = {}
    for row in succeeded:
        by_run = measured.setdefault(row["step"], {})
        _, read = by_run.get(row["run_id"], (0.0, 0))
        by_run[row["run_id"]] = (row["seconds"], max(read, row["rows_in"] or 0))
    table = []
    for step, by_run in measured.items():
        seconds = median(value[0] for value in by_run.values())
        core_hours = seconds * cores / 3600
        scaled = None if factor is None else core_hours * factor
        table.append(
            {
                "step": step,
                "runs": len(by_run),
                "seconds": round(seconds, 3),
                "rows": int(median(value[1] for value in by_run.values())),
                "core_hours": core_hours,
                "core_hours_at_target": scaled,
                "price_at_target": None if scaled is None else scaled * core_hour_price,
            }
        )
    return table
