"""``onerec rl``: from the RSFT model and the reward model to ``LAKE/training/rl/``, with rollouts by the service.

The folder is laid out as training's: ``model.json`` with its weights, ``run.json``, ``metrics.jsonl``. It is written when the
run is whole; one that is killed leaves the former model, and the same command begins again and ends in the same weights.
"""

import dataclasses
import datetime as dt
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import BadInput
from schemas.lake import Lake, day_start, write_atomically
from schemas.runs import StepRun, TableCounts, step_run
from trainer.checkpoints import SavedModel, load_model, weights_sha256
from trainer.model.onerec import OneRec
from trainer.reinforcement import GroupFigures, judge_policy, reinforce, rows_of_batch
from trainer.reward.catalogue import Catalogue
from trainer.reward.files import SavedReward, load_reward
from trainer.reward.scoring import Judge
from trainer.reward.training import REWARD
from trainer.rollout.cluster import cluster
from trainer.rollout.service import RolloutService, namespace_of
from trainer.shard_files import dates_with_shards, open_day
from trainer.shard_reader import ShardReader, Split, Targets
from trainer.training import device_here, leave_model, lengths_of, shards_root, training_dates, training_folder

RL = "rl"
START = "rsft"


@dataclass(frozen=True)
class ReinforceRequest:
    """What a person asks for; None is the default."""

    first: dt.date | None = None
    last: dt.date | None = None
    address: str | None = None
    """A Ray cluster to generate in; without one, a local one for the time of the run."""


def run(lake: Lake, request: ReinforceRequest, on_step: Callable[[dict[str, Any]], None] = lambda _: None) -> StepRun:
    """Run RL and save the model. Raises BadInput for models, shards or a cluster that cannot be used."""
    dates = training_dates(lake, request.first, request.last)
    with step_run(lake, RL, dates[-1]) as step:
        settings = lake.config.reinforce
        saved = load_model(training_folder(lake, START))
        reward = load_reward(training_folder(lake, REWARD))
        day = open_day(shards_root(lake), dates[-1], "all")
        _check_fit(lake, saved, reward, day.codebook_version)
        judge = Judge(reward.model, Catalogue.of_day(day, day_start(dates[-1], lake.config)), settings.industrial)
        model = saved.model
        reader = _reader(lake, model, dates, "rsft", "train", day.codebook_version)
        unseen, evaluated_on = _unseen(lake, model, dates, day.codebook_version)
        model.to(device_here())
        run_id = uuid.uuid4().hex[:8]
        with cluster(request.address, cpus=settings.rollout_workers + 1):
            service = RolloutService.start_or_find(namespace_of(lake.root), model, f"{run_id}-0", settings.rollout_workers)
            before = judge_policy(service, unseen, judge, settings)
            lines = reinforce(
                model,
                reader,
                service,
                judge,
                settings,
                weight_decay=lake.config.train.weight_decay,
                run_id=run_id,
                on_step=on_step,
            )
            after = judge_policy(service, unseen, judge, settings)
        described = _describe(lake, saved, reward, model, reader, dates, lines)
        described["reward"] |= {
            "evaluated_on": evaluated_on,
            "before": dataclasses.asdict(before),
            "after": dataclasses.asdict(after),
        }
        _save(training_folder(lake, RL), model, described, lines)
        step.table("rollouts", _accounting(lines))
        step.extra |= _report(described, before, after, lines)
    return step


def _check_fit(lake: Lake, saved: SavedModel, reward: SavedReward, codebook_version: str) -> None:
    found = {
        "the shards": codebook_version,
        "the rsft model": saved.metadata.get("codebook_version"),
        "the reward model": reward.metadata.get("codebook_version"),
    }
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        raise BadInput(
            f"{lake.root}/training: of different codebooks ({listed}); run `onerec train --stage rsft` and `onerec reward` again"
        )


