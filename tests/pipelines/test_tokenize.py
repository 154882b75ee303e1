"""Tokens of items that share codes: what each policy writes, at once and day by day."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pipelines import part_transforms, tokenize_items
from pipelines.part_transforms import EncodePart, SpillPart, int_lists
from schemas.config import Config
from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake, create_lake
from schemas.registry import Registry
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS, ITEMS, PIPELINE_RUNS
from tests.lake_rows import utc, write_rows
from tokenization.codebook import load_codebook
from tokenization.collisions import rank_within_code
from tokenization.spilling import spread
from tokenization.token_set import publish_token_set
from tokenization.trie import TokenTrie

pytestmark = pytest.mark.slow
RETRYING = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
SIZES = [2, 3, 8]
NAMES = [f"{letter}{number:02d}" for letter in "zéa" for number in range(40)]
VECTORS = np.round(np.random.default_rng(5).normal(size=(len(NAMES), 4)), 1).astype(np.float32)
VECTORS[10:17] = VECTORS[10]  # equal ones


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Lake]:
    """A lake with a fusion and a codebook by hand; the policy and its settings as keywords."""

    def lake(**codebook: Any) -> Lake:
        made = create_lake(str(tmp_path / "lake"), Config.model_validate({"codebook": codebook}))
        registry = Registry.of(made)
        fusion = registry.publish("fusion", {"encoders": {"text": "hand"}}, {"fusion": b"-"}).version
        random = np.random.default_rng(1)
        tensors = {f"layer_{layer}": random.normal(size=(size, 4)).astype(np.float32) for layer, size in enumerate(SIZES)}
        metadata = {"sizes": SIZES, "fusion_version": fusion, "encoders": {"text": "hand"}}
        registry.publish("codebook", metadata, {"codebook.safetensors": save(tensors)})
        return made

    return lake


def land(lake: Lake, chosen: slice | list[int]) -> None:
    """Fused vectors and catalogue rows of some items."""
    fusion = Registry.of(lake).latest("fusion")
    names, vectors = np.array(NAMES)[chosen].tolist(), VECTORS[chosen]
    common = {"kind": "fused", "source": fusion, "presence_mask": 1}
    rows = zip(names, vectors, strict=True)
    write_rows(
        lake, ITEM_VECTORS, [common | {"item_id": n, "content_hash": f"h{n}", "vector": v.tolist(), "dim": 4} for n, v in rows]
    )
    write_rows(lake, ITEMS, [{"item_id": name, "valid_from": utc("2026-01-01")} for name in names])


def tokens(lake: Lake) -> dict[str, tuple[int, ...]]:
    return {row["item_id"]: tuple(row["tokens"]) for row in lake.read(ITEM_TOKENS).to_pylist()}


@pytest.mark.parametrize(("policy", "cap"), [("cap", 2), ("unique", 1)])
def test_a_run_spreads_codes_as_the_library_does_and_a_rerun_changes_nothing(make, policy, cap) -> None:
    lake = make(collisions=policy, collision_cap=2, collision_max_error=1.0)
    land(lake, slice(None))
    report = tokenize_items.run(lake)
    codebook = load_codebook(Registry.of(lake))
    greedy = codebook.encode(VECTORS)
    expected = spread(VECTORS, greedy, NAMES, codebook.codebooks, cap, 1.0)
    assert tokens(lake) == {name: tuple(code) for name, code in zip(NAMES, expected.tolist(), strict=True)}
    norms = codebook.residual_norms(VECTORS, expected)
    ranks = dict(zip(NAMES, rank_within_code(expected, NAMES, norms).tolist(), strict=True))
    for row in lake.read(ITEM_TOKENS).to_pylist():
        assert row["rank"] == ranks[row["item_id"]]
        assert row["residual_norm"] == norms[NAMES.index(row["item_id"])]

    figures = report["collisions"]
    sizes = Counter(map(tuple, expected.tolist()))
    assert figures["moved"] == int((expected != greedy).any(axis=1).sum()) > 0
    assert figures["over_cap"] == sum(max(0, count - cap) for count in sizes.values())
    assert figures["before"]["largest_bucket"] == max(Counter(map(tuple, greedy.tolist())).values())
    assert figures["after"]["largest_bucket"] == max(sizes.values())
    greedy_norms = codebook.residual_norms(VECTORS, greedy)
    assert figures["residual_increase"] == pytest.approx(norms.mean() / greedy_norms.mean() - 1, abs=1e-6)
    (remark,) = lake.read(PIPELINE_RUNS, columns=["message"])["message"].to_pylist()
    assert remark.startswith(f"collisions {policy}: share ")

    version = lake.table_version(ITEM_TOKENS)
    assert tokenize_items.run(lake)["collisions"]["moved"] == 0
    assert lake.table_version(ITEM_TOKENS) == version


def test_items_that_came_earlier_keep_their_tokens_until_all_are_tokenised_again(make) -> None:
    lake = make(collisions="cap", collision_cap=2, collision_max_error=None)
    land(lake, slice(60, None))
    tokenize_items.run(lake)
    early = tokens(lake)
    land(lake, slice(0, 60))
    report = tokenize_items.run(lake)
    assert report["encoded"] == 60
    found = tokens(lake)
    assert {name: found[name] for name in early} == early
    codebook = load_codebook(Registry.of(lake))
    codes = codebook.encode(VECTORS)
    codes[60:] = [early[name] for name in NAMES[60:]]
    expected = spread(VECTORS, codes, NAMES, codebook.codebooks, 2, None, kept=np.arange(120) >= 60)
    assert found == {name: tuple(code) for name, code in zip(NAMES, expected.tolist(), strict=True)}

    assert tokenize_items.run(lake, retokenise=True)["encoded"] == 120
    anew = spread(VECTORS, codebook.encode(VECTORS), NAMES, codebook.codebooks, 2, None)
    assert tokens(lake) == {name: tuple(code) for name, code in zip(NAMES, anew.tolist(), strict=True)}
    assert tokens(lake) != found


def test_a_bundle_that_fails_and_is_tried_again_changes_nothing(make, monkeypatch) -> None:
    lake = make(collisions="cap", collision_cap=2, collision_max_error=1.0)
    land(lake, slice(None))
    once = tokenize_items.run(lake)
    rows, failed = lake.read(ITEM_TOKENS).sort_by("item_id"), set()

    def fail_once(kind: type) -> None:
        whole = kind.process

        def process(self: Any, part: str) -> None:
            whole(self, part)  # its part is written
            if (kind, part) not in failed:
                failed.add((kind, part))
                raise RuntimeError("this worker was lost")

        monkeypatch.setattr(kind, "process", process)

    fail_once(EncodePart)
    fail_once(SpillPart)
    again = tokenize_items.run(lake, retokenise=True, runner=RETRYING)
    assert {kind for kind, _ in failed} == {EncodePart, SpillPart}
    assert lake.read(ITEM_TOKENS).sort_by("item_id").equals(rows)
    assert again["encoded"] == once["encoded"] == len(NAMES)
    assert again["collisions"] == once["collisions"]
    assert once["collisions"]["moved"] > 0


@pytest.mark.parametrize("bad", [np.nan, 2e38])
def test_a_fused_vector_that_cannot_be_encoded_is_named_by_its_item(make, bad) -> None:
    lake = make()
    land(lake, slice(None))
    rows = lake.read(ITEM_VECTORS).to_pylist()
    for row in rows:
        if row["kind"] == "fused" and row["item_id"] in NAMES[7:13]:
            row["vector"][1] = bad
    lake.open_table(ITEM_VECTORS).delete()
    write_rows(lake, ITEM_VECTORS, rows)
    said = f"NaN, infinity or a number beyond 1e\\+38, of items {', '.join(sorted(NAMES[7:13])[:5])} and more; remove these rows"
    with pytest.raises(BadInput, match=said):
        tokenize_items.run(lake)


def test_rows_of_a_list_column_are_the_same_in_pieces(monkeypatch) -> None:
    matrix = np.random.default_rng(0).integers(0, 99, (23, 3))
    assert int_lists(matrix).num_chunks == 1
    monkeypatch.setattr(part_transforms, "_LISTED_VALUES", 10)
    pieces = int_lists(matrix)
    assert [len(piece) for piece in pieces.chunks] == [3] * 7 + [2]
    assert pieces.to_pylist() == matrix.tolist()
    assert int_lists(matrix[:0]).to_pylist() == []


def test_suffixes_make_codes_unique_and_stay_and_the_token_set_has_four_tokens(make) -> None:
    lake = make(collisions="suffix", collision_suffixes=16)
    land(lake, slice(60, None))
    tokenize_items.run(lake)
    early = tokens(lake)
    land(lake, slice(0, 60))
    figures = tokenize_items.run(lake)["collisions"]
    found = tokens(lake)
    assert {name: found[name] for name in early} == early
    assert len(set(found.values())) == 120
    assert (figures["after"]["collision_share"], figures["after"]["largest_bucket"]) == (0.0, 1)
    assert set(lake.read(ITEM_TOKENS, columns=["rank"])["rank"].to_pylist()) == {0}
    for code in {found[name][:3] for name in NAMES}:
        numbers = sorted(found[name][3] for name in NAMES if found[name][:3] == code)
        assert numbers == list(range(len(numbers)))

    token_set = publish_token_set(lake)
    assert token_set.metadata["codebook_sizes"] == [*SIZES, 16]
    trie = TokenTrie.load(token_set.file("trie.safetensors"))
    assert trie.contains(np.array(list(found.values()))).all()


def test_more_items_in_a_code_than_suffixes_are_refused_and_nothing_is_written(make) -> None:
    lake = make(collisions="suffix", collision_suffixes=3)
    land(lake, slice(None))
    with pytest.raises(GateFailed, match=r"items share the code \[\d, \d, \d\] .* codebook.collision_suffixes is 3"):
        tokenize_items.run(lake)
    assert tokens(lake) == {}


def test_another_policy_needs_all_items_tokenised_again_only_where_codes_get_longer(make) -> None:
    lake = make()
    land(lake, slice(None))
    tokenize_items.run(lake)
    other = Lake(
        lake.root, lake.config.model_copy(update={"codebook": lake.config.codebook.model_copy(update={"collisions": "suffix"})})
    )
    with pytest.raises(BadInput, match=r"120 items have 3 tokens, codebook.collisions: suffix gives 4; add --retokenise"):
        tokenize_items.run(other)
    tokenize_items.run(other, retokenise=True)
    assert {len(code) for code in tokens(lake).values()} == {4}
    with pytest.raises(BadInput, match=r"120 items have 4 tokens, codebook.collisions: keep gives 3; add --retokenise"):
        tokenize_items.run(lake)


def test_a_codebook_that_names_no_fusion_version_is_refused_in_one_line(make) -> None:
    lake = make()
    land(lake, slice(None))
    registry = Registry.of(lake)
    codebook = registry.load("codebook")
    metadata = {name: value for name, value in codebook.metadata.items() if name != "fusion_version"}
    nameless = registry.publish("codebook", metadata, {name: codebook.file(name) for name in codebook.files})
    with pytest.raises(BadInput, match=rf"^\S+/{nameless.version}: names no fusion version .* publish it again with [^\n]+$"):
        tokenize_items.run(lake)
    assert tokens(lake) == {}
