"""``onerec demo``: the DAGs, end to end, on a simulated landing zone."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
