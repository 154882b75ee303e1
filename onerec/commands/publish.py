"""``onerec publish tokens|pretrained|release``: make a token set, a pretrained model or a release live."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
