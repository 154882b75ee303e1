"""A lake's addresses: where its tables, shards, registries and configuration live, and how they are opened.

A lake is a root URI with ``onerec.yaml`` in it. Tables are Delta, created here once for both engines (so that columns,
nullability and CHECK constraints come from one declaration). Everything that is no table is reached through pyarrow
filesystems, so that ``file:``, ``s3:`` and ``gs:`` roots work alike.
"""

import datetime as dt
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.config import Config, parse_config
from schemas.errors import BadInput
from schemas.tables import TABLES, Table

CONFIG_FILE = "onerec.yaml"


@dataclass(frozen=True)
class Lake:
    """An opened lake. ``root`` is a URI or an absolute path without a trailing slash."""

    root: str
    config: Config

    def uri(self, *parts: str) -> str:
        """Address of something below the root. Raises BadInput if a part would leave it."""
        for part in parts:
            if part.startswith("/") or ".." in part.split("/"):
                raise BadInput(f"{part!r}: not a path inside the lake {self.root}")
        return "/".join([self.root, *parts])

    def table_uri(self, table: Table) -> str:
        """Address of a table."""
        return self.uri(table.name)

    def filesystem(self, *parts: str) -> tuple[pafs.FileSystem, str]:
        """The pyarrow filesystem that holds an address below the root, and the path in it."""
        return filesystem_of(self.uri(*parts))

    @property
    def is_local(self) -> bool:
        """Whether the lake is on a local or mounted filesystem; elsewhere it has no shards, training and registry."""
        return isinstance(self.filesystem()[0], pafs.LocalFileSystem)

    def local_path(self, *parts: str) -> Path:
        """The same as a local path. Raises BadInput for a lake that is not on a local filesystem."""
        if not self.is_local:
            raise BadInput(f"{self.root}: this command needs a lake on a local or mounted filesystem")
        return Path(self.filesystem(*parts)[1])

    def open_table(self, table: Table, version: int | None = None) -> DeltaTable:
        """The Delta table, at a version or the newest. Raises BadInput if it is not there (any more), or its log is damaged."""
        try:
            return DeltaTable(self.table_uri(table), version=version)
        except TableNotFoundError as error:
            if version is not None:
                raise BadInput(
                    f"{self.table_uri(table)}: version {version} can be read no more: people were forgotten meanwhile (`onerec "
                    "forget`), or its log has been cleaned since; run this again"
                ) from error
            raise BadInput(f"{self.table_uri(table)}: no Delta table; run `onerec ingest` into this lake first") from error
        except DeltaError as error:
            raise BadInput(f"{self.table_uri(table)}/_delta_log: {first_line(error)}; restore it from a backup") from error

    def table_version(self, table: Table) -> int:
        """Newest version of a table."""
        return self.open_table(table).version()

    def read(
        self,
        table: Table,
        *,
        columns: list[str] | None = None,
        filter: pads.Expression | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Rows of a table in memory, in the declared column order.

        Goes through a native filesystem: reading through delta-rs's own aborts at interpreter exit (docs/log.md).
        """
        dataset = self.dataset(table, version=version)
        with damage_named(self.table_uri(table)):
            result: pa.Table = dataset.to_table(columns=columns or table.schema.names, filter=filter)
        return result

    def dataset(self, table: Table, version: int | None = None) -> pads.Dataset:
        """A pyarrow dataset over the live files of a table version; partition columns included."""
        filesystem, path = filesystem_of(self.table_uri(table))
        return self.open_table(table, version).to_pyarrow_dataset(filesystem=pafs.SubTreeFileSystem(path, filesystem))


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and path of a URI or local path. Raises BadInput for a URI that no filesystem opens."""
    scheme = urlparse(uri).scheme
    if scheme in ("", "file"):
        return pafs.LocalFileSystem(), os.path.abspath(unquote(urlparse(uri).path) if scheme else uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri.replace("s3a://", "s3://", 1))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{uri}: not an address that can be opened ({first_line(error)}); give a folder, or a file:, s3a:, gs: or hdfs: URI"
        ) from error
    return filesystem, path


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn a failure to read files of a table through pyarrow or delta-rs into BadInput that begins with ``where``."""
    try:
        yield
    except (OSError, pa.ArrowInvalid, DeltaError) as error:
        raise BadInput(f"{where}: a file is missing or damaged ({first_line(error)}); restore it") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def normal_root(uri: str) -> str:
    """A lake's or landing zone's root in one spelling: an absolute path for local ones, no trailing slash."""
    if urlparse(uri).scheme in ("", "file"):
        return filesystem_of(uri)[1].rstrip("/") or "/"
    return uri.rstrip("/")


def is_lake(uri: str) -> bool:
    """Whether there is a lake at this root."""
    filesystem, path = filesystem_of(f"{normal_root(uri)}/{CONFIG_FILE}")
    return bool(filesystem.get_file_info(path).type is pafs.FileType.File)


def open_lake(uri: str, overrides: list[str] | None = None) -> Lake:
    """Open a lake that exists. Raises BadInput (what to do included) for one that does not, or a bad configuration."""
    root = normal_root(uri)
    filesystem, path = filesystem_of(f"{root}/{CONFIG_FILE}")
    if not is_lake(uri):
        raise BadInput(f"--lake {uri}: no lake here ({CONFIG_FILE} is missing); `onerec ingest` creates one")
    with filesystem.open_input_stream(path) as stream:
        text = stream.read().decode(errors="replace")
    where = f"{root}/{CONFIG_FILE}"
    stored = parse_config(text, where)
    config = parse_config(text, where, overrides) if overrides else stored
    if config.lake != stored.lake:
        raise BadInput(f"--set lake.…: {stored.lake!r} is fixed for the life of {root}; use a new lake")
    return Lake(root, config)


def create_lake(uri: str, config: Config) -> Lake:
    """Create a lake's configuration and its empty tables; what already exists is left as it is.

    The configuration is written last, so a lake whose creation was interrupted is created again. Raises BadInput for a
    place that cannot be written to.
    """
    root = normal_root(uri)
    lake = Lake(root, config)
    filesystem, path = filesystem_of(root)
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise BadInput(f"--lake {uri}: cannot be created ({first_line(error)}); name a folder that can be written to") from error
    for table in TABLES.values():
        _create_table(lake, table)
    write_atomically(f"{root}/{CONFIG_FILE}", config.to_yaml().encode())
    return lake


def _create_table(lake: Lake, table: Table) -> None:
    uri = lake.table_uri(table)
    created = DeltaTable.create(
        uri,
        table.schema,
        mode="ignore",
        partition_by=list(table.partition_by),
        name=table.name,
        description=table.grain,
        configuration={"delta.checkpointInterval": "50"},
    )
    present = {name.removeprefix("delta.constraints.") for name in created.metadata().configuration}
    missing = {name: check for name, check in table.checks.items() if name not in present}
    for name, check in missing.items():
        created.alter.add_constraint({name: check})


def write_atomically(uri: str, content: bytes) -> None:
    """Write a small file so that readers see the old content or the new, never a part."""
    filesystem, path = filesystem_of(uri)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:  # an object appears whole when the upload completes
            stream.write(content)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(Path(path).parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a local folder outlast a loss of power, as ``fsync`` does for a file's content."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_date(text: str, option: str = "--date") -> dt.date:
    """A calendar day written YYYY-MM-DD. Raises BadInput naming the option."""
    try:
        day = dt.date.fromisoformat(text)
        if day.isoformat() != text:  # 20260131 and 2026-W05-6 are days too, but nobody's folders are named so
            raise ValueError
        return day
    except ValueError as error:
        raise BadInput(f"{option} {text!r}: not a date; write it like 2026-01-31") from error


def day_start(day: dt.date, config: Config) -> dt.datetime:
    """The instant at which a day begins in the lake's time zone."""
    return dt.datetime.combine(day, dt.time(), tzinfo=config.lake.zone)
