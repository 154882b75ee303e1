"""Row accounting: what a step read, wrote, quarantined and dropped, recorded in ``pipeline_runs`` and printed as JSON.

rows in = rows out + rows quarantined + rows dropped, for every table that a step writes (DESIGN: the lake). A step that
aggregates counts the unit it keeps.
"""

import datetime as dt
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import write_deltalake

from schemas.commits import ON_THIS_VERSION, commit_on_newest
from schemas.errors import GateFailed, OnerecError
from schemas.lake import Lake
from schemas.suppression import suppression_seen
from schemas.tables import PIPELINE_RUNS, QUARANTINE, Table


@dataclass(frozen=True)
class TableCounts:
    """Accounting of one table in one run."""

    rows_in: int
    rows_out: int
    rows_quarantined: int = 0
    rows_dropped: dict[str, int] = field(default_factory=dict)

    def check(self, table: str) -> None:
        """Raise if a row is unaccounted for; that is a fault of ours, never the input's."""
        accounted = self.rows_out + self.rows_quarantined + sum(self.rows_dropped.values())
        if accounted != self.rows_in:
            raise RuntimeError(f"{table}: {self.rows_in} rows in, {accounted} accounted for ({self})")

    def to_json(self) -> dict[str, Any]:
        """As the commands print it."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_quarantined": self.rows_quarantined,
            "rows_dropped": dict(self.rows_dropped),
        }


@dataclass
class StepRun:
    """One run of a step while it lasts; ``table`` registers what it wrote, ``extra`` goes to the JSON report only.

    ``remark`` is recorded with a run that succeeds, where a failed one has its error line.
    """

    step: str
    date: dt.date | None
    tables: dict[str, TableCounts] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    remark: str | None = None
    seconds: float = 0.0

    def table(self, table: Table | str, counts: TableCounts) -> None:
        """Register a table's accounting. Raises RuntimeError if it does not balance."""
        name = table if isinstance(table, str) else table.name
        counts.check(name)
        self.tables[name] = counts

    def reads(self, lake: Lake, table: Table) -> int:
        """Pin and record the version of an input; returns it for the reader to use."""
        pinned = lake.table_version(table)
        self.inputs[table.name] = pinned
        return pinned

    def to_json(self) -> dict[str, Any]:
        """The step's report (DESIGN: commands)."""
        return {
            "step": self.step,
            "date": self.date.isoformat() if self.date else None,
            "seconds": round(self.seconds, 3),
            "tables": {name: counts.to_json() for name, counts in self.tables.items()},
            **self.extra,
        }


@contextmanager
def step_run(lake: Lake, step: str, date: dt.date | None = None) -> Iterator[StepRun]:
    """Time a step and append its rows to ``pipeline_runs``, also when it fails (then with the reason)."""
    run = StepRun(step, date)
    started = dt.datetime.now(dt.UTC)
    clock = time.perf_counter()
    status, message = "failed", None
    try:
        with suppression_seen(lake):
            yield run
        status, message = "succeeded", run.remark
    except BaseException as error:
        status = "gate" if isinstance(error, GateFailed) else "failed"
        message = str(error) if isinstance(error, OnerecError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        run.seconds = time.perf_counter() - clock
        _record(lake, run, status, started, message)


def _record(lake: Lake, run: StepRun, status: str, started: dt.datetime, message: str | None) -> None:
    run_id = uuid.uuid4().hex
    common = {
        "run_id": run_id,
        "step": run.step,
        "date": run.date,
        "attempt": _attempts(lake, run) + 1,
        "status": status,
        "started_at": started,
        "seconds": run.seconds,
        "code_version": version("onerec-factory"),
        "config_version": lake.config.version,
        "input_versions": list(run.inputs.items()),
        "message": message[:2000] if message else None,
    }
    rows = [
        common
        | {
            "table_name": name,
            "rows_in": counts.rows_in,
            "rows_out": counts.rows_out,
            "rows_quarantined": counts.rows_quarantined,
            "rows_dropped": list(counts.rows_dropped.items()),
        }
        for name, counts in run.tables.items()
    ] or [common]
    write_deltalake(lake.table_uri(PIPELINE_RUNS), pa.Table.from_pylist(rows, schema=PIPELINE_RUNS.schema), mode="append")


def _attempts(lake: Lake, run: StepRun) -> int:
    same_date = pads.field("date") == run.date if run.date else pads.field("date").is_null()
    rows = lake.read(PIPELINE_RUNS, columns=["run_id"], filter=(pads.field("step") == run.step) & same_date)
    return len(set(rows["run_id"].to_pylist()))


def replace_quarantine(lake: Lake, table: Table | str, date: dt.date, rows: pa.Table) -> None:
    """Make ``rows`` the only quarantined rows of a table and date (so a step run twice leaves them once)."""
    name = table if isinstance(table, str) else table.name
    where = f"table_name = '{name}' AND date = '{date.isoformat()}'"
    declared = rows.cast(QUARANTINE.schema)

    def commit() -> None:
        opened = lake.open_table(QUARANTINE)
        write_deltalake(opened, declared, mode="overwrite", predicate=where, commit_properties=ON_THIS_VERSION)

    commit_on_newest(lake, QUARANTINE, commit)
