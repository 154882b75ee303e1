"""Builds the report: figures from the lake, plots, thumbnails, one self-contained HTML page written last."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from onerec.report import plots
from onerec.report.figures import (
    Codebook,
    Flow,
    Item,
    Stage,
    codebook_of,
    describe_items,
    example_users,
    row_flow,
    sample_figures,
    summary_figures,
    training_stages,
)
from schemas.lake import Lake, open_lake, write_atomically
from schemas.tables import QUARANTINE

FLOW_STEPS = (
    ("ingest", "events", "events"),
    ("samples", "daily_samples", "samples"),
    ("pathways", "pathway_short", "users with pathways"),
    ("shards", "shards", "events in shards"),
    ("shards", "shards_targets_rsft", "targets of fine-tuning"),
)
PREFIX_GROUPS, PREFIX_ITEMS = 8, 8
HISTORY_SHOWN, GENERATED_SHOWN, NEXT_SHOWN = 10, 10, 10


def build_report(root: Path, target: Path, steps: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the page about the lake at ``root`` to ``target``; ``steps`` are the demo's tasks with their seconds."""
    lake = open_lake(str(root))
    samples, codebook, stages = sample_figures(lake), codebook_of(lake), training_stages(lake)
    items = describe_items(lake, codebook.tokens)
    flow = row_flow(lake)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("page.html").render(
        title="From impressions to recommendations",
        subtitle=_subtitle(samples["days"]),
        summary=summary_figures(root),
        flow=_flow_by_day(flow),
        quarantine=_quarantine(lake),
        days=samples["days"],
        codebook=codebook,
        prefixes=prefix_groups(codebook, items),
        evaluations=_evaluations(stages),
        users=_users(example_users(lake), items),
        steps=steps,
        plots={
            "samples": plots.samples_plot(samples),
            "lengths": plots.lengths_plot(samples["lengths"]),
            "codebook": plots.codebook_plot(codebook.metrics, list(codebook.tokens.values()), codebook.sizes),
            "learning": [plots.curve_plot(curves) for stage in stages if (curves := stage_curves(stage))],
            "seconds": plots.seconds_plot(steps) if steps else "",
        },
    )
    write_atomically(str(target), page.encode())


def _subtitle(days: Sequence[Mapping[str, Any]]) -> str:
    if not days:
        return "no samples yet"
    return f"{days[0]['date']} to {days[-1]['date']}, {sum(day['samples'] for day in days):,} impressions"


def _flow_by_day(flow: Sequence[Flow]) -> dict[str, list[dict[str, Any]]]:
    """For each day, its flow through the main tables, in order; first what the landing zone brought."""
    by_day: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for step, table, title in FLOW_STEPS:
        for one in flow:
            if one.step == step and one.table == table:
                if table == "events":
                    by_day[one.date].append({"title": "landing rows", "rows": one.rows_in, "quarantined": 0, "dropped": {}})
                by_day[one.date].append(
                    {"title": title, "rows": one.rows_out, "quarantined": one.quarantined, "dropped": one.dropped}
                )
    return dict(sorted(by_day.items()))


def _quarantine(lake: Lake) -> list[dict[str, Any]]:
    """Quarantined rows by table and reason with some of what was found, most frequent first."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in lake.read(QUARANTINE).to_pylist():
        for reason in row["reasons"]:
            what, _, found = reason.partition(" (found ")
            groups[(row["table_name"], what)].append(found.removesuffix(")"))
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [
        {"table": table, "reason": reason, "rows": len(found), "found": sorted(set(filter(None, found)))[:3]}
        for (table, reason), found in ordered[:15]
    ]


def prefix_groups(codebook: Codebook, items: Mapping[str, Item]) -> list[dict[str, Any]]:
    """The most used first tokens with their second tokens' items, so that the hierarchy can be seen."""
    by_first: dict[int, list[str]] = defaultdict(list)
    for item_id, tokens in codebook.tokens.items():
        if item_id in items:
            by_first[tokens[0]].append(item_id)
    groups = []
    for first, members in sorted(by_first.items(), key=lambda group: (-len(group[1]), group[0]))[:PREFIX_GROUPS]:
        ordered = sorted(members, key=lambda item_id: (codebook.tokens[item_id], item_id))
        mix = Counter(items[item_id].category or "no category" for item_id in members).most_common(2)
        step = max(1, len(ordered) // PREFIX_ITEMS)
        groups.append(
            {
                "prefix": f"⟨{first}, ·, ·⟩",
                "count": len(members),
                "mix": ", ".join(f"{count / len(members):.0%} {name}" for name, count in mix),
                "items": [items[item_id] for item_id in ordered[::step][:PREFIX_ITEMS]],
            }
        )
    return groups


def stage_curves(stage: Stage) -> list[tuple[str, list[float], list[float]]]:
    """The learning curves of a stage that people look at, as (title, steps, values)."""
    wanted = {
        "loss": "loss",
        "token_loss_1": "loss of token 1",
        "token_loss_3": "loss of token 3",
        "reward_mean": "mean reward (P-Score)",
        "legal_share": "share of legal rollouts",
    }
    curves = []
    for name, title in wanted.items():
        points = [(point["step"], point[name]) for point in stage.curve if point.get(name) is not None]
        if len(points) > 1:
            curves.append((f"{stage.name}: {title}", [step for step, _ in points], [value for _, value in points]))
    return curves[:4]


def _evaluations(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One row an evaluated model, and the popularity baseline of the last one."""
    rows, names = [], list[str]()
    for stage in stages:
        if metrics := stage.evaluation.get("metrics"):
            names = names or list(metrics)
            rows.append({"name": stage.name, "values": {name: _figure(metrics.get(name)) for name in names}})
    baselines = [stage.evaluation["popularity"] for stage in stages if "popularity" in stage.evaluation]
    if baselines:
        rows.append({"name": "popularity", "values": {name: _figure(baselines[-1].get(name)) for name in names}})
    return rows


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _users(users: Sequence[Mapping[str, Any]], items: Mapping[str, Item]) -> list[dict[str, Any]]:
    """Example users with what is known of their items."""

    def known(item_id: str) -> Item:
        return items.get(item_id) or Item(item_id, item_id, "")

    shown = []
    for user in users:
        engaged = set(user["next"])
        shown.append(
            {
                "user_id": user["user_id"],
                "when": str(user.get("request_ts", "")),
                "history": [known(item_id) for item_id in user["history"][-HISTORY_SHOWN:]],
                "generated": [
                    {"item": known(entry["item_id"]), "note": f"{entry['score']:.2f}", "hit": entry["item_id"] in engaged}
                    for entry in user["generated"][:GENERATED_SHOWN]
                ],
                "next": [known(item_id) for item_id in user["next"][:NEXT_SHOWN]],
            }
        )
    return shown
