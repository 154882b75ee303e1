"""Amazon reviews, in the two prepared forms of the literature: with item texts, or as bare sequences.

With texts (``item.json``, ``valid.csv``, ``test.csv``): each row of the two tables holds the items that came before (at
most ten) and the one to predict; a user's sequence is put together again by laying each row's window over the end of
what is there already. As sequences (``NAME.txt`` and ``NAME_item2attributes.json``): a user and his items a line.

Neither has times, only an order: a user's first interaction is at ``START`` and each next one a second later. An
interaction is a review: a click and a comment (so it counts as high engagement) with a play time of 0. Item versions hold
from 2000 on; there are no media.
"""

import ast
import csv
import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from onerec.importers.landing_writer import EARLY, describe, reading, replacing, require_files, write_events, write_items
from schemas.errors import BadInput

SOURCE_NAME = "amazon"
DAY_TIMEZONE = "UTC"
START = dt.datetime(2018, 10, 1, tzinfo=dt.UTC)
"""When every user's sequence is said to begin."""
MAX_FILE_BYTES = 2 << 30
MAX_LITERAL_CHARACTERS = 1 << 20
_ATTRIBUTES = "_item2attributes.json"
Sequences = dict[str, list[str]]


def find_files(source: Path) -> dict[str, list[Path]]:
    """The files of either form. Raises BadInput naming what is missing."""
    attributes = sorted(source.glob(f"*{_ATTRIBUTES}")) if source.is_dir() else []
    if attributes and not (source / "item.json").is_file():
        name = attributes[0].name.removesuffix(_ATTRIBUTES)
        files = require_files(source, {"sequences": f"{name}.txt", "attributes": f"{name}{_ATTRIBUTES}"})
    else:
        files = require_files(source, {"items": "item.json", "validation rows": "valid.csv", "test rows": "test.csv"})
    for paths in files.values():
        if paths[0].stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"{paths[0]}: larger than {MAX_FILE_BYTES} bytes; this importer reads prepared files into memory")
    return files


def run(source: Path, out: Path) -> dict[str, Any]:
    """Write the landing zone; returns the report. Raises BadInput for files that are missing or cannot be read."""
    files = find_files(source)
    with replacing(out, SOURCE_NAME) as work, reading(source) as connection:
        if "sequences" in files:
            sequences, items, report = _read_sequences(files["sequences"][0], files["attributes"][0])
        else:
            sequences, items, report = _read_texts(files["items"][0], [files["validation rows"][0], files["test rows"][0]])
        connection.register("sequence_rows", _event_rows(sequences))
        connection.register("item_rows", items)
        days = write_events(connection, work, "SELECT * FROM sequence_rows")
        write_items(connection, work, "SELECT * FROM item_rows")
        counts = {"rows": sum(map(len, sequences.values())), "users": len(sequences), "items": items.num_rows}
        report = counts | report | {"landing_days": days, "times_made": "one second a step", "item_valid_from": EARLY}
        describe(work, SOURCE_NAME, DAY_TIMEZONE, report)
    return report


def _event_rows(sequences: Sequences) -> pa.Table:
    rows = [
        {
            "impression_id": f"{user}-{step}",
            "user_id": user,
            "item_id": item,
            "ts": (START + dt.timedelta(seconds=step)).isoformat(),
            "play_time_ms": 0,
            "click": True,
            "comment": True,
            "landing_day": (START + dt.timedelta(seconds=step)).date().isoformat(),
        }
        for user, items in sequences.items()
        for step, item in enumerate(items)
    ]
    return pa.Table.from_pylist(rows)


def _read_texts(items: Path, tables: list[Path]) -> tuple[Sequences, pa.Table, dict[str, Any]]:
    windows: dict[str, list[list[str]]] = {}
    for path in tables:
        for user, window in _windows(path):
            windows.setdefault(user, []).append(window)
    sequences, gaps = {}, 0
    for user, theirs in windows.items():
        sequences[user], user_gaps = join_windows(theirs)
        gaps += user_gaps
    table, blank_brands = _item_rows(items)
    known = set(table["item_id"].to_pylist())
    missing = {item for sequence in sequences.values() for item in sequence} - known
    rows_read = sum(map(len, windows.values()))
    return sequences, table, {
        "rows_read": rows_read,
        "windows_without_overlap": gaps,
        "items_without_row": len(missing),
        "brand_unknown": blank_brands,
    }  # fmt: skip


