"""Hashes of whole columns equal the library's, one text at a time."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.text_hashes import text_hashes
from schemas.shards import stable_key
from tests.feature_jobs.reference_pathways import signed

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=100)
seeds = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(texts, seeds), max_size=30), st.integers(0, 5))
def test_each_text_has_the_librarys_hash_under_its_own_seed_also_in_a_slice(rows: list[tuple[str, int]], skipped: int) -> None:
    column = pa.array([text for text, _ in rows], pa.string()).slice(skipped)
    own = np.array([seed for _, seed in rows][skipped:], np.int64)
    expected = [signed(xxhash.xxh64_intdigest(text.encode(), seed % 2**64)) for text, seed in rows[skipped:]]
    assert text_hashes(column, own).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 12, 31, 32, 36, 63, 64, 200])
def test_many_texts_of_one_length_are_hashed_in_blocks(length: int) -> None:
    rows = [f"{number:0{length}d}"[:length] for number in range(70_000)]
    found = text_hashes(pa.array(rows, pa.large_string()))
    for place in (0, 65_535, 65_536, 69_999):
        assert found[place] == stable_key(rows[place])


def test_null_counts_as_the_empty_text() -> None:
    assert text_hashes(pa.array([None, "a", ""])).tolist() == [stable_key(""), stable_key("a"), stable_key("")]
