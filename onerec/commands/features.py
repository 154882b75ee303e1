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
)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("ingest")(ingest)


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
    from schemas.lake import parse_date

    day = parse_date(date)
    zone = open_landing(landing)
    files = {table.name: [file.name for file in zone.files(table, day)] for table in LANDED_TABLES}
    if dry_run:
        if settings.lake_exists(lake):
            settings.check_existing(lake, config, set_, zone.day_timezone)
        else:
            settings.new_config(config, set_, zone.day_timezone)
        changes = {"events": [f"landing_date={date}"], "quarantine": [f"date={date}"]}
        changes |= {name: files[name] for name in ("items", "users") if files[name]}
        print_dry_run("ingest", changes, as_json=as_json)
        return
    opened = settings.open_or_create(lake, config, set_, zone.day_timezone)
    print_report(job.run(spark_session(master), opened, zone, day).to_json(), as_json=as_json)
