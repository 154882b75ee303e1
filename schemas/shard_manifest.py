"""Manifests of the shard store (``docs/shards.md``), checked for the jobs that write them and for the trainer that reads them.

Nothing in a manifest is believed before it has the fields, types and ranges of its model, its paths among them: a data file's is
a name in the manifest's own folder, that of a file which days share leads down from the store's root. Where a link leads, only
``inside_store`` knows. What is refused is BadInput in one line that names the manifest or the file.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import BadInput
from schemas.json_files import JsonFiles

MAX_MANIFEST_BYTES = 64 * 2**20
MASK_FORMAT = "onerec-shard-targets"
LIFELONG_FORMAT = "onerec-shard-lifelong"


def _is_name(path: str) -> str:
    if "/" in path or path == "..":
        raise ValueError(f"{path!r} lies outside the manifest's folder")
    return path


def _leads_down(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} lies outside the store")
    return path


Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Bucket = Annotated[int, Field(ge=0, le=2**31 - 1)]
BucketText = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class FileEntry(_Checked):
    """A file as a manifest names it; its path is relative to the store's root."""

    path: Annotated[str, AfterValidator(_leads_down)]
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class BucketEntry(FileEntry):
    """A file of one user bucket; its path is a name in the manifest's folder."""

    path: Annotated[str, AfterValidator(_is_name)]
    user_bucket: Bucket


class DataEntry(BucketEntry):
    """A data file of a day."""

    users: Count
    requests: Count
    events: Count


class MaskEntry(BucketEntry):
    """A target mask over one data file."""

    data_sha256: str


class SidecarEntry(BucketEntry):
    """A lifelong sidecar; ``source`` is the hash of the table files that it was made from."""

    users: Count
    source: str


class DayCounts(_Checked):
    """What a day's data files hold together."""

    users: Count
    requests: Count
    events: Count
    targets: Count
    targets_without_tokens: Count


class MaskCounts(_Checked):
    """Targets of the mask ``all`` that are targets of this mask, and those that are not."""

    targets: Count
    dropped: Count


class Manifest(_Checked):
    """What all manifests have. Whether format and version are known, those say who read them."""

    again: ClassVar[str] = "write it again with `onerec shards`"
    """What to do about one that is damaged."""

    format: str
    version: int


class DayTokens(Manifest):
    """The part of a day's manifest that says whose tokens the day has."""

    codebook_version: str
    codebook_sizes: list[int]


class DayManifest(DayTokens):
    """``manifest.json`` of a day."""

    date: str
    user_buckets: int = Field(ge=1, le=2**31 - 1)
    counts: DayCounts
    files: list[DataEntry]
    items: FileEntry
    tokens: FileEntry
    lifelong: dict[BucketText, FileEntry]
    inputs: dict[str, Count]


class MaskManifest(Manifest):
    """``targets-*.json`` of a day."""

    again: ClassVar[str] = "write it again with `onerec shards --targets rsft`"

    targets: str
    unit: str
    counts: MaskCounts
    files: list[MaskEntry]


class RefreshManifest(Manifest):
    """``manifest.json`` of a lifelong refresh."""

    again: ClassVar[str] = "remove it, and `onerec shards` writes it again"

    files: list[SidecarEntry]


Kind = TypeVar("Kind", bound=Manifest)


def manifest_content(path: Path, kind: type[Manifest]) -> Any:
    """The JSON value of a manifest that is there, unchecked. Raises BadInput if it is too large or no JSON."""
    files = JsonFiles(
        MAX_MANIFEST_BYTES,
        larger=f"larger than {MAX_MANIFEST_BYTES} bytes; not one of ours",
        foreign=f"not JSON (truncated or foreign: {{reason}}); {kind.again}",
    )
    return files.read(path)


def checked_manifest(path: Path, content: Any, kind: type[Kind]) -> Kind:
    """What a manifest's content says. Raises BadInput naming the first field that is not as ours."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part)[:80] for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")[:200]
        raise BadInput(f"{path}: {name or 'content'}: {said} (altered or foreign); {kind.again}") from error


def read_manifest(path: Path, kind: type[Kind]) -> Kind:
    """A manifest that is there. Raises BadInput for one that is damaged or foreign."""
    return checked_manifest(path, manifest_content(path, kind), kind)


def inside_store(root: Path, path: Path) -> Path:
    """The path of a file that a manifest names, as it is. Raises BadInput if it leads out of the store, through a link too."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # links that lead to one another; a name that no file can have
        inside = False
    if not inside:
        raise BadInput(f"{path}: lies outside {root}, though a manifest names it; {Manifest.again}")
    return path
