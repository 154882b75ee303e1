"""Immutable artefacts (codebooks, fusion models, token sets, models, releases): content-addressed, checksummed, atomic.

An artefact of kind K and version V is the folder ``registry/K/V/`` with its files and ``K.json``, which holds the
metadata, each file's size and sha256, and is written last. V is the first 12 hex digits of the sha256 of all that, so the
same content published twice, or by two publishers at once, is one artefact. ``registry/K/latest`` names the newest and
moves last. No file is a pickle; every name is checked to stay inside its folder.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from schemas.json_files import JsonFiles
from schemas.lake import Lake, sync_folder, write_atomically

MAX_MANIFEST_BYTES = 16 * 2**20
_MANIFESTS = JsonFiles(
    MAX_MANIFEST_BYTES,
    larger=f"larger than {MAX_MANIFEST_BYTES} bytes; not one of ours",
    foreign="not a manifest of ours (truncated or foreign); publish it again",
)
_COMMANDS = {
    "fusion": "train-fusion",
    "codebook": "train-codebook",
    "token_set": "publish tokens",
    "pretrained": "publish pretrained",
    "release": "publish release",
}
"""What publishes an artefact of a kind."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True)
class Artefact:
    """A published artefact: where it is and what its manifest says."""

    kind: str
    version: str
    folder: Path
    metadata: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        """Path of one of its files, its size and checksum verified. Raises BadInput naming the file."""
        if name not in self.files:
            raise BadInput(f"{self.folder}: {self.kind} {self.version} lists no file {name!r}; it has {sorted(self.files)}")
        path = self.folder / name
        if not path.is_file():
            raise BadInput(f"{path}: missing from {self.kind} {self.version}; publish it again")
        entry = self.files[name]
        if path.stat().st_size != entry["bytes"]:
            raise BadInput(
                f"{path}: truncated or altered ({path.stat().st_size} bytes, manifest says {entry['bytes']}); publish it again"
            )
        if file_sha256(path) != entry["sha256"]:
            raise BadInput(f"{path}: altered (its sha256 is not the manifest's); publish it again")
        return path


class Registry:
    """The artefacts below one local folder (``LAKE/registry``, or a folder of its own)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, lake: Lake) -> "Registry":
        """The registry of a lake."""
        return cls(lake.local_path("registry"))

    def publish(
        self, kind: str, metadata: Mapping[str, Any], files: Mapping[str, Path | bytes], *, latest: bool = True
    ) -> Artefact:
        """Publish files (paths or contents) and metadata as one artefact; ``latest`` then names it.

        Killed at any moment, it leaves either no artefact or a whole one. One of the same content that was damaged is replaced.
        """
        folder = self.root / _checked(kind, "kind")
        if f"{kind}.json" in files:
            raise BadInput(f"file {kind}.json: the manifest of a {kind} has this name; give the file another")
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f".staging-{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            listed = {_checked(name, "file"): _place(content, staging / name) for name, content in sorted(files.items())}
            # As it will be read: JSON makes texts of all keys, which may change their order.
            body = {"kind": kind, "metadata": json.loads(json.dumps(dict(metadata))), "files": listed}
            version = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
            manifest = json.dumps({"version": version, **body}, indent=1, sort_keys=True) + "\n"
            _place(manifest.encode(), staging / f"{kind}.json")
            sync_folder(staging)
            self._move_in(staging, kind, version)
            sync_folder(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if latest:
            self.set_latest(kind, version)
        return self.load(kind, version)

    def _move_in(self, staging: Path, kind: str, version: str) -> None:
        """Give a staged artefact its name. Where the same content has it already and was damaged since, put each file in place of
        the damaged one: nothing disappears meanwhile, and whoever mends at the same time puts the same bytes there."""
        target = self.root / kind / version
        try:
            os.rename(staging, target)
        except OSError:
            if not target.is_dir():
                raise
            if not self._is_whole(kind, version):
                manifest = staging / f"{kind}.json"
                # A mended version is as old as what is left of it.
                if times := [path.stat().st_mtime_ns for path in target.iterdir()]:
                    os.utime(manifest, ns=(min(times), min(times)))
                for path in [*(path for path in staging.iterdir() if path != manifest), manifest]:
                    os.replace(path, target / path.name)
                sync_folder(target)

    def _is_whole(self, kind: str, version: str) -> bool:
        """Whether a version's manifest and files are what was published."""
        try:
            artefact = self.load(kind, version)
            for name in artefact.files:
                artefact.file(name)
        except BadInput:
            return False
        return True

    def set_latest(self, kind: str, version: str) -> None:
        """Make ``latest`` name a version that exists."""
        self.load(kind, version)
        write_atomically(str(self.root / kind / "latest"), f"{version}\n".encode())

    def latest(self, kind: str) -> str | None:
        """The version that ``latest`` names, or None before the first publication. Raises BadInput if it names none."""
        pointer = self.root / _checked(kind, "kind") / "latest"
        if not pointer.is_file():
            return None
        named = pointer.read_bytes()[:256].decode(errors="replace").strip()
        if not (_NAME.fullmatch(named) and (pointer.parent / named / f"{kind}.json").is_file()):
            there = " or ".join(self.versions(kind))
            mend = f"write a version into it ({there})" if there else "remove it"
            raise BadInput(f"{pointer}: names no {kind} that is there (altered); {mend}")
        return named

    def versions(self, kind: str) -> list[str]:
        """All whole versions, oldest first."""
        folder = self.root / _checked(kind, "kind")
        manifests = [path for path in folder.glob(f"*/{kind}.json") if not path.parent.name.startswith(".")]
        return [path.parent.name for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path.parent.name))]

    def load(self, kind: str, version: str | None = None) -> Artefact:
        """Open a version (``None``: the latest). Raises BadInput for a missing, damaged or foreign one."""
        chosen = version or self.latest(kind)
        if chosen is None:
            raise BadInput(f"{self.root / kind}: no {kind} published yet; run `onerec {_COMMANDS.get(kind, 'publish')}` first")
        folder = self.root / _checked(kind, "kind") / _checked(chosen, "version")
        manifest = folder / f"{kind}.json"
        if not manifest.is_file():
            raise BadInput(f"{folder}: no {kind} of this version; there are {self.versions(kind) or 'none'}")
        body = _MANIFESTS.read(manifest)
        try:
            version_of = {key: body[key] for key in ("kind", "metadata", "files")}
            expected = hashlib.sha256(json.dumps(version_of, sort_keys=True).encode()).hexdigest()[:12]
        except (ValueError, KeyError, TypeError) as error:
            raise _MANIFESTS.refusal(manifest, error) from error
        if body.get("version") != expected or expected != chosen or body["kind"] != kind:
            raise BadInput(f"{manifest}: altered (its content does not give version {chosen}); publish it again")
        if not isinstance(body["metadata"], dict) or not _are_entries(body["files"]):
            raise BadInput(f"{manifest}: not a manifest of ours (foreign); publish it again")
        for name in body["files"]:
            _checked(name, "file")
        return Artefact(kind, chosen, folder, body["metadata"], body["files"])


def _are_entries(files: Any) -> bool:
    """Whether a manifest's files have what ``Artefact.file`` compares."""
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadInput(f"{what} {name!r}: use letters, digits, '_', '-' and '.' only, not starting with a dot")
    return name


def _place(content: Path | bytes, target: Path) -> dict[str, Any]:
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        shutil.copyfile(content, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": target.stat().st_size, "sha256": file_sha256(target)}
