"""``onerec co-interaction|lifelong|shards|forget``: what Spark derives from samples and histories."""

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from schemas.lake import Lake


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("co-interaction")(co_interaction)
    app.command("lifelong")(lifelong)
    app.command("shards")(shards)
    app.command("forget")(forget)


def co_interaction(
    lake: LakeOption,
    date: DateOption,
    master: MasterOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score which items people engage with together, over the window of days that ends on the date."""
    from feature_jobs import co_interaction as job
    from feature_jobs.session import spark_session
    from schemas.lake import open_lake, parse_date

    opened, day = open_lake(lake, set_), parse_date(date)
    if dry_run:
        print_dry_run("co-interaction", {"co_interaction": [date]}, as_json=as_json)
        return
    print_report(job.run(spark_session(master), opened, day).to_json(), as_json=as_json)


def lifelong(
    lake: LakeOption,
    date: DateOption,
    master: MasterOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress the histories of the buckets whose turn it is to at most lifelong.max_representatives behaviours a user."""
    from feature_jobs import lifelong as job
    from feature_jobs.session import spark_session
    from schemas.lake import open_lake, parse_date

    opened, day = open_lake(lake, set_), parse_date(date)
    if dry_run:
        every = not job.refreshed_before(opened, day, job.published_fusion(opened))
        settings = opened.config
        buckets = job.buckets_to_refresh(day, settings.lake.user_buckets, settings.lifelong.rotation, every=every)
        parts = [f"{date}, bucket {bucket}" for bucket in buckets] or ["nothing: no bucket has its turn"]
        print_dry_run("lifelong", {"pathway_lifelong": parts, "history": parts}, as_json=as_json)
        return
    print_report(job.run(spark_session(master), opened, day).to_json(), as_json=as_json)


def shards(
    lake: LakeOption,
    date: DateOption,
    targets: Annotated[Literal["all", "rsft"], typer.Option("--targets", help="Also write this target mask.")] = "all",
    retokenise: Annotated[bool, typer.Option("--retokenise", help="Only give the shard the published tokens.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only check every file that the day's manifests name.")] = False,
    catch_up: Annotated[
        int,
        typer.Option(
            "--catch-up",
            min=0,
            help="Also build missing shards (or masks) of so many days before; earlier shards get the published tokens.",
        ),
    ] = 0,
    master: MasterOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a day's token shards for the trainer (docs/shards.md)."""
    from feature_jobs import rsft
    from feature_jobs import shards as job
    from feature_jobs.session import spark_session
    from feature_jobs.shard_files import MANIFEST, day_folder, shards_root
    from schemas.errors import BadInput
    from schemas.lake import open_lake, parse_date

    if sum([retokenise, verify, targets == "rsft"]) > 1 or (catch_up and (retokenise or verify)):
        raise BadInput("--retokenise, --verify and --targets rsft exclude one another; --catch-up goes with building only")
    opened, day = open_lake(lake, set_), parse_date(date)
    if verify:
        clock = time.perf_counter()
        checked = {"files_verified": job.verify(opened, day)}
        seconds = round(time.perf_counter() - clock, 3)
        print_report({"step": "shards", "date": date, "seconds": seconds, "tables": {}} | checked, as_json=as_json)
        return
    missing = [each for each in job.days_to_catch_up(opened, day, catch_up) if _is_finished(opened, each)]
    unmasked = rsft.days_to_catch_up(opened, day, catch_up) if targets == "rsft" else []
    outdated = job.days_of_other_tokens(opened, day) if catch_up and targets == "all" else []
    present = (day_folder(shards_root(opened), date) / MANIFEST).is_file()
    if dry_run:
        days = sorted({*missing, *unmasked, *outdated, day})
        changes = {f"shards/date={each.isoformat()}": [each.isoformat()] for each in days}
        print_dry_run("shards", changes, as_json=as_json)
        return
    spark = spark_session(master)
    caught_up = []
    for each in missing:
        progress(f"shards: {each}, missing so far")
        caught_up.append(job.run(spark, opened, each).to_json())
    if outdated:
        progress(f"shards: {outdated[0]} … {outdated[-1]}, {len(outdated)} days with tokens of another codebook")
        caught_up += [each.to_json() for each in job.retokenise(spark, opened, outdated)]
    if retokenise:
        report = job.retokenise(spark, opened, [day])[0].to_json()
    elif targets == "rsft":
        for each in sorted({*missing, *unmasked}):
            progress(f"shards: mask of {each}, missing so far")
            caught_up.append(rsft.run(spark, opened, each).to_json())
        if not present:
            job.run(spark, opened, day)
        report = rsft.run(spark, opened, day).to_json()
    else:
        report = job.run(spark, opened, day).to_json()
    if catch_up:
        report |= {"caught_up": caught_up if as_json else ", ".join(each["date"] for each in caught_up) or "none"}
    print_report(report, as_json=as_json)


def _is_finished(lake: "Lake", date: dt.date) -> bool:
    """Whether no backfill is rebuilding a date; says so where one is."""
    from feature_jobs.stale import check_finished
    from schemas.errors import BadInput

    try:
        check_finished(lake, date)
    except BadInput as error:
        progress(f"shards: {date} is left out: {error}")
        return False
    return True


def forget(
    lake: LakeOption,
    users: Annotated[Path, typer.Option("--users", help="Text file, one user id a line.")],
    master: MasterOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove people from every table, shard and quarantine row, keep them out, prove it. Nothing else should write meanwhile."""
    from feature_jobs import forget as job
    from schemas.lake import open_lake

    opened, user_ids = open_lake(lake, set_), job.read_users(users)
    spark = None
    if master or job.bytes_to_search(opened) > job.SPARK_FROM_BYTES:
        from feature_jobs.session import spark_session

        spark = spark_session(master)
    if dry_run:
        changes = {name: [f"{count} rows"] for name, count in job.rows_to_forget(opened, user_ids, spark).items()}
        print_dry_run("forget", changes, as_json=as_json)
        return
    report = job.run(opened, user_ids, spark).to_json()
    proof = None if as_json else report.pop("proof")
    print_report(report, as_json=as_json)
    if proof:
        _print_proof(len(user_ids), proof)


def _print_proof(users: int, proof: dict[str, dict[str, int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table("searched", title=f"proof: {users:,} users looked for in every file", title_justify="left")
    for heading in ("live files", "other files", "values", "in the log", "found"):
        view.add_column(heading, justify="right")
    for name, counts in proof.items():
        others, log = (str(counts.get(key, "")) for key in ("other_files", "log_mentions"))
        view.add_row(name, f"{counts['files']:,}", others, f"{counts['values']:,}", log, f"[green]{counts['found']}[/]")
    Console().print(view)
