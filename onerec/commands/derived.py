"""``onerec co-interaction|lifelong|shards|forget``: what Spark derives from samples and histories."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
