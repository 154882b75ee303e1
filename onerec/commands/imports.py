"""``onerec import``: public logs into a landing zone."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
