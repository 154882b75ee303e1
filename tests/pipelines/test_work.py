"""The work folder: parts of bounded size, gone at the end whatever happened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.pairs import pair_rows
from pipelines.runner import open_pipeline
from pipelines.work import read_part, work_folder
from schemas.errors import BadInput
from schemas.lake import Lake

NUMBERS = pa.schema([("n", pa.int64())])


def test_parts_hold_all_rows_in_order_and_no_more_than_told(make_lake: Callable[..., Lake]) -> None:
    batches = [
        pa.record_batch([pa.array(range(start, stop))], schema=NUMBERS) for start, stop in ((0, 5), (5, 5), (5, 17), (17, 18))
    ]
    with work_folder(make_lake(), "test") as work:
        parts = work.write_parts("numbers", pa.RecordBatchReader.from_batches(NUMBERS, batches), rows=4)
        read = [read_part(part)["n"].to_pylist() for part in parts]
        assert [len(part) for part in read] == [4, 4, 4, 4, 2]
        assert [number for part in read for number in part] == list(range(18))
        assert work.parts("numbers", NUMBERS).count_rows() == 18
        assert work.parts("nothing", NUMBERS).to_table().equals(NUMBERS.empty_table())


def test_what_a_killed_writer_left_of_a_part_is_not_read(make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, left = pq.write_table, []

    def killed(part: pa.Table, path: str, **how: Any) -> None:
        whole(part, path, **how)
        os.truncate(path, Path(path).stat().st_size // 2)
        left.append(Path(path))
        raise KeyboardInterrupt

    numbers = pa.table({"n": [1, 2]}, schema=NUMBERS)
    with work_folder(make_lake(), "test") as work:
        monkeypatch.setattr(pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            work.write_part("numbers", numbers)
        monkeypatch.undo()
        again = work.write_part("numbers", numbers)
        assert work.parts("numbers", NUMBERS).to_table().equals(numbers)
        assert read_part(again).equals(numbers)
        assert left[0].is_file(), "the case is not trivial"


def test_the_folder_is_removed_also_after_an_error(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()

    def killed() -> None:
        with work_folder(lake, "test") as work:
            assert Path(work.write_part("x", pa.table({"n": [1]}))).is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(Path(lake.root, "work").iterdir()) == []


def test_what_a_killed_run_left_goes_when_it_is_old(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    folders = [Path(lake.root, "work", name) for name in ("test-old", "test-new", "other-old")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "part.parquet").touch()
        if folder.name.endswith("old"):
            os.utime(folder, (0, 0))
    with work_folder(lake, "test"):
        assert [folder.exists() for folder in folders] == [False, True, True]


@pytest.mark.parametrize("option", ["--job_endpoint=x", "Bad=1", "a b=c", "=x"])
def test_an_option_that_is_none(option: str) -> None:
    with pytest.raises(BadInput, match="write name=value"):
        open_pipeline("local", [option])


def test_a_runner_that_is_none() -> None:
    with pytest.raises(BadInput, match=r"--runner 'no\.such\.Runner'"):
        open_pipeline("no.such.Runner")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"))))
def test_pairs_as_rows(pairs: list[tuple[str, str]]) -> None:
    ids = ["c", "a", "b"]
    table = pa.table(
        {"item_a": pa.array([a for a, _ in pairs], pa.string()), "item_b": pa.array([b for _, b in pairs], pa.string())}
    )
    expected = sorted({tuple(sorted((ids.index(a), ids.index(b)))) for a, b in pairs if a != b and "d" not in (a, b)})
    assert [tuple(pair) for pair in pair_rows(table, pa.array(ids)).tolist()] == expected
