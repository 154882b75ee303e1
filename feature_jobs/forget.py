"""``onerec forget``: removes people from every table, shard and quarantine row, keeps them out, and proves it.

Their salted hashes enter the suppression list first. Then each table is rewritten once: a task a user bucket writes those
files anew that hold some of them, one commit replaces them. Old data files and log entries, whose statistics name users
too, follow; at the end every user column of every file is searched. Whatever was done stays done: killed at any point, it
is run again. Trained models and the landing zone are not part of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake.exceptions import DeltaError

from feature_jobs.bucket_files import live_files, recorded_rows
from feature_jobs.forget_cache import forget_in_cache, search_cache
from feature_jobs.forget_examples import forget_in_examples, search_examples
from feature_jobs.forget_files import People, Tasks, file_groups, live, rewrite, search, unnamed
from feature_jobs.forget_log import cut_log, drop_old_files, log_mentions
from feature_jobs.forget_shards import forget_in_shards, search_shards
from feature_jobs.partition_files import commit_files
from schemas.errors import BadInput
from schemas.lake import Lake, first_line
from schemas.runs import StepRun, TableCounts, step_run
from schemas.suppression import FORGET_LOCK, locked, suppress
from schemas.tables import QUARANTINE, TABLES, Table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_USERS_FILE_BYTES = 64 * 2**20
SPARK_FROM_BYTES = 2 * 2**30
"""A smaller lake is rewritten before a Java virtual machine would have started and found its workers."""


def read_users(path: Path) -> list[str]:
    """User ids, one a line, in order and once each; one with blanks around it also without them, since nobody can see which is
    meant. Raises BadInput for a file that is missing, too large or not text."""
    if not path.is_file():
        raise BadInput(f"--users {path}: no such file; write one user id a line")
    if path.stat().st_size > MAX_USERS_FILE_BYTES:
        raise BadInput(f"--users {path}: larger than {MAX_USERS_FILE_BYTES} bytes; split it")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"--users {path}: not UTF-8 at byte {error.start}; write one user id a line") from error
    forms = (form for line in lines for form in (line.removesuffix("\r"), line.strip()))
    users = list(dict.fromkeys(form for form in forms if form.strip()))
    if not users:
        raise BadInput(f"--users {path}: holds no user id; write one a line")
    return users


def personal_tables() -> list[Table]:
    """The tables that name users: in a column, or (quarantine) in raw rows."""
    return [table for table in TABLES.values() if "user_id" in table.schema.names or table is QUARANTINE]


def bytes_to_search(lake: Lake) -> int:
    """Size of the live files of these tables: what the proof reads the user columns of."""
    sizes = [live_files(lake.open_table(table), table)["size_bytes"].to_pylist() for table in personal_tables()]
    return sum(map(sum, sizes))


def rows_to_forget(lake: Lake, users: Sequence[str], spark: "SparkSession | None" = None) -> dict[str, int]:
    """How many rows of each table would go; nothing is written."""
    people, tasks = People.of(lake, users), Tasks(spark)
    return {table.name: _searched(lake, table, people, tasks)["found"] for table in personal_tables()}


def run(lake: Lake, users: Sequence[str], spark: "SparkSession | None" = None) -> StepRun:
    """Forget these users; with ``spark``, in its tasks.

    One run at a time, where the filesystem has locks. Raises BadInput if another process writes the same tables meanwhile or
    brings some of the users back, RuntimeError if the search at the end finds one though nobody else wrote (a fault of ours).
    """
    people, tasks = People.of(lake, users), Tasks(spark)
    with step_run(lake, "forget") as step, locked(lake, FORGET_LOCK), _conflicts_named(lake):
        step.extra["newly_suppressed"] = suppress(lake, users)
        for table in personal_tables():
            step.table(table, _forget_in(lake, table, people, tasks))
        step.extra["shard_records_removed"] = forget_in_shards(lake, people.ids, tasks)
        step.extra["cached_folders_removed"] = forget_in_cache(lake, people.ids, tasks)
        step.extra["examples_removed"] = forget_in_examples(lake, people.names)
        step.extra["old_files_removed"] = {}
        for table in personal_tables():
            step.extra["old_files_removed"][table.name] = drop_old_files(lake, table, people, tasks)
            cut_log(lake, table, people)
        versions = {table.name: lake.table_version(table) for table in personal_tables()}
        # From here on, no step that read the old files publishes what it made of them. And on a filesystem without locks,
        # another run may have written over the list.
        suppress(lake, users)
        step.extra["proof"] = prove(lake, people, tasks, versions)
    return step


@contextmanager
def _conflicts_named(lake: Lake) -> Iterator[None]:
    try:
        yield
    except DeltaError as error:
        raise BadInput(
            f"{lake.root}: a table changed or is damaged ({first_line(error)}); end what else writes, and run this again"
        ) from error


def prove(lake: Lake, people: People, tasks: Tasks, versions: dict[str, int]) -> dict[str, dict[str, int]]:
    """Search every user column of every file below each table, the logs, the shards, and what evaluations show.

    ``files`` counts live files and ``other_files`` those that the newest version does not name; ``log_mentions`` are log files
    that name one of the people. Raises as ``run`` does; ``versions`` are those that the tables had when the last was cleaned.
    """
    proof = {
        table.name: _searched(lake, table, people, tasks, others=True) | {"log_mentions": log_mentions(lake, table, people)}
        for table in personal_tables()
    }
    proof["shards"] = search_shards(lake, people.ids, tasks)
    proof["cache"] = search_cache(lake, people.ids, tasks)
    proof["examples"] = search_examples(lake, people.names)
    remaining = {name: counts for name, counts in proof.items() if counts["found"] or counts.get("log_mentions")}
    if remaining:
        found = ", ".join(f"{name} {counts['found'] or counts['log_mentions']}" for name, counts in remaining.items())
        if any(lake.table_version(table) != versions[table.name] for table in personal_tables()):
            raise BadInput(
                f"{lake.root}: another process wrote these people's rows meanwhile ({found}); run this again when it has ended"
            )
        raise RuntimeError(f"forget left traces: {found}")
    return proof


def _forget_in(lake: Lake, table: Table, people: People, tasks: Tasks) -> TableCounts:
    opened = lake.open_table(table)
    groups = file_groups(table, live(opened, table))
    affected = set(people.buckets.tolist())
    groups = [group for group in groups if group.bucket is None or group.bucket in affected]
    rows = recorded_rows(lake, table, opened.version(), pads.scalar(True))
    reports = tasks.each(groups, lambda group: rewrite(lake, table, people, group))
    replaced = pads.field("path").isin(pa.array([path for report in reports for path in report["replaced"]], pa.string()))
    written = [file for report in reports for file in report["files"]]
    removed = sum(report["removed"] for report in reports)
    left = sum(file["rows"] for file in written if file is not None)
    untouched = rows - recorded_rows(lake, table, opened.version(), replaced)
    counts = TableCounts(rows, untouched + left, rows_dropped={"forgotten": removed})
    counts.check(table.name)
    if written:
        commit_files(lake, table, written, replaced, read=(opened.version(), replaced))
    return counts


def _searched(lake: Lake, table: Table, people: People, tasks: Tasks, *, others: bool = False) -> dict[str, int]:
    """Search a table's live files and, with ``others``, those below it that it does not name. Raises BadInput for a live one
    that cannot be read."""
    opened = lake.open_table(table)
    files = live(opened, table)
    groups = file_groups(table, files)
    reports = tasks.each(groups, lambda group: search(lake, table, people, group))
    if unreadable := [path for report in reports for path in report["unreadable"]]:
        where = f"{lake.table_uri(table)}/{min(unreadable)}"
        raise BadInput(f"{where}: missing or damaged; restore it, or run the step that writes it")
    result = {name: sum(report[name] for report in reports) for name in ("values", "found")} | {"files": len(files)}
    if others:
        dead = unnamed(lake, opened, table)
        found = tasks.each(file_groups(table, dead), lambda group: search(lake, table, people, group))
        result["found"] += sum(report["found"] for report in found)
        result["other_files"] = len(dead)
    return result
