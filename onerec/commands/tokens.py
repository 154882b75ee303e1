"""Commands of the room ``tokens``."""

import typer


def register(app: typer.Typer) -> None:
    """Add this room's commands."""
