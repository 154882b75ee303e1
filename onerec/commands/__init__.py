"""The sub-commands, one module a room. A module imports its engine inside its functions, so that ``--help`` stays fast."""

from typing import Any

import typer

from onerec.commands import (
    codebook,
    demo,
    derived,
    features,
    imports,
    lake,
    publish,
    reinforcement,
    simulate,
    tokens,
    training,
    worker,
)


def build_command() -> Any:
    """The whole command tree."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        help="The data and token factory of a generative recommender.",
    )
    for room in (simulate, imports, features, derived, tokens, training, reinforcement, publish, lake, worker, demo):
        room.register(app)
    app.add_typer(codebook.app, name="codebook", help="Look into codebooks.")
    app.add_typer(lake.app, name="lake", help="Look at and look after a lake.")
    return typer.main.get_command(app)
