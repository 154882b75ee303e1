"""The report's plots, each returned as SVG text that a page can hold."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#22303c", "#6b7a88", "#e3e8ed"
COLOURS = ("#2f6fb0", "#d9822b", "#3a8f5c", "#b0475c", "#7a5ea8", "#5b8a9a")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
}


def _panels(count: int, width: float = 3.7, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL
    )  # it says who drew, in addresses that a page need not hold


def samples_plot(figures: Mapping[str, Any]) -> str:
    """Daily rhythm, play ratio and label rates."""
    with matplotlib.rc_context(STYLE):
        figure, (rhythm, ratio, rates) = _panels(3)
        hours = figures["hours"]
        rhythm.bar(list(hours), list(hours.values()), color=COLOURS[0], width=0.8)
        rhythm.set(title="Impressions by hour (UTC)", xlabel="hour")
        ratio.hist(figures["play_ratio"], bins=60, color=COLOURS[0])
        ratio.axvline(1, color=COLOURS[1], linewidth=1)
        ratio.set(title="Play time ÷ duration (cut at 3)", xlabel="1 = watched through; beyond = replays")
        days = figures["days"]
        names = ["positive", "click", "long_view", "like", "follow", "comment", "forward", "dislike"]
        means = [float(np.mean([day[name] for day in days])) for name in names]
        rates.barh(names[::-1], means[::-1], color=COLOURS[2])
        rates.set(title="Label rates", xlim=(0, max(means) * 1.25))
        for place, value in enumerate(means[::-1]):
            rates.text(value, place, f" {value:.1%}", va="center", fontsize=8)
        return _svg(figure)


def lengths_plot(lengths: Mapping[str, Any]) -> str:
    """Distribution of each pathway's length."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(lengths), height=2.1)
        for axes, (name, values) in zip(panels, lengths.items(), strict=True):
            axes.hist(values, bins=min(40, max(5, int(np.max(values, initial=1)) + 1)), color=COLOURS[4])
            axes.set(title=f"Length: {name}", xlabel="behaviours", ylabel="user-days")
        return _svg(figure)


def codebook_plot(metrics: Mapping[str, Any], tokens: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> str:
    """Entropy and utilization by layer, how evenly each layer's tokens are used, items a code."""
    with matplotlib.rc_context(STYLE):
        figure, (bars, use, buckets) = _panels(3)
        layers = metrics["layers"]
        place = np.arange(len(layers))
        bars.bar(place - 0.2, [layer["utilization"] for layer in layers], 0.38, color=COLOURS[0], label="utilization")
        bars.bar(place + 0.2, [layer["entropy_ratio"] for layer in layers], 0.38, color=COLOURS[2], label="entropy ÷ ln k")
        bars.set(title="By layer", xticks=place, xticklabels=[f"layer {layer + 1}" for layer in place], ylim=(0, 1.3))
        bars.legend(loc="upper center", ncols=2, fontsize=8)
        codes = np.array(tokens)
        for layer, size in enumerate(sizes):
            counts = np.sort(np.bincount(codes[:, layer], minlength=size))[::-1]
            use.plot(np.arange(1, size + 1), counts, color=COLOURS[layer % len(COLOURS)], label=f"layer {layer + 1}")
        use.set(title="Items by token, most used first", xlabel="token's place", ylabel="items", ylim=(0, None))
        use.legend(fontsize=8)
        _, shared = np.unique(codes, axis=0, return_counts=True)
        bins, counts = np.unique(shared, return_counts=True)
        buckets.bar(bins, counts, color=COLOURS[3])
        buckets.set(title="Items that share a whole code", xlabel="items in the code", ylabel="codes")
        return _svg(figure)


def curve_plot(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """Learning curves: (title, steps, values) a panel, with a running mean."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(curves), width=3.2, height=2.2)
        for axes, (title, steps, values) in zip(panels, curves, strict=True):
            axes.plot(steps, values, color=COLOURS[0], alpha=0.35, linewidth=1)
            width = max(1, len(values) // 12)
            if len(values) > 2 * width:
                smooth = np.convolve(values, np.ones(width) / width, mode="valid")
                axes.plot(np.asarray(steps)[width - 1 :], smooth, color=COLOURS[0], linewidth=1.8)
            axes.set(title=title, xlabel="step")
        return _svg(figure)


def seconds_plot(steps: Sequence[Mapping[str, Any]]) -> str:
    """Wall time of each task, in the order they ran."""
    with matplotlib.rc_context(STYLE):
        names = [f"{step['dag']}.{step['task']} {step['date'][5:]}" for step in steps]
        seconds = [step["seconds"] for step in steps]
        figure = Figure(figsize=(11, 0.21 * len(steps) + 0.6), layout="constrained")
        axes = figure.subplots()
        dags = list(dict.fromkeys(step["dag"] for step in steps))
        colours = [COLOURS[dags.index(step["dag"]) % len(COLOURS)] for step in steps]
        axes.barh(range(len(steps))[::-1], seconds, color=colours)
        axes.set_yticks(range(len(steps))[::-1], names, fontsize=7.5)
        axes.set(xlabel="seconds", ylim=(-0.7, len(steps) - 0.3))
        for place, value in zip(range(len(steps))[::-1], seconds, strict=True):
            axes.text(value, place, f" {value:.1f}", va="center", fontsize=7)
        return _svg(figure)
