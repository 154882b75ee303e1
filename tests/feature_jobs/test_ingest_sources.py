"""Looking at landing files before any row is read: damaged ones are named, endless lines are not read, names may be any."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.ingest import sources
from feature_jobs.ingest.blocks import csv_blocks, json_blocks, opened, parquet_blocks
from feature_jobs.ingest.landing import Landing, LandingFile, open_landing
from feature_jobs.ingest.sources import input_columns, look_at, named
from schemas.errors import BadInput
from schemas.lake import parse_date
from schemas.tables import EVENTS

DAY = "2026-01-31"
EVENT = {"impression_id": "a", "user_id": "u", "item_id": "i", "ts": f"{DAY}T10:00:00Z", "play_time_ms": 5}


def landed(root: Path, name: str, content: bytes) -> tuple[Landing, LandingFile]:
    """A landing zone with one file of events."""
    folder = root / "events" / f"date={DAY}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    landing = open_landing(str(root))
    (file,) = (file for file in landing.files(EVENTS, parse_date(DAY)) if file.name.endswith(name))
    return landing, file


def rows_of(landing: Landing, file: LandingFile) -> int:
    """Rows of a file that was looked at, as a task reads it."""
    names = [column.name for column in input_columns(EVENTS)]
    look_at(landing, EVENTS, [file], 1)
    with named(landing, file):
        if file.format == "parquet":
            return sum(block.rows for block in parquet_blocks(landing.filesystem, file.path, names, None))
        with opened(landing.filesystem, file.path, compressed=file.compressed) as stream:
            blocks = json_blocks(stream, input_columns(EVENTS)) if file.format == "jsonl" else csv_blocks(stream, names)
            return sum(block.rows for block in blocks)


def lines(rows: int) -> bytes:
    return "".join(json.dumps(EVENT | {"impression_id": f"{number * 7919}"}) + "\n" for number in range(rows)).encode()


def cells(rows: int) -> bytes:
    header = ",".join(EVENT) + "\n"
    return (header + "".join(f"{number * 7919},u,i,{DAY}T10:00:00Z,5\n" for number in range(rows))).encode()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("part.jsonl.gz", lines), ("part.csv.gz", cells)])
def test_a_gzip_file_with_a_flipped_byte_is_named_wherever_it_is(tmp_path: Path, name: str, make: Callable[[int], bytes]) -> None:
    whole = gzip.compress(make(5000), mtime=0)
    assert rows_of(*landed(tmp_path, name, whole)) == 5000
    rng = random.Random(7)
    refused = []
    for place in [*range(24), *rng.sample(range(24, len(whole)), 60), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        try:
            rows_of(*landed(tmp_path, name, bytes(damaged)))
        except BadInput as error:
            refused.append(str(error))
    assert all(f"{name}: " in line for line in refused)
    assert any("Error -3 while decompressing" in line for line in refused), "what only zlib notices"
    assert len(refused) > 60, "the checksum finds the others; a flag or a time in the header may be any"


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_one_endless_line_is_refused_before_it_is_read(tmp_path: Path, compressed: bool) -> None:
    content = b"[" + json.dumps(EVENT).encode() * 1_500_000
    name = "part.jsonl.gz" if compressed else "part.jsonl"
    landing, file = landed(tmp_path, name, gzip.compress(content, 1) if compressed else content)
    with pytest.raises(BadInput, match=rf"{name}: a line longer than 67108864 bytes; deliver the file again"):
        look_at(landing, EVENTS, [file], 1)


def test_looking_at_long_lines_reads_no_more_than_the_longest_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 16)
    line = json.dumps(EVENT | {"note": "x" * 60_000}) + "\n"
    landing, file = landed(tmp_path, "part.jsonl", (line * 500).encode() + b'{"last": 1}\n')
    tracemalloc.start()
    source = look_at(landing, EVENTS, [file], 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.unknown == {file.name: ["note"]}
    assert peak < 2 << 20


def test_files_are_looked_at_in_any_order_and_the_first_bad_one_is_named(tmp_path: Path) -> None:
    for number in range(40):
        landed(tmp_path, f"part-{number:02}.jsonl", json.dumps(EVENT | {f"new{number}": 1}).encode())
    landing = open_landing(str(tmp_path))
    files = landing.files(EVENTS, parse_date(DAY))
    source = look_at(landing, EVENTS, files, 1)
    assert list(source.unknown.items()) == [(file.name, [f"new{number}"]) for number, file in enumerate(files)]
    assert [split.file for task in source.tasks for split in task] == files
    for number in (7, 30):
        landed(tmp_path, f"part-{number:02}.csv", b"impression_id,user_id\n")
    with pytest.raises(BadInput, match=r"part-07.csv: required column"):
        look_at(landing, EVENTS, landing.files(EVENTS, parse_date(DAY)), 1)


@pytest.mark.parametrize("name", ["a*b?.jsonl", "[1]{2}.jsonl", "back\\slash %20.jsonl.gz", "ü \u7269.csv", "a*[b].parquet"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    content = {"jsonl": lines(3), "gz": gzip.compress(lines(3)), "csv": cells(3), "parquet": b""}[name.rpartition(".")[2]]
    if not content:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([EVENT] * 3), sink)
        content = sink.getvalue().to_pybytes()
    assert rows_of(*landed(tmp_path, name, content)) == 3


def test_timestamps_of_96_bits_keep_far_years(tmp_path: Path) -> None:
    moments = pa.array([-62_135_596_800_000_000, 253_402_300_799_999_999, 0, None], pa.timestamp("us"))
    table = pa.table({**{name: pa.array([str(value)] * 4) for name, value in EVENT.items()}, "ts": moments})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_deprecated_int96_timestamps=True)
    landing, file = landed(tmp_path, "part.parquet", sink.getvalue().to_pybytes())
    look_at(landing, EVENTS, [file], 1)
    (block,) = parquet_blocks(landing.filesystem, file.path, list(EVENT), None)
    assert block.columns["ts"].equals(moments)