def join_windows(windows: list[list[str]]) -> tuple[list[str], int]:
    """Put a sequence together from overlapping windows in time order; also how many overlapped nothing before them."""
    sequence: list[str] = []
    gaps = 0
    for window in windows:
        longest = min(len(sequence), len(window))
        overlap = next((size for size in range(longest, 0, -1) if sequence[-size:] == window[:size]), 0)
        gaps += bool(sequence) and overlap == 0
        sequence.extend(window[overlap:])
    return sequence, gaps


def _windows(path: Path) -> Iterable[tuple[str, list[str]]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream)
        for name in ("user_id", "history_item_id", "item_id"):
            if name not in (reader.fieldnames or []):
                raise BadInput(f"{path}: column {name!r} is missing; it is needed to rebuild the interactions")
        try:
            for row in reader:
                history = _literal_list(row["history_item_id"], path, reader.line_num)
                yield row["user_id"], [*history, str(row["item_id"])]
        except csv.Error as error:
            raise BadInput(f"{path}, line {reader.line_num}: {error}") from error


def _literal_list(text: str | None, path: Path, line: int) -> list[str]:
    """A Python literal that is a list of plain values, as texts; nothing is evaluated."""
    try:
        if text is None or len(text) > MAX_LITERAL_CHARACTERS:
            raise ValueError("missing or too long")
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadInput(f"{path}, line {line}: history_item_id is not a list (found {str(text)[:60]!r})") from error
    if not isinstance(value, list) or not all(isinstance(entry, int | str) for entry in value):
        raise BadInput(f"{path}, line {line}: history_item_id is not a list of ids (found {str(text)[:60]!r})")
    return [str(entry) for entry in value]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: not a JSON object of items; fetch it again")
    return content


def _item_rows(path: Path) -> tuple[pa.Table, int]:
    rows = []
    for item, facts in _load(path).items():
        if not isinstance(facts, dict):
            raise BadInput(f"{path}: item {item!r} is not an object with title, description and brand")
        brand = str(facts.get("brand") or "").strip() or None
        rows.append(
            {
                "item_id": item,
                "valid_from": EARLY,
                "author_id": brand,
                "title": facts.get("title") or None,
                "caption": _description(facts.get("description")),
            }
        )
    kinds = {name: pa.string() for name in ("item_id", "valid_from", "author_id", "title", "caption")}
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds)), sum(row["author_id"] is None for row in rows)


def _description(text: Any) -> str | None:
    """The paragraphs of a description, which is a list written as text; a text that is no list is taken as it is."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        value = ast.literal_eval(text) if len(text) <= MAX_LITERAL_CHARACTERS else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    paragraphs = value if isinstance(value, list) else [text]
    return "\n".join(str(paragraph).strip() for paragraph in paragraphs).strip() or None


def _read_sequences(path: Path, attributes: Path) -> tuple[Sequences, pa.Table, dict[str, Any]]:
    sequences: Sequences = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        user, *items = line.split()[:1] + line.split()[1:] or [""]
        if not items:
            raise BadInput(f"{path}, line {number}: expected a user and items (found {line[:60]!r})")
        sequences.setdefault(user, []).extend(items)
    tags = {item: [str(tag) for tag in values] for item, values in _load(attributes).items() if isinstance(values, list)}
    known = sorted({item for sequence in sequences.values() for item in sequence} | set(tags))
    columns = {
        "item_id": pa.array(known, pa.string()),
        "valid_from": pa.array([EARLY] * len(known), pa.string()),
        "tags": pa.array([tags.get(item) for item in known], pa.list_(pa.string())),
    }
    return sequences, pa.table(columns), {"items_without_attributes": sum(item not in tags for item in known)}
