"""What there is to encode of an item: the rule for its text, and which of its versions holds at the end of a day."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contents import create_contents, end_of
from pipelines.work import execute, query_engine
from schemas.config import Config
from schemas.registry import text_sha256
from schemas.tables import ITEMS
from tests.lake_rows import utc
from tests.pipelines.content_lake import item


def contents(rows: list[dict[str, Any]], before: dt.datetime | None = None) -> dict[str, dict[str, Any]]:
    dataset = pads.dataset(pa.Table.from_pylist(rows, schema=ITEMS.schema))
    with query_engine() as connection:
        live = create_contents(connection, dataset, before)
        found = connection.sql("SELECT * FROM contents").to_arrow_table().to_pylist()
    assert live == len(found)
    return {row["item_id"]: row for row in found}


def text_of(**columns: Any) -> str | None:
    return contents([item("x", **columns)])["x"]["text"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, None),
        ({"title": "Tea"}, "Tea"),
        ({"title": " Tea \n", "caption": "\t"}, "Tea"),
        ({"title": "", "tags": [], "ocr_text": "  "}, None),
        ({"tags": ["a", " ", None, " b c "]}, "a, b c"),
        (
            {"title": "Tea", "caption": "Green", "tags": ["x", "y"], "ocr_text": "50 %", "asr_text": "listen"},
            "Tea\nGreen\nx, y\n50 %\nlisten",
        ),
        ({"asr_text": "said", "caption": "It’s 茶 '; DROP"}, "It’s 茶 '; DROP\nsaid"),
    ],
)
def test_the_text_rule(columns: dict[str, Any], text: str | None) -> None:
    assert text_of(**columns) == text


def test_the_hash_is_of_the_text() -> None:
    row = contents([item("x", title="Ünï", caption="b")])["x"]
    assert row["text_hash"] == text_sha256("Ünï\nb")


@pytest.mark.parametrize(
    ("columns", "images", "sounds"),
    [
        ({}, None, None),
        ({"cover_uri": "file:///a", "audio_uri": "file:///s"}, ["file:///a"], ["file:///s"]),
        (
            {"cover_uri": "file:///a", "frame_uris": ["file:///b", None, "file:///c"]},
            ["file:///a", "file:///b", "file:///c"],
            None,
        ),
        ({"frame_uris": ["file:///b"]}, ["file:///b"], None),
        ({"cover_uri": "", "frame_uris": [], "audio_uri": ""}, None, None),
    ],
)
def test_pictures_are_the_cover_and_the_frames(
    columns: dict[str, Any], images: list[str] | None, sounds: list[str] | None
) -> None:
    row = contents([item("x", **columns)])["x"]
    assert (row["image_uris"], row["audio_uris"]) == (images, sounds)


def test_a_day_ends_in_the_time_zone_of_the_lake() -> None:
    shanghai = Config.model_validate({"lake": {"day_timezone": "Asia/Shanghai"}})
    assert end_of(dt.date(2026, 1, 31), shanghai) == utc("2026-01-31 16:00:00")
    assert end_of(None, shanghai) is None
    rows = [item("x", "2026-01-31 15:59:59.999999", title="in"), item("x", "2026-01-31 16:00:00", title="after")]
    assert contents(rows, end_of(dt.date(2026, 1, 31), shanghai))["x"]["text"] == "in"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), unique_by=lambda row: row[:2], max_size=12),
    st.one_of(st.none(), st.integers(0, 10)),
)
def test_the_latest_version_before_the_end_counts(versions: list[tuple[str, int, bool]], end: int | None) -> None:
    start = utc("2026-01-01")
    rows = [
        item(name, title=f"{name}{hour}") | {"valid_from": start + dt.timedelta(hours=hour), "deleted": deleted}
        for name, hour, deleted in versions
    ]
    expected = {}
    for name in "abc":
        known = [(hour, deleted) for other, hour, deleted in versions if other == name and (end is None or hour < end)]
        if known and not max(known)[1]:
            expected[name] = f"{name}{max(known)[0]}"
    before = None if end is None else start + dt.timedelta(hours=end)
    assert {name: row["text"] for name, row in contents(rows, before).items()} == expected


def test_execute_gives_rows() -> None:
    with query_engine() as connection:
        assert execute(connection, "SELECT 1, 'a' UNION ALL SELECT 2, 'b' ORDER BY 1") == [(1, "a"), (2, "b")]
