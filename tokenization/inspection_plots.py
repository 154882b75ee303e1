"""Pictures of a codebook as PNG bytes, drawn without pyplot so that nothing global is touched."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#2c6fbb", "#e07b39", "#4f9d69", "#8e5ea2", "#c44e52")
_MAP_CELLS = 256


def layers_png(metrics: Mapping[str, Any]) -> bytes:
    """Utilization and entropy ÷ its maximum, by layer."""
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(metrics["layers"]))
    for shift, name, label in ((-0.2, "utilization", "utilization"), (0.2, "entropy_ratio", "entropy ÷ ln k")):
        values = [layer[name] for layer in metrics["layers"]]
        bars = axes.bar(place + shift, values, 0.38, label=label, color=COLOURS[0 if shift < 0 else 1])
        axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=8, padding=1)
    axes.set_xticks(place, [f"layer {layer + 1}\n{entry['size']:,} tokens" for layer, entry in enumerate(metrics["layers"])])
    axes.set_ylim(0, 1.3)
    axes.set_title("Use of each layer", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", ncols=2)
    return _png(figure)


def tokens_png(counts: Sequence[npt.NDArray[np.int64]]) -> bytes:
    """Items a token by layer, fullest token first: a flat line is even use."""
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for layer, sizes in enumerate(counts):
        ordered = np.sort(sizes)[::-1]
        share = (np.arange(len(ordered)) + 0.5) / len(ordered)
        axes.plot(share, ordered, label=f"layer {layer + 1}", color=COLOURS[layer % len(COLOURS)], linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of the layer's tokens, fullest first", fontsize=9)
    axes.set_ylabel("items a token", fontsize=9)
    axes.set_title("Items a token", fontsize=10)
    axes.legend(fontsize=8)
    return _png(figure)


def buckets_png(metrics: Mapping[str, Any]) -> bytes:
    """Items by how many items have the same code."""
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in metrics["bucket_histogram"] if row["from"] <= max(5, metrics["largest_bucket"])]
    bars = axes.bar(range(len(rows)), [row["items"] for row in rows], color=COLOURS[2])
    axes.bar_label(bars, [f"{row['items']:,}" if row["items"] else "" for row in rows], fontsize=8, padding=1)
    axes.set_xticks(range(len(rows)), [_span(row) for row in rows], fontsize=8)
    axes.set_xlabel("items that share the code", fontsize=9)
    axes.set_ylabel("items", fontsize=9)
    axes.set_title(f"Bucket sizes ({metrics['collision_share']:.1%} of items share their code)", fontsize=10)
    axes.margins(y=0.12)
    return _png(figure)


def map_png(codes: Any, sizes: Sequence[int]) -> bytes:
    """Items by first and second token; layers above 256 tokens are binned."""
    array = np.asarray(codes)
    cells = [min(size, _MAP_CELLS) for size in sizes[:2]]
    grid = np.zeros(cells, np.int64)
    binned = [array[:, layer].astype(np.int64) * cells[layer] // sizes[layer] for layer in range(2)]
    np.add.at(grid, (binned[0], binned[1]), 1)
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest", extent=(0, sizes[1], sizes[0], 0))
    figure.colorbar(picture, ax=axes, label="items")
    axes.set_xlabel("second token", fontsize=9)
    axes.set_ylabel("first token", fontsize=9)
    axes.set_title("Where the items are", fontsize=10)
    return _png(figure)


def _span(row: Mapping[str, Any]) -> str:
    if row["to"] is None:
        return f"{row['from']}+"
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}"


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
