"""Training of the fusion model: an item-to-item contrastive loss on co-interaction pairs, and the text vector predicted.

    L = ½ (InfoNCE(a → b) + InfoNCE(b → a)) + text_loss_weight · mean(1 − cos(W z, text))

with the other pairs of the batch as negatives, except those known to be positives of the same item (V1 §2.1; the paper's
caption generation is replaced by predicting the caption's vector, which needs no language model).

Everything random in a step is a function of (seed, step), so a run resumed from a checkpoint ends in the same weights as one
never interrupted.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from schemas.config import FusionSection
from schemas.errors import BadInput
from tokenization.fusion_model import FusionModel, FusionShape
from tokenization.threads import torch_threads

CHECKPOINT_STEPS = 100
CHECKPOINT_FILE = "checkpoint.safetensors"
HELD_OUT_SHARE = 0.1
SMALL_STEP = 2**17
"""Numbers of a step (batch × dimension) up to which one thread is used."""


@dataclass(frozen=True)
class FusionData:
    """N items by kind, and P pairs of them.

    ``vectors``: kind → float32 (N, dimension), zero rows where absent. ``present``: bool (N, M) in the order of
    ``shape.kinds``. ``pairs``: int64 (P, 2), rows of items that belong together, each unordered pair once.
    """

    vectors: Mapping[str, np.ndarray]
    present: np.ndarray
    pairs: np.ndarray


def train_fusion(
    shape: FusionShape,
    data: FusionData,
    section: FusionSection,
    *,
    start: FusionModel | None = None,
    checkpoints: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[FusionModel, list[float]]:
    """Train on all of ``data.pairs``; returns the model and the loss of each step that this call ran.

    ``start``: a model of the same shape whose weights to begin with, in place of random ones; it is left as it is.
    With ``checkpoints`` (a folder that belongs to this data and configuration alone) the state is kept every
    CHECKPOINT_STEPS steps and taken up again from there. ``progress`` hears (steps done, loss). Raises BadInput at the first
    loss that is not finite, and where the weights end so: the model would be one of NaN.
    """
    small = section.batch_size * section.dim <= SMALL_STEP
    with torch_threads(1 if small else None):
        return _train(shape, data, section, start, checkpoints, progress)


def _train(
    shape: FusionShape,
    data: FusionData,
    section: FusionSection,
    start: FusionModel | None,
    checkpoints: Path | None,
    progress: Callable[[int, float], None] | None,
) -> tuple[FusionModel, list[float]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        model = FusionModel(shape)
    if start is not None:
        model.load_state_dict(start.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=section.learning_rate, weight_decay=0.01)
    done = _resume(checkpoints, model, optimizer) if checkpoints else 0
    vectors = {kind: torch.from_numpy(data.vectors[kind]) for kind in shape.kinds}
    present_NM = torch.from_numpy(data.present)
    known = _PairIndex(data.pairs, len(data.present))
    losses = []
    model.train()
    for step in range(done, section.steps):
        for group in optimizer.param_groups:
            group["lr"] = section.learning_rate * _schedule(step, section.steps)
        left, right = _batch(data.pairs, section, step)
        items, places = np.unique(np.concatenate([left, right]), return_inverse=True)
        rows = torch.from_numpy(items)
        fused_UD = model({kind: matrix[rows] for kind, matrix in vectors.items()}, present_NM[rows])
        left_at, right_at = places[: len(left)], places[len(left) :]
        loss = _contrastive(fused_UD[left_at], fused_UD[right_at], known, left, right, section.temperature)
        if model.predict_text is not None:
            has_text = present_NM[rows][:, shape.kinds.index("text")]
            if has_text.any():
                cosine = F.cosine_similarity(model.predict_text(fused_UD[has_text]), vectors["text"][rows][has_text], dim=-1)
                loss = loss + section.text_loss_weight * (1 - cosine).mean()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise _diverged(f"its loss is {losses[-1]} at step {step + 1} of {section.steps}", section)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if checkpoints and (step + 1) % CHECKPOINT_STEPS == 0:
            _save(checkpoints, model, optimizer, step + 1)
        if progress:
            progress(step + 1, losses[-1])
    if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):  # no loss has seen the last step
        raise _diverged(f"its weights are not finite after step {section.steps}", section)
    return model.eval(), losses


def _diverged(found: str, section: FusionSection) -> BadInput:
    return BadInput(
        f"the training of the fusion model diverged: {found}; lower fusion.learning_rate ({section.learning_rate:g}) or raise "
        f"fusion.temperature ({section.temperature:g}), or, where it began with a damaged model, set fusion.start: scratch"
    )


def split_pairs(pairs: np.ndarray, item_ids: list[str], share: float = HELD_OUT_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """(training, held out) of int64 (P, 2) pairs: a stable share, by a hash of the two item ids, is held out.

    With fewer than 20 pairs nothing is held out.
    """
    from schemas.shards import stable_key

    if len(pairs) < 20:
        return pairs, pairs[:0]
    keys = ["\0".join(sorted((item_ids[a], item_ids[b]))) for a, b in pairs.tolist()]
    held = np.array([stable_key(key) % 1000 < share * 1000 for key in keys])
    return pairs[~held], pairs[held]


def pair_recall(vectors: np.ndarray, training: np.ndarray, held_out: np.ndarray, k: int = 50) -> float | None:
    """Share of held-out pairs (both directions) whose other item is among the k nearest by inner product.

    The item itself and its training partners are left out of the ranking, ties count against. ``vectors`` is float32
    (N, D), unit or zero rows; an item without a vector, or at a similarity that is no number, is never found. None without
    held-out pairs.
    """
    if not len(held_out):
        return None
    partners: dict[int, list[int]] = {}
    for a, b in training.tolist():
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    questions = np.concatenate([held_out, held_out[:, ::-1]])
    has_vector = (vectors != 0).any(axis=1)
    hits = 0
    for start in range(0, len(questions), 1024):
        asked, wanted = questions[start : start + 1024].T
        scores = vectors[asked] @ vectors.T
        scores[:, ~has_vector] = -np.inf
        own = scores[np.arange(len(asked)), wanted].copy()
        for row, item in enumerate(asked.tolist()):
            scores[row, [item, *partners.get(item, [])]] = -np.inf
        scores[np.arange(len(asked)), wanted] = -np.inf
        better = (scores >= own[:, None]).sum(axis=1)
        # Nothing compares with NaN as better or worse, so a pair at such a similarity would be the nearest of all.
        hits += int(((better < k) & np.isfinite(own) & has_vector[asked] & has_vector[wanted]).sum())
    return hits / len(questions)


class _PairIndex:
    """Answers for two arrays of items which of all their combinations are known pairs."""

    def __init__(self, pairs: np.ndarray, items: int) -> None:
        self._items = items
        self._codes = np.unique(np.concatenate([pairs[:, 0] * items + pairs[:, 1], pairs[:, 1] * items + pairs[:, 0]]))

    def mask(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """bool (len(left), len(right))."""
        codes = left[:, None] * self._items + right[None, :]
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        found: np.ndarray = self._codes[places] == codes
        return found


def _batch(pairs: np.ndarray, section: FusionSection, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a step, drawn without replacement and each turned at random."""
    random = np.random.default_rng((section.seed, step))
    chosen = pairs[random.choice(len(pairs), min(section.batch_size, len(pairs)), replace=False)]
    turned = random.random(len(chosen)) < 0.5
    return np.where(turned, chosen[:, 1], chosen[:, 0]), np.where(turned, chosen[:, 0], chosen[:, 1])


