"""The gates of a day's samples: each figure against its range and against the published days before."""

import datetime as dt
from collections.abc import Callable

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import CommitProperties, write_deltalake

from feature_jobs.gates import DayFigures, Trailing, check_gate_names, check_gates, trailing_figures
from feature_jobs.partition_files import PartitionFile, commit_files
from feature_jobs.samples_labels import check_positive
from feature_jobs.samples_notes import samples_note
from schemas.config import GatesSection, PositiveDefinition
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES, FEEDBACK
from tests.feature_jobs.sample_rows import DAY, sample_row
from tests.lake_rows import write_rows

FLAGS = {"user_bucket": 0} | dict.fromkeys((*FEEDBACK, "positive"), False)


def figures(
    rows: int = 100, trailing: float | None = None, authors_null: float = 0.1, users: int = 10, items: int = 20, covered: int = 3
) -> DayFigures:
    before = Trailing(3, trailing, {"author_id": authors_null}, covered, {"users": 10.0, "items": 20.0}) if trailing else None
    return DayFigures(rows, users, items, {"author_id": 10, "duration_ms": 0}, {"click": 50}, before)


def test_gates_name_every_figure_that_left_its_range() -> None:
    check_gates(figures(trailing=100.0), GatesSection(), DAY)
    gates = GatesSection(max_null_share={"author_id": 0.05}, label_rate={"click": (0.6, 1.0)})
    with pytest.raises(GateFailed) as failure:
        check_gates(figures(trailing=1000.0), gates, DAY)
    for part in ("volume_ratio is 0.1", "null share of author_id is 0.1", "label rate of click is 0.5, outside 0.6 … 1"):
        assert part in str(failure.value)
    check_gates(figures(trailing=1.0), GatesSection(volume_min_days=4), DAY)
    gates = GatesSection(max_null_rise=0.05)
    check_gates(figures(trailing=100.0, authors_null=0.06), gates, DAY)
    check_gates(figures(), gates, DAY)
    with pytest.raises(GateFailed, match=r"rise of the null share of author_id is 0\.08, outside -1 … 0\.05"):
        check_gates(figures(trailing=100.0, authors_null=0.02), gates, DAY)
    with pytest.raises(GateFailed, match="rows is 0, below min_rows 1"):
        check_gates(figures(rows=0), GatesSection(), DAY)


def test_a_day_that_may_be_empty_is_not_compared_with_the_days_before() -> None:
    empty, gates = figures(rows=0, trailing=100.0, users=0, items=0), GatesSection(min_rows=0)
    check_gates(empty, gates, DAY)
    with pytest.raises(GateFailed, match=r"rows is 0.*volume_ratio is 0"):
        check_gates(empty, GatesSection(), DAY)
    with pytest.raises(GateFailed, match=r"volume_ratio is 0\.01"):
        check_gates(figures(rows=1, trailing=100.0), gates, DAY)


def test_settings_that_name_unknown_columns_are_refused() -> None:
    with pytest.raises(BadInput, match="likes unknown"):
        check_positive(PositiveDefinition(feedback=("likes",)))
    with pytest.raises(BadInput, match="clicks unknown"):
        check_gate_names(GatesSection(label_rate={"clicks": (0, 1)}))


