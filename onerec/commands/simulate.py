"""``onerec simulate``: a synthetic landing zone with known truth."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
