"""``onerec train|evaluate``: pre-training, fine-tuning and evaluation."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onerec.commands.common import (
    DryRunOption,
    JsonOption,
    LakeOption,
    OptionalDateOption,
    SetOption,
    print_dry_run,
    print_report,
)

if TYPE_CHECKING:
    from schemas.lake import Lake


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def train(
    lake: LakeOption,
    stage: Annotated[Literal["pretrain", "rsft"], typer.Option("--stage", help="What to train.")] = "pretrain",
    first: Annotated[
        str | None, typer.Option("--from", help="First day, YYYY-MM-DD; else the first after the start's training.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Last day; else the last but one with shards, the last being for evaluation.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Size of the model; else train.preset.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps; else train.steps, or epochs.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Published pretrained version to start from, or 'scratch'; else the latest.")
    ] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the generator on shards; leaves the model in LAKE/training/STAGE."""
    from schemas.lake import open_lake, parse_date
    from trainer import training

    opened = open_lake(lake, set_)
    request = training.TrainRequest(
        stage=stage,
        first=parse_date(first, "--from") if first else None,
        last=parse_date(last, "--to") if last else None,
        preset=preset,
        steps=steps,
        init=init,
    )
    if dry_run:
        dates, _ = training.planned(opened, request)
        print_dry_run("train", {f"training/{stage}": [date.isoformat() for date in dates]}, as_json=as_json)
        return
    from onerec.commands.progress_bar import counting

    with counting(f"train {stage}") as count:
        report = training.run(opened, request, lambda step, total, loss: count(step, total, f"loss {loss:.3f}")).to_json()
    _clear_marks(opened, report["dates"])
    print_report(report, as_json=as_json)


def _clear_marks(lake: "Lake", dates: list[str]) -> None:
    """Take away the marks of days that were trained on, but of those whose shards are stale themselves."""
    from feature_jobs.stale import clear_stale, read_stale
    from schemas.lake import parse_date

    marks = read_stale(lake)
    for date in dates:
        if "shards" not in marks.get(date, {}):
            clear_stale(lake, parse_date(date), "train")


def evaluate(
    lake: LakeOption,
    stage: Annotated[Literal["pretrain", "rsft", "rl"], typer.Option("--stage", help="Which model.")] = "pretrain",
    date: OptionalDateOption = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 3 if the loss breaks the limits of `evaluate`.")] = False,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained model on the day after its training (or --date): loss, recall, NDCG, legality."""
    from schemas.lake import open_lake, parse_date
    from trainer import evaluation

    opened = open_lake(lake, set_)
    day = parse_date(date) if date else None
    if dry_run:
        files = (evaluation.EVALUATION_FILE, evaluation.EXAMPLES_FILE)
        print_dry_run("evaluate", {f"training/{stage}/{name}": [date] if date else [] for name in files}, as_json=as_json)
        return
    from onerec.commands.progress_bar import counting

    with counting(f"evaluate {stage}") as count:
        report = evaluation.run(opened, stage, day, gate=gate, on_requests=lambda done, total: count(done, total, "requests"))
    print_report(report.to_json(), as_json=as_json)
