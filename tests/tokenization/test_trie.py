"""The trie of legal tokens, against a dict of dicts."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from tokenization.trie import ILLEGAL, ROOT, TokenTrie
from tokenization.vectors import BadVectors

CODES = st.integers(1, 4).flatmap(
    lambda layers: st.tuples(
        st.just(layers), st.lists(st.tuples(*[st.integers(0, 4)] * layers), max_size=40), st.integers(0, 2**16)
    )
)


def children_by_hand(rows: list[tuple[int, ...]]) -> dict[tuple[int, ...], set[int]]:
    children = defaultdict(set)
    for row in rows:
        for depth in range(len(row)):
            children[row[:depth]].add(row[depth])
    return children


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(CODES)
def test_masks_steps_and_membership_are_those_of_nested_dicts(case):
    layers, rows, seed = case
    trie = TokenTrie.build(np.array(rows, np.uint16).reshape(-1, layers), sizes=[5] * layers)
    children = children_by_hand(rows)
    random = np.random.default_rng(seed)
    for depth in range(layers):
        prefixes = random.integers(0, 6, (30, depth))
        mask = trie.legal_mask(prefixes)
        nodes = trie.walk(prefixes)
        assert mask.shape == (30, 5)
        for prefix, legal, node in zip(map(tuple, prefixes.tolist()), mask, nodes, strict=True):
            assert set(np.flatnonzero(legal)) == children.get(prefix, set())
            assert (node != ILLEGAL) == (prefix in children or depth == 0)
        assert (trie.legal_mask(nodes, 5) == mask).all()
        tokens = random.integers(0, 6, 30)
        longer = np.concatenate([prefixes, tokens[:, None]], axis=1)
        assert (trie.step(nodes, tokens) == trie.walk(longer)).all()
    codes = random.integers(0, 5, (60, layers))
    assert trie.contains(codes).tolist() == [tuple(code) in set(rows) for code in codes.tolist()]
    assert trie.codes == len(set(rows))
    assert trie._is_sound()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(CODES)
def test_items_of_a_code_or_prefix_come_by_rank_then_key(case):
    layers, rows, seed = case
    random = np.random.default_rng(seed)
    ranks = random.integers(0, 3, len(rows))
    keys = [f"item{number}" for number in random.permutation(len(rows))]
    trie = TokenTrie.build(np.array(rows, np.uint16).reshape(-1, layers), keys, ranks=ranks, sizes=[5] * layers)
    for prefix in {row[:depth] for row in rows for depth in range(layers + 1)} | {(4,) * layers}:
        inside = [place for place, row in enumerate(rows) if row[: len(prefix)] == prefix]
        inside.sort(key=lambda place: (rows[place], ranks[place], keys[place]))
        assert trie.items(prefix).tolist() == inside
    wanted = [*rows[:9], (4,) * layers, *rows[:3]]
    owners, found = trie.items_of(wanted)
    assert list(zip(owners.tolist(), found.tolist(), strict=True)) == [
        (owner, row) for owner, code in enumerate(wanted) for row in trie.items(code).tolist()
    ]


def test_children_are_listed_by_row_and_token():
    trie = TokenTrie.build(np.array([[1, 0], [1, 3], [2, 2]]))
    rows, tokens, nodes = trie.children(np.array([ROOT, trie.walk([[1]])[0], ILLEGAL]))
    assert rows.tolist() == [0, 0, 1, 1]
    assert tokens.tolist() == [1, 2, 0, 3]
    assert nodes.tolist() == trie.walk([[1]]).tolist() + trie.walk([[2]]).tolist() + trie.walk([[1, 0], [1, 3]]).tolist()


def test_a_saved_trie_is_the_same_and_mapped(tmp_path):
    random = np.random.default_rng(0)
    codes = random.integers(0, 50, (500, 3)).astype(np.uint16)
    built = TokenTrie.build(codes, sizes=[64, 64, 64])
    built.save(tmp_path / "trie.safetensors")
    loaded = TokenTrie.load(tmp_path / "trie.safetensors")
    assert isinstance(loaded.tokens, np.memmap)
    assert loaded.contains(codes).all()
    assert (loaded.legal_mask(codes[:, :2]) == built.legal_mask(codes[:, :2])).all()
    assert loaded.items(codes[7]).tolist() == built.items(codes[7]).tolist()


def test_no_items_make_a_trie_without_legal_tokens(tmp_path):
    trie = TokenTrie.build(np.zeros((0, 3), int), sizes=[4, 4, 4])
    trie.save(tmp_path / "t")
    trie = TokenTrie.load(tmp_path / "t")
    assert not trie.legal_mask(np.zeros((2, 0), int)).any()
    assert trie.items(()).tolist() == trie.items((1, 2)).tolist() == []
    assert trie.contains([[0, 0, 0]]).tolist() == [False]


def test_a_code_of_65536_tokens_a_layer_is_kept():
    trie = TokenTrie.build(np.array([[65535, 0]]), sizes=[65536, 1])
    assert trie.contains([[65535, 0], [65534, 0]]).tolist() == [True, False]


def test_codes_of_more_than_63_bits_and_of_any_integers_make_the_same_trie():
    random = np.random.default_rng(3)
    codes = random.integers(0, 3, (300, 6)) * 32767
    ranks, keys = random.integers(0, 70_000, 300), random.permutation(300)
    wide = TokenTrie.build(codes, keys, ranks=ranks)
    narrow = TokenTrie.build((codes // 32767).astype(np.uint8), keys, ranks=ranks)
    for name in ("depth_starts", "offsets", "item_offsets", "item_rows"):
        assert (getattr(wide, name) == getattr(narrow, name)).all()
    assert (wide.tokens == narrow.tokens.astype(int) * 32767).all()
    assert wide.item_rows.tolist() == sorted(range(300), key=lambda row: (*codes[row], ranks[row], keys[row]))


def test_ranks_may_be_numbers_of_any_type():
    codes = np.zeros((4, 2), int)
    for ranks in ([0.7, 0.2, -0.5, 0.3], np.array([0.7, 0.2, -0.5, 0.3], np.float32), [7, 2, -5, 3], [70_000, 20_000, 5, 30_000]):
        assert TokenTrie.build(codes, ranks=ranks).items((0, 0)).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "altered", "missing", "lying header", "deep header"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "trie.safetensors"
    TokenTrie.build(np.random.default_rng(0).integers(0, 9, (50, 3))).save(path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "foreign":
        path.write_bytes(b"PAR1" * 100)
    elif damage == "altered":
        length = int.from_bytes(content[:8], "little")
        path.write_bytes(content[: 8 + length] + bytes(len(content) - 8 - length))
    elif damage == "lying header":
        path.write_bytes((2**63 - 1).to_bytes(8, "little") + content[8:])
    elif damage == "deep header":
        path.write_bytes((60_000).to_bytes(8, "little") + b"[" * 60_000)
    else:
        path.unlink()
    with pytest.raises(BadInput, match=r"trie\.safetensors: "):
        TokenTrie.load(path)


@pytest.mark.parametrize(
    ("array", "place", "value"),
    [
        ("tokens", 2, 4),  # its layer has four
        ("tokens", 1, 0),  # that of the edge before it too
        ("tokens", 3, 0),  # below that of the edge before it
        ("item_rows", 3, 5),
        ("item_rows", 0, -1),
        ("item_offsets", 0, -1),
        ("offsets", 1, 3),  # the root would have a child of the second depth
        ("depth_starts", 1, 2),
        ("sizes", 0, 10**9),
        ("sizes", 1, 2**16 + 1),
    ],
)
def test_an_altered_value_is_found_when_the_trie_is_loaded(tmp_path, array, place, value):
    trie = TokenTrie.build(np.array([[0, 1], [0, 3], [1, 0], [1, 3], [1, 3]]), sizes=[2, 4])
    altered = getattr(trie, array).copy()
    assert altered[place] != value
    altered[place] = value
    replace(trie, **{array: altered}).save(tmp_path / "trie.safetensors")
    with pytest.raises(BadInput, match=r"trie\.safetensors: its arrays do not make a trie"):
        TokenTrie.load(tmp_path / "trie.safetensors")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trie: trie.legal_mask([[1, 2]]), "no token follows"),
        (lambda trie: trie.legal_mask([ROOT], 2), "legal token 3"),
        (lambda trie: trie.legal_mask([ROOT, 1]), "one depth at a time"),
        (lambda trie: trie.contains([[1]]), r"needs \(b, 2\)"),
        (lambda trie: trie.walk([[1, 2, 3]]), "depth at most 2"),
        (lambda _: TokenTrie.build(np.array([[9]]), sizes=[4]), "below the sizes"),
        (lambda _: TokenTrie.build(np.zeros((0, 2), int), sizes=[4, 0]), "below the sizes"),
        (lambda _: TokenTrie.build(np.array([0.5])), "integers"),
    ],
)
def test_misuse_is_said(call, message):
    with pytest.raises(BadVectors, match=message):
        call(TokenTrie.build(np.array([[1, 2], [3, 0]])))
