"""``onerec train``: which days, from which model, and what it leaves in ``LAKE/training/STAGE/``.

The folder holds ``model.json`` with its weights, ``metrics.jsonl``, ``run.json`` (everything the model came from) and, while
a training is unfinished, ``checkpoint.pt``. Killed at any point, the same command goes on and ends in the same weights.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from schemas.errors import BadInput
from schemas.lake import Lake, write_atomically
from schemas.registry import Artefact, Registry
from schemas.runs import StepRun, TableCounts, step_run
from tokenization.token_set import token_set_of
from trainer.checkpoints import load_model, save_model, weights_sha256
from trainer.features import Lengths
from trainer.fitting import FitResult, FitSettings, fit, forget_state
from trainer.model.config import ModelConfig
from trainer.model.onerec import OneRec
from trainer.model.presets import preset as preset_sizes
from trainer.shard_files import dates_with_shards, one_codebook, open_day
from trainer.shard_reader import ShardReader

Stage = Literal["pretrain", "rsft"]
STAGES: tuple[Stage, ...] = ("pretrain", "rsft")
PRETRAINED = "pretrained"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainRequest:
    """What a person asks for; None is the default."""

    stage: Stage = "pretrain"
    first: dt.date | None = None
    last: dt.date | None = None
    preset: str | None = None
    steps: int | None = None
    init: str | None = None
    """A published pretrained version, or ``scratch``."""


def training_folder(lake: Lake, stage: str) -> Path:
    """Where a stage works and leaves its model."""
    return lake.local_path("training", stage)


def shards_root(lake: Lake) -> Path:
    """Where the shards are."""
    return lake.local_path("shards")


def device_here() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def lengths_of(config: ModelConfig) -> Lengths:
    """The windows that a model was built for."""
    return Lengths(config.short_length, config.positive_length, config.lifelong_length)


def training_dates(lake: Lake, first: dt.date | None, last: dt.date | None) -> list[dt.date]:
    """Days with shards from ``first`` to ``last``; by default all but the newest, which evaluation needs.

    Raises BadInput if there are none, or a named end has no shards.
    """
    there = dates_with_shards(shards_root(lake))
    if not there:
        raise BadInput(f"{shards_root(lake)}: no shards; run `onerec shards --date D` first")
    for option, named in (("--from", first), ("--to", last)):
        if named is not None and named not in there:
            raise BadInput(f"{option} {named}: no shards of that day (there are {there[0]} to {there[-1]}); run `onerec shards`")
    end = last or (there[-2] if len(there) > 1 else None)
    if end is None:
        raise BadInput(f"{shards_root(lake)}: only {there[0]} has shards and is kept for evaluation; pass --to {there[0]}")
    chosen = [date for date in there if (first or there[0]) <= date <= end]
    if not chosen:
        raise BadInput(f"--from {first} --to {end}: no days between them")
    return chosen


def run(lake: Lake, request: TrainRequest, on_step: Callable[[int, int, float], None] = lambda *_: None) -> StepRun:
    """Train a stage and leave its model and ``run.json``. ``on_step`` is told step, steps and loss.

    Raises BadInput for shards, dates, a preset or a start that cannot be used.
    """
    dates, parent = planned(lake, request)
    with step_run(lake, "train", dates[-1]) as step:
        settings = lake.config.train
        folder = training_folder(lake, request.stage)
        root = shards_root(lake)
        _, sizes = one_codebook([open_day(root, date, "all") for date in dates], None, root)
        model = _model(lake, request.preset or settings.preset, sizes, parent)
        reader = ShardReader(
            root,
            dates,
            seed=settings.seed,
            batch_requests=settings.batch_requests,
            targets="rsft" if request.stage == "rsft" else "all",
            split="train",
            lengths=lengths_of(model.config),
            max_targets=settings.max_targets_per_request,
        )
        if reader.codebook_sizes != model.config.codebook_sizes:
            raise BadInput(f"the start has codebooks of {model.config.codebook_sizes}, the shards of {reader.codebook_sizes}")
        device = device_here()
        steps = request.steps or settings.steps or max(1, settings.epochs * -(-len(reader) // settings.batch_requests))
        rate = settings.rsft_learning_rate if request.stage == "rsft" else settings.learning_rate
        plan = {
            "stage": request.stage,
            "config": model.config.to_json(),
            "train": settings.model_dump(mode="json"),
            "steps": steps,
            "shards": reader.fingerprint,
            "parent": parent.version if parent else None,
        }
        fitting = FitSettings(
            steps, rate, settings.warmup_steps, settings.weight_decay, settings.checkpoint_every, settings.log_every, plan
        )
        folder.mkdir(parents=True, exist_ok=True)
        result = fit(model.to(device), reader, fitting, folder, lambda done, loss: on_step(done, steps, loss))
        described = _describe(lake, request, model, reader, dates, parent, result, str(device))
        leave_model(folder, model, described)
        forget_state(folder)
        step.table("training", _accounting(reader, result))
        step.extra |= _report(described, result)
    return step


def leave_model(folder: Path, model: OneRec, described: Mapping[str, Any]) -> None:
    """Save a stage's model and its ``run.json``: the model's metadata and the sha256 of its weights.

    An evaluation that is there is removed: it is of the model before.
    """
    save_model(folder, model, described)
    run = {**described, "weights_sha256": weights_sha256(folder)}
    write_atomically(str(folder / RUN_FILE), (json.dumps(run, indent=1, sort_keys=True) + "\n").encode())
    for stale in ("evaluation.json", "examples.json"):
        (folder / stale).unlink(missing_ok=True)


def planned(lake: Lake, request: TrainRequest) -> tuple[list[dt.date], Artefact | None]:
    """The days to train on and the published model to begin with (None: a fresh one).

    Pre-training goes on where the published model ended: on the days after it, unless ``first`` says more. A model that was
    trained through the last day already gives way to the one it came from, so that a day trained again, also after its model
    was published, ends in the same weights. Fine-tuning starts from the published model on all days. Raises BadInput for days
    or a start that cannot be used.
    """
    dates = training_dates(lake, request.first, request.last)
    parent = _parent(lake, request, dates[-1], open_day(shards_root(lake), dates[-1], "all").codebook_version)
    if parent is None or request.stage != "pretrain" or request.first is not None:
        return dates, parent
    through = dt.date.fromisoformat(parent.metadata["trained_through"])
    newer = [date for date in dates if date > through]
    if not newer:
        raise BadInput(
            f"--init {parent.version}: was trained through {through} already; name a later --to, or --from to train on days again"
        )
    return newer, parent


def _parent(lake: Lake, request: TrainRequest, last: dt.date, codebook_version: str) -> Artefact | None:
    registry = Registry.of(lake)
    if request.init == "scratch":
        if request.stage == "rsft":
            raise BadInput("--init scratch: fine-tuning needs a pretrained model; publish one first")
        return None
    if request.init is None and registry.latest(PRETRAINED) is None:
        if request.stage == "rsft":
            raise BadInput(f"{registry.root}: no pretrained model published; run `onerec publish pretrained` first")
        return None
    artefact = registry.load(PRETRAINED, request.init)
    preset = artefact.metadata["preset"]
    wanted_preset = request.preset or (preset if request.stage == "rsft" else lake.config.train.preset)
    if (preset, artefact.metadata["codebook_version"]) != (wanted_preset, codebook_version):
        if request.stage == "pretrain" and request.init is None:
            return None
        raise BadInput(
            f"pretrained {artefact.version} is {preset}, codebook {artefact.metadata['codebook_version']}; the training needs "
            f"{wanted_preset}, codebook {codebook_version}; choose another --init, or train and publish a new one"
        )
    if request.stage == "pretrain" and request.init is None:
        return _trained_before(registry, artefact, last)
    return artefact


def _trained_before(registry: Registry, artefact: Artefact | None, last: dt.date) -> Artefact | None:
    """The artefact, or the nearest of those it came from, whose training ended before a day."""
    while artefact is not None and dt.date.fromisoformat(artefact.metadata["trained_through"]) >= last:
        former = artefact.metadata["parent"]
        artefact = registry.load(PRETRAINED, former["version"]) if former else None
    return artefact


def _model(lake: Lake, name: str, sizes: tuple[int, ...], parent: Artefact | None) -> OneRec:
    """The parent's model, or a fresh one of a preset (seeded)."""
    if parent is not None:
        for file in parent.files:
            parent.file(file)
        return load_model(parent.folder).model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lake.config.train.seed)
        return OneRec(preset_sizes(name, sizes))


