"""The work folder: parts of bounded size, gone at the end whatever happened."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.work import read_part, work_folder
from schemas.lake import Lake
from schemas.lake_folders import WORK_KEPT_HOURS
from tests.aged_folders import aged_folder

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


def test_what_a_killed_run_left_goes_when_nothing_was_written_there_for_long(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    root, number = Path(lake.root, "work"), "0123456789ab"
    names = (f"test-{number}", f".staging-{'0' * 32}")
    old = [aged_folder(root / name, WORK_KEPT_HOURS + 1, "fused/a.parquet") for name in names]
    young = [
        aged_folder(root / f"test-{number[::-1]}", WORK_KEPT_HOURS - 1, "fused/a.parquet"),
        aged_folder(root / f"test-{'0' * 12}", WORK_KEPT_HOURS + 1, "fused/a.parquet"),
        aged_folder(root / f"other-{number}", WORK_KEPT_HOURS + 1, "fused/a.parquet"),
        aged_folder(root / f"test-more-{number}", WORK_KEPT_HOURS + 1, "fused/a.parquet"),
    ]
    (young[1] / "fused" / "b.parquet").touch()  # of a run of days: the folder of its stage is there since it began
    moment = time.time() - 3600 * (WORK_KEPT_HOURS + 1)
    for folder in (young[1], young[1] / "fused"):
        os.utime(folder, (moment, moment))
    with work_folder(lake, "test"):
        assert [folder.exists() for folder in old] == [False, False]
        assert [folder.exists() for folder in young] == [True, True, True, True]


def test_a_folder_that_was_removed_meanwhile_is_no_error_at_the_end(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    with work_folder(lake, "test") as work:
        shutil.rmtree(work.uri)
    assert list(Path(lake.root, "work").iterdir()) == []


def test_what_nobody_reads_any_more_can_be_removed(make_lake: Callable[..., Lake]) -> None:
    with work_folder(make_lake(), "test") as work:
        work.write_bytes("codes/a", b"x")
        work.write_bytes("codes/b", b"x")
        work.remove("codes/a")
        assert work.read_bytes("codes/b") == b"x"
        for _ in range(2):
            work.remove("codes")
            work.remove("codes/b")
        assert list(Path(work.uri).iterdir()) == []
