"""The RL loop (V1 §2.4, §3.3): ECPO on rollouts of the service, the format reward, and the supervised loss beside them.

Each step reads one batch of the RSFT stream. All of it feeds the supervised loss; some of its users, drawn at random, are
also asked for a group of free samples each. Legal samples are judged by the P-Score; illegal ones are left out of the
group's mean and get advantage 0 (punishing improbable codes squeezes the distribution); the format reward alone teaches
legality. The rollouts of the next step are asked for before this step trains, so the service generates meanwhile; their
weights are ``staleness`` steps old, which the ratio corrects for and the metrics show. One seed, one result: the order in
which an actor takes weights and work is the order in which it was told. Suffixes: B users, G samples, L layers.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from schemas.config import ReinforceSection
from schemas.errors import BadInput, OnerecError
from trainer.batches import RequestBatch
from trainer.ecpo import early_clipped_ratio, ecpo_loss, group_advantages, kl_to_old
from trainer.fitting import MAX_GRADIENT_NORM, make_optimizer
from trainer.model.onerec import OneRec
from trainer.reward.scoring import Judge, Judged
from trainer.rewards import format_advantages
from trainer.rollout.service import Rollouts
from trainer.shard_reader import ShardReader


class Generates(Protocol):
    """What the loop needs of a rollout service."""

    def load_weights(self, version: str, model: OneRec) -> None:
        """Take these weights over under this name."""

    def submit(self, contexts: RequestBatch, group_size: int, temperature: float, seed: int) -> Any:
        """Begin rollouts with the weights pushed so far."""

    def collect(self, pending: Any) -> Rollouts:
        """Wait for them."""


@dataclass(frozen=True)
class Reading:
    """A batch of the stream and those of its users who are asked for rollouts."""

    batch: RequestBatch
    chosen_B: Tensor
    """int64 rows of the batch."""
    contexts: RequestBatch
    """The chosen rows."""


@dataclass(frozen=True)
class GroupFigures:
    """Rewards of a policy's free samples on fixed contexts."""

    reward_mean: float | None
    """Mean P-Score of the legal samples; None without any."""
    reward_standard_error: float | None
    """Of that mean, between requests."""
    best_of_group: float | None
    """Mean over requests of the best legal sample's P-Score."""
    legal_share: float
    requests: int
    samples: int


