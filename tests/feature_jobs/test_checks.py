"""The rows that steps write hold the tables' CHECK constraints, which no engine enforces on files committed past it."""

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from schemas.tables import DAILY_SAMPLES, EVENTS, ITEMS, TABLES, Table

CHECKED = [(table, name) for table in (EVENTS, ITEMS, DAILY_SAMPLES) for name in table.checks]


def broken(table: Table, name: str, rows: pa.Table) -> int:
    """How many rows do not hold a constraint; as for Delta, unknown is not held."""
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        found = connection.execute(f"SELECT count(*) FROM rows WHERE ({table.checks[name]}) IS NOT TRUE").fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.slow
@pytest.mark.parametrize(("table", "name"), [pytest.param(table, name, id=f"{table.name}, {name}") for table, name in CHECKED])
def test_what_the_steps_wrote_holds_the_constraint(simulated_lake, table, name):
    rows = simulated_lake.read(table)
    assert len(rows) > 0
    assert broken(table, name, rows) == 0


def test_a_row_that_breaks_a_constraint_is_found(simulated_lake):
    rows = simulated_lake.read(DAILY_SAMPLES)
    column = rows.schema.get_field_index("play_time_ms")
    negative = rows.set_column(column, rows.schema.field(column), pc.negate(pc.add(rows["play_time_ms"], 1)))
    assert broken(DAILY_SAMPLES, "play_time_not_negative", negative) == len(rows)


def test_every_table_of_files_committed_past_the_engines_that_has_constraints_is_looked_at(simulated_lake):
    """A table that gets its first constraint, and that these steps write, has to be added above."""
    written = {name for name in TABLES if TABLES[name].checks and len(simulated_lake.read(TABLES[name]))}
    assert written - {"pipeline_runs"} == {table.name for table, _ in CHECKED}
