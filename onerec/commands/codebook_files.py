"""The files that ``onerec codebook report`` and ``export`` write, each replaced atomically."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as papq

from onerec.commands.codebook_source import Source
from onerec.commands.codebook_views import full_metrics
from tokenization.inspection import category_mix, codebook_figures, prefix_examples
from tokenization.inspection_report import report_page, thumbnail
from tokenization.inspection_tables import TokenisedItems, facts_by_item

_SHOWN = 8


def tokens_to_write(source: Source, version: str | None, command: str) -> TokenisedItems:
    """The item tokens of a version. Raises BadInput for a registry alone, or a version without any."""
    return source.tokens(version, command)


def write_report(source: Source, tokens: TokenisedItems, out: Path) -> dict[str, Any]:
    """Write the page of a version; returns where, how large and what it shows."""
    lake, artefact = source.need_lake("report"), source.artefact(tokens.version)
    sizes = artefact.metadata["sizes"]
    metrics = full_metrics(lake, tokens, sizes)
    trained = artefact.metadata.get("metrics") or {}
    for row, at_training in zip(metrics["prefixes"], trained.get("prefixes", []), strict=False):
        row.setdefault("reconstruction_error", at_training.get("reconstruction_error"))
    metrics.setdefault("reconstruction_error", trained.get("reconstruction_error"))
    groups = [_group(source, tokens, depth) for depth in range(1, min(2, len(sizes)) + 1)]
    facts = {
        name: str(artefact.metadata[name])
        for name in ("fusion_version", "encoders", "dim")
        if isinstance(artefact.metadata.get(name), (str, int, list, dict))
    }
    page = report_page(tokens.version, metrics, codebook_figures(tokens.codes, sizes, metrics), groups, facts)
    _replace(out, lambda path: path.write_text(page, encoding="utf-8"))
    return {"out": str(out), "version": tokens.version, "items": len(tokens), "bytes": out.stat().st_size}


def _group(source: Source, tokens: TokenisedItems, depth: int) -> dict[str, Any]:
    """The fullest prefixes of a depth with pictures, titles and categories of their items."""
    ids = tokens.item_ids.to_pylist()
    examples = prefix_examples(tokens.codes, ids, depth=depth, prefixes=8, items=_SHOWN, order=tokens.residual_norms)
    lake = source.need_lake("report")
    facts = facts_by_item(lake, pa.array([item for example in examples for item in example["item_ids"]], pa.string()))
    for example in examples:
        shown = [facts.get(item, {}) for item in example["item_ids"]]
        mix = category_mix([row.get("category") for row in shown], most=3)
        example["mix"] = "of those shown: " + ", ".join(f"{row['category']} {row['share']:.0%}" for row in mix)
        example["shown"] = [
            {"item_id": item, "title": row.get("title") or "", "picture": thumbnail(row.get("cover_uri"))}
            for item, row in zip(example["item_ids"], shown, strict=True)
        ]
    names = {1: "Fullest first tokens", 2: "Fullest pairs of tokens"}
    return {"title": names[depth], "examples": examples}


def write_export(tokens: TokenisedItems, out: Path) -> dict[str, Any]:
    """Write item → tokens in the format that the file's name ends in."""
    _replace(out, lambda path: WRITERS[out.suffix.lower()](tokens, path))
    return {"out": str(out), "version": tokens.version, "items": len(tokens), "bytes": out.stat().st_size}


def _columns(tokens: TokenisedItems) -> pa.Table:
    """item_id, token_1, token_2, …, rank, residual_norm, codebook_version."""
    layers = {f"token_{layer + 1}": pa.array(tokens.codes[:, layer]) for layer in range(tokens.codes.shape[1])}
    return pa.table(
        {
            "item_id": tokens.item_ids,
            **layers,
            "rank": pa.array(tokens.ranks),
            "residual_norm": pa.array(tokens.residual_norms),
            "codebook_version": pa.array([tokens.version] * len(tokens), pa.string()),
        }
    )


def _write_csv(tokens: TokenisedItems, path: Path) -> None:
    pacsv.write_csv(_columns(tokens), path)


def _write_parquet(tokens: TokenisedItems, path: Path) -> None:
    papq.write_table(_columns(tokens), path, compression="zstd")


def _write_json(tokens: TokenisedItems, path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump(dict(zip(tokens.item_ids.to_pylist(), tokens.codes.tolist(), strict=True)), stream)


WRITERS: dict[str, Callable[[TokenisedItems, Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".json": _write_json,
}


def _replace(out: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the target, then rename over it."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
