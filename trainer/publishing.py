"""``onerec publish``: makes a token set, a pretrained model or a release live, once it is sure that its parts belong together.

What is published is whole and immutable; ``latest`` moves last, so a reader sees the former version or the new one, and a
publication that is killed leaves the former live. Publishing the same parts again gives the same version. ``rollback``
makes a version that was published before live again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake
from schemas.registry import Artefact, Registry
from schemas.runs import StepRun, TableCounts, step_run
from tokenization.token_set import ITEMS_FILE, TRIE_FILE, publish_token_set, token_set_of
from trainer.checkpoints import load_model, model_files
from trainer.evaluation import EVALUATION_FILE
from trainer.reward.files import REWARD_FILE, load_reward
from trainer.training import PRETRAINED, RUN_FILE, training_folder

KINDS = {"tokens": "token_set", "pretrained": PRETRAINED, "release": "release"}
"""What a person publishes → the registry's kind."""
MAX_JSON_BYTES = 64 * 2**20
_KEPT = (
    "stage",
    "preset",
    "dates",
    "trained_through",
    "codebook_version",
    "codebook_sizes",
    "parent",
    "parameters",
    "config_version",
)
"""What an artefact's metadata repeats of its model."""


@dataclass(frozen=True)
class Prepared:
    """Everything of a publication, checked."""

    kind: str
    metadata: dict[str, Any]
    files: dict[str, Path]


def prepare_pretrained(lake: Lake) -> Prepared:
    """The model of ``training/pretrain`` with its run and evaluation.

    Raises BadInput if a part is missing or of another model, GateFailed if its evaluation said no.
    """
    model, files, evaluation = _evaluated_model(lake, "pretrain")
    return Prepared(
        PRETRAINED,
        _kept(model)
        | {
            "weights": _weights(files),
            "token_set_version": model.get("token_set_version"),
            "evaluation": _figures(evaluation),
        },
        files,
    )


def prepare_release(lake: Lake, stage: str) -> Prepared:
    """The model of ``training/STAGE`` (``rl`` or ``rsft``) with everything that it belongs to.

    Raises BadInput if a part is missing or does not fit the others (the tokens of another codebook, another reward model, a
    pretrained model that is not published), GateFailed if the evaluation said no.
    """
    registry = Registry.of(lake)
    model, files, evaluation = _evaluated_model(lake, stage)
    token_set = _token_set(registry, model)
    pretrained = model.get("pretrained") if stage == "rl" else model.get("parent")
    if not pretrained or pretrained.get("kind") != PRETRAINED:
        raise BadInput(f"{files[RUN_FILE]}: does not say which pretrained model the {stage} model came from; train it again")
    _same_codebook(registry.load(PRETRAINED, pretrained["version"]), model["codebook_version"])
    metadata = _kept(model) | {
        "weights": _weights(files),
        "token_set_version": token_set.version,
        "pretrained_version": pretrained["version"],
        "rsft_version": model["parent"]["version"] if stage == "rl" else _weights(files),
        "rl_version": _weights(files) if stage == "rl" else None,
        "reward_version": None,
        "evaluation": _figures(evaluation),
    }
    if stage == "rl":
        folder = training_folder(lake, "reward")
        reward = load_reward(folder)
        if reward.version != model.get("reward_version"):
            raise BadInput(
                f"{folder / REWARD_FILE}: reward model {reward.version}, but the rl model was trained with "
                f"{model.get('reward_version')}; run `onerec rl` again"
            )
        metadata["reward_version"] = reward.version
        metadata["rl_reward"] = model["reward"]
        files = files | {REWARD_FILE: folder / REWARD_FILE, f"reward-{reward.version}.safetensors": _reward_weights(folder)}
    return Prepared("release", metadata, files)


def run(lake: Lake, what: str, stage: str, rollback: str | None, *, codebook_version: str | None = None) -> StepRun:
    """Publish ``tokens``, ``pretrained`` or ``release`` (or make ``rollback`` live again). Raises as its preparation does.

    ``codebook_version`` is that of ``tokens``, the newest unless told: new items of the live codebook can be published while
    a newer one waits for its gate.
    """
    with step_run(lake, f"publish {what}") as step:
        registry = Registry.of(lake)
        former = registry.latest(KINDS[what])
        if rollback is not None:
            artefact = roll_back(registry, what, rollback)
        elif what == "tokens":
            artefact = publish_token_set(lake, codebook_version)
        else:
            prepared = prepare_pretrained(lake) if what == "pretrained" else prepare_release(lake, stage)
            artefact = registry.publish(prepared.kind, prepared.metadata, prepared.files)
        step.table("registry", TableCounts(rows_in=len(artefact.files), rows_out=len(artefact.files)))
        step.extra |= {
            "kind": artefact.kind,
            "version": artefact.version,
            "former_version": former,
            "folder": str(artefact.folder),
            "metadata": artefact.metadata,
        }
    return step


