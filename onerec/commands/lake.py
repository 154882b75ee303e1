"""Commands that look at and look after a lake: ``lake create|tables|describe|runs|vacuum``, ``status`` and ``cost``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from onerec.commands.common import DateOption, DryRunOption, JsonOption, LakeOption, OptionalDateOption, SetOption, print_json

app = typer.Typer(no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the commands that stand outside the ``lake`` group."""
    parent.command("status")(status)
    parent.command("cost")(cost)


@app.command("create")
def create(
    lake: LakeOption,
    config: Annotated[Path | None, typer.Option("--config", help="YAML with settings; defaults for what it leaves out.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Create an empty lake: its tables, constraints and onerec.yaml."""
    from schemas.config import parse_config
    from schemas.errors import BadInput
    from schemas.lake import CONFIG_FILE, create_lake, is_lake
    from schemas.tables import TABLES

    if config is not None and not config.is_file():
        raise BadInput(f"--config {config}: no such file")
    text = config.read_text() if config else ""
    parsed = parse_config(text, str(config or "--set"), overrides)
    if is_lake(lake):
        raise BadInput(f"--lake {lake}: there is a lake already; edit its {CONFIG_FILE}")
    if not dry_run:
        create_lake(lake, parsed)
    if as_json:
        print_json({"step": "lake create", "dry_run": dry_run, "lake": lake, "tables": list(TABLES)})
    else:
        print(f"{'would create' if dry_run else 'created'} {lake} with {len(TABLES)} tables")


@app.command("tables")
def tables(lake: LakeOption, as_json: JsonOption = False) -> None:
    """List the tables: rows, files, bytes, version."""
    from rich.console import Console
    from rich.table import Table

    from onerec.lake_view import table_summaries
    from schemas.lake import open_lake

    summaries = table_summaries(open_lake(lake))
    if as_json:
        print_json({"tables": summaries})
        return
    view = Table("table", "grain")
    for heading in ("rows", "files", "MB", "version"):
        view.add_column(heading, justify="right")
    for row in summaries:
        megabytes = f"{row['bytes'] / 1e6:,.2f}"
        view.add_row(row["table"], row["grain"], f"{row['rows']:,}", f"{row['files']:,}", megabytes, str(row["version"]))
    Console().print(view)


@app.command("describe")
def describe(
    lake: LakeOption,
    table: Annotated[str | None, typer.Argument(help="Name of a table; every table without one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a table's columns, constraints and newest commits (of every table, if none is named)."""
    from onerec.lake_view import describe_table
    from schemas.errors import BadInput
    from schemas.lake import open_lake
    from schemas.tables import TABLES

    opened = open_lake(lake)
    if table is not None and table not in TABLES:
        raise BadInput(f"table {table!r}: no such table; there are {', '.join(TABLES)}")
    described = [describe_table(opened, one) for one in TABLES.values() if table in (None, one.name)]
    if as_json:
        print_json(described[0] if table else {"tables": described})
        return
    for one in described:
        _print_description(one)


def _print_description(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{described['table']}: {described['grain']}"
    view = Table("column", "type", "required", "meaning", title=title, title_justify="left")
    for column in described["columns"]:
        view.add_row(column["name"], column["type"], "yes" if column["required"] else "", column["doc"])
    console = Console()
    console.print(view)
    for name, check in described["checks"].items():
        console.print(f"CHECK {name}: {check}", highlight=False)
    for commit in described["history"]:
        console.print(f"version {commit['version']}  {commit['timestamp']}  {commit['operation']}", highlight=False)


@app.command("runs")
def list_runs(
    lake: LakeOption,
    step: Annotated[str | None, typer.Option("--step", help="Only this step.")] = None,
    date: OptionalDateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the recorded runs with their row accounting."""
    from rich.console import Console
    from rich.table import Table

    from onerec.lake_view import runs
    from schemas.lake import open_lake, parse_date

    rows = runs(open_lake(lake), step=step, date=parse_date(date) if date else None)
    if as_json:
        print_json({"runs": rows})
        return
    view = Table("step", "date", "attempt", "status", "s", "table", "in", "out", "quarantined", "dropped / message")
    for row in rows:
        dropped = ", ".join(f"{reason} {number:,}" for reason, number in row["rows_dropped"].items() if number)
        counts = [f"{row[name]:,}" if row[name] is not None else "" for name in ("rows_in", "rows_out", "rows_quarantined")]
        date_text = str(row["date"] or "")
        view.add_row(
            row["step"], date_text, str(row["attempt"]), row["status"], f"{row['seconds']:.1f}", row["table_name"] or "",
            *counts, dropped or row["message"] or "",
        )  # fmt: skip
    Console().print(view)


@app.command("vacuum")
def vacuum(lake: LakeOption, as_json: JsonOption = False, dry_run: DryRunOption = False, overrides: SetOption = None) -> None:
    """Drop user_state days beyond the retention and the files that no kept version needs."""
    from onerec.lake_care import vacuum_lake
    from schemas.lake import open_lake

    report = vacuum_lake(open_lake(lake, overrides), dry_run=dry_run)
    if as_json:
        print_json(report)
        return
    days = ", ".join(report["user_state_days_dropped"]) or "none"
    if kept := report["user_state_days_kept_for_stale"]:
        days += f" (kept, for stale days are built from them: {', '.join(kept)})"
    counts = f"files: {sum(report['files'].values())}; leftovers of killed runs: {report['leftovers']}"
    print(f"{'would drop' if dry_run else 'dropped'} user_state days: {days}; {counts}")


def status(lake: LakeOption, date: DateOption, as_json: JsonOption = False) -> None:
    """Say of each step of a day whether it is done, late, failed, stale or missing, and how many of its events came late."""
    from rich.console import Console
    from rich.table import Table

    from onerec.lake_view import day_status
    from schemas.lake import open_lake, parse_date

    statuses, late = day_status(open_lake(lake), parse_date(date))
    if as_json:
        steps = {status.step: {"state": status.state, "detail": status.detail} for status in statuses}
        print_json({"date": date, "steps": steps, "late_events": late})
        return
    colours = {"done": "green", "late": "yellow", "failed": "red", "stale": "yellow", "missing": "dim"}
    view = Table("step", "state", "detail", title=f"{date}: {late:,} events came late", title_justify="left")
    for one in statuses:
        view.add_row(one.step, f"[{colours[one.state]}]{one.state}[/]", one.detail)
    Console().print(view)


def cost(
    lake: LakeOption,
    prices: Annotated[Path | None, typer.Option("--prices", help="YAML: core_hour: price of one core for an hour.")] = None,
    target: Annotated[int, typer.Option("--target", min=1, help="Impressions a day to scale to.")] = 18_000_000_000,
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores the runs had; this machine's unless set.")] = None,
    as_json: JsonOption = False,
) -> None:
    """A day's cost by step, from measured runs, scaled linearly to a target volume (an upper bound on a small lake)."""
    from rich.console import Console
    from rich.table import Table

    from onerec.lake_care import read_prices
    from onerec.lake_view import costs, runs
    from schemas.lake import open_lake

    price = read_prices(prices) if prices else 0.0
    table = costs(runs(open_lake(lake)), cores=cores or os.cpu_count() or 1, target_rows=target, core_hour_price=price)
    if as_json:
        print_json({"target_rows": target, "core_hour_price": price, "steps": table})
        return
    view = Table("step", "runs", "seconds", "rows", f"core-hours at {target:,}", "price", title_justify="left")
    for row in table:
        scaled = "" if row["core_hours_at_target"] is None else f"{row['core_hours_at_target']:,.0f}"
        charge = "" if row["price_at_target"] is None or not price else f"{row['price_at_target']:,.2f}"
        view.add_row(row["step"], str(row["runs"]), f"{row['seconds']:.1f}", f"{row['rows']:,}", scaled, charge)
    Console().print(view)
