"""``onerec train|evaluate``: pre-training, fine-tuning and evaluation."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