def _contrastive(
    left_BD: Tensor, right_BD: Tensor, known: _PairIndex, left: np.ndarray, right: np.ndarray, temperature: float
) -> Tensor:
    own = np.eye(len(left), dtype=bool)
    forbidden_BB = torch.from_numpy((known.mask(left, right) | (left[:, None] == right[None, :])) & ~own)
    logits_BB = (left_BD @ right_BD.T / temperature).masked_fill(forbidden_BB, -torch.inf)
    targets_B = torch.arange(len(left))
    return (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B)) / 2


def _schedule(step: int, steps: int) -> float:
    """A short linear rise, then a half cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _save(folder: Path, model: FusionModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    names = [name for name, _ in model.named_parameters()]
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{key}.{names[place]}": value for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{CHECKPOINT_FILE}.{os.getpid()}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"step": str(step)})
    os.replace(temporary, folder / CHECKPOINT_FILE)


def _resume(folder: Path, model: FusionModel, optimizer: torch.optim.Optimizer) -> int:
    """Take up the state in ``folder``; returns the steps it has done, 0 without a whole one."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as stored:
            step = int((stored.metadata() or {})["step"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError):
        return 0  # not a checkpoint of ours: training from the start gives the same result
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state = {
        place: {key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for place, (name, _) in enumerate(model.named_parameters())
        if f"optimizer.step.{name}" in tensors
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step
