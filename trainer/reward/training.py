"""``onerec reward``: trains the P-Score on the days' training users and measures it on requests it has not seen.

Trained through day D, it is measured on all requests of the next day that has shards; where there is none, on the held-out
users of the training days. The folder ``LAKE/training/reward/`` is replaced at the end, so a run that is killed leaves the
former model and can simply be run again.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schemas.config import RewardSection
from schemas.errors import BadInput
from schemas.lake import Lake, write_atomically
from schemas.runs import StepRun, TableCounts, step_run
from trainer.batches import RequestBatch
from trainer.features import Lengths
from trainer.model.presets import preset
from trainer.reward.auc import area_under_curve
from trainer.reward.catalogue import Catalogue
from trainer.reward.files import save_reward
from trainer.reward.network import PScore, RewardConfig
from trainer.shard_files import dates_with_shards, open_day
from trainer.shard_reader import ShardReader
from trainer.training import lengths_of, shards_root, training_dates, training_folder

REWARD = "reward"
MAX_GRADIENT_NORM = 1.0
EVALUATED_REQUESTS = 4000


@dataclass(frozen=True)
class RewardFit:
    """What a training did; losses are means over the first and last tenth of the steps."""

    p_loss_first: float
    p_loss_last: float
    tower_loss_first: float
    tower_loss_last: float
    requests: int
    impressions: int
    lines: list[dict[str, float]]
    """One a step: step, p_loss, tower_loss."""


def fit_reward(
    model: PScore,
    reader: ShardReader,
    catalogue: Catalogue,
    settings: RewardSection,
    on_step: Callable[[int, float], None] = lambda *_: None,
) -> RewardFit:
    """Train in place for ``settings.steps`` steps over as many epochs as that takes. Raises BadInput without requests."""
    if not len(reader):
        raise BadInput("no request of these dates has a target with tokens; tokenise the items and write the shards again")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    model.train()
    lines: list[dict[str, float]] = []
    requests = impressions = 0
    batches = _endless(reader)
    for step in range(1, settings.steps + 1):
        batch = next(batches)
        scores = model(batch, catalogue.features(batch.tokens_BTL, batch.request_ts_B))
        p_loss, tower_loss = model.loss(scores, model.labels(batch), batch.target_mask_BT)
        optimizer.zero_grad(set_to_none=True)
        (p_loss + tower_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        if not torch.isfinite(p_loss + tower_loss):
            raise BadInput(f"the reward model's loss is no number at step {step}; lower reward.learning_rate and train again")
        lines.append({"step": step, "p_loss": round(p_loss.item(), 6), "tower_loss": round(tower_loss.item(), 6)})
        requests += len(batch)
        impressions += int(batch.target_mask_BT.sum())
        on_step(step, lines[-1]["p_loss"])
    window = max(1, settings.steps // 10)

    def mean(name: str, part: list[dict[str, float]]) -> float:
        return round(sum(line[name] for line in part) / len(part), 6)

    return RewardFit(
        mean("p_loss", lines[:window]),
        mean("p_loss", lines[-window:]),
        mean("tower_loss", lines[:window]),
        mean("tower_loss", lines[-window:]),
        requests,
        impressions,
        lines,
    )


@torch.no_grad()
def evaluate_reward(model: PScore, reader: ShardReader, catalogue: Catalogue, max_requests: int) -> dict[str, Any]:
    """AUC by objective (its tower's, and the P-Score's against its labels) over the first requests of the reader's order.

    ``{"requests", "impressions", "objectives": {name: {"auc", "p_score_auc", "positive_share"}}}``; an AUC is None where
    the label takes one value only.
    """
    model.eval()
    labels, towers, p_scores = [], [], []
    requests = 0
    for batch in reader:
        scores = model(batch, catalogue.features(batch.tokens_BTL, batch.request_ts_B))
        mask_BG = batch.target_mask_BT
        labels.append(model.labels(batch)[mask_BG].numpy())
        towers.append(scores.objectives_BGO[mask_BG].numpy())
        p_scores.append(scores.p_score_BG[mask_BG].numpy())
        requests += len(batch)
        if requests >= max_requests:
            break
    objectives: dict[str, Any] = {}
    labels_NO = np.concatenate(labels) if labels else np.zeros((0, len(model.config.objectives)), bool)
    for place, name in enumerate(model.config.objectives):
        label_N = labels_NO[:, place]
        objectives[name] = {
            "auc": area_under_curve(label_N, np.concatenate(towers)[:, place]) if len(label_N) else None,
            "p_score_auc": area_under_curve(label_N, np.concatenate(p_scores)) if len(label_N) else None,
            "positive_share": float(label_N.mean()) if len(label_N) else None,
        }
    return {"requests": requests, "impressions": len(labels_NO), "objectives": objectives}


def run(lake: Lake, last: dt.date | None, on_step: Callable[[int, int, float], None] = lambda *_: None) -> StepRun:
    """Train on the days through ``last`` (default: all but the newest), measure, save. Raises BadInput as its parts do."""
    dates = training_dates(lake, None, last)
    with step_run(lake, REWARD, dates[-1]) as step:
        settings = lake.config.reward
        day = open_day(shards_root(lake), dates[-1], "all")
        catalogue = Catalogue.of_day(day)
        lengths = lengths_of(preset(lake.config.train.preset, day.codebook_sizes))
        reader = _reader(lake, dates, lengths, "train", day.codebook_version)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = PScore(RewardConfig(day.codebook_sizes, dict(settings.objectives)))
        result = fit_reward(model, reader, catalogue, settings, lambda done, loss: on_step(done, settings.steps, loss))
        later = [date for date in dates_with_shards(shards_root(lake)) if date > dates[-1]]
        # Items and tokens as of the evaluated day: what is new there can be scored, too.
        judged = Catalogue.of_day(open_day(shards_root(lake), later[0], "all")) if later else catalogue
        unseen = _reader(lake, later[:1] or dates, lengths, "all" if later else "holdout", day.codebook_version)
        figures = evaluate_reward(model, unseen, judged, EVALUATED_REQUESTS)
        figures["evaluated_on"] = later[0].isoformat() if later else "held-out users"
        described = _describe(lake, dates, day.codebook_version, model, result, figures, reader.fingerprint)
        folder = training_folder(lake, REWARD)
        version = save_reward(folder, model, described)
        write_atomically(str(folder / "metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in result.lines).encode())
        write_atomically(str(folder / "run.json"), (json.dumps(described, indent=1) + "\n").encode())
        reached = min(result.requests, len(reader))
        step.table(
            "training",
            TableCounts(
                rows_in=len(reader) + reader.counts.requests_other_split + reader.counts.requests_without_targets,
                rows_out=reached,
                rows_dropped={
                    "holdout": reader.counts.requests_other_split,
                    "no_target_with_tokens": reader.counts.requests_without_targets,
                    "beyond_steps": len(reader) - reached,
                },
            ),
        )
        step.extra |= {"reward_version": version, **described}
    return step


def _reader(lake: Lake, dates: list[dt.date], lengths: Lengths, split: Any, codebook_version: str) -> ShardReader:
    """``reward.batch_size`` impressions a batch, counted as full requests."""
    targets = lake.config.train.max_targets_per_request
    return ShardReader(
        shards_root(lake),
        dates,
        seed=lake.config.reward.seed,
        batch_requests=max(1, lake.config.reward.batch_size // targets),
        split=split,
        lengths=lengths,
        max_targets=targets,
        codebook_version=codebook_version,
    )


def _describe(
    lake: Lake,
    dates: list[dt.date],
    codebook_version: str,
    model: PScore,
    result: RewardFit,
    figures: dict[str, Any],
    shards: str,
) -> dict[str, Any]:
    return {
        "dates": [date.isoformat() for date in dates],
        "trained_through": dates[-1].isoformat(),
        "codebook_version": codebook_version,
        "codebook_sizes": list(model.config.codebook_sizes),
        "objectives": dict(model.config.objectives),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shards": shards,
        "config_version": lake.config.version,
        "steps": len(result.lines),
        "requests": result.requests,
        "impressions": result.impressions,
        "p_loss_first": result.p_loss_first,
        "p_loss_last": result.p_loss_last,
        "tower_loss_first": result.tower_loss_first,
        "tower_loss_last": result.tower_loss_last,
        "evaluation": figures,
    }


def _endless(reader: ShardReader) -> Iterator[RequestBatch]:
    while True:
        yield from reader
