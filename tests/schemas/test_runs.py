"""Every row is accounted for, and every run is recorded, also one that fails."""

import datetime as dt

import pyarrow as pa
import pytest

from schemas.errors import GateFailed
from schemas.runs import StepRun, TableCounts, replace_quarantine, step_run
from schemas.tables import EVENTS, PIPELINE_RUNS, QUARANTINE

DAY = dt.date(2026, 1, 1)


def test_counts_that_do_not_balance_are_refused():
    StepRun("samples", DAY).table(EVENTS, TableCounts(10, 7, 1, {"duplicate": 2}))
    with pytest.raises(RuntimeError, match="10 rows in, 9 accounted"):
        StepRun("samples", DAY).table(EVENTS, TableCounts(10, 7, 1, {"duplicate": 1}))


def test_a_run_is_recorded_with_its_counts_and_inputs(make_lake):
    lake = make_lake()
    for _ in range(2):
        with step_run(lake, "samples", DAY) as run:
            run.reads(lake, EVENTS)
            run.table(EVENTS, TableCounts(3, 1, 1, {"duplicate": 1}))
    rows = sorted(lake.read(PIPELINE_RUNS).to_pylist(), key=lambda row: row["attempt"])
    assert [row["attempt"] for row in rows] == [1, 2]
    assert {row["status"] for row in rows} == {"succeeded"}
    assert dict(rows[0]["rows_dropped"]) == {"duplicate": 1}
    assert dict(rows[0]["input_versions"]) == {"events": lake.table_version(EVENTS)}
    assert run.to_json()["tables"]["events"] == {
        "rows_in": 3, "rows_out": 1, "rows_quarantined": 1, "rows_dropped": {"duplicate": 1}
    }  # fmt: skip


@pytest.mark.parametrize(("error", "status"), [(GateFailed("too few rows"), "gate"), (ValueError("boom"), "failed")])
def test_a_run_that_ends_badly_is_recorded_with_its_reason(make_lake, error, status):
    lake = make_lake()
    with pytest.raises(type(error)), step_run(lake, "samples", DAY):
        raise error
    (row,) = lake.read(PIPELINE_RUNS).to_pylist()
    assert row["status"] == status
    assert str(error) in row["message"]


def test_quarantine_is_replaced_for_its_table_and_date_only(make_lake):
    lake = make_lake()

    def rows(table, day, texts):
        records = [
            {"table_name": table, "date": day, "row_json": text, "reasons": ["x: y"], "source_file": "f"} for text in texts
        ]
        return pa.Table.from_pylist(records, schema=QUARANTINE.schema)

    replace_quarantine(lake, EVENTS, DAY, rows("events", DAY, ["a", "b"]))
    replace_quarantine(lake, "items", DAY, rows("items", DAY, ["c"]))
    replace_quarantine(lake, EVENTS, DAY, rows("events", DAY, ["d"]))
    assert sorted(lake.read(QUARANTINE)["row_json"].to_pylist()) == ["c", "d"]
    replace_quarantine(lake, EVENTS, DAY, rows("events", DAY, []))
    assert lake.read(QUARANTINE)["row_json"].to_pylist() == ["c"]
