"""What a sample is: deduplication, the cap, sessions, high engagement, quantiles, the split."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.samples_inputs import published_landings, sample_landings
from feature_jobs.samples_labels import label_samples
from feature_jobs.samples_notes import samples_note
from feature_jobs.user_state import STATE
from feature_jobs.user_state_arrays import log_bucket
from schemas.config import Config
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import DAILY_SAMPLES
from tests.feature_jobs import reference_pathways
from tests.feature_jobs.arrow_days import event_table
from tests.feature_jobs.reference_pathways import text_hash
from tests.feature_jobs.sample_rows import DAY, impression, sample_row
from tests.lake_rows import utc, write_rows

NO_STATE = STATE.empty_table()


def labelled(
    *rows: dict[str, Any], state: pa.Table = NO_STATE, items: list[dict[str, Any]] | None = None, **settings: Any
) -> dict[str, dict[str, Any]]:
    """Labelled rows by impression (the last one of a repeated impression that was kept)."""
    config = Config.model_validate({"samples": settings})
    table = label_samples(event_table(rows, items or [], config.lake.user_buckets), state, config)
    by_impression: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        if row["dropped"] is None or row["impression_id"] not in by_impression:
            by_impression[row["impression_id"]] = row
    return by_impression


def state_of_user(**columns: Any) -> pa.Table:
    empty: dict[str, Any] = {field.name: [] if pa.types.is_list(field.type) else None for field in STATE}
    return pa.Table.from_pylist([empty | {"user_id": "u"} | columns], schema=STATE)


def test_a_repeated_impression_keeps_its_earliest_landing_whatever_the_order_of_rows() -> None:
    first = impression("a", like=True)
    again = impression("a", like=False, landing_date=DAY + dt.timedelta(days=1))
    for rows in ((first, again), (again, first)):
        assert labelled(*rows)["a"]["like"]


def test_inside_a_landing_the_first_row_in_the_events_column_order_is_kept() -> None:
    rows = [impression("a", item_id="j"), impression("a", item_id="i", like=True), impression("a", item_id="i")]
    for order in (rows, rows[::-1]):
        sample = labelled(*order)["a"]
        assert (sample["item_id"], sample["like"]) == ("i", False)


def test_a_user_day_over_the_cap_keeps_its_earliest_impressions() -> None:
    rows = [impression(str(hour), f"{hour:02}:00:00") for hour in (5, 3, 9, 1)]
    found = labelled(*rows, impression("other", "23:00:00", user_id="v"), user_day_cap=2)
    assert {name for name, row in found.items() if row["dropped"] is None} == {"1", "3", "other"}
    assert found["9"]["dropped"] == "over_the_cap"


def test_sample_ids_are_spark_hashes_one_column_after_another() -> None:
    assert labelled(impression("a"))["a"]["sample_id"] == text_hash("u", "a")


def test_sessions_are_cut_at_gaps_unless_the_source_has_its_own() -> None:
    rows = [impression("a", "08:00:00"), impression("b", "08:30:00"), impression("c", "09:00:01")]
    found = labelled(*rows, impression("d", "08:10:00", session_id="theirs"))
    assert found["a"]["session_id"] == found["b"]["session_id"] != found["c"]["session_id"]
    assert found["d"]["session_id"] == "theirs"
    assert found == labelled(*rows[::-1], impression("d", "08:10:00", session_id="theirs"))


@pytest.mark.parametrize("name", ["like", "follow", "forward", "comment", "profile_enter", "long_view"])
def test_each_sign_of_high_engagement_makes_a_sample_positive(name: str) -> None:
    assert labelled(impression("a", **{name: True}))["a"]["positive"]
    assert not labelled(impression("a", click=True, dislike=True))["a"]["positive"]


def test_watching_to_the_end_is_positive_by_the_items_length_where_the_event_has_none() -> None:
    items = [{"item_id": "i", "valid_from": utc("2026-01-01 11:59:59"), "author_id": "author", "category": "c", "tags": ["t"]}]
    items[0]["duration_ms"] = 1000
    found = labelled(impression("a", play_time_ms=1000), impression("b", play_time_ms=1000, duration_ms=1001), items=items)
    assert (found["a"]["positive"], found["a"]["play_ratio"], found["a"]["duration_ms"]) == (True, 1.0, 1000)
    assert not found["b"]["positive"]
    assert found["a"]["author_id"] == "author"


def test_a_second_watch_is_positive_and_an_impression_that_was_not_played_is_no_watch() -> None:
    rows = [
        impression("shown", "01:00:00"),
        impression("first", "02:00:00", play_time_ms=1),
        impression("other", "03:00:00", play_time_ms=1, item_id="j"),
        impression("second", "04:00:00", play_time_ms=1),
        impression("shown-again", "05:00:00"),
    ]
    found = labelled(*rows)
    assert {name for name, row in found.items() if row["positive"]} == {"second"}
    assert not labelled(*rows, positive={"repeat_window": 1})["second"]["positive"], "the window holds one other watch"
    assert labelled(*rows, positive={"repeat_window": 2})["second"]["positive"]
    assert not labelled(*rows, positive={"repeat_watch": False})["second"]["positive"]


def test_a_watch_of_earlier_days_is_remembered_by_the_state() -> None:
    watched = impression("a", play_time_ms=1)
    assert labelled(watched, state=state_of_user(recent_items=[text_hash("i")]))["a"]["positive"]
    behind = state_of_user(recent_items=[text_hash("i"), text_hash("j")])
    assert not labelled(watched, state=behind, positive={"repeat_window": 1})["a"]["positive"]


def test_the_users_own_quantile_is_the_share_of_earlier_plays_in_the_bucket_that_were_no_longer() -> None:
    cells = [
        {"duration_bucket": log_bucket_of(10_000), "play_bucket": 0, "count": 3},
        {"duration_bucket": log_bucket_of(10_000), "play_bucket": 7, "count": 1},
        {"duration_bucket": log_bucket_of(90_000), "play_bucket": 0, "count": 9},
    ]
    state = state_of_user(watch_histogram=cells)
    short = labelled(impression("a", play_time_ms=100, duration_ms=10_000), state=state)["a"]
    long = labelled(impression("a", play_time_ms=10_000, duration_ms=10_000), state=state)["a"]
    assert (short["watch_quantile_user"], long["watch_quantile_user"]) == (0.75, 1.0)
    assert labelled(impression("a", duration_ms=40_000), state=state)["a"]["watch_quantile_user"] is None
    assert labelled(impression("a"), state=state)["a"]["watch_quantile_user"] is None


def log_bucket_of(milliseconds: int) -> int:
    return reference_pathways.log_bucket(milliseconds, 1.5)


@given(st.integers(0, 10**9), st.sampled_from([1.1, 1.2, 1.5, 2.0]))
def test_buckets_are_exact_logarithms(milliseconds: int, base: float) -> None:
    import numpy as np

    found = log_bucket(np.array([milliseconds, -1]), base)
    assert found.tolist() == [reference_pathways.log_bucket(milliseconds, base), -1]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 240, 360), (1.0, 1000, 1000)])
def test_the_holdout_is_a_stable_share_of_users(share: float, low: int, high: int) -> None:
    rows = [impression(f"a{user}", user_id=f"u{user}") for user in range(1000)]
    found = labelled(*rows, holdout_share=share)
    assert low <= sum(row["split"] == "holdout" for row in found.values()) <= high


def test_landings_of_a_normal_run_a_day_after_a_backfilled_one_and_a_backfill() -> None:
    days = [DAY + dt.timedelta(days=number) for number in range(4)]
    assert sample_landings(days[1], days, [days[0]], every=False) == days[:2]
    assert sample_landings(days[1], days, [days[0], days[2]], every=False) == days[:3]
    assert sample_landings(days[0], days, [days[2]], every=False) == days[:3], "an earlier one may own what a later one brought"
    assert sample_landings(days[1], days, [days[0]], every=True) == days


def test_samples_that_another_program_wrote_do_not_say_their_landings(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    assert published_landings(lake, DAY, lake.table_version(DAILY_SAMPLES)) is None
    write_rows(lake, DAILY_SAMPLES, [sample_row("s", DAY)])
    with pytest.raises(BadInput, match=f"onerec backfill --from {DAY} --to {DAY}"):
        published_landings(lake, DAY, lake.table_version(DAILY_SAMPLES))
    assert str(DAY) in samples_note(DAY, [DAY])
