"""Figures behind the report and the demo's closing table, read from a lake; no drawing here."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from onerec.lake_view import runs
from schemas.lake import Lake, open_lake
from schemas.registry import Registry
from schemas.tables import (
    DAILY_SAMPLES,
    FEEDBACK,
    ITEM_TOKENS,
    ITEMS,
    PATHWAY_LIFELONG,
    PATHWAY_POSITIVE,
    PATHWAY_SHORT,
    Table,
)
from tokenization.encoders.base import MediaLimits
from tokenization.inspection_report import thumbnail

COVERS = MediaLimits(max_bytes=64 * 1024, max_pixels=4_000_000, max_seconds=0)
"""A page with every item: larger covers are left out."""
STAGES = ("pretrain", "rsft", "reward", "rl")


@dataclass(frozen=True)
class Flow:
    """Rows of one table in one step on one day."""

    date: str
    step: str
    table: str
    rows_in: int
    rows_out: int
    quarantined: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Stage:
    """A training stage: its curve (one mapping a logged step), its run record and its evaluation, each as written."""

    name: str
    curve: list[dict[str, Any]]
    run: dict[str, Any]
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Codebook:
    """The live token set's codebook: metrics as trained, and the tokens of every item."""

    version: str
    sizes: list[int]
    metrics: dict[str, Any]
    tokens: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Item:
    """What a person needs to recognise an item: its title, category, cover (a data URI or None)."""

    item_id: str
    title: str
    category: str
    cover: str | None = field(repr=False, default=None)


def row_flow(lake: Lake) -> list[Flow]:
    """Succeeded runs' accounting; of several attempts of a step and date, the last."""
    last: dict[tuple[str, str, str], Flow] = {}
    for row in runs(lake):
        if row["status"] == "succeeded" and row["table_name"]:
            date = str(row["date"] or "")
            last[(row["step"], date, row["table_name"])] = Flow(
                date,
                row["step"],
                row["table_name"],
                row["rows_in"],
                row["rows_out"],
                row["rows_quarantined"],
                row["rows_dropped"],
            )
    return list(last.values())


def sample_figures(lake: Lake) -> dict[str, Any]:
    """By day: samples, users, items, requests, label rates; over all days: by hour, play ratio, window lengths."""
    samples = lake.dataset(DAILY_SAMPLES)  # DuckDB finds it by its name
    rates = ", ".join(f'avg("{name}"::int) as "{name}"' for name in (*FEEDBACK, "positive"))
    connection = duckdb.connect()
    connection.register("samples", samples)
    days = connection.sql(
        "select date, count(*) as samples, count(distinct user_id) as users, count(distinct item_id) as items, "
        f"count(distinct request_id) as requests, count(distinct session_id) as sessions, {rates} "
        "from samples group by date order by date"
    ).to_arrow_table()
    hours = connection.sql(
        "select date_part('hour', request_ts at time zone 'UTC')::int as hour, count(*) as samples "
        "from samples group by 1 order by 1"
    ).to_arrow_table()
    ratios = connection.sql("select least(play_ratio, 3) as ratio from samples where play_ratio is not null")
    return {
        "days": days.to_pylist(),
        "hours": dict(zip(hours["hour"].to_pylist(), hours["samples"].to_pylist(), strict=True)),
        "play_ratio": ratios.to_arrow_table()["ratio"].to_numpy(),
        "lengths": {
            "short-term (last 20)": _lengths(lake, PATHWAY_SHORT, "behaviours"),
            "positive feedback (256)": _lengths(lake, PATHWAY_POSITIVE, "behaviours"),
            "lifelong": _lengths(lake, PATHWAY_LIFELONG, "representatives"),
        },
    }


def _lengths(lake: Lake, table: Table, column: str) -> Any:
    values = lake.read(table, columns=[column])[column]
    return pc.list_value_length(values).to_numpy()


def codebook_of(lake: Lake) -> Codebook:
    """The latest token set's codebook and its tokens."""
    registry = Registry.of(lake)
    token_set = registry.load("token_set").metadata
    version = token_set["codebook_version"]
    rows = lake.read(ITEM_TOKENS, columns=["item_id", "tokens"], filter=pads.field("codebook_version") == version)
    tokens = {row["item_id"]: tuple(row["tokens"]) for row in rows.to_pylist()}
    metadata = registry.load("codebook", version).metadata
    return Codebook(version, list(token_set["codebook_sizes"]), metadata["metrics"], tokens)


