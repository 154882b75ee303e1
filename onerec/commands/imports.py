"""``onerec import``: public logs into a landing zone."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from onerec.commands.common import DryRunOption, JsonOption, print_dry_run, print_json


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("import")(import_log)


def import_log(
    source_name: Annotated[Literal["kuairand", "amazon", "movielens"], typer.Argument(help="Which data set it is.")],
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with the files as they were published.")],
    out: Annotated[Path, typer.Option("--out", help="Landing zone to write (a new folder, or an earlier import).")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a public log into a landing zone; quirks that are mended are counted in the report."""
    import time

    from onerec.importers import amazon, kuairand, movielens
    from onerec.importers.landing_writer import check_target, row_accounting

    importer = {"kuairand": kuairand, "amazon": amazon, "movielens": movielens}[source_name]
    if dry_run:
        files = importer.find_files(src)
        check_target(out, source_name)
        read = ", ".join(path.name for paths in files.values() for path in paths)
        print_dry_run("import", {str(out): [f"a landing zone made of {read}"]}, as_json=as_json)
        return
    started = time.perf_counter()
    report = importer.run(src, out)
    seconds = round(time.perf_counter() - started, 3)
    result = {"step": "import", "date": None, "seconds": seconds, "tables": row_accounting(out, report["rows"])}
    result |= {"source": source_name, "report": report}
    if as_json:
        print_json(result)
        return
    print(f"{source_name} → {out} ({result['seconds']:.1f} s)")
    for name, value in report.items():
        shown = f"{len(value)} ({min(value)} … {max(value)})" if isinstance(value, dict) else value
        print(f"  {name.replace('_', ' ')}: {shown}")
