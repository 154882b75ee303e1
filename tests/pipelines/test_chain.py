"""From vectors to a published token set: fuse, train-codebook and tokenize, incremental as from nothing."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from onerec.command_line import run as run_command
from pipelines import embed, fuse, tokenize_items, train_codebook, train_fusion
from schemas.config import CodebookSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS, ITEMS
from tests.lake_rows import write_rows
from tests.pipelines.content_lake import fill, item, picture
from tokenization.codebook import load_codebook
from tokenization.fusion_model import load_fusion
from tokenization.metrics import codebook_metrics
from tokenization.rq_kmeans import RQKMeans
from tokenization.token_set import publish_token_set
from tokenization.trie import TokenTrie

pytestmark = pytest.mark.slow
DAY = dt.date(2026, 1, 1)
ITEM_COUNT = 60


def settings(text_encoder: str) -> dict[str, Any]:
    return {
        "embed": {"text_encoder": text_encoder},
        "fusion": {"dim": 16, "queries": 2, "layers": 1, "heads": 2, "steps": 40, "batch_size": 64},
        "codebook": {"sizes": [4, 4, 4], "iterations": 5},
    }


@pytest.fixture
def lake(make_lake: Callable[..., Lake], tiny_text_encoder: str, tmp_path: Path) -> Lake:
    """A lake whose items are embedded."""
    made = make_lake(**settings(tiny_text_encoder))
    fill(made, tmp_path / "media", ITEM_COUNT)
    embed.run(made, DAY)
    return made


@pytest.fixture
def tokenised(lake: Lake) -> Lake:
    """The same, through to tokens."""
    train_fusion.run(lake, DAY)
    fuse.run(lake, DAY)
    train_codebook.run(lake, DAY)
    tokenize_items.run(lake, DAY)
    return lake


def fused_rows(lake: Lake) -> dict[str, dict[str, Any]]:
    found = lake.read(ITEM_VECTORS, filter=pads.field("kind") == "fused").to_pylist()
    assert len({row["item_id"] for row in found}) == len(found)
    return {row["item_id"]: row for row in found}


def token_rows(lake: Lake) -> list[dict[str, Any]]:
    return lake.read(ITEM_TOKENS).sort_by([("codebook_version", "ascending"), ("item_id", "ascending")]).to_pylist()


def test_the_parts_agree_with_the_models_applied_by_hand(tokenised: Lake) -> None:
    lake, registry = tokenised, Registry.of(tokenised)
    artefact, model = load_fusion(registry)
    inputs = {
        (row["item_id"], row["kind"]): row for row in lake.read(ITEM_VECTORS, filter=pads.field("kind") != "fused").to_pylist()
    }
    fused = fused_rows(lake)
    assert len(fused) == ITEM_COUNT
    assert {row["source"] for row in fused.values()} == {artefact.version}
    names = sorted(fused)
    present = np.array([[(name, kind) in inputs for kind in ("text", "image", "audio")] for name in names])
    vectors = {
        kind: np.array([inputs[name, kind]["vector"] if (name, kind) in inputs else np.zeros(dim) for name in names], np.float32)
        for kind, dim in model.shape.inputs.items()
    }
    expected = model.fuse({kind: vectors[kind] for kind in model.shape.kinds}, present)
    np.testing.assert_allclose([fused[name]["vector"] for name in names], expected, atol=1e-6)
    assert [fused[name]["presence_mask"] for name in names] == (present * [1, 2, 4]).sum(axis=1).tolist()

    codebook = load_codebook(registry)
    stored = np.array([fused[name]["vector"] for name in names], np.float32)
    tokens = token_rows(lake)
    assert [row["item_id"] for row in tokens] == names
    assert [row["content_hash"] for row in tokens] == [fused[name]["content_hash"] for name in names]
    np.testing.assert_array_equal([row["tokens"] for row in tokens], codebook.encode(stored))
    left = stored - codebook.decode(codebook.encode(stored))
    np.testing.assert_allclose([row["residual_norm"] for row in tokens], np.linalg.norm(left, axis=1), atol=1e-5)
    for row in tokens:
        better = [
            other for other in tokens
            if other["tokens"] == row["tokens"]
            and (other["residual_norm"], other["item_id"]) < (row["residual_norm"], row["item_id"])
        ]  # fmt: skip
        assert row["rank"] == len(better)
    assert {"metrics", "encoders", "fusion_version", "inputs"} <= set(codebook.metadata)
    assert codebook.metadata["metrics"]["prefixes"][0]["behaviour_hit_rate"] > 0.3


def test_running_everything_again_changes_nothing(tokenised: Lake) -> None:
    registry = Registry.of(tokenised)
    before = [tokenised.table_version(table) for table in (ITEM_VECTORS, ITEM_TOKENS)]
    versions = [registry.versions(kind) for kind in ("fusion", "codebook")]
    assert train_fusion.run(tokenised, DAY)["reused"]
    report = fuse.run(tokenised, DAY)["tables"]["item_vectors"]
    assert (report["rows_out"], report["rows_dropped"]) == (0, {"unchanged": ITEM_COUNT, "no_vectors": 0})
    assert train_codebook.run(tokenised, DAY)["reused"]
    assert tokenize_items.run(tokenised, DAY)["encoded"] == 0
    assert [tokenised.table_version(table) for table in (ITEM_VECTORS, ITEM_TOKENS)] == before
    assert [registry.versions(kind) for kind in ("fusion", "codebook")] == versions


def test_new_changed_and_deleted_items_end_as_in_a_run_from_nothing(tokenised: Lake, tmp_path: Path) -> None:
    lake = tokenised
    publish_token_set(lake)
    changes = [
        item("new", "2026-01-02", title="green tea number 9", cover_uri=picture(tmp_path / "new.png", 0, 99)),
        item("silent", "2026-01-02"),
        item("i0001", "2026-01-02", title="night sky number 7", cover_uri=picture(tmp_path / "other.png", 5, 98)),
        item("i0002", "2026-01-02", deleted=True),
    ]
    write_rows(lake, ITEMS, changes)
    day = dt.date(2026, 1, 2)
    embed.run(lake, day)
    report = fuse.run(lake, day)["tables"]["item_vectors"]
    assert report["rows_in"] == ITEM_COUNT + 1  # two more, one gone
    assert (report["rows_out"], report["rows_dropped"]) == (2, {"unchanged": ITEM_COUNT - 2, "no_vectors": 1})
    assert tokenize_items.run(lake, day)["encoded"] == 2
    incremental = token_rows(lake)
    assert len(incremental) == ITEM_COUNT + 1
    assert fused_rows(lake)["i0001"]["presence_mask"] == 0b011  # its new version has no sound

    version = load_codebook(Registry.of(lake)).version
    lake.open_table(ITEM_TOKENS).delete(f"codebook_version = '{version}'")
    assert tokenize_items.run(lake, day)["encoded"] == ITEM_COUNT + 1
    assert token_rows(lake) == incremental


def test_an_item_that_got_its_old_picture_back_has_its_old_vector(tokenised: Lake, tmp_path: Path) -> None:
    lake = tokenised
    first = fused_rows(lake)["i0000"]
    row = next(row for row in lake.read(ITEMS).to_pylist() if row["item_id"] == "i0000")
    for day, cover in ((2, picture(tmp_path / "other.png", 4, 97)), (3, row["cover_uri"])):
        write_rows(lake, ITEMS, [row | {"valid_from": row["valid_from"] + dt.timedelta(days=day - 1), "cover_uri": cover}])
        embed.run(lake, dt.date(2026, 1, day))
        fuse.run(lake, dt.date(2026, 1, day))
        same = fused_rows(lake)["i0000"]["content_hash"] == first["content_hash"]
        assert same == (day == 3)
    np.testing.assert_allclose(fused_rows(lake)["i0000"]["vector"], first["vector"], atol=1e-6)


def test_an_item_whose_new_picture_cannot_be_read_has_no_picture(tokenised: Lake, tmp_path: Path) -> None:
    """And not that of its former one, which is the only one known."""
    lake = Lake(
        tokenised.root,
        tokenised.config.model_copy(update={"embed": tokenised.config.embed.model_copy(update={"quarantine_limit": 0.5})}),
    )
    row = next(row for row in lake.read(ITEMS).to_pylist() if row["item_id"] == "i0000")
    assert fused_rows(lake)["i0000"]["presence_mask"] & 0b010
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = row | {"valid_from": row["valid_from"] + dt.timedelta(days=1), "cover_uri": str(tmp_path / "broken.png")}
    write_rows(lake, ITEMS, [broken])
    day = dt.date(2026, 1, 2)
    assert embed.run(lake, day)["tables"]["item_vectors"]["rows_quarantined"] == 1
    fuse.run(lake, day)
    assert not fused_rows(lake)["i0000"]["presence_mask"] & 0b010


def test_two_runs_of_fuse_at_once_leave_each_item_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    train_fusion.run(lake, DAY)
    reports = meeting(monkeypatch, fuse, lambda: fuse.run(lake, DAY), lambda: fuse.run(lake, DAY))
    assert [report["tables"]["item_vectors"]["rows_out"] for report in reports] == [ITEM_COUNT, 0]
    assert len(fused_rows(lake)) == ITEM_COUNT
    train_codebook.run(lake, DAY)
    assert tokenize_items.run(lake, DAY)["encoded"] == ITEM_COUNT


def test_a_fuse_that_meets_one_of_changed_items_replaces_what_that_one_wrote(
    tokenised: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, day = tokenised, dt.date(2026, 1, 2)
    write_rows(
        lake, ITEMS, [item("i0001", "2026-01-02", title="night sky number 7"), item("new", "2026-01-02", title="green tea")]
    )
    embed.run(lake, day)
    meeting(monkeypatch, fuse, lambda: fuse.run(lake, day), lambda: fuse.run(lake, day))
    assert len(fused_rows(lake)) == ITEM_COUNT + 1
    assert fused_rows(lake)["i0001"]["presence_mask"] == 0b001


def test_two_runs_of_embed_at_once_leave_each_vector_once(
    make_lake: Callable[..., Lake], tiny_text_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake("twice", **settings(tiny_text_encoder))
    fill(lake, tmp_path / "media", 10)
    inner, outer = meeting(monkeypatch, embed, lambda: embed.run(lake, DAY), lambda: embed.run(lake, DAY))
    written, again = (report["tables"]["item_vectors"] for report in (inner, outer))
    assert written["rows_out"] > 10
    assert (again["rows_out"], again["rows_dropped"]["unchanged"]) == (0, written["rows_out"])
    rows = lake.read(ITEM_VECTORS).to_pylist()
    assert len(rows) == len({(row["item_id"], row["kind"], row["content_hash"]) for row in rows}) == written["rows_out"]


def test_a_tokenize_that_another_has_overtaken_begins_again_from_its_tokens(
    tokenised: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, day = tokenised, dt.date(2026, 1, 2)
    write_rows(lake, ITEMS, [item("new", "2026-01-02", title="green tea number 9")])
    embed.run(lake, day)
    fuse.run(lake, day)
    said: list[str] = []
    reports = meeting(
        monkeypatch,
        tokenize_items,
        lambda: tokenize_items.run(lake, day),
        lambda: tokenize_items.run(lake, day, progress=said.append),
    )
    assert [report["encoded"] for report in reports] == [1, 0]
    assert any("another run has tokenised these items meanwhile" in line for line in said)
    assert len(token_rows(lake)) == ITEM_COUNT + 1


def test_a_tokenize_that_is_overtaken_without_end_says_so(tokenised: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_items._Tokenizing, "_replace", lambda *_: False)
    with pytest.raises(BadInput, match=r"item_tokens: other processes keep tokenising by codebook .* run this again"):
        tokenize_items.run(tokenised, DAY, retokenise=True)


def meeting(monkeypatch: pytest.MonkeyPatch, module: Any, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """The reports of two runs: all of ``first`` happens while ``second`` commits (the table is opened, nothing written yet)."""
    write, met = module.write_deltalake, []

    def meet(*arguments: Any, **named: Any) -> None:
        if not met:
            met.append(None)
            met[0] = first()
        write(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_deltalake", meet)
        last = second()
    return met[0], last


def test_a_refresh_is_built_beside_the_live_token_set(tokenised: Lake) -> None:
    lake, registry = tokenised, Registry.of(tokenised)
    live = publish_token_set(lake).metadata
    assert train_fusion.run(with_fusion(lake, seed=1), DAY)["kept"]
    other = with_fusion(lake, seed=1, start="previous", learning_rate=1e-6)
    newest = train_fusion.run(other, DAY)["fusion_version"]
    assert newest != live["fusion_version"]
    assert fuse.run(other, DAY)["fusion_version"] == live["fusion_version"]
    with pytest.raises(BadInput, match=f"no fused vector of fusion {newest}; run `onerec fuse"):
        train_codebook.run(other, DAY)
    assert fuse.run(other, DAY, refresh=True)["tables"]["item_vectors"]["rows_out"] == ITEM_COUNT
    report = train_codebook.run(other, DAY)
    assert report["warm_started_from"] == live["codebook_version"]
    refresh = report["refresh"]
    assert (refresh["start"], refresh["version"]) == ("rotated", live["codebook_version"])
    assert registry.load("fusion", newest).metadata["warm_started_from"] == live["fusion_version"]
    assert 0 <= refresh["rotation_error"] < 1e-3
    assert refresh["rotation_loss"] < 0.1
    assert refresh["churn"]["items"] == ITEM_COUNT
    assert refresh["churn"]["changed"] <= 0.1
    with pytest.raises(BadInput, match="run `onerec tokenize"):
        publish_token_set(lake)
    assert tokenize_items.run(other, DAY)["codebook_version"] == live["codebook_version"]
    assert tokenize_items.run(other, DAY, refresh=True)["encoded"] == ITEM_COUNT
    assert publish_token_set(lake).metadata["codebook_version"] == report["codebook_version"] == registry.latest("codebook")
    assert len(token_rows(lake)) == 2 * ITEM_COUNT


@pytest.mark.parametrize("training", ["sample", "exact"])
def test_a_refresh_keeps_the_codes_of_unchanged_items_and_says_what_a_cold_one_would_have_done(
    tokenised: Lake, tmp_path: Path, training: str
) -> None:
    publish_token_set(tokenised)
    before = {row["item_id"]: row["tokens"] for row in token_rows(tokenised)}
    write_rows(tokenised, ITEMS, [item(f"new{number}", "2026-01-02", title=f"green tea {number}") for number in range(3)])
    changes = {"training": training, "max_churn": 0.1, "report_cold_churn": True}
    lake = Lake(tokenised.root, tokenised.config.model_copy(update={"codebook": section_with(tokenised, **changes)}))
    day = dt.date(2026, 1, 2)
    embed.run(lake, day)
    fuse.run(lake, day)
    refresh = train_codebook.run(lake, day)["refresh"]
    assert (refresh["start"], refresh["rotation_error"]) == ("previous", None)
    assert refresh["churn"]["items"] == refresh["churn_cold"]["items"] == ITEM_COUNT
    tokenize_items.run(lake, day, refresh=True)
    version = Registry.of(lake).latest("codebook")
    after = {row["item_id"]: row["tokens"] for row in token_rows(lake) if row["codebook_version"] == version}
    changed = sum(after[name] != tokens for name, tokens in before.items())
    assert changed / ITEM_COUNT == refresh["churn"]["changed"] <= 0.1
    assert refresh["share_of_the_way"] > 0
    assert len(after) == ITEM_COUNT + 3


def test_a_space_that_is_too_different_is_started_from_scratch_and_matched(tokenised: Lake) -> None:
    publish_token_set(tokenised)
    lake = with_fusion(tokenised, seed=1, start="scratch")
    train_fusion.run(lake, DAY)
    fuse.run(lake, DAY, refresh=True)
    report = train_codebook.run(lake, DAY)
    assert (report["refresh"]["start"], report["warm_started_from"]) == ("matched", None)
    assert report["refresh"]["rotation_loss"] > 0.1
    fused = lake.read(ITEM_VECTORS, filter=pads.field("source") == report["fusion_version"]).sort_by("item_id")
    vectors = np.stack(fused["vector"].to_numpy())
    cold = RQKMeans(3, 4, iterations=5).fit(vectors)
    found = load_codebook(Registry.of(lake)).codebooks
    for ours, theirs in zip(found, cold.codebooks_, strict=True):
        np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


def test_a_further_layer_or_suffixes_of_some_items_are_no_obstacle(tokenised: Lake) -> None:
    publish_token_set(tokenised)
    deeper = Lake(tokenised.root, tokenised.config.model_copy(update={"codebook": section_with(tokenised, sizes=(4, 4, 4, 4))}))
    assert train_codebook.run(deeper, DAY)["refresh"] is None
    rows = tokenised.read(ITEM_TOKENS).to_pylist()
    for row in rows[::2]:
        row["tokens"] = [*row["tokens"], 0]
    tokenised.open_table(ITEM_TOKENS).delete()
    write_rows(tokenised, ITEM_TOKENS, rows)
    section = section_with(tokenised, iterations=6)
    report = train_codebook.run(Lake(tokenised.root, tokenised.config.model_copy(update={"codebook": section})), DAY)
    assert report["refresh"]["churn"]["items"] == ITEM_COUNT


def test_bounded_clusters_are_those_of_training_and_tokens_stay_the_nearest(tokenised: Lake) -> None:
    section = section_with(tokenised, balance=1.2, max_churn=None, start="scratch")
    lake = Lake(tokenised.root, tokenised.config.model_copy(update={"codebook": section}))
    train_codebook.run(lake, DAY)
    fused = lake.read(ITEM_VECTORS, filter=pads.field("kind") == "fused").sort_by("item_id")
    vectors = np.stack(fused["vector"].to_numpy())
    model = RQKMeans(3, 4, iterations=5, balance=1.2).fit(vectors)
    found = load_codebook(Registry.of(lake))
    for ours, theirs in zip(found.codebooks, model.codebooks_, strict=True):
        np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    sizes = codebook_metrics(found.encode(vectors), (4, 4, 4))["layers"]
    told = found.metadata["metrics"]["layers"]
    assert [layer["entropy"] for layer in told] == pytest.approx([layer["entropy"] for layer in sizes])


def with_fusion(lake: Lake, **changes: Any) -> Lake:
    return Lake(lake.root, lake.config.model_copy(update={"fusion": lake.config.fusion.model_copy(update=changes)}))


def section_with(lake: Lake, **changes: Any) -> CodebookSection:
    return lake.config.codebook.model_copy(update=changes)


def test_the_token_set_is_the_live_items(tokenised: Lake) -> None:
    write_rows(tokenised, ITEMS, [item("i0003", "2026-01-02", deleted=True)])
    token_set = publish_token_set(tokenised)
    assert publish_token_set(tokenised).version == token_set.version
    trie = TokenTrie.load(token_set.file("trie.safetensors"))
    names = pq.read_table(token_set.file("items.parquet"))["item_id"].to_pylist()
    tokens = {row["item_id"]: row["tokens"] for row in token_rows(tokenised)}
    assert set(names) == set(tokens) - {"i0003"}
    assert trie.contains(np.array([tokens[name] for name in names])).all()
    assert [names[row] for row in trie.items(tokens["i0000"])].count("i0000") == 1
    assert token_set.metadata["codebook_sizes"] == [4, 4, 4]
    assert (token_set.metadata["items"], token_set.metadata["live_items"]) == (ITEM_COUNT, ITEM_COUNT - 1)
    assert token_set.metadata["item_tokens_version"] == tokenised.table_version(ITEM_TOKENS)


def test_exact_training_is_that_of_one_machine_on_every_item_and_leaves_nothing_when_it_is_stopped(lake: Lake) -> None:
    train_fusion.run(lake, DAY)
    fuse.run(lake, DAY)
    section = CodebookSection(sizes=(4, 3), iterations=2, training="exact", max_training_items=10)
    exact, registry = Lake(lake.root, lake.config.model_copy(update={"codebook": section})), Registry.of(lake)

    def stopped(line: str) -> None:
        if "layer 1, iteration 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codebook.run(exact, DAY, progress=stopped)
    assert registry.latest("codebook") is None
    assert not list(Path(lake.root, "work").glob("train-codebook-*"))

    said: list[str] = []
    report = train_codebook.run(exact, DAY, progress=said.append)
    assert not report["reused"]
    assert report["tables"][ITEM_VECTORS.name]["rows_dropped"]["beyond_sample"] == 0
    assert any(line.startswith("train-codebook: layer 2, iteration 2 of 2, inertia") for line in said)
    fused = fused_rows(exact)
    vectors = np.array([fused[name]["vector"] for name in sorted(fused)], np.float32)
    model = RQKMeans(2, (4, 3), iterations=2).fit(vectors)
    codebook = load_codebook(registry)
    for ours, theirs in zip(codebook.codebooks, model.codebooks_, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    decoded = [model.decode(model.codes_, layers) for layers in (1, 2)]
    expected = codebook_metrics(model.codes_, (4, 3), vectors, decoded)["prefixes"]
    for found, prefix in zip(codebook.metadata["metrics"]["prefixes"], expected, strict=True):
        assert found["reconstruction_error"] == pytest.approx(prefix["reconstruction_error"], rel=1e-4)
        assert found["distinct"] == prefix["distinct"]
        assert found["nmi"] > 0
    assert train_codebook.run(exact, DAY)["reused"]


def test_a_codebook_larger_than_the_items_says_what_to_set(tokenised: Lake) -> None:
    config = tokenised.config.model_copy(update={"codebook": CodebookSection(sizes=(64, 8))})
    with pytest.raises(
        BadInput, match=r"sizes \[64, 8\]: 60 fused vectors cannot fill 64 tokens; .*--set codebook.sizes=\[4, 4\]"
    ):
        train_codebook.run(Lake(tokenised.root, config), DAY)


def test_steps_out_of_order_say_what_to_run(make_lake: Callable[..., Lake], tiny_text_encoder: str, lake: Lake) -> None:
    with pytest.raises(BadInput, match="no fusion published yet; run `onerec train-fusion` first"):
        fuse.run(lake, DAY)
    with pytest.raises(BadInput, match="no codebook published yet; run `onerec train-codebook` first"):
        tokenize_items.run(lake, DAY)
    with pytest.raises(BadInput, match=r"no pair by 2025-12-31; run `onerec co-interaction` first|run `onerec embed` first"):
        train_fusion.run(lake, dt.date(2025, 12, 31))
    empty = make_lake("empty", **settings(tiny_text_encoder))
    write_rows(empty, ITEMS, [item("a", title="tea")])
    with pytest.raises(BadInput, match="run `onerec embed` first"):
        train_fusion.run(empty, DAY)
    embed.run(empty, DAY)
    with pytest.raises(BadInput, match="no pair by 2026-01-01; run `onerec co-interaction` first"):
        train_fusion.run(empty, DAY)


def test_the_commands(lake: Lake, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("embed", "train-fusion", "fuse", "train-codebook", "tokenize"):
        arguments = [command, "--lake", lake.root, "--date", "2026-01-01", "--json"]
        assert run_command(arguments) == 0
        report = json.loads(capfd.readouterr().out)
        assert (report["step"], report["date"]) == (command, "2026-01-01")
        assert run_command([*arguments, "--dry-run"]) == 0
        assert json.loads(capfd.readouterr().out)["dry_run"] is True
    assert run_command(["fuse", "--lake", lake.root, "--fusion-version", "nothing"]) == 2
    assert capfd.readouterr().err.startswith("error: ")
    assert run_command(["tokenize", "--lake", lake.root, "--refresh", "--codebook-version", "x"]) == 2
    assert "not both" in capfd.readouterr().err
    assert run_command(["embed", "--lake", lake.root, "--date", "2026-02-30"]) == 2
    assert "not a date" in capfd.readouterr().err