def training_stages(lake: Lake) -> list[Stage]:
    """Every stage that has run, in order."""
    stages = []
    for name in STAGES:
        folder = lake.local_path("training", name)
        if (folder / "metrics.jsonl").is_file():
            curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            stages.append(Stage(name, curve, _json(folder / "run.json"), _json(folder / "evaluation.json")))
    return stages


def example_users(lake: Lake) -> list[dict[str, Any]]:
    """Users with their history and what the last evaluated model generated for them; empty before any evaluation."""
    for stage in ("rl", "rsft", "pretrain"):
        path = lake.local_path("training", stage, "examples.json")
        if path.is_file():
            return list(json.loads(path.read_text())["users"])
    return []


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def describe_items(lake: Lake, item_ids: Iterable[str]) -> dict[str, Item]:
    """Newest title, category and cover of the named items."""
    wanted = pa.array(sorted(set(item_ids)), pa.string())
    rows = lake.read(
        ITEMS,
        columns=["item_id", "valid_from", "title", "category", "cover_uri"],
        filter=pads.field("item_id").cast(pa.string()).isin(wanted),
    ).to_pylist()
    newest = {row["item_id"]: row for row in sorted(rows, key=lambda row: row["valid_from"])}
    return {
        item_id: Item(item_id, row["title"] or item_id, row["category"] or "", thumbnail(row["cover_uri"], limits=COVERS))
        for item_id, row in newest.items()
    }


def summary_figures(root: Path) -> list[tuple[str, str]]:
    """The closing table: rows, rates, codebook figures, loss, recall."""
    lake = open_lake(str(root))
    flow = row_flow(lake)
    events = [one for one in flow if one.table == "events"]
    read = sum(one.rows_in for one in events)
    quarantined = sum(one.quarantined for one in events)
    days = sample_figures(lake)["days"]
    samples = sum(day["samples"] for day in days)
    codebook = codebook_of(lake)
    figures = [
        ("impressions read", f"{read:,}"),
        ("quarantined", f"{quarantined:,} ({quarantined / max(read, 1):.2%})"),
        (f"samples of {len(days)} days", f"{samples:,}"),
        ("positive rate", f"{sum(day['positive'] * day['samples'] for day in days) / max(samples, 1):.1%}"),
        ("distinct codes of the items with tokens", f"{len(set(codebook.tokens.values())):,} of {len(codebook.tokens):,}"),
        ("codebook", " × ".join(map(str, codebook.sizes))),
        ("utilization by layer", _layers(codebook.metrics, "utilization")),
        ("entropy ÷ ln k by layer", _layers(codebook.metrics, "entropy_ratio")),
    ]
    for stage in training_stages(lake):
        figures += _stage_figures(stage)
    return figures


def _layers(metrics: dict[str, Any], name: str) -> str:
    return ", ".join(f"{layer[name]:.2f}" for layer in metrics["layers"])


def _stage_figures(stage: Stage) -> list[tuple[str, str]]:
    """A stage's change of loss (means of its first and last tenth), and, where it was evaluated, recall and legality."""
    figures = []
    losses = [point["loss"] for point in stage.curve if "loss" in point]
    if len(losses) > 1 and stage.name in ("pretrain", "rsft"):
        width = max(1, len(losses) // 10)
        first, last = sum(losses[:width]) / width, sum(losses[-width:]) / width
        figures.append((f"{stage.name}: loss", f"{first:.2f} → {last:.2f}"))
    metrics, popularity = stage.evaluation.get("metrics", {}), stage.evaluation.get("popularity", {})
    if metrics.get("recall@10") is not None:
        baseline = popularity.get("recall@10") or 0.0
        figures.append((f"{stage.name}: Recall@10, the next day", f"{metrics['recall@10']:.3f} (popularity {baseline:.3f})"))
    if metrics.get("legal_share") is not None:
        figures.append((f"{stage.name}: legal free samples", f"{metrics['legal_share']:.1%}"))
    return figures
