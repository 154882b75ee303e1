"""``onerec ingest|samples|pathways|backfill``: from landing zone to samples and pathways."""

from typing import Annotated

import typer

from onerec.commands.common import (
    DateOption,
    DryRunOption,
    JsonOption,
    LakeOption,
    MasterOption,
    SetOption,
    print_dry_run,
    print_report,
    progress,
)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("ingest")(ingest)
    app.command("samples")(samples)
    app.command("pathways")(pathways)
    app.command("backfill")(backfill)


def ingest(
    lake: LakeOption,
    landing: Annotated[str, typer.Option("--landing", help="The landing zone (a folder or URI; docs/landing-zone.md).")],
    date: DateOption,
    config: Annotated[str | None, typer.Option("--config", help="Settings of a new lake (YAML).")] = None,
    set_: SetOption = None,
    master: MasterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take a landing day's files into the lake; creates the lake if there is none."""
    from feature_jobs.ingest import job, settings
    from feature_jobs.ingest.landing import LANDED_TABLES, open_landing
    from feature_jobs.session import spark_session
    from schemas.lake import is_lake, parse_date

    day = parse_date(date)
    zone = open_landing(landing)
    files = {table.name: [file.name for file in zone.files(table, day)] for table in LANDED_TABLES}
    if dry_run:
        if is_lake(lake):
            settings.check_existing(lake, config, set_, zone.day_timezone)
        else:
            settings.new_config(config, set_, zone.day_timezone)
        changes = {"events": [f"landing_date={date}"], "quarantine": [f"date={date}"]}
        changes |= {name: files[name] for name in ("items", "users") if files[name]}
        print_dry_run("ingest", changes, as_json=as_json)
        return
    opened = settings.open_or_create(lake, config, set_, zone.day_timezone)
    report = job.run(spark_session(master), opened, zone, day).to_json()
    for told in ("redelivered", "orphaned"):
        if told in report:
            progress(report[told]["warning"])
    print_report(report, as_json=as_json)


def samples(
    lake: LakeOption,
    date: DateOption,
    set_: SetOption = None,
    master: MasterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a day's events into deduplicated, labelled samples, behind quality gates."""
    from feature_jobs.samples import run_samples
    from feature_jobs.session import spark_session
    from schemas.lake import open_lake, parse_date

    opened, day = open_lake(lake, set_), parse_date(date)
    if dry_run:
        print_dry_run("samples", {"daily_samples": [f"date={date}"]}, as_json=as_json)
        return
    print_report(run_samples(spark_session(master), opened, day), as_json=as_json)


def pathways(
    lake: LakeOption,
    date: DateOption,
    set_: SetOption = None,
    master: MasterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what was known of each active user when a day began, and every user's state at its end."""
    from feature_jobs.pathways import WRITTEN, run_pathways
    from feature_jobs.session import spark_session
    from schemas.lake import open_lake, parse_date

    opened, day = open_lake(lake, set_), parse_date(date)
    if dry_run:
        print_dry_run("pathways", {table.name: [f"date={date}"] for table in WRITTEN}, as_json=as_json)
        return
    print_report(run_pathways(spark_session(master), opened, day), as_json=as_json)


def backfill(
    lake: LakeOption,
    first: Annotated[str, typer.Option("--from", help="First day to rebuild, YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", help="Last day to rebuild, YYYY-MM-DD.")],
    set_: SetOption = None,
    master: MasterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild samples, pathways and state of some days with every landing there is, and mark what depends on them."""
    from feature_jobs.backfill import backfill_dates, run_backfill, what_depends
    from feature_jobs.pathways import WRITTEN
    from feature_jobs.session import spark_session
    from schemas.lake import open_lake, parse_date

    opened, start, end = open_lake(lake, set_), parse_date(first, "--from"), parse_date(last, "--to")
    if dry_run:
        dates = [f"date={day}" for day in backfill_dates(opened, start, end)]
        stale = [f"{step} of {day}" for day, steps in what_depends(opened, start, end).items() for step in steps]
        changes = {"daily_samples": dates} | {table.name: dates for table in WRITTEN}
        print_dry_run("backfill", changes | ({"stale.json": stale} if stale else {}), as_json=as_json)
        return
    backfill_dates(opened, start, end)  # what is wrong with the dates is said before an engine starts
    report = run_backfill(spark_session(master), opened, start, end)
    if not as_json:
        report.pop("days")
    print_report(report, as_json=as_json)
