"""A token set is published of parts that belong together; what is refused leaves the live one as it was."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS, ITEMS, Table
from tests.lake_rows import utc, write_rows
from tokenization.token_set import publish_token_set
from tokenization.trie import TokenTrie

Row = dict[str, Any]
Damage = Callable[[Lake], None]
NAMES = ["i0", "i1", "i2", "i3", "i4", "i5"]
ENCODERS = {"text": "hand"}
SIZES = [4, 4, 4]


def code(name: str) -> list[int]:
    number = NAMES.index(name)
    return [number % 4, number // 4, 3]


def of_catalogue(name: str, valid_from: str = "2026-01-01", **values: Any) -> Row:
    return {"item_id": name, "valid_from": utc(valid_from)} | values


def fused(registry: Registry, name: str) -> Row:
    common = {"kind": "fused", "source": registry.latest("fusion"), "presence_mask": 1, "vector": [1.0, 0.0]}
    return common | {"item_id": name, "content_hash": f"content of {name}"}


def tokenised(registry: Registry, name: str, tokens: list[int]) -> Row:
    common = {"rank": 0, "residual_norm": 0.5, "codebook_version": registry.latest("codebook")}
    return common | {"item_id": name, "content_hash": f"content of {name}", "tokens": tokens}


def publish_codebook(registry: Registry, **changes: Any) -> None:
    """The newest codebook; a change to None leaves that entry out of its metadata."""
    metadata = {"sizes": SIZES, "encoders": ENCODERS, "fusion_version": registry.latest("fusion")} | changes
    known = {name: value for name, value in metadata.items() if value is not None}
    registry.publish("codebook", known, {"codebook.safetensors": b"centres"})


@pytest.fixture
def lake(make_lake: Callable[..., Lake]) -> Lake:
    """A lake with a token set of six items."""
    made = make_lake()
    registry = Registry.of(made)
    registry.publish("fusion", {"encoders": ENCODERS}, {"fusion.safetensors": b"weights"})
    publish_codebook(registry)
    write_rows(made, ITEMS, [of_catalogue(name) for name in NAMES])
    write_rows(made, ITEM_VECTORS, [fused(registry, name) for name in NAMES])
    write_rows(made, ITEM_TOKENS, [tokenised(registry, name, code(name)) for name in NAMES])
    publish_token_set(made)
    return made


def rewrite(lake: Lake, table: Table, change: Callable[[Row], None]) -> None:
    """Change every row of a table."""
    rows = lake.read(table).to_pylist()
    for row in rows:
        change(row)
    write_deltalake(lake.table_uri(table), pa.Table.from_pylist(rows, schema=table.schema), mode="overwrite")


def another_content_was_fused(lake: Lake) -> None:
    def change(row: Row) -> None:
        row["content_hash"] += ", changed" if row["item_id"] == "i3" else ""

    rewrite(lake, ITEM_VECTORS, change)


def an_item_was_fused_and_not_tokenised(lake: Lake) -> None:
    write_rows(lake, ITEM_VECTORS, [fused(Registry.of(lake), "i6")])


def an_item_has_tokens_and_no_vector(lake: Lake) -> None:
    write_rows(lake, ITEM_TOKENS, [tokenised(Registry.of(lake), "i6", [0, 0, 0])])


def an_item_has_its_tokens_twice(lake: Lake) -> None:
    write_rows(lake, ITEM_TOKENS, [row for row in lake.read(ITEM_TOKENS).to_pylist() if row["item_id"] == "i3"])


def nothing_is_tokenised_by_the_newest_codebook(lake: Lake) -> None:
    publish_codebook(Registry.of(lake), seed=1)


def all_items_are_deleted(lake: Lake) -> None:
    write_rows(lake, ITEMS, [of_catalogue(name, "2026-01-02", deleted=True) for name in NAMES])


def tokens_of_one(*tokens: int) -> Damage:
    """Other tokens for item i3."""

    def change(row: Row) -> None:
        row["tokens"] = list(tokens) if row["item_id"] == "i3" else row["tokens"]

    return lambda lake: rewrite(lake, ITEM_TOKENS, change)


def tokens_of_all(change: Callable[[list[int]], list[int]]) -> Damage:
    def change_row(row: Row) -> None:
        row["tokens"] = change(row["tokens"])

    return lambda lake: rewrite(lake, ITEM_TOKENS, change_row)


def codebook_of(**changes: Any) -> Damage:
    return lambda lake: publish_codebook(Registry.of(lake), **changes)


def flipped_byte(kind: str) -> Damage:
    def flip(lake: Lake) -> None:
        path = Registry.of(lake).load(kind).folder / f"{kind}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    return flip


TOO_LARGE = "tokens that do not fit the codebook's sizes [4, 4, 4] (and a suffix's, 256); run `onerec tokenize"
DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "another content of an item was fused": (
        another_content_was_fused,
        ("1 of 6 fused vectors", "1 tokens no vector, 0 are there twice; run `onerec tokenize --codebook-version"),
    ),
    "an item was fused and not tokenised": (
        an_item_was_fused_and_not_tokenised,
        ("1 of 7 fused vectors", "0 tokens no vector, 0 are there twice; run `onerec tokenize --codebook-version"),
    ),
    "an item has its tokens twice": (
        an_item_has_its_tokens_twice,
        (
            "0 of 6 fused vectors",
            "0 tokens no vector, 1 are there twice; run `onerec tokenize --codebook-version",
            "--retokenise",
        ),
    ),
    "an item has tokens and no vector": (
        an_item_has_tokens_and_no_vector,
        ("0 of 6 fused vectors", "1 tokens no vector, 0 are there twice; run `onerec tokenize --codebook-version"),
    ),
    "nothing is tokenised by the newest codebook": (
        nothing_is_tokenised_by_the_newest_codebook,
        ("item_tokens: no tokens of codebook", "run `onerec tokenize --refresh` first"),
    ),
    "a first token above its layer's size": (tokens_of_one(4, 0, 0), (TOO_LARGE,)),
    "a last token above its layer's size": (tokens_of_one(0, 0, 4), (TOO_LARGE,)),
    "a negative token": (tokens_of_one(0, -1, 0), (TOO_LARGE,)),
    "one code shorter than the others": (tokens_of_one(0, 0), (TOO_LARGE,)),
    "all codes too short": (tokens_of_all(lambda tokens: tokens[:2]), (TOO_LARGE,)),
    "all codes too long": (tokens_of_all(lambda tokens: [*tokens, 0, 0]), (TOO_LARGE,)),
    "suffixes above their number": (tokens_of_all(lambda tokens: [*tokens, 256]), (TOO_LARGE,)),
    "a codebook of other encoders": (
        codebook_of(encoders={"text": "other"}),
        ("of encoders {'text': 'other'}, but its fusion", "has {'text': 'hand'}; run `onerec train-codebook` again"),
    ),
    "a codebook that names no encoders": (codebook_of(encoders=None), ("of encoders None", "run `onerec train-codebook` again")),
    "a codebook that names no fusion": (codebook_of(fusion_version=None), ("names no fusion version",)),
    "a codebook of a fusion that is gone": (codebook_of(fusion_version="0123456789ab"), ("no fusion of this version",)),
    "a flipped byte in the fusion": (flipped_byte("fusion"), ("fusion.safetensors: altered (its sha256 is not the manifest's)",)),
    "a flipped byte in the codebook": (
        flipped_byte("codebook"),
        ("codebook.safetensors: altered (its sha256 is not the manifest's)",),
    ),
    "all items are deleted": (
        all_items_are_deleted,
        ("items: every tokenised item is deleted; there is nothing to recommend",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_parts_that_do_not_belong_together_are_refused_and_the_live_token_set_stays(
    lake: Lake, damage: Damage, said: tuple[str, ...]
) -> None:
    registry = Registry.of(lake)
    live = registry.latest("token_set")
    assert live is not None
    damage(lake)
    with pytest.raises(BadInput) as refused:
        publish_token_set(lake)
    assert [words for words in said if words not in str(refused.value)] == [], str(refused.value)
    assert registry.latest("token_set") == live
    assert registry.versions("token_set") == [live]


def test_a_token_set_names_its_parts_and_holds_the_items_that_are_live(lake: Lake) -> None:
    registry = Registry.of(lake)
    write_rows(lake, ITEMS, [of_catalogue(name, "2026-01-02", deleted=True) for name in ("i0", "i5")])
    write_rows(lake, ITEMS, [of_catalogue("i5", "2026-01-03")])  # it came back
    token_set = publish_token_set(lake)
    assert registry.latest("token_set") == token_set.version
    assert token_set.metadata == {
        "encoders": ENCODERS,
        "fusion_version": registry.latest("fusion"),
        "codebook_version": registry.latest("codebook"),
        "codebook_sizes": SIZES,
        "item_tokens_version": lake.table_version(ITEM_TOKENS),
        "items": 6,
        "live_items": 5,
    }
    names: list[str] = pq.read_table(token_set.file("items.parquet"))["item_id"].to_pylist()
    assert names == NAMES[1:]
    trie = TokenTrie.load(token_set.file("trie.safetensors"))
    assert [names[row] for name in names for row in trie.items(code(name))] == names
    assert not trie.contains([code("i0")]).any()


def test_codes_with_a_suffix_have_one_size_more(lake: Lake) -> None:
    tokens_of_all(lambda tokens: [*tokens, 255])(lake)
    assert publish_token_set(lake).metadata["codebook_sizes"] == [*SIZES, 256]
