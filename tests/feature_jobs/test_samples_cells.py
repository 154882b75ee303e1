"""The day's quantile from cells that user buckets count alone, against counting all plays; sketches."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs import samples_cells
from feature_jobs.samples_cells import CellCounter, CellFolder, DayQuantile, cell_keys, distinct_items, merge_plan
from feature_jobs.samples_sketch import KEPT, ItemSketch, PartedSketch

Play = tuple[int, int]
"""Duration bucket (−1 for an unknown length) and play time in ms."""
plays = st.tuples(st.integers(-1, 3), st.one_of(st.integers(0, 5), st.integers(0, 10**9)))
user_buckets = st.lists(st.lists(st.lists(plays, max_size=8), max_size=3), min_size=1, max_size=4)
"""User buckets, each of some slices of plays."""


def columns(rows: list[Play]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.mark.slow
@given(user_buckets, st.sampled_from([1, 3, 10**6]))
def test_a_plays_quantile_is_the_share_of_its_duration_buckets_plays_that_are_no_longer(
    folder: Path, dealt: list[list[list[Play]]], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_cells, "CELLS_AT_ONCE", at_once)
        cells = CellFolder(str(folder / str(uuid.uuid4())))
        batches = {}
        for bucket, slices in enumerate(dealt):
            counter = CellCounter()
            for rows in slices:
                counter.add(cell_keys(*columns(rows)))
            batches[bucket] = cells.write(bucket, counter.cells(), PartedSketch())
        plan = merge_plan(batches)
        merged = [cells.merge(*step) for step in plan]
        everything = [row for slices in dealt for rows in slices for row in rows]
        assert sum(merged) == len({row for row in everything if row[0] >= 0}), "as many cells as there are distinct plays"
        found = DayQuantile(cells).of(*columns(everything))
    for (bucket, play), quantile in zip(everything, found.tolist(), strict=True):
        same = [other for number, other in everything if number == bucket]
        if bucket < 0:
            assert np.isnan(quantile)
        else:
            assert quantile == sum(other <= play for other in same) / len(same)


@pytest.mark.slow
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), max_size=5))
def test_few_distinct_items_are_counted_exactly_wherever_they_were_shown(folder: Path, dealt: list[list[int]]) -> None:
    cells = CellFolder(str(folder / str(uuid.uuid4())))
    batches = {}
    for bucket, keys in enumerate(dealt):
        sketch = PartedSketch()
        sketch.add(np.array(keys, np.int64))
        batches[bucket] = cells.write(bucket, CellCounter().cells(), sketch)
    plan = merge_plan(batches)
    assert distinct_items(plan, [cells.merge(*step) for step in plan]) == len({key for keys in dealt for key in keys})


@pytest.mark.parametrize("seed", range(5))
def test_many_distinct_items_are_estimated_within_four_standard_errors_and_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept, distinct = 1000, 50_000
    keys = rng.integers(-(2**63), 2**63 - 1, distinct)
    shown = np.concatenate([keys, rng.choice(keys, 3 * distinct)])
    one, parts = ItemSketch(kept), ItemSketch(kept)
    one.add(shown)
    for part in np.array_split(rng.permutation(shown), 7):
        piece = ItemSketch(kept)
        piece.add(part)
        parts.add(piece.keys)
    assert one.distinct() == parts.distinct()
    assert abs(one.distinct() / distinct - 1) < 4 / np.sqrt(kept - 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_of_a_full_sketch_estimate_together_as_one_sketch_of_all_keys_does(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distinct = 5 * KEPT
    keys = rng.integers(-(2**63), 2**63 - 1, distinct)
    cells = CellFolder(str(folder / str(uuid.uuid4())))
    batches = {}
    for bucket, shown in enumerate(np.array_split(np.concatenate([keys, rng.choice(keys, distinct)]), 6)):
        sketch = PartedSketch()
        sketch.add(shown)
        batches[bucket] = cells.write(bucket, CellCounter().cells(), sketch)
    plan = merge_plan(batches)
    assert abs(distinct_items(plan, [cells.merge(*step) for step in plan]) / distinct - 1) < 4 / np.sqrt(KEPT - 2)
