"""``onerec simulate``: a synthetic landing zone with known truth."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from onerec.commands.common import DryRunOption, JsonOption, MasterOption, print_dry_run, print_report, progress


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("simulate")(simulate)


def simulate(
    out: Annotated[str, typer.Option("--out", help="Folder to write; a simulation that lies there is replaced.")],
    users: Annotated[int, typer.Option("--users", help="Users.")] = 300,
    items: Annotated[int, typer.Option("--items", help="Items before the first day; more are born daily.")] = 600,
    days: Annotated[int, typer.Option("--days", help="Days, each with its landing.")] = 3,
    start: Annotated[str, typer.Option("--start", help="First day, YYYY-MM-DD.")] = "2026-01-01",
    seed: Annotated[int, typer.Option("--seed", help="The same seed and arguments give the same files.")] = 0,
    media: Annotated[bool, typer.Option("--media/--no-media", help="Pictures and sound.")] = True,
    broken_share: Annotated[float, typer.Option("--broken-share", help="Share of event rows that are broken.")] = 0.005,
    late_share: Annotated[float, typer.Option("--late-share", help="Share that lands a day or two late.")] = 0.015,
    duplicate_share: Annotated[float, typer.Option("--duplicate-share", help="Share that lands twice.")] = 0.01,
    events_per_day: Annotated[float, typer.Option("--events-per-day", help="Impressions of an average user a day.")] = 45.0,
    file_format: Annotated[str, typer.Option("--format", help="jsonl (gzipped) or parquet.")] = "jsonl",
    master: MasterOption = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a landing zone whose truth is known: topics drive texts, pictures, sounds and behaviour.

    What is true lies in OUT/truth: items' topics, users' tastes by day, and what arrives late, twice or broken.
    """
    from onerec.simulate.job import check_target, run
    from onerec.simulate.parameters import Parameters, parse_start

    parameters = Parameters(
        users=users,
        items=items,
        days=days,
        start=parse_start(start),
        seed=seed,
        media=media,
        broken_share=broken_share,
        late_share=late_share,
        duplicate_share=duplicate_share,
        events_per_day=events_per_day,
        format=file_format,
    )
    parameters.check()
    target = check_target(out)
    if dry_run:
        dates = [date.isoformat() for date in parameters.dates]
        folders = {f"{target}/{name}": dates for name in ("events", "items", "users", "truth/users")}
        whole: dict[str, list[str]] = {f"{target}/{name}": [] for name in (["truth", "media"] if media else ["truth"])}
        print_dry_run("simulate", folders | whole, as_json=as_json)
        return
    from feature_jobs.session import spark_session

    about = f"{users:,} users, {items:,} items, {days} days, about {int(users * events_per_day * days):,} events"
    progress(f"simulate: {about} → {target}")
    report = run(spark_session(master), parameters, out)
    if as_json:
        print_report(report, as_json=True)
        return
    landings = report.pop("landings")
    print_report(report, as_json=False)
    _print_landings(landings)


def _print_landings(landings: dict[str, dict[str, int]]) -> None:
    """What is true of each landing, for people."""
    table = RichTable(title="event rows by landing", title_justify="left")
    table.add_column("landing")
    for heading in ("rows", "late", "twice", "broken"):
        table.add_column(heading, justify="right")
    for date, kinds in landings.items():
        twice = sum(rows for kind, rows in kinds.items() if kind.startswith("duplicate_"))
        broken = sum(rows for kind, rows in kinds.items() if kind.startswith("broken_"))
        table.add_row(date, *(f"{number:,}" for number in (kinds.get("rows", 0), kinds.get("late", 0), twice, broken)))
    Console().print(table)
