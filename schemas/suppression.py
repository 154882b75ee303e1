"""People who asked to be forgotten: a list of salted hashes beside the tables, so that late rows do not bring them back.

``LAKE/suppression.json`` holds ``{"version": 1, "salt": hex, "hashes": [hex, …]}``, where a hash is the sha256 of the salt's
text followed by the user id's UTF-8 bytes: in Spark ``sha2(concat(lit(salt), user_id), 256)``.
"""

import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from schemas.errors import BadInput
from schemas.json_files import JsonFiles
from schemas.lake import Lake, write_atomically

SUPPRESSION_FILE = "suppression.json"
FORGET_LOCK = "forget"
"""Held by ``onerec forget`` from beginning to end."""
MAX_BYTES = 2**30
_LISTS = JsonFiles(
    MAX_BYTES,
    larger=f"larger than {MAX_BYTES} bytes; not a suppression list of ours",
    foreign="damaged suppression list ({reason}); restore it before anything is ingested",
)
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Suppression:
    """The salt and the hashes of the people to leave out."""

    salt: str
    hashes: frozenset[str]

    def hash_of(self, user_id: str) -> str:
        """The salted hash of a user id (hex sha256)."""
        return hashlib.sha256((self.salt + user_id).encode(errors="surrogatepass")).hexdigest()

    def __contains__(self, user_id: str) -> bool:
        return bool(self.hashes) and self.hash_of(user_id) in self.hashes


def suppressed_users(lake: Lake) -> Suppression:
    """The lake's list; empty where nobody was forgotten yet. Raises BadInput for a damaged file, never ignores it."""
    filesystem, path = lake.filesystem(SUPPRESSION_FILE)
    found = filesystem.get_file_info(path)
    if found.type is pafs.FileType.NotFound:
        return Suppression("", frozenset())
    if found.type is not pafs.FileType.File:
        raise _LISTS.refusal(path, "not a file")
    body = _LISTS.read_found(filesystem, found, path)
    if wrong := _what_is_wrong(body):
        raise _LISTS.refusal(path, wrong)
    return Suppression(body["salt"], frozenset(body["hashes"]))


def _what_is_wrong(body: Any) -> str | None:
    """Why a list is not one of ours, or None: what is not a salt or a hash would suppress nobody, and nobody would notice."""
    if not isinstance(body, dict):
        return "not an object"
    if body.get("version") != 1:
        return f"version {body.get('version')!r}"
    salt, hashes = body.get("salt"), body.get("hashes")
    if not (isinstance(salt, str) and salt):
        return "no salt"
    if not isinstance(hashes, list):
        return "hashes: not a list"
    if not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
        return "hashes: not each the hex of a sha256"
    return None


def suppress(lake: Lake, user_ids: Iterable[str]) -> int:
    """Add users to the list, atomically; how many were new. One process at a time, where the filesystem has locks.

    The list is written anew even if it has them all, so that steps under way see that people are being forgotten.
    """
    with locked(lake, "suppression"):
        present = suppressed_users(lake)
        grown = Suppression(present.salt or secrets.token_hex(16), present.hashes)
        hashes = grown.hashes | {grown.hash_of(user) for user in user_ids}
        body = {"version": 1, "salt": grown.salt, "hashes": sorted(hashes)}
        write_atomically(lake.uri(SUPPRESSION_FILE), (json.dumps(body, indent=1) + "\n").encode())
    _SEEN.get({}).pop(lake.root, None)  # whoever forgets people may go on
    return len(hashes) - len(present.hashes)


_SEEN: ContextVar[dict[str, Any]] = ContextVar("suppression_seen")
"""By lake, what the list looked like when the run under way began."""


@contextmanager
def suppression_seen(lake: Lake) -> Iterator[None]:
    """While the block lasts, ``check_nobody_forgotten`` compares with how the list is now (of nested blocks, the outermost)."""
    token = _SEEN.set({lake.root: _look(lake)} | _SEEN.get({}))
    try:
        yield
    finally:
        _SEEN.reset(token)


def check_nobody_forgotten(lake: Lake) -> None:
    """Raise BadInput if people were forgotten since the run under way began: what it read may still have held them."""
    seen = _SEEN.get({})
    if lake.root in seen and seen[lake.root] != _look(lake):
        raise BadInput(
            f"{lake.root}: people were forgotten (`onerec forget`) while this ran, so it published no more; run it again when "
            "that has ended"
        )


@contextmanager
def while_nobody_is_forgotten(lake: Lake) -> Iterator[None]:
    """``onerec forget`` waits while the block lasts, and the block while it runs. Raises as ``check_nobody_forgotten``."""
    with locked(lake, FORGET_LOCK):
        check_nobody_forgotten(lake)
        yield


def _look(lake: Lake) -> tuple[int, int] | None:
    filesystem, path = lake.filesystem(SUPPRESSION_FILE)
    info = filesystem.get_file_info(path)
    return (info.size, info.mtime_ns) if info.type is pafs.FileType.File else None


@contextmanager
def locked(lake: Lake, name: str) -> Iterator[None]:
    """One process at a time, where the filesystem has locks; a kill releases it."""
    filesystem, path = lake.filesystem(f".{name}.lock")
    if not isinstance(filesystem, pafs.LocalFileSystem):  # an object store has none: who wrote looks again (forget)
        yield
        return
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
