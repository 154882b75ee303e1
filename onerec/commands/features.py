"""``onerec ingest|samples|pathways|backfill``: from landing zone to samples and pathways."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
