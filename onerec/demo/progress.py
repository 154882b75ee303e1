"""The demo's progress: a live bar on a terminal, one line a finished step elsewhere (both on standard error)."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class DemoProgress:
    """Shows which step runs and which have ended."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=steps)

    def __enter__(self) -> "DemoProgress":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, step: str, date: str) -> None:
        """A step begins."""
        self._progress.update(self._task, description=f"{step} {date}")

    def finish(self, step: str, date: str, seconds: float) -> None:
        """A step has ended."""
        self._progress.advance(self._task)
        self._console.print(f"  [green]done[/green] {step:<36} {date:<10} {seconds:6.1f} s", highlight=False)
