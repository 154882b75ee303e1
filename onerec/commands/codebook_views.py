"""What ``onerec codebook`` finds, as plain JSON-able values."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from onerec.commands.codebook_source import Source, metrics_at_training
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Artefact
from tokenization.codebook import FILE, KIND, load_codebook
from tokenization.inspection import category_mix, centroid_shift, churn, gate_checks
from tokenization.inspection_tables import (
    TokenisedItems,
    categories_of,
    co_watched_rows,
    count_tokens,
    facts_by_item,
    newest_items,
    read_codes,
    read_tokens,
    search_items,
)
from tokenization.metrics import codebook_metrics


def versions(source: Source) -> list[dict[str, Any]]:
    """Every version, oldest first."""
    latest = source.registry.latest(KIND)
    return [_version_row(source, version, version == latest) for version in source.registry.versions(KIND)]


def _version_row(source: Source, version: str, is_latest: bool) -> dict[str, Any]:
    artefact = source.artefact(version)
    metrics = metrics_at_training(artefact) or {}
    published = (artefact.folder / f"{KIND}.json").stat().st_mtime
    layers = metrics.get("layers", [])
    return {
        "version": version,
        "latest": is_latest,
        "published": dt.datetime.fromtimestamp(published, dt.UTC).isoformat(timespec="seconds"),
        "sizes": artefact.metadata.get("sizes"),
        "dim": artefact.metadata.get("dim"),
        "utilization": [layer["utilization"] for layer in layers],
        "entropy_ratio": [layer["entropy_ratio"] for layer in layers],
        "collision_share": metrics.get("collision_share"),
        "reconstruction_error": metrics.get("reconstruction_error"),
        "items": count_tokens(source.lake, version) if source.lake else None,
    }


def inspection(source: Source, version: str | None, *, full: bool) -> dict[str, Any]:
    """A version's metrics and its gate. Raises BadInput for a damaged one, or with neither tokens nor metrics of training."""
    artefact = source.artefact(version)
    artefact.file(FILE)  # a gate must not pass a codebook that cannot be read
    metrics = tokens_metrics(source, artefact, full=full)
    origin = "item_tokens"
    if metrics is None:
        trained = metrics_at_training(artefact)
        if trained is None:
            raise BadInput(f"codebook {artefact.version}: no item tokens and no metrics of training; run `onerec tokenize` first")
        metrics, origin = trained, "training"
    bounds = source.config.codebook
    checks = gate_checks(metrics, bounds.min_utilization, bounds.min_entropy_ratio)
    return {
        "version": artefact.version,
        "latest": artefact.version == source.registry.latest(KIND),
        "source": origin,
        "metrics": metrics,
        "gate": {"passed": all(check["passed"] for check in checks), "checks": checks},
        "metadata": {name: value for name, value in artefact.metadata.items() if name != "metrics"},
    }


def tokens_metrics(source: Source, artefact: Artefact, *, full: bool) -> dict[str, Any] | None:
    """Metrics of a version's item tokens, or None where there are none; ``full`` adds categories and co-watched pairs.

    They speak of the codebook's layers: a suffix (``codebook.collisions``) is no token of it and is left out.
    """
    lake = source.need_lake("inspect --full") if full else source.lake
    if lake is None:
        return None
    if full:
        tokens = read_tokens(lake, artefact.version)
        return full_metrics(lake, tokens, artefact.metadata["sizes"]) if len(tokens) else None
    codes = read_codes(lake, artefact.version)
    sizes = artefact.metadata["sizes"]
    return codebook_metrics(codes[:, : len(sizes)], sizes) if len(codes) else None


def full_metrics(lake: Lake, tokens: TokenisedItems, sizes: Sequence[int]) -> dict[str, Any]:
    """Metrics of item tokens with what categories and co-watched pairs say of their prefixes."""
    codes = tokens.codes[:, : len(sizes)]
    return codebook_metrics(codes, sizes, labels=categories_of(lake, tokens), pairs=co_watched_rows(lake, tokens))


