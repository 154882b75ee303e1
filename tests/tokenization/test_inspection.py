"""Inspection as a library: examples, churn, gate, figures and the page."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenization import inspection
from tokenization.encoders import MediaLimits
from tokenization.inspection_report import report_page, thumbnail
from tokenization.metrics import codebook_metrics
from tokenization.vectors import BadVectors

CODES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(CODES, st.integers(1, 2), st.integers(1, 5), st.integers(1, 4))
def test_examples_are_the_fullest_prefixes_and_their_best_described_items(rows, depth, prefixes, items):
    ids = [f"i{number:02d}" for number in range(len(rows))]
    norms = [number % 3 for number in range(len(rows))]
    found = inspection.prefix_examples(np.array(rows), ids, depth=depth, prefixes=prefixes, items=items, order=norms)
    members = {}
    for place, row in enumerate(rows):
        members.setdefault(row[:depth], []).append(place)
    expected = sorted(members, key=lambda prefix: (-len(members[prefix]), prefix))[:prefixes]
    assert [tuple(one["prefix"]) for one in found] == expected
    for one in found:
        inside = sorted(members[tuple(one["prefix"])], key=lambda place: (norms[place], ids[place]))
        assert one["items"] == len(inside)
        assert one["item_ids"] == [ids[place] for place in inside[:items]]


def test_examples_of_nothing_and_of_a_depth_that_is_none():
    assert inspection.prefix_examples(np.zeros((0, 2), int), []) == []
    with pytest.raises(BadVectors, match="depth 3"):
        inspection.prefix_examples(np.zeros((1, 2), int), ["a"], depth=3)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 6), max_size=20))
def test_churn_counts_changed_tokens_and_prefixes(rows):
    before, after = np.array(rows, int).reshape(-1, 6)[:, :3], np.array(rows, int).reshape(-1, 6)[:, 3:]
    found = inspection.churn(before, after)
    count = max(1, len(rows))
    for layer in range(3):
        assert found["layers"][layer] == pytest.approx(sum(row[layer] != row[layer + 3] for row in rows) / count)
        assert found["prefixes"][layer] == pytest.approx(sum(row[: layer + 1] != row[3 : layer + 4] for row in rows) / count)
    assert found["changed"] == found["prefixes"][-1]
    with pytest.raises(BadVectors, match="same items"):
        inspection.churn(before, np.zeros((99, 3), int))


def test_centroid_shift_compares_centroids_of_the_same_number():
    old = [np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32)]
    new = [np.array([[1, 0], [0, 3]], np.float32), np.ones((4, 2), np.float32)]
    first, second = inspection.centroid_shift(old, new)
    assert first["equal_centroids"] == 0.5
    assert first["relative_shift"] == pytest.approx(np.sqrt(2))
    assert second == {"layer": 2, "sizes": [3, 4]}


def test_the_mix_names_the_most_frequent_and_the_unknown():
    mix = inspection.category_mix(["a", "b", "b", None], most=2)
    assert mix == [{"category": "b", "items": 2, "share": 0.5}, {"category": "a", "items": 1, "share": 0.25}]
    assert inspection.category_mix([None])[0]["category"] == "unknown"


def test_the_gate_checks_every_layer_against_both_bounds():
    metrics = codebook_metrics(np.array([[0, 0], [1, 0]]), [2, 4])
    failed = [check for check in inspection.gate_checks(metrics, 0.25, 0.1) if not check["passed"]]
    assert [(check["layer"], check["metric"], check["value"]) for check in failed] == [(2, "entropy_ratio", 0)]


def page_of(codes: np.ndarray, sizes: list[int], title: str) -> str:
    metrics = codebook_metrics(codes, sizes)
    figures = inspection.codebook_figures(codes, sizes, metrics)
    shown = [{"item_id": "i1", "title": title, "picture": None}]
    groups = [{"title": "Examples", "examples": [{"prefix": [1], "items": 1, "mix": "", "shown": shown}]}]
    return report_page("abc", metrics, figures, groups, {"dim": "3"})


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[5], [300, 4, 2]])
def test_figures_are_pictures_and_drawn_alike_each_time(sizes):
    codes = np.random.default_rng(0).integers(0, sizes, (200, len(sizes)))
    metrics = codebook_metrics(codes, sizes)
    figures = inspection.codebook_figures(codes, sizes, metrics)
    assert set(figures) == {"layers", "tokens", "buckets"} | ({"map"} if len(sizes) > 1 else set())
    for content in figures.values():
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG"
            assert len(set(picture.convert("L").tobytes())) > 10
    assert figures == inspection.codebook_figures(codes, sizes, metrics)


@pytest.mark.slow
def test_the_page_holds_everything_itself_and_escapes_what_items_say():
    page = page_of(np.array([[0, 1], [1, 1]]), [2, 2], "<script>alert(1)</script>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page


@pytest.mark.parametrize("name", ["a.png", "a b.png", "100%25.png", "a#b?c.png"])
def test_thumbnails_are_small_and_addresses_are_taken_as_they_stand(tmp_path, name):
    Image.new("RGB", (900, 600), "red").save(tmp_path / name)
    source = thumbnail(f"file://{tmp_path}/{name}", pixels=60)
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as small:
        assert small.size == (60, 40)


@pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a" + b"\xff" * 30])
def test_what_is_no_picture_has_no_thumbnail(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert thumbnail(f"file://{tmp_path}/a.png") is None


def test_other_addresses_have_none(tmp_path):
    Image.new("RGB", (9, 6)).save(tmp_path / "a b.png")
    encoded = (tmp_path / "a b.png").as_uri()
    for uri in (None, "", encoded, f"file://{tmp_path}/missing.png", f"file://{tmp_path}", "https://example.org/a.png", "a\0b"):
        assert thumbnail(uri) is None


def test_whatever_a_decoder_raises_is_no_error_of_the_page(tmp_path, monkeypatch):
    Image.new("RGB", (9, 6)).save(tmp_path / "a.png")

    def fails(*_, **__):
        raise IndexError("of a decoder that met what it did not expect")

    monkeypatch.setattr(Image, "open", fails)
    assert thumbnail(f"file://{tmp_path}/a.png") is None


def test_a_picture_beyond_the_limits_is_left_out(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    uri, size = f"file://{tmp_path}/a.png", (tmp_path / "a.png").stat().st_size
    assert thumbnail(uri, limits=MediaLimits(size, 10_000, 0))
    assert thumbnail(uri, limits=MediaLimits(size, 9_999, 0)) is None
    assert thumbnail(uri, limits=MediaLimits(size - 1, 10_000, 0)) is None
