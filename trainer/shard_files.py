"""Opens shards safely: manifests and Arrow files of ``docs/shards.md``, each checked before its content is believed.

Every failure (missing, truncated, altered, foreign, of another version, a path that leaves the shards' root) is BadInput in
one line that names the file.
"""

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa

from schemas.errors import BadInput
from schemas.registry import file_sha256
from schemas.shard_manifest import MASK_FORMAT, DayManifest, FileEntry, Manifest, MaskManifest, inside_store, read_manifest
from schemas.shards import SHARD_FORMAT, SHARD_VERSION

READABLE_VERSIONS = (SHARD_VERSION,)
"""The current version and, once there is one, the previous."""
AGAIN = DayManifest.again


@dataclass(frozen=True)
class ShardFile:
    """A file whose size is the manifest's. ``rows`` verifies its content."""

    path: Path
    sha256: str

    def batches(self, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Its record batches, memory-mapped, with the columns of ``schema`` (or some of them), in that order."""
        reader = self._open(schema)
        for index in range(reader.num_record_batches):
            yield self._batch(reader, index, schema, columns)

    def batch(self, index: int, schema: pa.Schema) -> pa.RecordBatch:
        """One record batch."""
        return self._batch(self._open(schema), index, schema, None)

    def table(self, schema: pa.Schema) -> pa.Table:
        """All of it."""
        return pa.Table.from_batches(list(self.batches(schema)), schema=schema)

    def verify(self) -> None:
        """Compare the checksum. Raises BadInput for an altered file."""
        if file_sha256(self.path) != self.sha256:
            raise BadInput(f"{self.path}: altered (its sha256 is not the manifest's); {AGAIN}")

    def _open(self, schema: pa.Schema) -> pa.RecordBatchFileReader:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{self.path}: not an Arrow file (truncated or foreign: {error}); {AGAIN}") from error
        for field in schema:
            found = reader.schema.field(field.name).type if field.name in reader.schema.names else None
            if found != field.type:
                raise BadInput(f"{self.path}: column {field.name} is {found or 'missing'}, expected {field.type}; {AGAIN}")
        return reader

    def _batch(
        self, reader: pa.RecordBatchFileReader, index: int, schema: pa.Schema, columns: list[str] | None
    ) -> pa.RecordBatch:
        try:
            batch = reader.get_batch(index).select(columns or schema.names)
            batch.validate(full=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{self.path}: record batch {index} is damaged ({error}); {AGAIN}") from error
        declared = [schema.field(name) for name in batch.schema.names]
        for field, column in zip(declared, batch.columns, strict=True):
            if column.null_count and not field.nullable:
                raise BadInput(f"{self.path}: column {field.name} has nulls; {AGAIN}")
        return pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(declared))


@dataclass(frozen=True)
class DayShards:
    """The files of one day, each in its place and of the right size."""

    date: dt.date
    codebook_version: str
    codebook_sizes: tuple[int, ...]
    data: list[tuple[int, ShardFile]]
    """(user bucket, file), in bucket order."""
    masks: dict[str, ShardFile] | None
    """sha256 of a data file → its target mask; None for the mask ``all``, which is in the data."""
    items: ShardFile
    tokens: ShardFile
    lifelong: dict[int, ShardFile]

    @property
    def fingerprint(self) -> str:
        """Changes when any file does."""
        files = [file for _, file in self.data] + [self.items, self.tokens, *self.lifelong.values(), *(self.masks or {}).values()]
        return hashlib.sha256(" ".join([self.date.isoformat(), *(file.sha256 for file in files)]).encode()).hexdigest()


def dates_with_shards(shards_root: Path) -> list[dt.date]:
    """Days that have a manifest, ascending."""
    found = []
    for manifest in shards_root.glob("date=*/manifest.json"):
        try:
            found.append(dt.date.fromisoformat(manifest.parent.name.removeprefix("date=")))
        except ValueError as error:
            raise BadInput(f"{manifest.parent}: not a day's folder; remove it") from error
    return sorted(found)


def open_day(shards_root: Path, date: dt.date, targets: Literal["all", "rsft"]) -> DayShards:
    """Open a day's manifest, and the mask's for ``rsft``, and check that every file is there in its size."""
    folder = shards_root / f"date={date.isoformat()}"
    manifest = _manifest(folder / "manifest.json", DayManifest, f"run `onerec shards --date {date}` first")
    _check(folder / "manifest.json", manifest.format, SHARD_FORMAT, manifest.version)
    if manifest.date != date.isoformat():
        raise BadInput(f"{folder / 'manifest.json'}: is of {manifest.date}, not {date}; {AGAIN}")
    entries = sorted(manifest.files, key=lambda entry: entry.user_bucket)
    masks = None
    if targets == "rsft":
        path = folder / f"targets-{targets}.json"
        mask_manifest = _manifest(path, MaskManifest, f"run `onerec shards --date {date} --targets {targets}` first")
        _check(path, mask_manifest.format, MASK_FORMAT, mask_manifest.version)
        masks = {entry.data_sha256: _placed(entry, folder, shards_root) for entry in mask_manifest.files}
        lacking = [entry.path for entry in entries if entry.sha256 not in masks]
        if lacking:
            raise BadInput(f"{path}: no mask for {lacking[0]}; run `onerec shards --date {date} --targets {targets}` again")
    return DayShards(
        date=date,
        codebook_version=manifest.codebook_version,
        codebook_sizes=tuple(manifest.codebook_sizes),
        data=[(entry.user_bucket, _placed(entry, folder, shards_root)) for entry in entries],
        masks=masks,
        items=_placed(manifest.items, shards_root, shards_root),
        tokens=_placed(manifest.tokens, shards_root, shards_root),
        lifelong={int(bucket): _placed(entry, shards_root, shards_root) for bucket, entry in manifest.lifelong.items()},
    )


def one_codebook(days: Sequence[DayShards], wanted: str | None, root: Path) -> tuple[str, tuple[int, ...]]:
    """Version and sizes of the codebook that all days share (and is ``wanted``, a model's, if that says one).

    Raises BadInput naming the first day of another codebook; without ``wanted`` the newest day's is the right one.
    """
    version = wanted or days[-1].codebook_version
    for day in days:
        if day.codebook_version != version or day.codebook_sizes != days[-1].codebook_sizes:
            found = f"{root}/date={day.date}: codebook {day.codebook_version}"
            if wanted:
                raise BadInput(f"{found}, the model's is {wanted}; train on shards of this codebook first, or choose other dates")
            raise BadInput(
                f"{found}, that of {days[-1].date} is {version}; run `onerec shards --date {day.date} --retokenise` or choose "
                "other dates"
            )
    return version, days[-1].codebook_sizes


_Manifest = TypeVar("_Manifest", bound=Manifest)


def _manifest(path: Path, kind: type[_Manifest], missing: str) -> _Manifest:
    if not path.is_file():
        raise BadInput(f"{path}: no such manifest; {missing}")
    return read_manifest(path, kind)


def _check(path: Path, found: str, expected: str, version: int) -> None:
    if found != expected:
        raise BadInput(f"{path}: format {found!r}, expected {expected!r}; not one of ours")
    if version not in READABLE_VERSIONS:
        raise BadInput(f"{path}: shard version {version}; this reader knows {READABLE_VERSIONS}; {AGAIN}")


def _placed(entry: FileEntry, folder: Path, root: Path) -> ShardFile:
    path = inside_store(root, folder / entry.path)
    if not path.is_file():
        raise BadInput(f"{path}: missing, though its manifest names it; {AGAIN}")
    if path.stat().st_size != entry.bytes:
        raise BadInput(f"{path}: truncated or altered ({path.stat().st_size} bytes, manifest says {entry.bytes}); {AGAIN}")
    return ShardFile(path, entry.sha256)
