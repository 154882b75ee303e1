"""A world cut into pieces that need nothing of each other: each writes its own files and tells its true counts."""

import gzip
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onerec.simulate.arrivals import Count, arrive
from onerec.simulate.behaviour import simulate_day
from onerec.simulate.catalogue import author_id, build_catalogue, item_id
from onerec.simulate.draws import Draws
from onerec.simulate.event_rows import break_columns, build_columns, to_json_lines
from onerec.simulate.item_rows import has_cover, has_sound, item_path, item_versions
from onerec.simulate.parameters import Parameters
from onerec.simulate.people import People, user_id
from onerec.simulate.pictures import render_thumbnail
from onerec.simulate.sounds import render_sound
from onerec.simulate.texts import compose
from schemas.tables import ITEMS, TIMESTAMP, USERS


@dataclass(frozen=True)
class Task:
    """One piece: ``block`` numbers a range of users (events, users) or items (items, media); ``day`` is 0 for media."""

    kind: Literal["events", "media", "items", "users"]
    block: int
    day: int


def list_tasks(parameters: Parameters) -> list[Task]:
    """All pieces of a world, the dear ones first."""
    days = range(parameters.days)
    user_blocks = range(-(-parameters.users // parameters.users_per_file))
    item_blocks = range(-(-parameters.all_items // parameters.items_per_file))
    tasks = [Task("events", block, day) for day in days for block in user_blocks]
    if parameters.media:
        tasks += [Task("media", block, 0) for block in item_blocks]
    tasks += [Task("items", block, day) for day in days for block in item_blocks]
    return tasks + [Task("users", block, day) for day in days for block in user_blocks]


def run_task(parameters: Parameters, task: Task, root: Path) -> list[Count]:
    """Write a piece's files below ``root``; running it again writes the same files again."""
    return {"events": _write_events, "media": _write_media, "items": _write_items, "users": _write_users}[task.kind](
        parameters, task, root
    )


def _users(parameters: Parameters, block: int) -> np.ndarray:
    first = block * parameters.users_per_file
    return np.arange(first, min(first + parameters.users_per_file, parameters.users), dtype=np.int64)


def _items(parameters: Parameters, block: int) -> np.ndarray:
    first = block * parameters.items_per_file
    return np.arange(first, min(first + parameters.items_per_file, parameters.all_items), dtype=np.int64)


def _write_events(parameters: Parameters, task: Task, root: Path) -> list[Count]:
    people = People(parameters, _users(parameters, task.block), task.day)
    impressions = simulate_day(parameters, people)
    arrivals, counts = arrive(parameters, impressions, task.day)
    for arrival in arrivals:
        if len(arrival.row) == 0:
            continue
        rows = build_columns(parameters, impressions, arrival, task.day)
        name = f"part-{task.block:05d}" if arrival.lag == 0 else f"late-{parameters.date(task.day)}-{task.block:05d}"
        folder = root / "events" / f"date={parameters.date(task.day + arrival.lag)}"
        if parameters.format == "parquet":
            _write_parquet(folder / f"{name}.parquet", break_columns(rows, arrival.broken))
        else:
            write_whole(folder / f"{name}.jsonl.gz", _zipped(to_json_lines(rows, arrival.broken)))
    _write_tastes(people, root / "truth" / "users" / f"date={parameters.date(task.day)}" / f"part-{task.block:05d}")
    return counts


def _write_tastes(people: People, path: Path) -> None:
    taste = people.taste().astype(np.float32)
    columns = {
        "user_id": [user_id(int(user)) for user in people.users],
        "persona": pa.array(people.persona.astype(np.int32)),
        "activity": pa.array(people.activity().astype(np.float32)),
        "present": pa.array(people.present()),
        "requests": pa.array(people.requests().astype(np.int32)),
        "taste": pa.FixedSizeListArray.from_arrays(pa.array(taste.ravel()), taste.shape[1]),
    }
    _write_parquet(path.with_suffix(".parquet"), pa.table(columns))


def _write_media(parameters: Parameters, task: Task, root: Path) -> list[Count]:
    catalogue, draws, items = build_catalogue(parameters), Draws(parameters.seed), _items(parameters, task.block)
    texts = compose(draws, items, catalogue.subtopic[items], catalogue.author[items], 0)
    looks = draws.uniform("picture", items[:, None], np.arange(8)).tolist()
    sounds = draws.uniform("sound", items[:, None], np.arange(4)).tolist()
    covers, heard = has_cover(draws, items), has_sound(draws, items)
    for place, item in enumerate(items.tolist()):
        subtopic = int(catalogue.subtopic[item])
        if covers[place]:
            write_whole(root / item_path(item, "jpg"), render_thumbnail(subtopic, texts[place].word, looks[place]))
        if heard[place]:
            write_whole(root / item_path(item, "wav"), render_sound(subtopic, sounds[place]))
    return []


def _write_items(parameters: Parameters, task: Task, root: Path) -> list[Count]:
    items = _items(parameters, task.block)
    rows = item_versions(parameters, items, task.day)
    date, name = f"date={parameters.date(task.day)}", f"part-{task.block:05d}"
    _write_rows(parameters, root / "items" / date / name, rows, ITEMS.schema)
    if task.day == 0:
        _write_parquet(root / "truth" / "items" / f"{name}.parquet", _item_truth(parameters, items))
    return [Count(parameters.date(task.day), "item_versions", len(rows))]


def _item_truth(parameters: Parameters, items: np.ndarray) -> pa.Table:
    catalogue = build_catalogue(parameters)
    return pa.table(
        {
            "item_id": [item_id(item) for item in items.tolist()],
            "topic": pa.array(catalogue.topic[items].astype(np.int32)),
            "subtopic": pa.array(catalogue.subtopic[items].astype(np.int32)),
            "author_id": [author_id(author) for author in catalogue.author[items].tolist()],
            "quality": pa.array(catalogue.quality[items]),
            "popularity": pa.array(catalogue.popularity[items]),
            "born_ts": pa.array(catalogue.born_ms[items] * 1000).cast(TIMESTAMP),
            "changed_ts": pa.array(catalogue.changed_ms[items] * 1000).cast(TIMESTAMP),
            "died_ts": pa.array(catalogue.died_ms[items] * 1000).cast(TIMESTAMP),
        }
    )


def _write_users(parameters: Parameters, task: Task, root: Path) -> list[Count]:
    rows = People(parameters, _users(parameters, task.block), task.day).snapshot()
    date = parameters.date(task.day)
    _write_rows(parameters, root / "users" / f"date={date}" / f"part-{task.block:05d}", rows, USERS.schema)
    return [Count(date, "user_snapshots", len(rows))]


def _write_rows(parameters: Parameters, path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Rows of a table, their times in ms, as JSON lines or Parquet; no file for no rows."""
    if not rows:
        return
    times = [field.name for field in schema if field.type == TIMESTAMP]
    table = pa.Table.from_pylist(
        [row | {name: row[name] * 1000 for name in times} for row in rows],
        schema=pa.schema([pa.field(field.name, pa.int64() if field.name in times else field.type) for field in schema]),
    ).cast(pa.schema([pa.field(field.name, field.type) for field in schema]))
    if parameters.format == "parquet":
        _write_parquet(path.with_suffix(".parquet"), table)
        return
    lines = "".join(
        json.dumps(row, ensure_ascii=False, default=_as_text, separators=(",", ":")) + "\n" for row in table.to_pylist()
    )
    write_whole(path.with_suffix(".jsonl.gz"), _zipped(lines.encode()))


def _as_text(value: Any) -> str:
    """Days as they are, times in RFC 3339."""
    text: str = value.isoformat()
    return text.replace("+00:00", "Z")


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=3, mtime=0)


def _write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, whoever else writes the same one meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
