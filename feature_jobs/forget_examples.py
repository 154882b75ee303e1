"""Removes people from what evaluations show: ``examples.json`` beside a model, ``{"users": [{"user_id": …, …}, …], …}``."""

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from schemas.json_files import JsonFiles
from schemas.lake import Lake, write_atomically

EXAMPLES = "examples.json"
_UNFINISHED = f"{EXAMPLES}.*.tmp"
MAX_EXAMPLES_BYTES = 64 * 2**20
_FILES = JsonFiles(
    MAX_EXAMPLES_BYTES,
    larger=f"larger than {MAX_EXAMPLES_BYTES} bytes; not one of ours, remove it",
    foreign="not the examples of an evaluation of ours ({reason}); remove it",
)


def forget_in_examples(lake: Lake, users: Set[str]) -> int:
    """Rewrite the examples below ``LAKE/training`` without these users; how many were removed. What an evaluation left that
    was killed while it wrote goes: none is writing while people are forgotten.

    Raises BadInput for a published model that shows them: what is published is never altered.
    """
    removed = 0
    for path in _found(lake, ("training",), _UNFINISHED):
        path.unlink()
    for path in _found(lake, ("training",), EXAMPLES):
        content = _read(path)
        kept = [example for example in content["users"] if example["user_id"] not in users]
        if len(kept) < len(content["users"]):
            removed += len(content["users"]) - len(kept)
            write_atomically(str(path), (json.dumps(content | {"users": kept}, indent=1) + "\n").encode())
    for path in _found(lake, ("registry",), EXAMPLES):
        if any(example["user_id"] in users for example in _read(path)["users"]):
            raise BadInput(
                f"{path}: a published model shows some of these people; publish that model again (its examples are left out "
                "now), remove this folder, and run this again"
            )
    return removed


def search_examples(lake: Lake, users: Set[str]) -> dict[str, int]:
    """Search the examples of every evaluation: files, examples looked at, and how many show one of ``users``."""
    paths = _found(lake, ("training", "registry"), EXAMPLES)
    unknown = _found(lake, ("training", "registry"), _UNFINISHED)
    shown = [example["user_id"] for path in paths for example in _read(path)["users"]]
    found = sum(user in users for user in shown) + len(unknown)
    return {"files": len(paths) + len(unknown), "values": len(shown), "found": found}


def _found(lake: Lake, folders: Sequence[str], pattern: str) -> list[Path]:
    if not lake.is_local:
        return []
    return [path for folder in folders for path in sorted(lake.local_path(folder).rglob(pattern))]


def _read(path: Path) -> dict[str, Any]:
    """The examples of a file, each with the ``user_id`` that it shows. Raises BadInput for a file that is damaged or foreign."""
    try:
        content = _FILES.read(path)
    except FileNotFoundError:  # a training has begun meanwhile, whose model nobody has evaluated
        return {"users": []}
    if not (isinstance(content, dict) and isinstance(content.get("users"), list)):
        raise _FILES.refusal(path, "no users")
    if not all(isinstance(example, dict) and isinstance(example.get("user_id"), str) for example in content["users"]):
        raise _FILES.refusal(path, "users without a user_id")
    return content
