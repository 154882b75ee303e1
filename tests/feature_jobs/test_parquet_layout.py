"""The encodings of a table's files: each reader of a lake understands them, and no column is left out."""

import datetime as dt

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from feature_jobs.parquet_layout import writer_options
from feature_jobs.partition_files import PartitionFile, commit_files, data_schema
from schemas.tables import DAILY_SAMPLES, EVENTS, HISTORY, PATHWAY_LIFELONG, PATHWAY_SHORT, USER_STATE

PARTITIONS = {"date": "2026-03-02", "landing_date": "2026-03-02", "refresh_date": "2026-03-02", "user_bucket": "1"}
TABLES = [EVENTS, DAILY_SAMPLES, USER_STATE, PATHWAY_SHORT, HISTORY, PATHWAY_LIFELONG]


def some_value(kind, turn):
    """A value of any type, another one each turn."""
    if pa.types.is_struct(kind):
        return {field.name: some_value(field.type, turn) for field in kind}
    if pa.types.is_list(kind):
        return [some_value(kind.value_type, turn + place) for place in range(turn % 3)]
    if pa.types.is_string(kind):
        return f"text-{turn}"
    if pa.types.is_boolean(kind):
        return turn % 2 == 0
    if pa.types.is_date(kind):
        return dt.date(2026, 1, 1) + dt.timedelta(days=turn)
    if pa.types.is_timestamp(kind):
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=turn / 7)
    return turn / 7 if pa.types.is_floating(kind) else turn


def rows_of(table, rows=100):
    columns = {
        field.name: pa.array([some_value(field.type, turn) for turn in range(rows)], field.type) for field in data_schema(table)
    }
    return pa.table(columns).sort_by("user_id")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_leaf_has_its_codec_and_at_most_one_encoding(table, tmp_path):
    schema = data_schema(table)
    pq.write_table(schema.empty_table(), tmp_path / "any.parquet")
    parquet = pq.ParquetFile(tmp_path / "any.parquet").schema
    leaves = {parquet.column(place).path for place in range(len(parquet))}
    options = writer_options(schema)
    assert set(options["compression"]) == leaves
    assert set(options["use_dictionary"]) | set(options["column_encoding"]) <= leaves
    assert not set(options["use_dictionary"]) & set(options["column_encoding"])


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_both_engines_read_what_is_written(make_lake, spark, table):
    lake = make_lake()
    file = PartitionFile(lake, table, PARTITIONS)
    written = rows_of(table)
    file.write(written)
    commit_files(lake, table, [file.close()], pads.scalar(True))
    columns = written.column_names
    through_spark = spark.read.format("delta").load(lake.table_uri(table)).select(*columns).orderBy("user_id").toArrow()
    through_delta_rs = lake.read(table, columns=columns).sort_by("user_id")
    assert through_spark.to_pylist() == written.to_pylist()
    assert through_delta_rs.to_pylist() == written.to_pylist()


def test_times_and_play_times_are_packed_and_impressions_have_no_dictionary(tmp_path):
    schema = data_schema(DAILY_SAMPLES)
    pq.write_table(rows_of(DAILY_SAMPLES), tmp_path / "samples.parquet", **writer_options(schema))
    row_group = pq.ParquetFile(tmp_path / "samples.parquet").metadata.row_group(0)
    encodings = {(column := row_group.column(place)).path_in_schema: column.encodings for place in range(row_group.num_columns)}
    assert all("DELTA_BINARY_PACKED" in encodings[name] for name in ("ts", "observed_ts", "play_time_ms"))
    assert all("RLE_DICTIONARY" not in encodings[name] for name in ("sample_id", "impression_id", "request_id"))
    assert all("RLE_DICTIONARY" in encodings[name] for name in ("item_id", "author_id", "tags.list.element"))
