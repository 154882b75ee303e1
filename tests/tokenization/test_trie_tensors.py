"""The trie on a device says what the trie in memory says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.trie import ILLEGAL, TokenTrie
from tokenization.trie_tensors import TrieTensors

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=40), st.integers(0, 2**16))
def test_children_masks_and_steps_are_those_of_the_trie(device, rows, seed):
    trie = TokenTrie.build(np.array(rows, np.int64).reshape(-1, 3), sizes=[7] * 3)
    tensors = TrieTensors.of(trie, device)
    random = np.random.default_rng(seed)
    for depth in range(3):
        nodes = trie.walk(random.integers(0, 8, (12, depth)))
        there = torch.from_numpy(nodes).to(device)
        for mine, theirs in zip(tensors.children(there), trie.children(nodes), strict=True):
            assert mine.tolist() == theirs.tolist()
        assert tensors.legal_mask(there, 7).tolist() == trie.legal_mask(nodes, 7).tolist()
        tokens = random.integers(0, 8, (12, 5))
        moved = tensors.step(there[:, None].expand(-1, 5), torch.from_numpy(tokens).to(device))
        assert moved.tolist() == trie.step(nodes[:, None], tokens).tolist()
    leaves = torch.tensor([trie.depth_starts[-1] - 1 if rows else ILLEGAL, ILLEGAL], device=device)
    assert not tensors.legal_mask(leaves, 7).any()