def item_view(source: Source, version: str | None, item_id: str, limit: int) -> dict[str, Any]:
    """An item and its siblings. Raises BadInput for an item without tokens."""
    tokens = source.tokens(version, "item")
    row = tokens.row_of(item_id)
    if row is None:
        raise BadInput(f"item {item_id!r}: has no tokens of codebook {tokens.version}; try `onerec codebook search`")
    equal = np.logical_and.accumulate(tokens.codes == tokens.codes[row], axis=1).sum(axis=1)
    others = np.flatnonzero((equal > 0) & (np.arange(len(tokens)) != row))
    nearest = others[np.argsort(-equal[others], kind="stable")][:limit]
    return {
        "version": tokens.version,
        **_described(source, tokens.take(np.array([row])))[0],
        "same_prefix": [int((equal >= depth).sum()) - 1 for depth in range(1, tokens.codes.shape[1] + 1)],
        "siblings": [
            {**described, "shared_tokens": int(equal[position])}
            for described, position in zip(_described(source, tokens.take(nearest)), nearest, strict=True)
        ],
    }


def prefix_view(source: Source, version: str | None, prefix: list[int], limit: int) -> dict[str, Any]:
    """The items below a prefix, the best described first. Raises BadInput for a token outside its layer."""
    tokens = source.tokens(version, "prefix")
    sizes = source.artefact(tokens.version).metadata["sizes"]
    for layer, (token, size) in enumerate(zip(prefix, sizes, strict=False), start=1):
        if token >= size:
            raise BadInput(f"prefix {' '.join(map(str, prefix))}: token {token} is not below {size}, the size of layer {layer}")
    below = tokens.with_prefix(prefix)
    lake = source.need_lake("prefix")
    return {
        "version": tokens.version,
        "prefix": prefix,
        "items": len(below),
        "share": len(below) / len(tokens),
        "categories": category_mix(categories_of(lake, below).tolist()) if len(below) else [],
        "examples": _described(source, below.take(np.argsort(below.residual_norms, kind="stable")[:limit])),
    }


def search_view(source: Source, version: str | None, text: str, limit: int) -> dict[str, Any]:
    """Items that contain a text, with their tokens (None for one without), by item id."""
    if not text.strip():
        raise BadInput("search: the text is empty; give a word of a title, caption or tag")
    lake = source.need_lake("search")
    tokens = source.tokens(version, "search")
    hits = search_items(newest_items(lake), text)
    shown = hits.slice(0, limit)
    rows = pc.index_in(shown["item_id"].combine_chunks(), tokens.item_ids).to_pylist()
    found = [
        {**_facts(fact, fact["item_id"]), "tokens": None if row is None else tokens.codes[row].tolist()}
        for fact, row in zip(shown.to_pylist(), rows, strict=True)
    ]
    return {"version": tokens.version, "text": text, "items": hits.num_rows, "found": found}


def diff_view(source: Source, before: str, after: str) -> dict[str, Any]:
    """Centroids' movement, and in a lake the churn of common items (None where a version has no item tokens)."""
    old, new = load_codebook(source.registry, before), load_codebook(source.registry, after)
    found: dict[str, Any] = {
        "before": before,
        "after": after,
        "centroids": centroid_shift(old.codebooks, new.codebooks) if old.dim == new.dim else None,
        "churn": None,
    }
    if source.lake is not None:
        sides = [read_tokens(source.lake, version) for version in (before, after)]
        if all(len(side) for side in sides) and sides[0].codes.shape[1] == sides[1].codes.shape[1]:
            rows = pc.index_in(sides[0].item_ids, sides[1].item_ids)
            common = pc.is_valid(rows).to_numpy(zero_copy_only=False)
            matched = rows.drop_null().to_numpy()
            found["churn"] = {
                **churn(sides[0].codes[common], sides[1].codes[matched]),
                "only_before": len(sides[0]) - len(matched),
                "only_after": len(sides[1]) - len(matched),
            }
    return found


def _described(source: Source, tokens: TokenisedItems) -> list[dict[str, Any]]:
    """Items with their tokens and what the catalogue says of them."""
    facts = facts_by_item(source.need_lake("item"), tokens.item_ids) if len(tokens) else {}
    return [
        {
            **_facts(facts.get(item_id, {}), item_id),
            "tokens": code,
            "rank": rank,
            "residual_norm": norm,
        }
        for item_id, code, rank, norm in zip(
            tokens.item_ids.to_pylist(),
            tokens.codes.tolist(),
            tokens.ranks.tolist(),
            tokens.residual_norms.astype(float).tolist(),
            strict=True,
        )
    ]


def _facts(row: Mapping[str, Any], item_id: str) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "title": row.get("title"),
        "category": row.get("category"),
        "tags": row.get("tags"),
        "deleted": row.get("deleted"),
    }
