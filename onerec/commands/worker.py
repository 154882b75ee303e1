"""``onerec worker``: keep engines warm on one machine."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("worker")(worker)


def worker(
    socket: Annotated[str, typer.Option("--socket", help="Unix socket to listen at.")],
) -> None:
    """Keep Spark and torch warm on this machine: commands with ONEREC_WORKER=SOCKET run in this process."""
    from onerec.worker import serve

    serve(socket)
