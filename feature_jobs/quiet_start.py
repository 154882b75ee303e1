"""Holds back what a Java virtual machine prints while it starts: jar resolution, warnings, its choice of log settings."""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

_STANDARD_ERROR = 2
_SECONDS_TO_DRAIN = 5


@contextmanager
def quiet_start() -> Iterator[None]:
    """Standard error of a child process that starts in the block is held back, and shown only if the block fails.

    What the child prints later (Spark's progress bar, say) is passed on as it comes.
    """
    reading, writing = os.pipe()
    own = os.dup(_STANDARD_ERROR)
    mark = uuid.uuid4().hex.encode()
    held, complete = bytearray(), threading.Event()
    threading.Thread(target=_pass_on, args=(reading, mark, held, complete), daemon=True, name="jvm-stderr").start()
    os.dup2(writing, _STANDARD_ERROR)
    failed = True
    try:
        yield
        failed = False
    finally:
        os.write(writing, mark)
        os.dup2(own, _STANDARD_ERROR)
        os.close(own)
        os.close(writing)
        complete.wait(_SECONDS_TO_DRAIN)
        if failed:
            _write(bytes(held))


def _pass_on(reading: int, mark: bytes, held: bytearray, complete: threading.Event) -> None:
    """Collect up to the mark, then pass on to standard error until the child has closed its end."""
    while data := os.read(reading, 1 << 16):
        if complete.is_set():
            _write(data)
            continue
        held += data
        before, found, after = bytes(held).partition(mark)
        if found:
            held[:] = before
            complete.set()
            _write(after)
    os.close(reading)


def _write(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(_STANDARD_ERROR, data) :]
        except OSError:  # nobody reads our standard error any more
            return