def reinforce(
    model: OneRec,
    reader: ShardReader,
    service: Generates,
    judge: Judge,
    settings: ReinforceSection,
    *,
    weight_decay: float,
    run_id: str,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Train in place for ``settings.steps`` steps; returns a line of metrics a step, and leaves the last weights pushed.

    The service must have the model's weights as version ``{run_id}-0``. Raises BadInput if there is nothing to read or the
    loss is no number, OnerecError for rollouts from weights that this run never pushed.
    """
    optimizer = make_optimizer(model, settings.learning_rate, weight_decay)
    randomness = torch.Generator().manual_seed(settings.seed)
    readings = _readings(reader, settings)
    pushed = {f"{run_id}-0": 0}
    lines: list[dict[str, Any]] = []
    model.train()
    reading = next(readings)
    pending = _submit(service, reading, settings, 1)
    for step in range(1, settings.steps + 1):
        clock = time.perf_counter()
        rollouts = service.collect(pending)
        waited = time.perf_counter() - clock
        current = reading
        if step < settings.steps:
            reading = next(readings)
            pending = _submit(service, reading, settings, step + 1)
        judged = judge(current.contexts, rollouts.codes_BGL)
        line = _step(model, optimizer, current, rollouts, judged, settings, randomness)
        if not np.isfinite(line["loss"]):
            raise BadInput(f"the RL loss became {line['loss']} at step {step}; lower reinforce.learning_rate and run again")
        line |= {
            "step": step,
            "staleness": step - 1 - _age(rollouts, pushed),
            "wait_s": round(waited, 3),
            "step_s": round(time.perf_counter() - clock - waited, 3),
        }
        lines.append(line)
        if step % settings.push_every == 0 or step == settings.steps:
            pushed[f"{run_id}-{step}"] = step
            service.load_weights(f"{run_id}-{step}", model)
        on_step(line)
    model.eval()
    return lines


def judge_policy(service: Generates, contexts: RequestBatch, judge: Judge, settings: ReinforceSection) -> GroupFigures:
    """Rewards of the service's present weights on some contexts; the same samples for the same weights."""
    rollouts = service.collect(service.submit(contexts, settings.group_size, settings.temperature, settings.seed))
    judged = judge(contexts, rollouts.codes_BGL)
    legal_BG = judged.legal_BG
    has_legal_B = legal_BG.any(dim=1)
    count_B = legal_BG.sum(dim=1).clamp(min=1)
    mean_B = (judged.p_scores_BG.sum(dim=1) / count_B)[has_legal_B]
    best_B = judged.p_scores_BG.max(dim=1).values[has_legal_B]
    groups = len(mean_B)
    return GroupFigures(
        reward_mean=round(float(judged.p_scores_BG[legal_BG].mean()), 6) if groups else None,
        reward_standard_error=round(float(mean_B.std()) / groups**0.5, 6) if groups > 1 else None,
        best_of_group=round(float(best_B.mean()), 6) if groups else None,
        legal_share=round(float(legal_BG.float().mean()), 6),
        requests=len(contexts),
        samples=legal_BG.numel(),
    )


def rows_of_batch(batch: RequestBatch, rows_B: Tensor) -> RequestBatch:
    """Some requests of a batch."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows_B]
        if isinstance(value, tuple):
            return tuple(value[row] for row in rows_B.tolist())
        return dataclasses.replace(value, **{field.name: part(getattr(value, field.name)) for field in dataclasses.fields(value)})

    picked: RequestBatch = part(batch)
    return picked


def _step(
    model: OneRec,
    optimizer: torch.optim.Optimizer,
    reading: Reading,
    rollouts: Rollouts,
    judged: Judged,
    settings: ReinforceSection,
    randomness: torch.Generator,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    batch, chosen_B = reading.batch.to(device), reading.chosen_B.to(device)
    legal_BG = judged.legal_BG.to(device)
    old_BG = rollouts.log_probs_BGL.to(device).sum(dim=-1)
    advantages_BG = group_advantages(judged.rewards_BG.to(device), legal_BG)
    format_BG = format_advantages(judged.legal_BG, settings.format_choices, randomness).to(device)
    bounds = {"epsilon": settings.epsilon, "delta": settings.delta}

    memory_BSD, mask_BS = model.encode(batch)  # once, for the targets and for the samples
    log_probs_BG = model.log_probs(memory_BSD[chosen_B], mask_BS[chosen_B], rollouts.codes_BGL.to(device)).sum(dim=-1)
    policy_loss = ecpo_loss(log_probs_BG, old_BG, advantages_BG, **bounds)
    format_loss = ecpo_loss(log_probs_BG, old_BG, format_BG, **bounds)
    supervised_loss, _ = model.loss_from_memory(memory_BSD, mask_BS, batch)
    loss = policy_loss + settings.format_weight * format_loss + settings.supervised_weight * supervised_loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    model.update_balance()

    with torch.no_grad():
        ratio_BG = early_clipped_ratio(log_probs_BG, old_BG, **bounds)
        outside = ((ratio_BG - 1).abs() > settings.epsilon).float().mean()
    legal_p_scores = judged.p_scores_BG[judged.legal_BG]
    figures = {
        "loss": loss,
        "policy_loss": policy_loss,
        "format_loss": format_loss,
        "supervised_loss": supervised_loss,
        "gradient_norm": gradient_norm,
        "legal_share": legal_BG.float().mean(),
        "kl_to_old": kl_to_old(log_probs_BG, old_BG),
        "clipped_share": outside,
        "groups_with_signal": (advantages_BG != 0).any(dim=1).float().mean(),
    }
    line: dict[str, Any] = {name: round(value.item(), 6) for name, value in figures.items()}
    line["reward_mean"] = round(float(legal_p_scores.mean()), 6) if len(legal_p_scores) else None
    line["samples"] = judged.legal_BG.numel()
    line["legal_samples"] = int(judged.legal_BG.sum())
    return line | {f"share_{name}": round(share, 6) for name, share in judged.shares.items()}


def _submit(service: Generates, reading: Reading, settings: ReinforceSection, step: int) -> Any:
    # One seed a step: far from those of the next run's steps and from the evaluation's.
    seed = int(np.random.SeedSequence([settings.seed, step]).generate_state(1, np.uint32)[0])
    return service.submit(reading.contexts, settings.group_size, settings.temperature, seed)


def _age(rollouts: Rollouts, pushed: dict[str, int]) -> int:
    """The step after which the oldest of the weights that sampled was pushed."""
    unknown = [version for version in rollouts.versions if version not in pushed]
    if unknown:
        raise OnerecError(
            f"the rollout service answered with weights {unknown[0]!r}, which this run never pushed: another trainer uses it, "
            "or an actor was restarted; run again when it is free"
        )
    return min(pushed[version] for version in rollouts.versions)


def _readings(reader: ShardReader, settings: ReinforceSection) -> Iterator[Reading]:
    """Batches without end, each with ``users_per_step`` users drawn from it (all, if it has fewer)."""
    if not len(reader):
        raise BadInput("no training request of these dates has an rsft target; run `onerec shards --targets rsft` first")
    rng = np.random.Generator(np.random.PCG64([settings.seed, 1]))
    while True:
        for batch in reader:
            _, first = np.unique(np.array(batch.user_ids), return_index=True)
            chosen = np.sort(rng.permutation(first)[: settings.users_per_step])
            rows_B = torch.from_numpy(chosen.astype(np.int64))
            yield Reading(batch, rows_B, rows_of_batch(batch, rows_B))
