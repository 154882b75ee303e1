"""Categories as numbers: in the order of the texts, and in memory that one long text among many short ones does not multiply."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.inspection import category_mix
from tokenization.labels import label_numbers
from tokenization.metrics import codebook_metrics
from tokenization.sampling import stratified_sample

LONG = "x" * 100_000
LABELS = [LONG, *(["a", "b"] * 1000)]
"""As an array of texts, 800 MB."""


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)))
def test_numbers_are_those_of_numpy(labels: list[str]) -> None:
    expected = np.unique(np.array(labels, str), return_inverse=True)[1] if labels else np.zeros(0, int)
    assert label_numbers(labels).tolist() == expected.tolist()
    assert label_numbers(labels).dtype == np.int64


def metrics() -> None:
    codes = np.array([[1], *([[0], [1]] * 1000)])
    assert codebook_metrics(codes, [2], labels=LABELS)["prefixes"][0]["nmi"] > 0.9


def sample() -> None:
    chosen = stratified_sample([f"i{number}" for number in range(len(LABELS))], LABELS, 20, 0)
    assert sorted(LABELS[row] for row in chosen) == ["a"] * 10 + ["b"] * 10


def mix() -> None:
    shown = [(entry["category"], entry["items"]) for entry in category_mix(LABELS)]
    assert shown == [("a", 1000), ("b", 1000), (LONG, 1)]


@pytest.mark.parametrize("use", [metrics, sample, mix])
def test_one_long_category_costs_no_memory_for_each_item(use: Callable[[], None]) -> None:
    use()  # what it imports stays
    tracemalloc.start()
    try:
        use()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unknown", [None, ""])
def test_items_of_unknown_category_are_one_stratum(unknown: str | None) -> None:
    ids = [f"i{number}" for number in range(40)]
    both = stratified_sample(ids, [None, "", "a", "a"] * 10, 10, 0)
    assert both.tolist() == stratified_sample(ids, [unknown, unknown, "a", "a"] * 10, 10, 0).tolist()
