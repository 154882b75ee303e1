"""Event rows as they lie in a landing zone: JSON lines or Parquet, with what is broken in them broken.

JSON lines are joined column by column in Arrow: some millions of rows a minute, where ``json.dumps`` takes longer than
the simulation itself.
"""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onerec.simulate.arrivals import BROKEN_KINDS, Arrival
from onerec.simulate.behaviour import SCENES, Impressions
from onerec.simulate.catalogue import Ints, item_id
from onerec.simulate.parameters import DAY_MS, Parameters
from onerec.simulate.people import user_id
from schemas.tables import FEEDBACK, TIMESTAMP

UNKNOWN_ITEM = "i-never-made"
TOO_LONG_MS = 10**12


def build_columns(parameters: Parameters, impressions: Impressions, arrival: Arrival, day: int) -> pa.Table:
    """Event rows of an arrival, sound ones, in the standard columns (pyarrow, ``events`` of schemas.tables).

    ``observed_ts`` is null unless feedback came later than the play's end, and ``ts + play_time_ms`` holds.
    """
    take = {name: getattr(impressions, name)[arrival.row] for name in impressions.__dataclass_fields__}
    users = _ids(user_id, take["user"])
    date = parameters.date(day).strftime("%Y%m%d")
    request = pc.binary_join_element_wise(users, date, _numbers(take["request"], "r"), "-")
    observed = np.where(take["delay_ms"] > 0, take["shown_ms"] + take["play_ms"] + take["delay_ms"], 0)
    columns: dict[str, Any] = {
        "impression_id": pc.binary_join_element_wise(request, _numbers(take["slot"], ""), "-"),
        "request_id": request,
        "user_id": users,
        "item_id": _ids(item_id, take["item"]),
        "request_ts": _times(take["request_ms"]),
        "ts": _times(take["shown_ms"]),
        "observed_ts": pc.if_else(pa.array(take["delay_ms"] > 0), _times(observed), pa.scalar(None, TIMESTAMP)),
        "session_id": pc.binary_join_element_wise(users, date, _numbers(take["session"], "s"), "-"),
        "scene": pa.array(SCENES).take(pa.array(take["scene"])),
        "play_time_ms": pa.array(take["play_ms"]),
        "duration_ms": pa.array(take["duration_ms"]),
    }
    columns |= {name: pa.array((take["feedback"] >> bit & 1).astype(bool)) for bit, name in enumerate(FEEDBACK)}
    return pa.table(columns)


def break_columns(rows: pa.Table, broken: Ints) -> pa.Table:
    """The same rows for a Parquet file, those with ``broken`` ≥ 0 damaged within the columns' types."""
    damage: dict[str, tuple[str, Any]] = {
        "negative_play_time": ("play_time_ms", -1),
        "missing_time": ("ts", None),
        "unknown_item": ("item_id", UNKNOWN_ITEM),
        "missing_user": ("user_id", None),
        "play_time_out_of_range": ("play_time_ms", TOO_LONG_MS),
        "duration_zero": ("duration_ms", 0),
    }
    for kind, name in enumerate(BROKEN_KINDS["parquet"]):
        column, value = damage[name]
        position = rows.schema.get_field_index(column)
        damaged = pc.if_else(pa.array(broken == kind), pa.scalar(value, rows.schema.field(column).type), rows.column(column))
        rows = rows.set_column(position, column, damaged)
    return rows


