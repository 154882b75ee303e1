"""Reads JSON files that lie where anybody may put or damage one: whatever is in them, a refusal is one line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from schemas.errors import BadInput
from schemas.lake import first_line

MAX_DEPTH = 100
"""Levels of arrays and objects inside one another; ours have less than ten. What is read here can be compared, shown and written
again without coming to Python's limit of recursion."""
_CONTAINERS = (dict, list)


@dataclass(frozen=True)
class JsonFiles:
    """JSON files of one kind: how large one may be, and how an error line goes on after the name of one that is refused.

    ``larger`` is said of a file of more than ``most_bytes``, ``foreign`` of one that is no JSON (with what is wrong in place of
    ``{reason}``). Both say what to do.
    """

    most_bytes: int
    larger: str
    foreign: str

    def read(self, path: Path) -> Any:
        """The value in a local file. Raises BadInput if it is too large or no JSON, FileNotFoundError if there is none."""
        if path.stat().st_size > self.most_bytes:
            raise BadInput(f"{path}: {self.larger}")
        return self.parse(path.read_bytes(), path)

    def read_found(self, filesystem: pafs.FileSystem, found: pafs.FileInfo, where: str) -> Any:
        """The value in a file that a filesystem has found; error lines call it ``where``. Raises as ``read`` does."""
        if found.size > self.most_bytes:
            raise BadInput(f"{where}: {self.larger}")
        with filesystem.open_input_stream(found.path) as stream:
            return self.parse(stream.read(), where)

    def parse(self, content: bytes, where: Path | str) -> Any:
        """The value that a file's content is. Raises BadInput if it is no JSON."""
        try:
            return parse_json(content)
        except ValueError as error:
            raise self.refusal(where, error) from error

    def refusal(self, where: Path | str, reason: Exception | str) -> BadInput:
        """The error for a file that is JSON and yet none of this kind."""
        said = reason[:200] if isinstance(reason, str) else first_line(reason)
        return BadInput(f"{where}: {self.foreign.replace('{reason}', said)}")


def parse_json(content: bytes) -> Any:
    """The value that a JSON text is. Raises ValueError for what is none, including arrays and objects nested more than MAX_DEPTH
    levels deep and integers of more digits than Python reads (4,300)."""
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        values = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for children in values for child in children if isinstance(child, _CONTAINERS)]
        if not level:
            return value
    raise ValueError("nested too deeply")