def test_gates_compare_with_the_published_days_before(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert trailing_figures(lake, DAY, 7, lake.table_version(DAILY_SAMPLES)) is None
    for age, count in ((1, 2), (3, 4), (9, 50)):
        rows = [sample_row(f"s{age}-{number}", DAY - dt.timedelta(days=age)) for number in range(count)]
        write_rows(lake, DAILY_SAMPLES, rows)
    trailing = trailing_figures(lake, DAY, 7, lake.table_version(DAILY_SAMPLES))
    assert trailing is not None
    assert (trailing.days, trailing.rows) == (2, 3.0)
    expected = lake.read(DAILY_SAMPLES, filter=pads.field("date") >= DAY - dt.timedelta(days=7))
    assert trailing.null_share["author_id"] == expected["author_id"].null_count / 6
    assert trailing.null_share["user_id"] == 0


def test_nulls_of_a_published_day_are_those_of_all_its_row_groups(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()

    def publish(age: int, *groups: list[str | None]) -> None:
        day = DAY - dt.timedelta(days=age)
        file = PartitionFile(lake, DAILY_SAMPLES, {"date": str(day), "user_bucket": "0"})
        for number, authors in enumerate(groups):
            rows = [sample_row(f"{number}-{place}", day) | FLAGS | {"author_id": name} for place, name in enumerate(authors)]
            file.write(pa.Table.from_pylist(rows, schema=DAILY_SAMPLES.schema))
        commit_files(lake, DAILY_SAMPLES, [file.close()], pads.field("date") == day)

    publish(7, [None, None, "a", None], ["a", "b", "b", "a"])
    publish(8, [None] * 100)  # older than the trailing days
    trailing = trailing_figures(lake, DAY, 7, lake.table_version(DAILY_SAMPLES))
    assert trailing is not None
    assert (trailing.days, trailing.rows) == (1, 8.0)
    assert trailing.null_share["author_id"] == 3 / 8
    assert (trailing.null_share["user_id"], trailing.null_share["duration_ms"]) == (0, 1)
    nulls = dict.fromkeys(trailing.null_share, 0) | {"author_id": 7, "duration_ms": 8}
    more = DayFigures(8, 1, 1, nulls, {"click": 8}, trailing)
    gates = GatesSection(volume_min_days=1, max_null_rise=0.5)
    check_gates(more, gates, DAY)
    with pytest.raises(GateFailed, match=r"rise of the null share of author_id is 0\.5, outside -1 … 0\.49"):
        check_gates(more, gates.model_copy(update={"max_null_rise": 0.49}), DAY)


@pytest.mark.parametrize(
    ("day", "said"),
    [
        (figures(trailing=100.0, users=4), r"user_ratio is 0\.4, outside 0\.5 … 2"),
        (figures(trailing=100.0, users=21), r"user_ratio is 2\.1, outside 0\.5 … 2"),
        (figures(trailing=100.0, items=9), r"item_ratio is 0\.45, outside 0\.5 … 2"),
    ],
)
def test_a_day_that_lost_users_or_items_does_not_pass(day: DayFigures, said: str) -> None:
    with pytest.raises(GateFailed, match=said):
        check_gates(day, GatesSection(), DAY)
    check_gates(day, GatesSection(user_ratio=(0, 3), item_ratio=(0, 3)), DAY)


def test_coverage_is_not_judged_by_fewer_days_than_volume_needs() -> None:
    check_gates(figures(trailing=100.0, users=1, items=1, covered=2), GatesSection(), DAY)
    check_gates(figures(users=1, items=1), GatesSection(), DAY)


def test_distinct_users_and_items_of_the_days_before_come_from_the_newest_note_of_each(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()

    def publish(age: int, **coverage: int) -> None:
        day = DAY - dt.timedelta(days=age)
        rows = pa.Table.from_pylist([sample_row(f"s{age}", day) | FLAGS], schema=DAILY_SAMPLES.schema)
        note = CommitProperties(custom_metadata={"userMetadata": samples_note(day, [day], coverage or None)})
        write_deltalake(
            lake.table_uri(DAILY_SAMPLES), rows, mode="overwrite", predicate=f"date = '{day}'", commit_properties=note
        )

    publish(1, users=1, items=1)
    publish(1, users=3, items=5)
    publish(2, users=5, items=7)
    publish(3)  # a note of an earlier release
    publish(8, users=1000, items=1000)
    trailing = trailing_figures(lake, DAY, 7, lake.table_version(DAILY_SAMPLES))
    assert trailing is not None
    assert (trailing.days, trailing.coverage_days, trailing.coverage) == (3, 2, {"users": 4.0, "items": 6.0})