def to_json_lines(rows: pa.Table, broken: Ints) -> bytes:
    """The same rows as JSON lines (UTF-8, at most 2 GiB), those with ``broken`` ≥ 0 damaged as their kind says."""
    if rows.num_rows == 0:
        return b""
    parts: list[Any] = []
    for name in ("impression_id", "request_id", "user_id", "item_id"):
        parts += [f'{"," if parts else "{"}"{name}":"', rows.column(name).combine_chunks(), '"']
    for name in ("request_ts", "ts"):
        parts += [f',"{name}":"', _rfc3339(rows.column(name)), '"']
    observed = rows.column("observed_ts")
    written = pc.binary_join_element_wise(',"observed_ts":"', _rfc3339(observed), '"', "")
    parts.append(pc.if_else(pc.is_valid(observed), written, "").combine_chunks())
    parts += [',"session_id":"', rows.column("session_id").combine_chunks(), '","scene":"', rows.column("scene").combine_chunks()]
    parts += ['","play_time_ms":', rows.column("play_time_ms").cast(pa.string()).combine_chunks()]
    parts += [',"duration_ms":', rows.column("duration_ms").cast(pa.string()).combine_chunks()]
    code = sum(rows.column(name).to_numpy().astype(np.int64) << bit for bit, name in enumerate(FEEDBACK))
    parts += [_feedback_texts().take(pa.array(code)), "}\n"]
    lines = pc.binary_join_element_wise(*parts, "")
    if (broken >= 0).any():
        bad = np.flatnonzero(broken >= 0)
        sound = lines.take(pa.array(bad)).to_pylist()
        texts = [_break_line(line, BROKEN_KINDS["jsonl"][broken[row]]) for row, line in zip(bad, sound, strict=True)]
        lines = pc.replace_with_mask(lines, pa.array(broken >= 0), pa.array(texts))
    return _joined(lines)


def _joined(lines: pa.Array) -> bytes:
    """The texts of an Arrow array one after the other: they already lie so in its buffer."""
    _, offsets, data = lines.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return bytes(memoryview(data)[int(bounds[0]) : int(bounds[-1])])


def _break_line(line: str, kind: str) -> str:
    if kind == "not_json":
        return line[: len(line) // 2] + "\n"
    values = json.loads(line)
    if kind == "negative_play_time":
        values["play_time_ms"] = -values["play_time_ms"] - 1
    elif kind == "time_no_timestamp":
        values["ts"] = "yesterday"
    elif kind == "unknown_item":
        values["item_id"] = UNKNOWN_ITEM
    elif kind == "missing_user":
        del values["user_id"]
    elif kind == "play_time_out_of_range":
        values["play_time_ms"] = TOO_LONG_MS
    elif kind == "play_time_no_number":
        values["play_time_ms"] = "a while"
    elif kind == "duration_zero":
        values["duration_ms"] = 0
    else:
        raise ValueError(f"unknown kind of damage {kind!r}")
    return json.dumps(values, separators=(",", ":")) + "\n"


def _ids(name: Any, numbers: Ints) -> pa.Array:
    distinct, place = np.unique(numbers, return_inverse=True)
    return pa.array([name(int(number)) for number in distinct], pa.string()).take(pa.array(place))


def _numbers(values: Ints, prefix: str) -> pa.Array:
    texts = pa.array([f"{prefix}{number}" for number in range(int(values.max(initial=0)) + 1)])
    return texts.take(pa.array(values))


def _times(milliseconds: Ints) -> pa.Array:
    return pa.array(milliseconds * 1000).cast(TIMESTAMP)


def _rfc3339(column: pa.ChunkedArray) -> pa.Array:
    """Times as text, looked up by day, second and millisecond: four times faster than formatting each."""
    milliseconds = pc.fill_null(column.cast(pa.int64()), 0).to_numpy() // 1000
    days, rest = np.divmod(milliseconds, DAY_MS)
    distinct, place = np.unique(days, return_inverse=True)
    dates = pa.array(np.datetime_as_string(distinct.astype("datetime64[D]")).tolist()).take(pa.array(place))
    seconds, thousandths = _clock_texts()
    return pc.binary_join_element_wise(dates, seconds.take(pa.array(rest // 1000)), thousandths.take(pa.array(rest % 1000)), "")


@lru_cache(maxsize=1)
def _clock_texts() -> tuple[pa.Array, pa.Array]:
    seconds = [f"T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}." for second in range(86_400)]
    return pa.array(seconds), pa.array([f"{thousandth:03}Z" for thousandth in range(1000)])


@lru_cache(maxsize=1)
def _feedback_texts() -> pa.Array:
    """What follows the numbers in a line, for each of the 256 combinations of flags."""
    words = ("false", "true")
    return pa.array(
        [
            "".join(f',"{name}":{words[code >> bit & 1]}' for bit, name in enumerate(FEEDBACK))
            for code in range(2 ** len(FEEDBACK))
        ]
    )
