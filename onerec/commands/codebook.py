"""``onerec codebook list|inspect|item|prefix|search|diff|report|export``: look into codebooks. NumPy and Arrow only."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onerec.commands.common import DryRunOption, JsonOption, SetOption, print_dry_run, print_json, progress
from schemas.errors import BadInput, GateFailed

if TYPE_CHECKING:
    from onerec.commands.codebook_source import Source

app = typer.Typer(no_args_is_help=True)

LakeChoice = Annotated[str | None, typer.Option("--lake", envvar="ONEREC_LAKE", help="Root of the lake (a folder or URI).")]
RegistryChoice = Annotated[
    str | None, typer.Option("--registry", help="A registry's folder instead of a lake: artefacts only, no items.")
]
VersionOption = Annotated[str | None, typer.Option("--version", help="Codebook version; the latest unless told.")]
GateOption = Annotated[
    bool, typer.Option("--gate", help="Exit 3 if a layer is below codebook.min_utilization or codebook.min_entropy_ratio.")
]
FullOption = Annotated[bool, typer.Option("--full", help="Also how well prefixes agree with categories and co-watched pairs.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="Most items to show.")]


def _source(lake: str | None, registry: str | None, set_: list[str] | None = None) -> "Source":
    from onerec.commands.codebook_source import open_source

    return open_source(lake, registry, set_)


@app.command("list")
def list_(lake: LakeChoice = None, registry: RegistryChoice = None, as_json: JsonOption = False) -> None:
    """Versions with sizes, figures and dates, oldest first."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    rows = views.versions(_source(lake, registry))
    print_json({"codebooks": rows}) if as_json else display.show_versions(rows)


@app.command()
def inspect(
    version: Annotated[str | None, typer.Argument(help="Codebook version; the latest unless told.")] = None,
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit 3 if a layer is below codebook.min_utilization or _entropy_ratio.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also how much categories and co-watched pairs agree with prefixes.")
    ] = False,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """One version's metrics: of its item tokens where there are some, else those taken at training."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    source = _source(lake, registry, set_)
    found = views.inspection(source, version, full=full)
    print_json(found) if as_json else display.show_inspection(found)
    failed = [check for check in found["gate"]["checks"] if not check["passed"]]
    if gate and failed:
        worst = ", ".join(f"layer {one['layer']} {one['metric']} {one['value']:.4f} < {one['minimum']:g}" for one in failed)
        raise GateFailed(f"codebook {found['version']}: {worst}; train with other codebook.sizes, or lower codebook.min_*")


@app.command()
def item(
    item_id: Annotated[str, typer.Argument(help="The item.")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    version: VersionOption = None,
    limit: LimitOption = 10,
    as_json: JsonOption = False,
) -> None:
    """An item's tokens, title and siblings (the items nearest to it in the code's tree)."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    found = views.item_view(_source(lake, registry), version, item_id, limit)
    print_json(found) if as_json else display.show_item(found)


@app.command()
def prefix(
    tokens: Annotated[list[int], typer.Argument(min=0, help="One token or more: 12 34 56.")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    version: VersionOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """The items below a prefix, with titles and the mix of categories."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    found = views.prefix_view(_source(lake, registry), version, tokens, limit)
    print_json(found) if as_json else display.show_prefix(found)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="Text to find, in any case.")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    version: VersionOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Items whose title, caption or a tag contains a text, with their tokens."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    found = views.search_view(_source(lake, registry), version, text, limit)
    print_json(found) if as_json else display.show_search(found)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="The older version.")],
    after: Annotated[str, typer.Argument(help="The newer version.")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Churn between two versions: how centroids moved and, in a lake, how many common items changed their tokens."""
    from onerec.commands import codebook_display as display
    from onerec.commands import codebook_views as views

    found = views.diff_view(_source(lake, registry), before, after)
    print_json(found) if as_json else display.show_diff(found)


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    version: VersionOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """A self-contained page: metrics, pictures, example items with thumbnails by prefix."""
    from onerec.commands import codebook_files as files

    tokens = files.tokens_to_write(_source(lake, registry), version, "report")
    _check_target(out, (".html", ".htm"))
    if dry_run:
        print_dry_run("codebook report", {str(out): [tokens.version]}, as_json=as_json)
        return
    progress(f"codebook report: {len(tokens):,} items of {tokens.version}")
    done = files.write_report(_source(lake, registry), tokens, out)
    print_json(done) if as_json else print(f"{done['out']}: {done['bytes']:,} bytes")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="FILE.csv, FILE.parquet or FILE.json (item → tokens).")],
    lake: LakeChoice = None,
    registry: RegistryChoice = None,
    version: VersionOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write item → tokens to a file."""
    from onerec.commands import codebook_files as files

    tokens = files.tokens_to_write(_source(lake, registry), version, "export")
    _check_target(out, tuple(files.WRITERS))
    if dry_run:
        print_dry_run("codebook export", {str(out): [tokens.version]}, as_json=as_json)
        return
    done = files.write_export(tokens, out)
    print_json(done) if as_json else print(f"{done['out']}: {done['items']:,} items")


def _check_target(out: Path, endings: tuple[str, ...]) -> None:
    if out.suffix.lower() not in endings:
        raise BadInput(f"--out {out}: the name must end in {' or '.join(endings)}")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: {out.parent} is no folder; create it first")
    if out.is_dir():
        raise BadInput(f"--out {out}: is a folder; name a file")