def rehearse(lake: Lake, what: str, stage: str, rollback: str | None) -> list[str]:
    """The files that would be published (or made live again); refuses what ``run`` would, but for a token set's parts."""
    if rollback is not None:
        return sorted(Registry.of(lake).load(KINDS[what], rollback).files)
    if what == "tokens":
        return [ITEMS_FILE, TRIE_FILE]
    return sorted((prepare_pretrained(lake) if what == "pretrained" else prepare_release(lake, stage)).files)


def roll_back(registry: Registry, what: str, version: str) -> Artefact:
    """Make a published version live again, after every file of it was verified. Raises BadInput for a missing or damaged one."""
    artefact = registry.load(KINDS[what], version)
    for name in artefact.files:
        artefact.file(name)
    if what == "release":
        registry.load("token_set", artefact.metadata["token_set_version"])
    registry.set_latest(artefact.kind, version)
    return artefact


def _evaluated_model(lake: Lake, stage: str) -> tuple[dict[str, Any], dict[str, Path], dict[str, Any]]:
    """A stage's metadata, its files and its evaluation; all of one model."""
    folder = training_folder(lake, stage)
    files = model_files(folder)
    saved = load_model(folder)
    run_file, evaluation_file = folder / RUN_FILE, folder / EVALUATION_FILE
    if _json(run_file, f"run the training of {stage} again") != saved.metadata | {"weights_sha256": saved.weights_sha256}:
        raise BadInput(f"{run_file}: of another model than the one beside it; run the training of {stage} again")
    evaluation = _json(evaluation_file, f"run `onerec evaluate --stage {stage}` first")
    if evaluation.get("weights_sha256") != saved.weights_sha256:
        raise BadInput(
            f"{evaluation_file}: of another model (weights_sha256 {evaluation.get('weights_sha256')!r}, the model's is "
            f"{saved.weights_sha256!r}); run `onerec evaluate --stage {stage}` again"
        )
    if not _is_evaluation(evaluation):
        raise BadInput(f"{evaluation_file}: no evaluation of ours (altered); run `onerec evaluate --stage {stage}` again")
    if not evaluation["gate"]["passed"]:
        raise GateFailed(f"{evaluation_file}: {'; '.join(evaluation['gate']['reasons'])}; nothing was published")
    files = files | {RUN_FILE: run_file, EVALUATION_FILE: evaluation_file}  # not the examples: they show people
    return saved.metadata, files, evaluation


def _token_set(registry: Registry, model: Mapping[str, Any]) -> Artefact:
    """The live token set if it is of the model's codebook (it knows the newest items), else the newest one that is."""
    found = token_set_of(registry, model["codebook_version"])
    if found is None:
        raise BadInput(
            f"{registry.root / 'token_set'}: no token set of codebook {model['codebook_version']}, which is the model's; run "
            f"`onerec publish tokens --codebook-version {model['codebook_version']}`, or train on shards of the newest tokens"
        )
    sizes = found.metadata["codebook_sizes"]
    if list(sizes) != list(model["codebook_sizes"]):  # codes got a suffix since (codebook.collisions), or lost it
        raise BadInput(
            f"token set {found.version}: codes of sizes {sizes}, the model's are {list(model['codebook_sizes'])}; write shards "
            "of the new tokens (`onerec shards --retokenise`) and train on them"
        )
    return found


def _same_codebook(artefact: Artefact, codebook_version: str) -> None:
    if artefact.metadata["codebook_version"] != codebook_version:
        raise BadInput(
            f"{artefact.kind} {artefact.version}: of codebook {artefact.metadata['codebook_version']}, the model's is "
            f"{codebook_version}; they do not belong together, train the model again"
        )


def _kept(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model.get(name) for name in _KEPT}


def _is_evaluation(content: Mapping[str, Any]) -> bool:
    """Whether everything is there that publishing repeats or judges."""
    try:
        _figures(content)
        return isinstance(content["gate"]["passed"], bool) and isinstance(content["gate"]["reasons"], list)
    except (KeyError, TypeError):
        return False


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata repeats of an evaluation; the whole of it is among the files."""
    everyone = evaluation["groups"]["all"]
    return {name: evaluation[name] for name in ("evaluated_on", "loss", "beam")} | {
        name: everyone[name] for name in ("requests", "generated", "popularity", "legal_share")
    }


def _weights(files: Mapping[str, Path]) -> str:
    name = next(name for name in files if name.startswith("model-"))
    return name.removeprefix("model-").removesuffix(".safetensors")


def _reward_weights(folder: Path) -> Path:
    return folder / str(json.loads((folder / REWARD_FILE).read_bytes())["weights"]["path"])


def _json(path: Path, mend: str) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: missing; {mend}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BadInput(f"{path}: larger than {MAX_JSON_BYTES} bytes; not one of ours")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON (truncated or foreign); {mend}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds {type(content).__name__}, not an object; {mend}")
    return content
