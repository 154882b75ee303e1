"""``onerec embed|train-fusion|fuse|train-codebook|tokenize``: from item content to tokens."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
