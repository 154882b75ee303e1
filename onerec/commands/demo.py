"""``onerec demo``: the DAGs, end to end, on a simulated landing zone."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import typer

from onerec.commands.common import DryRunOption, JsonOption, print_dry_run, print_json


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the lake, landing zone, Airflow home and report.")],
    users: Annotated[int, typer.Option("--users", min=20)] = 300,
    items: Annotated[int, typer.Option("--items", min=100)] = 600,
    seed: Annotated[int, typer.Option("--seed")] = 7,
    dags: Annotated[Path | None, typer.Option("--dags", help="Folder with onerec_dags.py; the checkout's unless set.")] = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run the whole factory on three simulated days by Airflow's own `dags test`, and write a report page."""
    from onerec.demo.plan import DemoPlan

    plan = DemoPlan(users=users, items=items, start=dt.date(2026, 1, 1), seed=seed)
    if dry_run:
        print_dry_run("demo", {run.dag: [run.date.isoformat()] for run in plan.runs()}, as_json=as_json)
        return
    from onerec.demo.run import run_demo

    summary = run_demo(out, plan, dags=dags)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary, out)


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    """The short table at the end: rows, rates, codebook, loss, recall; then where the page is."""
    from rich.console import Console
    from rich.table import Table

    from onerec.report.figures import summary_figures

    table = Table(title=f"The factory in {summary['seconds']:.0f} s", title_justify="left", show_header=False)
    for name, value in summary_figures(out / "lake"):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(f"Report: {summary['report']}", soft_wrap=True)
