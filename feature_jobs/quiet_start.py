"""Holds back what a Java virtual machine prints while it starts: jar resolution, warnings, its choice of log settings."""

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_STANDARD_ERROR = 2
_SECONDS_TO_DRAIN = 5
_TELLING = re.compile(r"Exception in thread|error|not found|no such file|JAVA_HOME|unsupported", re.IGNORECASE)


@dataclass
class Held:
    """What was held back; complete once the block of ``quiet_start`` has ended."""

    content: bytearray = field(default_factory=bytearray)
    complete: threading.Event = field(default_factory=threading.Event)

    def telling_line(self) -> str:
        """The first line that says what went wrong, else the last one; shortened."""
        lines = [line.strip() for line in self.content.decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if _TELLING.search(line)] or lines[-1:]
        return telling[0][:300] if telling else "it said nothing"


@contextmanager
def quiet_start() -> Iterator[Held]:
    """Standard error of a child process that starts in the block is held back.

    What the child prints later (Spark's progress bar, say) is passed on as it comes.
    """
    reading, writing = os.pipe()
    own = os.dup(_STANDARD_ERROR)
    mark = uuid.uuid4().hex.encode()
    held = Held()
    threading.Thread(target=_pass_on, args=(reading, mark, held), daemon=True, name="jvm-stderr").start()
    os.dup2(writing, _STANDARD_ERROR)
    try:
        yield held
    finally:
        os.write(writing, mark)
        os.dup2(own, _STANDARD_ERROR)
        os.close(own)
        os.close(writing)
        held.complete.wait(_SECONDS_TO_DRAIN)


def _pass_on(reading: int, mark: bytes, held: Held) -> None:
    """Collect up to the mark, then pass on to standard error until the child has closed its end."""
    while data := os.read(reading, 1 << 16):
        if held.complete.is_set():
            _write(data)
            continue
        held.content += data
        before, found, after = bytes(held.content).partition(mark)
        if found:
            held.content[:] = before
            held.complete.set()
            _write(after)
    os.close(reading)


def _write(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(_STANDARD_ERROR, data) :]
        except OSError:  # nobody reads our standard error any more
            return
