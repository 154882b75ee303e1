"""``onerec embed``: one vector a content and encoder, nothing twice, broken media in quarantine, one commit."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import embed
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.registry import text_sha256
from schemas.tables import ITEM_VECTORS, ITEMS, PIPELINE_RUNS, QUARANTINE
from tests.lake_rows import write_rows
from tests.pipelines.content_lake import item, picture, sound
from tokenization.encoders import load_encoder
from tokenization.encoders.base import MediaLimits
from tokenization.encoders.media import decode_picture

pytestmark = pytest.mark.slow
DAY = dt.date(2026, 1, 1)


@pytest.fixture
def lake(make_lake: Callable[..., Lake], tiny_text_encoder: str) -> Lake:
    return make_lake(embed={"text_encoder": tiny_text_encoder, "quarantine_limit": 0.5})


def rows(lake: Lake) -> dict[tuple[str, str], dict[str, Any]]:
    """(item, kind) → row, of items with one vector a kind."""
    found = lake.read(ITEM_VECTORS).to_pylist()
    keyed = {(row["item_id"], row["kind"]): row for row in found}
    assert len(keyed) == len(found)
    return keyed


def counts(report: dict[str, Any]) -> dict[str, int]:
    table = report["tables"]["item_vectors"]
    return {"in": table["rows_in"], "out": table["rows_out"], "bad": table["rows_quarantined"], **table["rows_dropped"]}


def test_every_content_gets_the_vector_of_its_encoder(lake: Lake, tmp_path: Path, tiny_text_encoder: str) -> None:
    cover = picture(tmp_path / "a.png", 1, 0)
    write_rows(lake, ITEMS, [item("a", title="jazz guitar", cover_uri=cover), item("b", title="night sky"), item("c")])
    report = embed.run(lake)
    assert counts(report) == {"in": 9, "out": 3, "bad": 0, "no_content": 6, "unchanged": 0}
    assert report["encoders"] == {"text": tiny_text_encoder, "image": "hog", "audio": "logmel"}
    found = rows(lake)
    assert set(found) == {("a", "text"), ("a", "image"), ("b", "text")}
    texts = load_encoder(tiny_text_encoder).encode(["jazz guitar", "night sky"])
    np.testing.assert_allclose(found["a", "text"]["vector"], texts[0], atol=1e-6)
    np.testing.assert_allclose(found["b", "text"]["vector"], texts[1], atol=1e-6)
    pixels = decode_picture((tmp_path / "a.png").read_bytes(), MediaLimits())
    np.testing.assert_allclose(found["a", "image"]["vector"], load_encoder("hog").encode([pixels])[0], atol=1e-6)
    assert found["a", "text"]["source"] == tiny_text_encoder
    assert found["a", "text"]["content_hash"] == text_sha256("jazz guitar")
    assert found["a", "text"]["presence_mask"] == 0


def test_a_second_run_adds_nothing_and_commits_nothing(lake: Lake, tmp_path: Path) -> None:
    write_rows(lake, ITEMS, [item("a", title="tea", cover_uri=picture(tmp_path / "a.png", 1, 0))])
    embed.run(lake)
    version = lake.table_version(ITEM_VECTORS)
    assert counts(embed.run(lake)) == {"in": 3, "out": 0, "bad": 0, "no_content": 1, "unchanged": 2}
    assert lake.table_version(ITEM_VECTORS) == version
    assert not list(Path(lake.root, "work").iterdir())


def test_what_two_items_share_is_encoded_once(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenization.encoders.sentence import SentenceEncoder

    encoded: list[str] = []
    original = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda self, inputs: encoded.extend(inputs) or original(self, inputs))
    write_rows(lake, ITEMS, [item("a", title="tea"), item("b", caption="tea")])
    assert counts(embed.run(lake))["out"] == 2
    write_rows(
        lake, ITEMS, [item("c", title="tea"), item("a", "2026-01-02", title="bread"), item("b", "2026-01-02", deleted=True)]
    )
    report = embed.run(lake)
    assert counts(report) == {"in": 6, "out": 2, "bad": 0, "no_content": 4, "unchanged": 0}
    assert report["copied"] == 1
    assert encoded == ["tea", "bread"]
    found = lake.read(ITEM_VECTORS).to_pylist()
    vectors = {(row["item_id"], row["content_hash"]): row["vector"] for row in found}
    tea = text_sha256("tea")
    assert vectors["a", tea] == vectors["b", tea] == vectors["c", tea]
    assert set(vectors) == {("a", tea), ("b", tea), ("c", tea), ("a", text_sha256("bread"))}


def test_the_items_are_those_of_the_end_of_the_day(lake: Lake) -> None:
    write_rows(
        lake, ITEMS, [item("a", title="tea"), item("a", "2026-01-02", title="bread"), item("b", "2026-01-02", title="sky")]
    )
    assert counts(embed.run(lake, DAY))["out"] == 1
    assert rows(lake)["a", "text"]["content_hash"] == text_sha256("tea")
    assert counts(embed.run(lake, dt.date(2026, 1, 2)))["out"] == 2


def test_an_item_with_several_pictures_has_their_mean(lake: Lake, tmp_path: Path) -> None:
    uris = [picture(tmp_path / f"{n}.png", n, n) for n in range(3)]
    write_rows(lake, ITEMS, [item("a", cover_uri=uris[0], frame_uris=uris[1:])])
    embed.run(lake)
    pictures = [decode_picture((tmp_path / f"{n}.png").read_bytes(), MediaLimits()) for n in range(3)]
    mean = load_encoder("hog").encode(pictures).mean(axis=0)
    np.testing.assert_allclose(rows(lake)["a", "image"]["vector"], mean / np.linalg.norm(mean), atol=1e-6)


def test_broken_media_go_to_quarantine_with_every_reason(lake: Lake, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png", 0, 0)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    broken, missing = f"file://{tmp_path}/broken.jpg", f"file://{tmp_path}/missing.png"
    write_rows(
        lake,
        ITEMS,
        [
            item("a", title="tea", cover_uri=good, audio_uri=sound(tmp_path / "a.wav", 0, 0)),
            item("b", title="tea", cover_uri=broken),
            item("c", title="sky", cover_uri=missing, frame_uris=["/etc/passwd", good]),
            item("d", title="sky", cover_uri=good, audio_uri=good),
        ],
    )
    for _ in range(2):
        report = embed.run(lake, DAY)
        assert report["tables"]["item_vectors"]["rows_quarantined"] == 3
        quarantined = lake.read(QUARANTINE).to_pylist()
        assert {(row["table_name"], row["date"]) for row in quarantined} == {("item_vectors", DAY)}
        reasons = {
            (json.loads(row["row_json"])["item_id"], json.loads(row["row_json"])["kind"]): row["reasons"] for row in quarantined
        }
        assert set(reasons) == {("b", "image"), ("c", "image"), ("d", "audio")}
        assert reasons["b", "image"][0].startswith(f"image: {broken}: not a readable picture (UnidentifiedImageError")
        assert reasons["c", "image"] == [
            f"image: {missing}: No such file or directory",
            "image: /etc/passwd: not an absolute file:// address",
        ]
        assert "not readable sound" in reasons["d", "audio"][0]
        assert not any("0x" in reason for found in reasons.values() for reason in found)  # no address of a buffer
    assert set(rows(lake)) == {(name, "text") for name in "abcd"} | {("a", "image"), ("a", "audio"), ("d", "image")}
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.png").read_bytes())
    assert embed.run(lake, DAY)["tables"]["item_vectors"]["rows_quarantined"] == 2
    assert lake.read(QUARANTINE).num_rows == 2


def test_too_many_broken_media_stop_the_step(make_lake: Callable[..., Lake], tiny_text_encoder: str, tmp_path: Path) -> None:
    lake = make_lake("strict", embed={"text_encoder": tiny_text_encoder, "quarantine_limit": 0.2})
    write_rows(lake, ITEMS, [item("a", title="tea", cover_uri=f"file://{tmp_path}/none.png"), item("b", title="sky")])
    with pytest.raises(GateFailed, match=r"1 of 3 contents rejected, more than embed\.quarantine_limit \(20\.00%\)"):
        embed.run(lake)
    assert lake.read(ITEM_VECTORS).num_rows == 0
    assert lake.read(QUARANTINE).num_rows == 1
    assert lake.read(PIPELINE_RUNS)["status"].to_pylist() == ["gate"]


def test_a_lake_without_items(lake: Lake) -> None:
    with pytest.raises(BadInput, match="holds no item by the end of 2026-01-01; run `onerec ingest` first"):
        embed.run(lake, dt.date(2026, 1, 1))
    with pytest.raises(BadInput, match="holds no item; run `onerec ingest` first"):
        embed.run(lake)


def test_an_encoder_without_weights_is_refused_before_anything_runs(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake("absent", embed={"text_encoder": "sentence-transformers:/no/model"})
    write_rows(lake, ITEMS, [item("a", title="tea")])
    with pytest.raises(BadInput, match="sentence-transformers:/no/model': no such folder"):
        embed.run(lake)


def test_a_run_killed_before_its_commit_leaves_the_table_as_it_was(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(lake, ITEMS, [item("a", title="tea")])

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embed, "write_deltalake", killed)
        with pytest.raises(KeyboardInterrupt):
            embed.run(lake)
    assert lake.read(ITEM_VECTORS).num_rows == 0
    assert counts(embed.run(lake))["out"] == 1
