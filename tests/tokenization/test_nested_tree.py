"""The nested tree: each cluster is split by its own codebook, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.vector_cases import matrices, matrix, squared_distances
from tokenization.nested_tree import NestedTree, fit_nested_tree
from tokenization.vectors import BadVectors


def encode_by_hand(tree: NestedTree, vectors: np.ndarray) -> np.ndarray:
    codes = []
    for vector in vectors:
        node, code = 0, []
        for level in tree.levels:
            code.append(int(squared_distances(vector[None], level.children(node))[0].argmin()))
            node = int(level.starts[node]) + code[-1]
        codes.append(code)
    return np.array(codes, np.uint16)


@settings(max_examples=12, deadline=None)
@given(vectors=matrices(most_rows=40, most_columns=4), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_any_matrix_makes_a_tree_whose_training_codes_are_those_of_encode(vectors, sizes):
    tree, codes = fit_nested_tree(vectors, sizes)
    assert codes.dtype == np.uint16
    assert (tree.encode(vectors) == codes).all()
    for depth, nodes in enumerate(tree.nodes, start=1):
        assert nodes == len(np.unique(codes[:, :depth], axis=0)) <= np.prod(sizes[:depth])


def test_encoding_goes_to_the_nearest_child_level_by_level():
    tree, _ = fit_nested_tree(matrix("normal", 400, 5, 0), (4, 3, 5))
    new = matrix("normal", 100, 5, 1)
    assert (tree.encode(new) == encode_by_hand(tree, new)).all()
    assert (tree.encode(new[7:9]) == tree.encode(new)[7:9]).all()


def test_each_level_lies_nearer_to_the_rows():
    vectors = matrix("normal", 600, 6, 0)
    tree, codes = fit_nested_tree(vectors, (4, 4, 4))
    errors = [float(((vectors - tree.decode(codes, depth)) ** 2).sum()) for depth in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert tree.nodes == [4, 16, 64]
    assert [tree.starved(level) for level in range(3)] == [0, 0, 0]


def test_a_starved_cluster_has_a_child_for_each_distinct_row():
    vectors = np.array([[0, 0], [0, 0], [0, 0], [9, 9], [9, 8], [9, 7]], np.float32)
    tree, codes = fit_nested_tree(vectors, (2, 4))
    assert sorted(np.diff(tree.levels[1].starts).tolist()) == [1, 3]
    assert tree.starved(1) == 2
    assert (tree.decode(codes) == vectors).all()


def test_what_does_not_fit_is_refused():
    tree, _ = fit_nested_tree(np.zeros((3, 2), np.float32), (2, 2))
    with pytest.raises(BadVectors, match=r"row 0 is \[0, 1\]; the tree has no such node on level 2"):
        tree.decode(np.array([[0, 1]]))
    with pytest.raises(BadVectors, match="3 columns; the tree was trained on 2"):
        tree.encode(np.zeros((1, 3)))
    with pytest.raises(BadVectors, match="0 rows"):
        fit_nested_tree(np.zeros((0, 2)), (2,))
    with pytest.raises(ValueError, match="between 1 and 65536"):
        fit_nested_tree(np.zeros((3, 2)), (2, 0))
