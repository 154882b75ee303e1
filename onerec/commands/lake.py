"""Commands that look at a lake: ``lake tables|describe|runs|vacuum`` and ``status``."""

import typer

app = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands that stand outside the ``lake`` group."""
