"""``onerec reward|rl|rollout-service``: the reward model, RL and the generation service."""

from typing import Annotated, Literal

import typer

from onerec.commands.common import (
    DryRunOption,
    JsonOption,
    LakeOption,
    OptionalDateOption,
    SetOption,
    print_dry_run,
    print_json,
    print_report,
    progress,
)

AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to join, HOST:PORT; without it a local one is started.")
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("reward")(reward)
    app.command("rl")(rl)
    app.command("rollout-service")(rollout_service)


def reward(
    lake: LakeOption,
    date: OptionalDateOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the reward model (P-Score) on the days through --date, else all but the newest; leaves it in training/reward."""
    from schemas.lake import open_lake, parse_date
    from trainer.training import training_dates

    opened = open_lake(lake, set_)
    last = parse_date(date) if date else None
    if dry_run:
        dates = training_dates(opened, None, last)
        print_dry_run("reward", {"training/reward": [day.isoformat() for day in dates]}, as_json=as_json)
        return
    from onerec.commands.progress_bar import counting
    from trainer.reward import training

    with counting("reward") as count:
        report = training.run(opened, last, lambda step, total, loss: count(step, total, f"loss {loss:.3f}"))
    print_report(report.to_json(), as_json=as_json)


def rl(
    lake: LakeOption,
    first: Annotated[str | None, typer.Option("--from", help="First day, YYYY-MM-DD; else the first with shards.")] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Last day; else the last but one with shards, the last being for evaluation.")
    ] = None,
    address: AddressOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reinforce the rsft model by the reward model (ECPO); leaves the model in training/rl."""
    from schemas.lake import open_lake, parse_date
    from trainer.training import training_dates

    opened = open_lake(lake, set_)
    days = (parse_date(first, "--from") if first else None, parse_date(last, "--to") if last else None)
    if dry_run:
        dates = training_dates(opened, *days)
        print_dry_run("rl", {"training/rl": [day.isoformat() for day in dates]}, as_json=as_json)
        return
    from onerec.commands.progress_bar import counting
    from trainer import reinforcement_run

    total = opened.config.reinforce.steps
    with counting("rl") as count:
        report = reinforcement_run.run(
            opened,
            reinforcement_run.ReinforceRequest(*days, address=address),
            lambda line: count(line["step"], total, f"reward {line['reward_mean']}, legal {line['legal_share']:.2f}"),
        )
    print_report(report.to_json(), as_json=as_json)


def rollout_service(
    lake: LakeOption,
    address: AddressOption = None,
    stage: Annotated[Literal["pretrain", "rsft", "rl"], typer.Option("--stage", help="Model to begin with.")] = "rsft",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; else reinforce.rollout_workers.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the service of this lake at --address.")] = False,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate for others: in the Ray cluster at --address until --stop, or in a local one until interrupted."""
    from schemas.errors import BadInput
    from schemas.lake import open_lake
    from trainer.rollout import serving

    opened = open_lake(lake, set_)
    if stop and address is None:
        raise BadInput("--stop: needs the --address of the cluster whose service shall end; end a local one with Ctrl-C")
    if stop and address is not None:
        print_json({"service": serving.stop(opened, address), "address": address})
        return

    def announce(where: str, description: dict[str, str | int]) -> None:
        print_json({"address": where, **description})
        if not as_json:
            progress(f"serving; use it with `onerec rl --address {where}`")

    serving.serve(opened, stage, address, workers or opened.config.reinforce.rollout_workers, announce)