def _reader(
    lake: Lake, model: OneRec, dates: list[dt.date], targets: Targets, split: Split, codebook_version: str
) -> ShardReader:
    return ShardReader(
        shards_root(lake),
        dates,
        seed=lake.config.reinforce.seed,
        batch_requests=lake.config.train.batch_requests,
        targets=targets,
        split=split,
        codebook_version=codebook_version,
        lengths=lengths_of(model.config),
        max_targets=lake.config.train.max_targets_per_request,
    )


def _unseen(lake: Lake, model: OneRec, dates: list[dt.date], codebook_version: str) -> tuple[Any, str]:
    """Contexts the policy does not train on, to compare it before and after: the next day's, else held-out users'."""
    later = [date for date in dates_with_shards(shards_root(lake)) if date > dates[-1]]
    split: Split = "all" if later else "holdout"
    reader = _reader(lake, model, later[:1] or dates, "all", split, codebook_version)
    if not len(reader):
        raise BadInput(
            f"{shards_root(lake)}: no request after {dates[-1]} and no held-out user to compare the policy on; "
            f"write the shards of a later day, or end training earlier with --to"
        )
    count = min(lake.config.reinforce.evaluated_requests, len(reader))
    order = torch.randperm(len(reader), generator=torch.Generator().manual_seed(lake.config.reinforce.seed))
    batch = reader.read(order[:count].numpy())
    return rows_of_batch(batch, torch.arange(len(batch))), later[0].isoformat() if later else "held-out users"


def _describe(
    lake: Lake,
    saved: SavedModel,
    reward: SavedReward,
    model: OneRec,
    reader: ShardReader,
    dates: list[dt.date],
    lines: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything the model came from; the names that training uses mean the same here."""
    through = max(dates[-1].isoformat(), saved.metadata["trained_through"])
    return {
        "stage": RL,
        "preset": model.config.preset,
        "dates": [date.isoformat() for date in dates],
        "trained_through": through,
        "codebook_version": reader.codebook_version,
        "codebook_sizes": list(reader.codebook_sizes),
        "token_set_version": saved.metadata.get("token_set_version"),
        "parent": {"kind": START, "version": weights_sha256(training_folder(lake, START))[:12]},
        "pretrained": saved.metadata.get("parent"),
        "reward_version": reward.version,
        "model": model.config.to_json(),
        "parameters": model.parameter_counts(),
        "reinforce": lake.config.reinforce.model_dump(mode="json"),
        "train": lake.config.train.model_dump(mode="json"),
        "config_version": lake.config.version,
        "shards": reader.fingerprint,
        "steps": len(lines),
        "loss_first": lines[0]["loss"],
        "loss_last": lines[-1]["loss"],
        "device": str(next(model.parameters()).device),
        "reward": {"objectives": dict(reward.model.config.objectives)},
    }


def _save(folder: Path, model: OneRec, described: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    leave_model(folder, model, described)
    write_atomically(str(folder / "metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in lines).encode())


def _accounting(lines: list[dict[str, Any]]) -> TableCounts:
    """Rollouts: legal samples teach the policy loss, illegal ones are left out of it."""
    samples, legal = (sum(line[name] for line in lines) for name in ("samples", "legal_samples"))
    return TableCounts(rows_in=samples, rows_out=legal, rows_dropped={"illegal": samples - legal})


def _report(described: dict[str, Any], before: GroupFigures, after: GroupFigures, lines: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("dates", "trained_through", "codebook_version", "parent", "reward_version", "steps", "loss_first", "loss_last")
    return {
        **{name: described[name] for name in names},
        "evaluated_on": described["reward"]["evaluated_on"],
        "reward_before": before.reward_mean,
        "reward_after": after.reward_mean,
        "reward_standard_error": [before.reward_standard_error, after.reward_standard_error],
        "best_of_group": [before.best_of_group, after.best_of_group],
        "legal_share_before": before.legal_share,
        "legal_share_after": after.legal_share,
        "max_staleness": max(line["staleness"] for line in lines),
    }
