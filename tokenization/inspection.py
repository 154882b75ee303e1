"""Looks into a codebook: examples by prefix, churn between versions, the gate, figures for pages (used by the demo too)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.metrics import prefix_keys
from tokenization.vectors import BadVectors, FloatArray


def prefix_examples(
    codes: Any, item_ids: Sequence[str], *, depth: int = 1, prefixes: int = 12, items: int = 6, order: Any = None
) -> list[dict[str, Any]]:
    """The fullest prefixes of a depth with their first items: ``{"prefix", "items", "item_ids"}``, fullest first.

    ``codes`` (n, layers); ``order`` (n,), the residual norms say, decides which items come first (ties and default: item
    id). Equal counts fall to the smaller prefix.
    """
    array = np.asarray(codes)
    if not 1 <= depth <= array.shape[1]:
        raise BadVectors(f"depth {depth}: codes have {array.shape[1]} tokens")
    if not len(array):
        return []
    keys = prefix_keys(array)[depth - 1]
    found, first, counts = np.unique(keys, return_index=True, return_counts=True)
    ids = np.asarray(item_ids, dtype=object)
    weight = np.zeros(len(array)) if order is None else np.asarray(order)
    examples = []
    for position in np.lexsort((found, -counts))[:prefixes]:
        members = np.flatnonzero(keys == found[position])
        best = sorted(members, key=lambda row: (float(weight[row]), str(ids[row])))[:items]
        examples.append(
            {
                "prefix": [int(token) for token in array[first[position], :depth]],
                "items": int(counts[position]),
                "item_ids": [str(ids[row]) for row in best],
            }
        )
    return examples


def churn(before: Any, after: Any) -> dict[str, Any]:
    """How the codes of the same items differ between two versions: (n, layers) each, row by row.

    ``changed``: share whose whole code changed. ``layers``: share whose token changed, by layer. ``prefixes``: share
    whose prefix changed, by depth. Shares of no items are 0.
    """
    old, new = np.asarray(before), np.asarray(after)
    if old.shape != new.shape or old.ndim != 2:
        raise BadVectors(f"codes: found shapes {old.shape} and {new.shape}; needs the same items and layers")
    differs = old != new
    prefix = np.logical_or.accumulate(differs, axis=1)
    share = (lambda flags: float(flags.mean())) if len(old) else (lambda _: 0.0)
    return {
        "items": len(old),
        "changed": share(prefix[:, -1]),
        "layers": [share(differs[:, layer]) for layer in range(old.shape[1])],
        "prefixes": [share(prefix[:, layer]) for layer in range(old.shape[1])],
    }


def centroid_shift(before: Sequence[FloatArray], after: Sequence[FloatArray]) -> list[dict[str, Any]]:
    """By layer: sizes, and where they agree the share of equal centroids and their root mean square shift.

    The shift compares centroids of the same number and is relative to the older layer's root mean square norm.
    """
    report = []
    for layer, (old, new) in enumerate(zip(before, after, strict=False), start=1):
        entry: dict[str, Any] = {"layer": layer, "sizes": [len(old), len(new)]}
        if old.shape == new.shape:
            norm = float(np.sqrt((old.astype(np.float64) ** 2).sum(axis=1).mean()))
            shift = float(np.sqrt(((old.astype(np.float64) - new) ** 2).sum(axis=1).mean()))
            entry["equal_centroids"] = float((old == new).all(axis=1).mean())
            entry["relative_shift"] = shift / norm if norm else None
        report.append(entry)
    return report


def category_mix(labels: Sequence[str | None], most: int = 5) -> list[dict[str, Any]]:
    """The most frequent labels with count and share; ties by name; None is "unknown"."""
    counts = Counter(str(label or "unknown") for label in labels)
    first = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return [{"category": name, "items": count, "share": count / len(labels)} for name, count in first]


def gate_checks(metrics: Mapping[str, Any], min_utilization: float, min_entropy_ratio: float) -> list[dict[str, Any]]:
    """One check a layer and bound: ``{"layer", "metric", "value", "minimum", "passed"}``."""
    bounds = {"utilization": min_utilization, "entropy_ratio": min_entropy_ratio}
    return [
        {"layer": layer, "metric": name, "value": entry[name], "minimum": minimum, "passed": entry[name] >= minimum}
        for layer, entry in enumerate(metrics["layers"], start=1)
        for name, minimum in bounds.items()
    ]


def token_counts(codes: Any, sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Items of each token, by layer: arrays (size,)."""
    array = np.asarray(codes)
    return [np.bincount(array[:, layer], minlength=size) for layer, size in enumerate(sizes)]


def codebook_figures(codes: Any, sizes: Sequence[int], metrics: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG pictures of a codebook by name: ``layers``, ``tokens``, ``buckets``, ``map`` (with two layers or more)."""
    from tokenization import inspection_plots as plots

    figures = {
        "layers": plots.layers_png(metrics),
        "tokens": plots.tokens_png(token_counts(codes, sizes)),
        "buckets": plots.buckets_png(metrics),
    }
    if len(sizes) > 1:
        figures["map"] = plots.map_png(codes, sizes)
    return figures
