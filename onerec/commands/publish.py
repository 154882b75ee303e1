"""``onerec publish tokens|pretrained|release``: make a token set, a pretrained model or a release live."""

from typing import Annotated, Literal

import typer

from onerec.commands.common import DryRunOption, JsonOption, LakeOption, SetOption, print_dry_run, print_report


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("publish")(publish)


def publish(
    what: Annotated[Literal["tokens", "pretrained", "release"], typer.Argument(help="What to publish.")],
    lake: LakeOption,
    stage: Annotated[Literal["rl", "rsft"], typer.Option("--stage", help="The model of a release.")] = "rl",
    codebook_version: Annotated[
        str | None, typer.Option("--codebook-version", help="The codebook of a token set; the newest unless told.")
    ] = None,
    rollback: Annotated[
        str | None, typer.Option("--rollback", metavar="VERSION", help="Make a version published before live again.")
    ] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a token set, the pretrained model, or a release, and make it live; checks that its parts belong together."""
    from schemas.errors import BadInput
    from schemas.lake import open_lake
    from trainer import publishing

    if codebook_version is not None and (what != "tokens" or rollback is not None):
        raise BadInput("--codebook-version: only `publish tokens` takes it, and not with --rollback")

    opened = open_lake(lake, set_)
    if dry_run:
        files = publishing.rehearse(opened, what, stage, rollback)
        print_dry_run(f"publish {what}", {f"registry/{publishing.KINDS[what]}": files}, as_json=as_json)
        return
    report = publishing.run(opened, what, stage, rollback, codebook_version=codebook_version)
    print_report(report.to_json(), as_json=as_json)