def _describe(
    lake: Lake,
    request: TrainRequest,
    model: OneRec,
    reader: ShardReader,
    dates: list[dt.date],
    parent: Artefact | None,
    result: FitResult,
    device: str,
) -> dict[str, Any]:
    """Everything a model came from: the metadata of the saved model, and ``run.json``."""
    through = max(dates[-1], dt.date.fromisoformat(parent.metadata["trained_through"]) if parent else dates[-1])
    registry = Registry.of(lake)
    token_set = token_set_of(registry, reader.codebook_version)
    return {
        "stage": request.stage,
        "preset": model.config.preset,
        "dates": [date.isoformat() for date in dates],
        "trained_through": through.isoformat(),
        "codebook_version": reader.codebook_version,
        "codebook_sizes": list(reader.codebook_sizes),
        "token_set_version": token_set.version if token_set else None,
        "parent": {"kind": parent.kind, "version": parent.version} if parent else None,
        "model": model.config.to_json(),
        "parameters": model.parameter_counts(),
        "train": lake.config.train.model_dump(mode="json"),
        "config_version": lake.config.version,
        "shards": reader.fingerprint,
        "steps": result.steps,
        "loss_first": round(result.loss_first, 6),
        "loss_last": round(result.loss_last, 6),
        "device": device,
    }


def _accounting(reader: ShardReader, result: FitResult) -> TableCounts:
    """Requests of the dates: trained on at least once, or not and why."""
    counts = reader.counts
    reached = min(result.requests, counts.requests)
    return TableCounts(
        rows_in=counts.requests + counts.requests_other_split + counts.requests_without_targets,
        rows_out=reached,
        rows_dropped={
            "holdout": counts.requests_other_split,
            "no_target_with_tokens": counts.requests_without_targets,
            "beyond_steps": counts.requests - reached,
        },
    )


def _report(described: dict[str, Any], result: FitResult) -> dict[str, Any]:
    names = ("stage", "preset", "dates", "trained_through", "codebook_version", "parent", "parameters", "device")
    return {
        **{name: described[name] for name in names},
        "loss_first": described["loss_first"],
        "loss_last": described["loss_last"],
        "steps": result.steps,
        "requests": result.requests,
        "tokens": result.targets * len(described["codebook_sizes"]),
        "resumed_from": result.resumed_from,
    }
