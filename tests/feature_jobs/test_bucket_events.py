"""Events with their items: sample ids as Spark computes them, attributes as of the request."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.bucket_events import sample_ids
from tests.feature_jobs.reference_pathways import text_hash

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.slow
@given(st.lists(st.tuples(texts, texts), max_size=20))
def test_sample_ids_are_sparks_chained_hash(rows: list[tuple[str, str]]) -> None:
    users, impressions = (pa.array([row[place] for row in rows], pa.string()) for place in (0, 1))
    assert sample_ids(users, impressions).to_pylist() == [text_hash(*row) for row in rows]
