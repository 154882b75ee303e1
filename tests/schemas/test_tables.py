"""Every table is created once for both engines, with its columns, partitions, keys and constraints."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from schemas.tables import DAILY_SAMPLES, EVENTS, FEEDBACK, POSITIVE_BIT, TABLES, column_doc
from tests.lake_rows import user_bucket, utc, write_rows

EVENT = {
    "impression_id": "i1",
    "request_id": "r1",
    "user_id": "ü",
    "item_id": "x",
    "request_ts": utc("2026-01-01 10:00"),
    "ts": utc("2026-01-01 10:00"),
    "observed_ts": utc("2026-01-01 10:01"),
    "ingested_at": utc("2026-01-02 00:00"),
    "play_time_ms": 60_000,
    "date": utc("2026-01-01 00:00").date(),
    "landing_date": utc("2026-01-01 00:00").date(),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_declaration_is_consistent(table):
    names = set(table.schema.names)
    assert set(table.key) <= names
    assert set(table.partition_by) <= names
    assert all(column_doc(column) for column in table.schema), "every column says what it means"
    assert all(not table.schema.field(name).nullable for name in table.key)


def test_the_bits_of_feedback_are_those_that_every_lake_holds():
    bits = {name: 1 << bit for bit, name in enumerate(FEEDBACK)} | {"positive": 1 << POSITIVE_BIT}
    assert bits == {
        "click": 1,
        "like": 2,
        "follow": 4,
        "comment": 8,
        "forward": 16,
        "dislike": 32,
        "profile_enter": 64,
        "long_view": 128,
        "positive": 256,
    }


def test_a_lake_holds_every_table_as_declared(make_lake):
    lake = make_lake()
    for table in TABLES.values():
        delta = lake.open_table(table)
        assert pa.schema(delta.schema().to_arrow()).names == table.schema.names
        assert delta.metadata().partition_columns == list(table.partition_by)
        present = {name for name in delta.metadata().configuration if name.startswith("delta.constraints.")}
        assert present == {f"delta.constraints.{name}" for name in table.checks}
        assert lake.read(table).num_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"play_time_ms": -1},
        {"duration_ms": 0},
        {"ts": utc("2026-01-01 09:59")},
        {"observed_ts": utc("2026-01-01 09:59")},
        {"date": utc("2026-01-02 00:00").date()},
    ],
    ids=["negative play", "no duration", "shown before asked", "observed before shown", "from the future"],
)
def test_a_constraint_refuses_what_breaks_it(make_lake, change):
    lake = make_lake()
    write_rows(lake, EVENTS, [EVENT])
    with pytest.raises(DeltaError):
        write_rows(lake, EVENTS, [EVENT | change])
    assert lake.read(EVENTS).num_rows == 1


def test_a_required_column_refuses_null(make_lake):
    lake = make_lake()
    row = pa.Table.from_pylist([{"user_id": None}], schema=pa.schema([("user_id", pa.string())]))
    with pytest.raises((DeltaError, ValueError)):
        write_deltalake(lake.table_uri(DAILY_SAMPLES), row, mode="append")


@pytest.mark.slow
def test_spark_refuses_what_delta_rs_refuses_and_hashes_users_alike(make_lake, spark):
    lake = make_lake()
    write_rows(lake, EVENTS, [EVENT])
    events = spark.read.format("delta").load(lake.table_uri(EVENTS))
    broken = events.selectExpr("* except (play_time_ms)", "-5L as play_time_ms").select(events.columns)
    with pytest.raises(Exception, match="play_time_not_negative"):
        broken.write.format("delta").mode("append").save(lake.table_uri(EVENTS))
    for user in ("ü", "u1", "用户", "", "a" * 1000):
        hashed = spark.sql(f"select pmod(xxhash64('{user}'), 7)").first()[0]
        assert hashed == user_bucket(user, 7)


def test_the_documentation_of_the_tables_is_current():
    from docs.make_tables import render

    page = Path(__file__).resolve().parents[2] / "docs" / "tables.md"
    assert page.read_text() == render(), "run `python -m docs.make_tables`"
