"""How ``onerec codebook`` shows what it found to people: rich tables with bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

_BAR = 12
_WIDTH_OF_A_FILE = 140


def show_versions(rows: list[dict[str, Any]]) -> None:
    """``list`` for people."""
    table = _table("codebooks", "version", "published (UTC)", "sizes", "items", "utilization", "entropy ÷ ln k", "sharing", "")
    for row in rows:
        table.add_row(
            row["version"],
            row["published"].replace("+00:00", "").replace("T", " "),
            "·".join(map(str, row["sizes"] or [])),
            "–" if row["items"] is None else f"{row['items']:,}",
            " ".join(f"{value:.3f}" for value in row["utilization"]) or "–",
            " ".join(f"{value:.3f}" for value in row["entropy_ratio"]) or "–",
            "–" if row["collision_share"] is None else f"{row['collision_share']:.1%}",
            "latest" if row["latest"] else "",
        )
    _console().print(table)


def show_inspection(found: Mapping[str, Any]) -> None:
    """``inspect`` for people."""
    console, metrics = _console(), found["metrics"]
    origin = "its item tokens" if found["source"] == "item_tokens" else "training"
    mark = " (latest)" if found["latest"] else ""
    console.print(
        f"[bold]codebook {found['version']}[/bold]{mark}: {metrics['items']:,} items, metrics of {origin}", highlight=False
    )
    layers = _table(
        "layers", "layer", "tokens", "utilization", "entropy ÷ ln k", "entropy", "perplexity", "Gini", "dead", "fullest"
    )
    for number, layer in enumerate(metrics["layers"], start=1):
        layers.add_row(
            str(number),
            f"{layer['size']:,}",
            _bar(layer["utilization"]),
            _bar(layer["entropy_ratio"]),
            f"{layer['entropy']:.3f}",
            f"{layer['perplexity']:.1f}",
            f"{layer['gini']:.3f}",
            f"{layer['dead_tokens']:,}",
            f"{layer['size_quantiles']['1']:,.0f}",
        )
    console.print(layers)
    extra = {"reconstruction_error": "error ÷ variance", "nmi": "category NMI", "behaviour_hit_rate": "co-watched inside"}
    shown = {name: label for name, label in extra.items() if any(row.get(name) is not None for row in metrics["prefixes"])}
    prefixes = _table("prefixes", "depth", "distinct", "items that share it", "fullest", *shown.values())
    for row in metrics["prefixes"]:
        values = ["–" if row.get(name) is None else f"{row[name]:.4f}" for name in shown]
        prefixes.add_row(
            str(row["depth"]), f"{row['distinct']:,}", _bar(row["collision_share"]), f"{row['largest_bucket']:,}", *values
        )
    console.print(prefixes)
    buckets = _table("codes by how many items have them", "items", "codes", "share of items")
    for row in metrics["bucket_histogram"]:
        if row["codes"]:
            span = f"{row['from']}+" if row["to"] is None else "–".join(str(n) for n in sorted({row["from"], row["to"]}))
            buckets.add_row(span, f"{row['codes']:,}", _bar(row["items"] / max(1, metrics["items"])))
    console.print(buckets)
    failed = sum(not check["passed"] for check in found["gate"]["checks"])
    console.print("gate: [green]passed[/green]" if not failed else f"gate: [red]{failed} of its checks failed[/red]")


def show_item(found: Mapping[str, Any]) -> None:
    """``item`` for people."""
    console = _console()
    console.print(f"[bold]{escape(found['item_id'])}[/bold] {escape(found['title'] or '')}")
    console.print(
        f"tokens {_code(found['tokens'])}, rank {found['rank']}, residual norm {found['residual_norm']:.4f}", highlight=False
    )
    counts = ", ".join(f"{count:,} at depth {depth}" for depth, count in enumerate(found["same_prefix"], start=1))
    console.print(f"items that share its prefix: {counts}")
    _show_items("siblings", found["siblings"])


def show_prefix(found: Mapping[str, Any]) -> None:
    """``prefix`` for people."""
    console = _console()
    console.print(f"[bold]{_code(found['prefix'])}[/bold]: {found['items']:,} items ({found['share']:.2%})")
    mix = _table("categories", "category", "items", "share")
    for row in found["categories"]:
        mix.add_row(escape(row["category"]), f"{row['items']:,}", _bar(row["share"]))
    console.print(mix)
    _show_items("items, the best described first", found["examples"])


def show_search(found: Mapping[str, Any]) -> None:
    """``search`` for people."""
    _show_items(f"{found['items']:,} items contain {found['text']!r}", found["found"])


def show_diff(found: Mapping[str, Any]) -> None:
    """``diff`` for people."""
    console = _console()
    if found["centroids"] is None:
        console.print("the two codebooks quantise vectors of different dimension")
    else:
        moved = _table("centroids of the same number", "layer", "sizes", "equal", "shift ÷ norm")
        for row in found["centroids"]:
            equal = f"{row['equal_centroids']:.1%}" if "equal_centroids" in row else "–"
            shift = row.get("relative_shift")
            moved.add_row(str(row["layer"]), " → ".join(map(str, row["sizes"])), equal, "–" if shift is None else f"{shift:.4f}")
        console.print(moved)
    changes = found["churn"]
    if changes is None:
        console.print("no churn of items: that needs --lake and item tokens of both versions")
        return
    table = _table(f"churn of {changes['items']:,} common items", "layer", "token changed", "prefix changed")
    for layer, (token, prefix) in enumerate(zip(changes["layers"], changes["prefixes"], strict=True), start=1):
        table.add_row(str(layer), _bar(token), _bar(prefix))
    console.print(table)
    console.print(f"only before: {changes['only_before']:,} items; only after: {changes['only_after']:,}")


def _show_items(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = _table(title, "item", "tokens", "title", "category", "tags")
    for row in rows:
        name = escape(row["title"] or "–") + (" [dim](deleted)[/dim]" if row["deleted"] else "")
        tokens = "none" if row["tokens"] is None else _code(row["tokens"])
        table.add_row(escape(row["item_id"]), tokens, name, escape(row["category"] or "–"), escape(", ".join(row["tags"] or [])))
    _console().print(table)


def _table(title: str, *columns: str) -> RichTable:
    table = RichTable(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=column not in ("title", "tags"))
    return table


def _console() -> Console:
    """Standard output; a pipe or file is given room instead of rich's 80 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_A_FILE)


def _bar(share: float) -> str:
    return f"{share:6.3f} " + "█" * round(share * _BAR)


def _code(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))
