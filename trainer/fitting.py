"""The training loop: optimiser, schedule, metrics, and a state that resumes to the same weights.

One process. The reader already shares an epoch among ranks; the loop does not use torch.distributed yet.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.errors import BadInput
from schemas.lake import write_atomically
from trainer.batches import RequestBatch
from trainer.checkpoints import load_state, save_state
from trainer.model.onerec import LossMetrics, OneRec
from trainer.shard_reader import ShardReader

MAX_GRADIENT_NORM = 1.0
LAST_LEARNING_RATE_SHARE = 0.1
STATE_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class FitSettings:
    """How to train. ``plan`` names everything that must be the same for a state to be resumed."""

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    checkpoint_every: int
    log_every: int
    plan: Mapping[str, Any]


@dataclass(frozen=True)
class FitResult:
    """What a training did. Losses are means over the first and last tenth of the steps (at least one)."""

    loss_first: float
    loss_last: float
    steps: int
    requests: int
    targets: int
    resumed_from: int


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine to a tenth. ``step`` counts from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    share = LAST_LEARNING_RATE_SHARE + (1 - LAST_LEARNING_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * share


def make_optimizer(model: OneRec, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; embeddings, norms, biases and lone vectors do not decay."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decays = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def fit(
    model: OneRec,
    reader: ShardReader,
    settings: FitSettings,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> FitResult:
    """Train a model in place for ``settings.steps`` steps, over as many epochs as that takes.

    A state in ``folder`` of the same plan is resumed; one of another plan is replaced. Metrics go to ``metrics.jsonl``
    (step, loss, token_loss_1 …, learning_rate, requests_per_s, expert_load). Raises BadInput if there is nothing to train on,
    or the loss is not a number.
    """
    if not len(reader):
        raise BadInput("no request of these dates has a target with tokens; tokenise the items and write the shards again")
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, settings.learning_rate, settings.weight_decay)
    losses, counts = _resume(model, optimizer, reader, settings, folder)
    begun = resumed_from = len(losses)
    model.train()
    clock = time.perf_counter()
    requests_since = 0
    batches = _endless(reader)
    for step in range(begun, settings.steps):
        batch = next(batches).to(device)
        rate = learning_rate_at(step, settings)
        loss, metrics, load = _train_step(model, optimizer, batch, rate)
        if not math.isfinite(loss):
            raise BadInput(
                f"the loss became {loss} at step {step + 1}; lower train.learning_rate (now {rate:.2g}) and train again"
            )
        losses.append(loss)
        counts["requests"] += len(batch)
        counts["targets"] += metrics.targets
        requests_since += len(batch)
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            speed = requests_since / (time.perf_counter() - clock)
            _log(folder, step + 1, loss, metrics, rate, speed, load)
            clock, requests_since = time.perf_counter(), 0
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps:
            save_state(folder / STATE_FILE, _state(model, optimizer, reader, settings, losses, counts))
        on_step(step + 1, loss)
    window = max(1, settings.steps // 10)
    return FitResult(
        loss_first=sum(losses[:window]) / window,
        loss_last=sum(losses[-window:]) / window,
        steps=settings.steps,
        requests=counts["requests"],
        targets=counts["targets"],
        resumed_from=resumed_from,
    )


def forget_state(folder: Path) -> None:
    """Remove the state once the trained model is saved."""
    (folder / STATE_FILE).unlink(missing_ok=True)


def _train_step(
    model: OneRec, optimizer: torch.optim.Optimizer, batch: RequestBatch, rate: float
) -> tuple[float, LossMetrics, list[list[float]]]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss, metrics = model.loss(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    load = [[round(share, 4) for share in block.tolist()] for block in model.update_balance()]
    return loss.item(), metrics, load


def _endless(reader: ShardReader) -> Iterator[RequestBatch]:
    while True:
        yield from reader


def _state(
    model: OneRec,
    optimizer: torch.optim.Optimizer,
    reader: ShardReader,
    settings: FitSettings,
    losses: list[float],
    counts: dict[str, int],
) -> dict[str, Any]:
    return {
        "plan": dict(settings.plan),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "reader": reader.state_dict(),
        "losses": losses,
        "counts": counts,
    }


def _resume(
    model: OneRec, optimizer: torch.optim.Optimizer, reader: ShardReader, settings: FitSettings, folder: Path
) -> tuple[list[float], dict[str, int]]:
    """Losses and counts so far, with everything put where the state left it; nothing if there is none of this plan."""
    state = load_state(folder / STATE_FILE, next(model.parameters()).device)
    resumed = state is not None and state["plan"] == dict(settings.plan) and len(state["losses"]) <= settings.steps
    steps = 0
    if state is not None and resumed:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        reader.load_state_dict(state["reader"])
        steps = len(state["losses"])
    _keep_metrics(folder / METRICS_FILE, steps)
    return (state["losses"], state["counts"]) if state is not None and resumed else ([], {"requests": 0, "targets": 0})


def _keep_metrics(path: Path, steps: int) -> None:
    """Forget metrics of steps that will be done again."""
    kept = []
    if steps and path.is_file():
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= steps]
    write_atomically(str(path), "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
        return math.inf


def _log(folder: Path, step: int, loss: float, metrics: LossMetrics, rate: float, speed: float, load: list[list[float]]) -> None:
    line = {
        "step": step,
        "loss": round(loss, 6),
        **{f"token_loss_{layer}": round(value, 6) for layer, value in enumerate(metrics.token_loss_L.tolist(), start=1)},
        "learning_rate": rate,
        "requests_per_s": round(speed, 1),
        "expert_load": load,
    }
    with (folder / METRICS_FILE).open("a") as stream:
        stream.write(json.dumps(line) + "\n")
