"""Where a landing zone's files are: the folders of ``docs/landing-zone.md``, as a list of files to read.

Everything here runs on the driver and looks at names and sizes only.
"""

import datetime as dt
import re
from dataclasses import dataclass
from typing import NamedTuple
from zoneinfo import available_timezones

import pyarrow.fs as pafs

from schemas.errors import BadInput
from schemas.json_files import JsonFiles
from schemas.lake import filesystem_of, normal_root
from schemas.tables import EVENTS, ITEMS, USERS, Table

FORMATS = {"jsonl": "jsonl", "jsonl.gz": "jsonl", "csv": "csv", "csv.gz": "csv", "parquet": "parquet"}
_EXTENSIONS = ", ".join(f".{name}" for name in FORMATS)
LANDED_TABLES = (EVENTS, ITEMS, USERS)
DESCRIPTION = "landing.json"
_DESCRIPTIONS = JsonFiles(
    1 << 20,
    larger="not a small file; it describes the landing zone in a few lines of JSON",
    foreign="not JSON ({reason}); mend or remove it",
)
_DATED_FOLDER = re.compile(r"date=(\d{4}-\d{2}-\d{2})\Z")


@dataclass(frozen=True)
class LandingFile:
    """One file to read. ``name`` is relative to the landing root, ``path`` belongs to the landing's filesystem."""

    name: str
    path: str
    format: str
    size: int

    @property
    def compressed(self) -> bool:
        """True for the ``.gz`` forms."""
        return self.name.endswith(".gz")

    @property
    def dated(self) -> bool:
        """True inside a ``date=…`` folder."""
        return "/date=" in self.name


class _Entry(NamedTuple):
    name: str
    is_file: bool
    size: int


@dataclass(frozen=True)
class Landing:
    """A landing zone. ``uri`` is absolute, with a scheme; ``root`` is its path in ``filesystem``."""

    given: str
    uri: str
    root: str
    filesystem: pafs.FileSystem
    day_timezone: str | None

    def files(self, table: Table, date: dt.date) -> list[LandingFile]:
        """Files of a table for a landing day, by name: the day's folder, and the plain files for items and users.

        Raises BadInput for events without the day's folder (naming the days that are there) or without a file, for a
        folder where files belong, another extension, an empty file that must have a header.
        """
        folder = f"date={date.isoformat()}"
        entries = self._list(table.name)
        plain = [entry for entry in entries if entry.is_file]
        if table is EVENTS:
            if plain:
                raise BadInput(f"{self.given}/{plain[0].name}: events belong into a folder by landing day, like events/{folder}/")
            self._require_day(entries, folder)
        daily = self._list(f"{table.name}/{folder}")
        subfolders = [entry.name for entry in daily if not entry.is_file]
        if subfolders:
            raise BadInput(f"{self.given}/{subfolders[0]}: a folder where files belong; move its files one level up")
        found = [self._file(entry) for entry in [*plain, *daily]]
        if table is EVENTS and not found:
            raise BadInput(f"{self.given}/events/{folder}: no file here; expected {_EXTENSIONS}")
        return sorted(found, key=lambda file: file.name)

    def _require_day(self, entries: list[_Entry], folder: str) -> None:
        days = sorted(match[1] for entry in entries if (match := _DATED_FOLDER.search(entry.name)))
        if folder.removeprefix("date=") in days:
            return
        there = f"landing days here: {_shortened(days)}" if days else "there is no landing day here"
        raise BadInput(f"{self.given}/events/{folder}: no such folder; {there}")

    def _list(self, folder: str) -> list[_Entry]:
        """Entries of a folder, by name; those that begin with ``_`` or ``.`` are other tools' notes, not data."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        return sorted(
            _Entry(f"{folder}/{info.base_name}", info.type is pafs.FileType.File, info.size or 0)
            for info in self.filesystem.get_file_info(selector)
            if not info.base_name.startswith(("_", "."))
        )

    def _file(self, entry: _Entry) -> LandingFile:
        name = entry.name
        extension = name.rpartition("/")[2].partition(".")[2]
        kind = next((FORMATS[known] for known in FORMATS if f".{extension}".endswith(f".{known}")), None)
        where = f"{self.given}/{name}"
        if kind is None:
            raise BadInput(f"{where}: an extension that ingest does not read; expected {_EXTENSIONS}")
        if entry.size == 0 and (kind != "jsonl" or name.endswith(".gz")):
            raise BadInput(f"{where}: empty, so truncated; deliver it again or remove it")
        return LandingFile(name, f"{self.root}/{name}", kind, entry.size)


def _shortened(days: list[str]) -> str:
    return ", ".join(days) if len(days) <= 6 else f"{days[0]}, {days[1]}, … {days[-1]} ({len(days)} in all)"


def open_landing(given: str) -> Landing:
    """Open a landing zone. Raises BadInput if the folder is missing or its ``landing.json`` cannot be understood."""
    root_uri = normal_root(given)
    filesystem, root = filesystem_of(root_uri)
    if filesystem.get_file_info(root).type is not pafs.FileType.Directory:
        raise BadInput(f"--landing {given}: no such folder; `onerec simulate` and `onerec import` make one")
    uri = f"file://{root}" if isinstance(filesystem, pafs.LocalFileSystem) else root_uri
    return Landing(given.rstrip("/"), uri, root, filesystem, _day_timezone(given, filesystem, root))


def _day_timezone(given: str, filesystem: pafs.FileSystem, root: str) -> str | None:
    path = f"{root}/{DESCRIPTION}"
    where = f"{given}/{DESCRIPTION}"
    info = filesystem.get_file_info(path)
    if info.type is pafs.FileType.NotFound:
        return None
    if info.type is not pafs.FileType.File:
        raise BadInput(f"{where}: {_DESCRIPTIONS.larger}")
    description = _DESCRIPTIONS.read_found(filesystem, info, where)
    if not isinstance(description, dict):
        raise BadInput(f"{where}: not a JSON object; mend or remove it")
    timezone = description.get("day_timezone")
    if timezone is not None and not (isinstance(timezone, str) and timezone in available_timezones()):
        raise BadInput(f"{where}: day_timezone {timezone!r} is not a time zone name; one looks like Asia/Shanghai")
    return timezone
