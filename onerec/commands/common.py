"""Options and output that all commands share: the lake, the date, ``--json``, ``--dry-run``, ``--set``, tables."""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

LakeOption = Annotated[str, typer.Option("--lake", envvar="ONEREC_LAKE", help="Root of the lake (a folder or URI).")]
DateOption = Annotated[str, typer.Option("--date", help="Day, YYYY-MM-DD.")]
OptionalDateOption = Annotated[str | None, typer.Option("--date", help="Day, YYYY-MM-DD.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would change and write nothing.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting for this run: section.name=value (repeatable).")
]
MasterOption = Annotated[
    str | None, typer.Option("--master", envvar="ONEREC_SPARK_MASTER", help="Spark master; local[*] unless set.")
]


def progress(message: str) -> None:
    """One line of progress on standard error."""
    print(message, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, default=str, allow_nan=False), flush=True)


def print_dry_run(step: str, tables: Mapping[str, list[str]], *, as_json: bool) -> None:
    """What a command would change: table (or file) → dates or partitions."""
    if as_json:
        print_json({"step": step, "dry_run": True, "would_change": dict(tables)})
        return
    for table, parts in tables.items():
        print(f"{step} would change {table}: {', '.join(parts) or 'all of it'}")


def print_report(report: Mapping[str, Any], *, as_json: bool) -> None:
    """A step's report (``StepRun.to_json()``): JSON, or a table for people."""
    if as_json:
        print_json(report)
        return
    console = Console()
    title = " ".join(str(part) for part in (report["step"], report.get("date")) if part)
    table = RichTable(title=f"{title}  ({report['seconds']:.1f} s)", title_justify="left")
    table.add_column("table")
    for heading in ("rows in", "rows out", "quarantined"):
        table.add_column(heading, justify="right")
    table.add_column("dropped")
    for name, counts in report["tables"].items():
        dropped = ", ".join(f"{reason} {number:,}" for reason, number in counts["rows_dropped"].items() if number)
        table.add_row(name, f"{counts['rows_in']:,}", f"{counts['rows_out']:,}", f"{counts['rows_quarantined']:,}", dropped)
    console.print(table)
    for name, value in report.items():
        if name not in ("step", "date", "seconds", "tables"):
            _print_value(console, name, value)


def _print_value(console: Console, name: str, value: Any, indent: str = "") -> None:
    """One line; of a mapping, one more for each of its entries, indented."""
    nested = isinstance(value, Mapping) and len(value) > 0
    console.print(Text.assemble(indent, (name, "bold"), ":" if nested else f": {value}"), highlight=False)
    if nested:
        for key, one in value.items():
            _print_value(console, str(key), one, f"{indent}  ")
