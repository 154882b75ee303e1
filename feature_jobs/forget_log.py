"""A table's past without people: old data files, and old log entries, whose statistics and messages name users.

What steps note in their commits (of which landings samples were made, say) is carried on by one commit before the entries
that held it go, so that a kill at any point loses none and changes no order.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties

from feature_jobs.forget_files import People, Tasks, file_groups, live, search, unnamed
from feature_jobs.forget_text import USER_COLUMN
from feature_jobs.partition_files import CARRIED_NOTES, commit_notes
from schemas.commits import commit_on_newest
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.tables import Table

_LOG_RETENTION = "delta.logRetentionDuration"
_QUOTED = re.compile(r"'((?:[^']|'')*)'")
_NAMED = re.compile(rf'"{USER_COLUMN}"\s*:\s*"?([^",}}]+)')
_ENTRY = re.compile(r"\d{20}(\.[\w.\-]*)?\.(json|parquet)|_last_checkpoint")
"""Names of a log's own files; whatever else lies there is no part of it."""
_CUT, _DEFAULT = "interval 0 seconds", "interval 30 days"


def drop_old_files(lake: Lake, table: Table, people: People, tasks: Tasks) -> int:
    """Remove the data files of earlier versions, and those that no version names (of killed runs) if they hold some of the
    people or cannot be read; how many.

    A file that another process has written and not committed yet looks the same: its commit is refused then, and that
    process says to run it again (``commit_files``).
    """
    opened = lake.open_table(table)
    old = opened.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    groups = file_groups(table, unnamed(lake, lake.open_table(table), table))
    if "user_bucket" in table.partition_by:
        affected = set(people.buckets.tolist())
        groups = [group for group in groups if group.bucket in affected]
    reports = tasks.each(groups, lambda group: search(lake, table, people, group))
    doomed = sorted({path for report in reports for path in (*report["in"], *report["unreadable"])})
    filesystem, root = lake.filesystem(table.name)
    for path in doomed:
        filesystem.delete_file(f"{root}/{path}")
    if committed := {path for path, _ in live(lake.open_table(table), table)}.intersection(doomed):
        raise BadInput(
            f"{root}/{min(committed)}: another process committed it while it was being removed; run that step again, then this"
        )
    return len(old) + len(doomed)


def cut_log(lake: Lake, table: Table, people: People) -> None:
    """Replace the log by a checkpoint of the newest version, and what the entries before it noted. What a process left that was
    killed while it committed goes if it names one of the people; one that is still at it has its commit refused, and says so."""
    kept = lake.open_table(table).metadata().configuration.get(_LOG_RETENTION, _DEFAULT)
    if kept == _CUT:
        kept = _DEFAULT  # an earlier run was killed here
    _carry_notes(lake, table)
    opened = lake.open_table(table)
    opened.create_checkpoint()
    opened.cleanup_metadata()
    opened.alter.set_table_properties({_LOG_RETENTION: kept})
    filesystem, root = lake.filesystem(table.name, "_delta_log")
    for path in _log_files(filesystem, root):
        checksum = path.endswith(".crc")  # Spark's, which may repeat statistics; optional
        if checksum or (not _is_entry(path) and _names_any(filesystem, path, people)):
            with contextlib.suppress(FileNotFoundError):  # its commit has ended
                filesystem.delete_file(path)


def _carry_notes(lake: Lake, table: Table) -> None:
    """Commit every note there is once more, in one commit on the version that they were read from and on no other."""

    def commit() -> None:
        opened = lake.open_table(table)
        notes = list(dict.fromkeys(commit_notes(opened)))
        carried = CommitProperties(max_commit_retries=0, custom_metadata={CARRIED_NOTES: json.dumps(notes)})
        opened.alter.set_table_properties({_LOG_RETENTION: _CUT}, commit_properties=carried)

    commit_on_newest(lake, table, commit)


def log_mentions(lake: Lake, table: Table, people: People) -> int:
    """How many files of a table's log name one of the people: as a bound of a column, or quoted in a commit's message."""
    filesystem, root = lake.filesystem(table.name, "_delta_log")
    return sum(_names_any(filesystem, path, people) for path in _log_files(filesystem, root))


def _log_files(filesystem: pafs.FileSystem, root: str) -> list[str]:
    return [info.path for info in filesystem.get_file_info(pafs.FileSelector(root)) if info.type is pafs.FileType.File]


def _is_entry(path: str) -> bool:
    return _ENTRY.fullmatch(path.rpartition("/")[2]) is not None


def _names_any(filesystem: pafs.FileSystem, path: str, people: People) -> bool:
    if _is_entry(path):
        return not people.names.isdisjoint(_named_in_log(filesystem, path))
    if ".parquet" in path.rpartition("/")[2]:
        return True  # a checkpoint that was not finished: nobody can tell
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:  # perhaps cut off, so it goes by its words
            return people.mentions.in_text(stream.read().decode(errors="replace"))
    except FileNotFoundError:
        return False  # its commit has ended


def _named_in_log(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    if path.endswith(".parquet"):
        with filesystem.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=["add.stats", "remove.stats"]):
                for actions in batch.to_pylist():
                    yield from _bounds(actions)
        return
    with filesystem.open_input_stream(path, compression=None) as stream:
        lines = stream.read().decode(errors="replace").splitlines()
    for line in lines:
        try:
            actions = json.loads(line)
        except ValueError:
            continue  # a damaged entry
        yield from _bounds(actions)
        yield from (literal.replace("''", "'") for text in _texts(actions.get("commitInfo")) for literal in _QUOTED.findall(text))


def _bounds(actions: dict[str, Any]) -> Iterator[str]:
    """The users that the statistics of added and removed files name."""
    for kind in ("add", "remove"):
        statistics = json.loads((actions.get(kind) or {}).get("stats") or "{}")
        for bounds in (statistics.get("minValues") or {}, statistics.get("maxValues") or {}):
            yield str(bounds.get(USER_COLUMN))
            yield from _NAMED.findall(str(bounds.get("row_json")))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
