"""A progress bar on standard error for steps whose length is known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Shows a bar from the first count on; call what it gives with how many are done, of how many, and a note.

    A step that is refused before it has counted anything leaves its error line alone.
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(title, total=None, note="")

    def count(done: int, total: int, note: str) -> None:
        progress.start()  # once: later calls change nothing
        progress.update(task, completed=min(done, total), total=total, note=note)

    try:
        yield count
    finally:
        if progress.live.is_started:  # stopping ends a line even where none was begun
            progress.stop()
