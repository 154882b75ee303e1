"""``onerec embed|train-fusion|fuse|train-codebook|tokenize``: from item content to tokens."""

import datetime as dt
from typing import Annotated

import typer

from onerec.commands.common import (
    DryRunOption,
    JsonOption,
    LakeOption,
    OptionalDateOption,
    SetOption,
    print_dry_run,
    print_report,
    progress,
)

RunnerOption = Annotated[
    str, typer.Option("--runner", help="Beam runner: local, or a name that Beam knows (FlinkRunner, PortableRunner, …).")
]
RunnerOptions = Annotated[
    list[str] | None, typer.Option("--runner-option", help="Pipeline option for the runner: name=value (repeatable).")
]
FusionOption = Annotated[str | None, typer.Option("--fusion-version", help="Fusion version instead of the one in use.")]
CodebookOption = Annotated[str | None, typer.Option("--codebook-version", help="Codebook instead of the one in use.")]
RetokeniseOption = Annotated[bool, typer.Option("--retokenise", help="Every item, also those that have tokens already.")]
RefreshOption = Annotated[bool, typer.Option("--refresh", help="The newest version instead of the live token set's.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("embed")(embed)
    app.command("train-fusion")(train_fusion)
    app.command("fuse")(fuse)
    app.command("train-codebook")(train_codebook)
    app.command("tokenize")(tokenize)


def embed(
    lake: LakeOption,
    date: OptionalDateOption = None,
    runner: RunnerOption = "local",
    runner_option: RunnerOptions = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode what has no vector yet of the items' texts, pictures and sounds (as they are at the end of the date)."""
    from schemas.lake import open_lake
    from tokenization.encoders import encoder_set

    opened, day = open_lake(lake, set_), _day(date)
    if dry_run:
        encoders = encoder_set(opened.config.embed)
        print_dry_run("embed", {"item_vectors": [f"{kind} by {name}" for kind, name in encoders.items()]}, as_json=as_json)
        return
    from pipelines import embed as job

    print_report(job.run(opened, day, runner=runner, options=runner_option or (), progress=progress), as_json=as_json)


def train_fusion(
    lake: LakeOption,
    date: OptionalDateOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train and publish the model that fuses an item's vectors, from items engaged with together (up to the date).

    A live token set keeps its model unless fusion.start says otherwise.
    """
    from onerec.commands.progress_bar import counting
    from schemas.lake import open_lake

    opened, day = open_lake(lake, set_), _day(date)
    if dry_run:
        print_dry_run("train-fusion", {"registry/fusion": ["a new version, unless the live one is kept"]}, as_json=as_json)
        return
    from pipelines import train_fusion as job

    with counting("train-fusion") as count:
        report = job.run(opened, day, progress=lambda done, steps, loss: count(done, steps, f"loss {loss:.3f}"))
    print_report(report, as_json=as_json)


def fuse(
    lake: LakeOption,
    date: OptionalDateOption = None,
    fusion_version: FusionOption = None,
    refresh: RefreshOption = False,
    runner: RunnerOption = "local",
    runner_option: RunnerOptions = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fuse the vectors of new and changed items into one (by the live token set's fusion model)."""
    from pipelines import versions
    from schemas.lake import open_lake
    from schemas.registry import Registry

    opened, day = open_lake(lake, set_), _day(date)
    if dry_run:
        version = versions.fusion_version(Registry.of(opened), fusion_version, refresh=refresh)
        print_dry_run("fuse", {"item_vectors": [f"fused by {version}"]}, as_json=as_json)
        return
    from pipelines import fuse as job

    report = job.run(opened, day, fusion_version=fusion_version, refresh=refresh, runner=runner, options=runner_option or ())
    print_report(report, as_json=as_json)


def train_codebook(
    lake: LakeOption,
    date: OptionalDateOption = None,
    fusion_version: FusionOption = None,
    runner: RunnerOption = "local",
    runner_option: RunnerOptions = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train and publish a codebook on the fused vectors of the newest fusion model."""
    from schemas.lake import open_lake

    opened, day = open_lake(lake, set_), _day(date)
    if dry_run:
        print_dry_run("train-codebook", {"registry/codebook": ["a new version"]}, as_json=as_json)
        return
    from pipelines import train_codebook as job

    report = job.run(opened, day, fusion_version=fusion_version, runner=runner, options=runner_option or (), progress=progress)
    print_report(report, as_json=as_json)


def tokenize(
    lake: LakeOption,
    date: OptionalDateOption = None,
    codebook_version: CodebookOption = None,
    refresh: RefreshOption = False,
    retokenise: RetokeniseOption = False,
    runner: RunnerOption = "local",
    runner_option: RunnerOptions = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give new and changed items their tokens (by the live token set's codebook, which stays as it is)."""
    from pipelines import versions
    from schemas.lake import open_lake
    from schemas.registry import Registry

    opened, day = open_lake(lake, set_), _day(date)
    if dry_run:
        version = versions.codebook_version(Registry.of(opened), codebook_version, refresh=refresh)
        print_dry_run("tokenize", {"item_tokens": [f"codebook_version={version}"]}, as_json=as_json)
        return
    from pipelines import tokenize_items as job

    report = job.run(
        opened,
        day,
        codebook_version=codebook_version,
        refresh=refresh,
        retokenise=retokenise,
        runner=runner,
        options=runner_option or (),
        progress=progress,
    )
    print_report(report, as_json=as_json)


def _day(text: str | None) -> dt.date | None:
    from schemas.lake import parse_date

    return None if text is None else parse_date(text)
