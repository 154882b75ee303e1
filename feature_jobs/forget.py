"""``onerec forget``: removes people from every table, shard and quarantine row, keeps them out, and proves it.

Their salted hashes enter the suppression list first. Then rows go (delta-rs), then old files and old log entries, whose
statistics name users too; at the end every user column of every live file is searched. Nothing else may write meanwhile:
files that a running writer has not committed yet would be removed with the old ones. One process rewrites the files that
hold the users, so the cost is that of their buckets; for many users of a large lake, collect them and run it in batches.
Trained models and the landing zone are not part of it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from deltalake import CommitProperties, DeltaTable

from feature_jobs.forget_shards import forget_in_shards, search_shards
from schemas.errors import BadInput
from schemas.lake import Lake, damage_named
from schemas.runs import StepRun, TableCounts, step_run
from schemas.shards import stable_key
from schemas.suppression import suppress
from schemas.tables import QUARANTINE, TABLES, Table

MAX_USERS_FILE_BYTES = 64 * 2**20
_IDS_A_STATEMENT = 1000
_LOG_RETENTION = "delta.logRetentionDuration"


def read_users(path: Path) -> list[str]:
    """User ids, one a line, in order and once each. Raises BadInput for a file that is missing, too large or not text."""
    if not path.is_file():
        raise BadInput(f"--users {path}: no such file; write one user id a line")
    if path.stat().st_size > MAX_USERS_FILE_BYTES:
        raise BadInput(f"--users {path}: larger than {MAX_USERS_FILE_BYTES} bytes; split it")
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"--users {path}: not UTF-8 at byte {error.start}; write one user id a line") from error
    users = list(dict.fromkeys(line for line in (line.removesuffix("\r") for line in lines) if line))
    if not users:
        raise BadInput(f"--users {path}: holds no user id; write one a line")
    return users


def user_tables() -> list[Table]:
    """The tables that have a user column."""
    return [table for table in TABLES.values() if "user_id" in table.schema.names]


def rows_to_forget(lake: Lake, users: list[str]) -> dict[str, int]:
    """How many rows of each table would go; nothing is written."""
    ids = pa.array(users, pa.string())
    counts = {table.name: _rows_of(lake, table, ids)[0] for table in user_tables()}
    return counts | {QUARANTINE.name: len(_mentioning(lake, set(users)))}


def run(lake: Lake, users: list[str]) -> StepRun:
    """Forget these users. Raises RuntimeError if the search at the end still finds one (a fault of ours)."""
    shards = lake.local_path("shards")
    with step_run(lake, "forget") as step:
        step.extra["newly_suppressed"] = suppress(lake, users)
        for table in user_tables():
            step.table(table, _delete(lake, table, _user_predicates(lake, table, users)))
        rows = _mentioning(lake, set(users))
        step.table(QUARANTINE, _delete(lake, QUARANTINE, _row_predicates(rows)))
        removed = forget_in_shards(shards, users)
        step.extra["shard_records_removed"] = removed
        for table in (*user_tables(), QUARANTINE):
            _drop_old_files(lake.open_table(table))
        step.extra["proof"] = prove(lake, shards, users)
    return step


def prove(lake: Lake, shards: Path, users: list[str]) -> dict[str, dict[str, int]]:
    """Search every user column of every file below each table and the shards. Raises RuntimeError if one is found.

    ``files`` counts live files; ``dead_files`` are data files that the newest version no longer names; ``log_mentions``
    are log files that contain a user id between quotation marks.
    """
    ids = pa.array(users, pa.string())
    proof = {table.name: _search(lake, table, ids) for table in user_tables()}
    proof[QUARANTINE.name] = _search(lake, QUARANTINE, ids) | {"found": len(_mentioning(lake, set(users)))}
    proof["shards"] = search_shards(shards, ids)
    remaining = {
        name: counts
        for name, counts in proof.items()
        if counts["found"] or counts.get("dead_files") or counts.get("log_mentions")
    }
    if remaining:
        raise RuntimeError(f"forget left traces: {remaining}; run it again while nothing else writes")
    return proof


def _search(lake: Lake, table: Table, ids: pa.Array) -> dict[str, int]:
    found, values = _rows_of(lake, table, ids) if "user_id" in table.schema.names else (0, lake.dataset(table).count_rows())
    live = len(lake.open_table(table).file_uris())
    filesystem, path = lake.filesystem(table.name)
    files = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    data = [file.path for file in files if file.type is pafs.FileType.File and "/_delta_log/" not in file.path]
    dead = len([name for name in data if name.endswith(".parquet")]) - live
    logs = [file.path for file in files if file.path.endswith(".json") and "/_delta_log/" in file.path]
    return {"files": live, "values": values, "found": found, "dead_files": dead, "log_mentions": _mentions(filesystem, logs, ids)}


def _rows_of(lake: Lake, table: Table, ids: pa.Array) -> tuple[int, int]:
    """How many rows these users have in a table, and how many there are.

    Not by a filter: once a log was cut, delta-rs gives a file's bounds as string views, and pyarrow cannot compare a list of
    strings with those.
    """
    found = rows = 0
    with damage_named(lake.table_uri(table)):
        for batch in lake.dataset(table).to_batches(columns=["user_id"]):
            rows += len(batch)
            found += pc.sum(pc.is_in(batch["user_id"], value_set=ids)).as_py() or 0
    return found, rows


def _mentions(filesystem: pafs.FileSystem, logs: list[str], ids: pa.Array) -> int:
    quoted = [text for user in ids.to_pylist() for text in (f'"{user}"', f"'{user}'", json.dumps(json.dumps(user))[1:-1])]
    count = 0
    for path in logs:
        with filesystem.open_input_stream(path) as stream:
            text = stream.read().decode(errors="replace")
        count += any(one in text for one in quoted)
    return count


def _delete(lake: Lake, table: Table, predicates: list[str]) -> TableCounts:
    opened = lake.open_table(table)
    with damage_named(lake.table_uri(table)):
        before = lake.dataset(table).count_rows()
        deleted = sum(opened.delete(predicate)["num_deleted_rows"] for predicate in predicates)
    return TableCounts(before, before - deleted, rows_dropped={"forgotten": deleted})


def _user_predicates(lake: Lake, table: Table, users: list[str]) -> list[str]:
    """SQL conditions on at most 1,000 users each; the buckets let the engine leave other partitions alone."""
    buckets = lake.config.lake.user_buckets
    result = []
    for start in range(0, len(users), _IDS_A_STATEMENT):
        part = users[start : start + _IDS_A_STATEMENT]
        condition = f"user_id IN ({', '.join(_quoted(user) for user in part)})"
        if "user_bucket" in table.schema.names:
            of_part = sorted({stable_key(user) % buckets for user in part})
            condition = f"user_bucket IN ({', '.join(map(str, of_part))}) AND {condition}"
        result.append(condition)
    return result


def _mentioning(lake: Lake, users: set[str]) -> list[tuple[str, str, str]]:
    """Quarantined rows of these users: table, date, row. A row that is no JSON goes if it holds an id as a whole word."""
    found = []
    words = re.compile("|".join(rf"(?<!\w){re.escape(user)}(?!\w)" for user in sorted(users)))
    for batch in lake.dataset(QUARANTINE).to_batches(columns=["table_name", "date", "row_json"]):
        for row in batch.to_pylist():
            try:
                mentioned = _names_user(json.loads(row["row_json"]), users)
            except ValueError:
                mentioned = words.search(row["row_json"]) is not None
            if mentioned:
                found.append((row["table_name"], row["date"].isoformat(), row["row_json"]))
    return found


def _names_user(value: Any, users: set[str]) -> bool:
    if isinstance(value, dict):
        return str(value.get("user_id")) in users or any(_names_user(part, users) for part in value.values())
    return isinstance(value, list) and any(_names_user(part, users) for part in value)


def _row_predicates(rows: list[tuple[str, str, str]]) -> list[str]:
    by_partition: dict[tuple[str, str], set[str]] = {}
    for table, date, row in rows:
        by_partition.setdefault((table, date), set()).add(row)
    return [
        f"table_name = {_quoted(table)} AND date = {_quoted(date)} AND row_json IN ({', '.join(map(_quoted, sorted(texts)))})"
        for (table, date), texts in sorted(by_partition.items())
    ]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _drop_old_files(table: DeltaTable) -> None:
    """Remove files and log entries of earlier versions: their rows, statistics and commit messages name users.

    Steps keep notes in ``userMetadata`` (of which landings samples were made, say): these are committed again, oldest first,
    before the entries that held them go.
    """
    retention = table.metadata().configuration.get(_LOG_RETENTION, "interval 30 days")
    notes = dict.fromkeys(note for commit in table.history() if isinstance(note := commit.get("userMetadata"), str))
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    table.alter.set_table_properties({_LOG_RETENTION: "interval 0 seconds"})
    table.create_checkpoint()
    for note in reversed(notes):
        table.alter.set_table_properties(
            {_LOG_RETENTION: "interval 0 seconds"}, commit_properties=CommitProperties(custom_metadata={"userMetadata": note})
        )
    table.cleanup_metadata()
    table.alter.set_table_properties({_LOG_RETENTION: retention})
