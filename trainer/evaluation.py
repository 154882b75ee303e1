"""``onerec evaluate``: how well a trained model predicts and generates a later day.

The loss is over every target; recall and NDCG are of generated items (beam search inside the trie of the day's tokens)
against the request's positively engaged targets, beside the most popular items of the training days; legality is the share
of free samples that name an item.
"""

import datetime as dt
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.errors import BadInput, GateFailed
from schemas.lake import Lake, day_start, write_atomically
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.shards import USER_DAY
from schemas.suppression import while_nobody_is_forgotten
from schemas.tables import POSITIVE_BIT
from tokenization.trie import TokenTrie
from tokenization.trie_tensors import TrieTensors
from trainer.batches import RequestBatch
from trainer.checkpoints import SavedModel, load_model
from trainer.generation import beam_search_from_memory, sample_from_memory
from trainer.item_table import ItemTable, ItemTokens
from trainer.ranking import RankingTotals
from trainer.shard_files import dates_with_shards, open_day
from trainer.shard_reader import ShardReader
from trainer.training import device_here, lengths_of, shards_root, training_folder

EVALUATION_FILE = "evaluation.json"
EXAMPLES_FILE = "examples.json"
PUBLISHED_KIND = {"pretrain": "pretrained", "rsft": "release", "rl": "release"}
"""Where the evaluation of the previous model of a stage is found (file ``evaluation.json`` of the artefact)."""
_HISTORY_SHOWN = 10


@dataclass
class _Totals:
    """Sums over one group of users."""

    token_loss_L: np.ndarray
    targets: int = 0
    requests: int = 0
    model: RankingTotals = field(default_factory=lambda: RankingTotals(()))
    popularity: RankingTotals = field(default_factory=lambda: RankingTotals(()))
    free_samples: int = 0
    legal_samples: int = 0

    def to_json(self) -> dict[str, Any]:
        token_loss = (self.token_loss_L / max(1, self.targets)).tolist()
        return {
            "requests": self.requests,
            "targets": self.targets,
            "loss": round(sum(token_loss), 6) if self.targets else None,
            "token_loss": [round(value, 6) for value in token_loss],
            "perplexity": [round(math.exp(value), 4) for value in token_loss],
            "generated": self.model.to_json(),
            "popularity": self.popularity.to_json(),
            "legal_share": round(self.legal_samples / self.free_samples, 6) if self.free_samples else None,
        }


class Evaluator:
    """Evaluates a model on batches of one day."""

    def __init__(
        self, saved: SavedModel, items: ItemTable, tokens: ItemTokens, popular: Sequence[int], lake: Lake, device: torch.device
    ) -> None:
        self.model = saved.model.to(device)
        self.settings = lake.config.evaluate
        self.items, self.tokens = items, tokens
        self.popular = popular
        self.device = device
        self.trie = TokenTrie.build(tokens.tokens_IL, tokens.keys_I, ranks=tokens.rank_I, sizes=self.model.config.codebook_sizes)
        self.trie_tensors = TrieTensors.of(self.trie, device)
        self.generator = torch.Generator(device).manual_seed(self.settings.seed)
        layers, top_k = len(self.model.config.codebook_sizes), self.settings.top_k
        self.groups = {
            name: _Totals(np.zeros(layers), model=RankingTotals(top_k), popularity=RankingTotals(top_k))
            for name in ("all", "holdout", "others")
        }
        self.examples: list[dict[str, Any]] = []

    @torch.no_grad()
    def add(self, batch: RequestBatch) -> None:
        """Take in a batch."""
        here = batch.to(self.device)
        memory_BSD, mask_BS = self.model.encode(here)
        loss_BTL = -self.model.log_probs(memory_BSD, mask_BS, here.tokens_BTL).masked_fill(~here.target_mask_BT[..., None], 0)
        codes_BWL, score_BW = beam_search_from_memory(self.model, memory_BSD, mask_BS, self.trie_tensors, self.settings.beam)
        free_BGL, _ = sample_from_memory(self.model, memory_BSD, mask_BS, self.settings.free_samples, 1.0, self.generator)
        legal_BG = self.trie.contains(free_BGL.flatten(0, 1).cpu().numpy()).reshape(free_BGL.shape[:2])
        loss_BL = loss_BTL.sum(1).double().cpu().numpy()
        codes, scores = codes_BWL.cpu().numpy(), score_BW.cpu().numpy()
        positive_BT = batch.flag("positive")
        for row in range(len(batch)):
            ranked = self._items_of(codes[row], scores[row])
            relevant = set(batch.item_key_BT[row][positive_BT[row]].tolist())
            for group in ("all", "holdout" if batch.holdout_B[row] else "others"):
                totals = self.groups[group]
                totals.requests += 1
                totals.targets += int(batch.target_mask_BT[row].sum())
                totals.token_loss_L += loss_BL[row]
                totals.model.add([item for item, _, _ in ranked], relevant)
                totals.popularity.add(self.popular, relevant)
                totals.free_samples += legal_BG.shape[1]
                totals.legal_samples += int(legal_BG[row].sum())
            if self._is_example(batch.user_ids[row], relevant):
                self.examples.append(self._example(batch, row, ranked, positive_BT[row]))

    def _items_of(self, codes_WL: np.ndarray, scores_W: np.ndarray) -> list[tuple[int, float, list[int]]]:
        """Item keys of codes, best first (those of one code by rank), with the code's log-probability and tokens."""
        wanted = max(self.settings.top_k)
        ranked: list[tuple[int, float, list[int]]] = []
        for code, score in zip(codes_WL, scores_W, strict=True):
            if len(ranked) >= wanted or not np.isfinite(score):
                break
            ranked += [(int(self.tokens.keys_I[place]), float(score), code.tolist()) for place in self.trie.items(code)]
        return ranked[:wanted]

    def _is_example(self, user_id: str, relevant: set[int]) -> bool:
        """One request a user, of those in which the user engaged with something."""
        shown = {example["user_id"] for example in self.examples}
        return len(shown) < self.settings.examples and bool(relevant) and user_id not in shown

    def _example(
        self, batch: RequestBatch, row: int, ranked: list[tuple[int, float, list[int]]], positive_T: torch.Tensor
    ) -> dict[str, Any]:
        shown = batch.short.item_key_BS[row][batch.short.mask_BS[row]][-_HISTORY_SHOWN:].tolist()
        keys_T, there_T = batch.item_key_BT[row], batch.target_mask_BT[row]
        return {
            "user_id": batch.user_ids[row],
            "request_id": batch.request_ids[row],
            "request_ts": dt.datetime.fromtimestamp(int(batch.request_ts_B[row]) / 1e6, dt.UTC).isoformat(),
            "history": [self.items.item_id(key) for key in shown],
            "generated": [
                {"item_id": self.items.item_id(key), "score": round(score, 4), "tokens": code} for key, score, code in ranked
            ],
            "impressions": [self.items.item_id(key) for key in keys_T[there_T].tolist()],
            "next": [self.items.item_id(key) for key in keys_T[positive_T].tolist()],
        }


def popular_items(root: Path, dates: Sequence[dt.date], tokens: ItemTokens, count: int) -> list[int]:
    """The item keys with most positive impressions on some days among users who are trained on, most first.

    Only items with tokens, which are those that a model can generate; ties go to the smaller key.
    """
    keys, weights = [], []
    for date in dates:
        for _, file in open_day(root, date, "all").data:
            for batch in file.batches(USER_DAY, ["holdout", "event_item_key", "event_feedback"]):
                lengths = batch["event_item_key"].value_lengths().to_numpy(zero_copy_only=False)
                trained = ~np.repeat(batch["holdout"].to_numpy(zero_copy_only=False).astype(bool), lengths)
                positive = batch["event_feedback"].flatten().to_numpy() >> POSITIVE_BIT & 1
                keys.append(batch["event_item_key"].flatten().to_numpy())
                weights.append(positive * trained)
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate(weights), minlength=len(distinct))
    order = np.lexsort((distinct, -counts))
    order = order[tokens.known(distinct[order]) & (counts[order] > 0)]
    return distinct[order][:count].tolist()


def run(
    lake: Lake,
    stage: str,
    date: dt.date | None,
    *,
    gate: bool,
    on_requests: Callable[[int, int], None] = lambda *_: None,
) -> StepRun:
    """Evaluate the model of ``LAKE/training/STAGE/`` on a day; writes ``evaluation.json`` and ``examples.json`` there.

    Raises BadInput if there is no model, the day has no shards or lies inside the training; GateFailed if ``gate`` and the
    loss is above ``evaluate.max_loss`` or too far above the previous published model's.
    """
    folder = training_folder(lake, stage)
    device = device_here()
    saved = load_model(folder, device)
    through = dt.date.fromisoformat(saved.metadata["trained_through"])
    day = date or through + dt.timedelta(days=1)
    root = shards_root(lake)
    if day <= through:
        raise BadInput(f"--date {day}: the model was trained through {through}; evaluate it on a later day")
    if day not in dates_with_shards(root):
        raise BadInput(f"{root}: no shards of {day}, the day to evaluate on; run `onerec shards --date {day}` first")
    with step_run(lake, "evaluate", day) as step:
        settings = lake.config.evaluate
        reader = ShardReader(
            root,
            [day],
            seed=settings.seed,
            batch_requests=settings.batch_requests,
            split="all",
            codebook_version=saved.metadata["codebook_version"],
            lengths=lengths_of(saved.model.config),
            max_targets=lake.config.train.max_targets_per_request,
        )
        dates = [dt.date.fromisoformat(text) for text in saved.metadata["dates"]]
        # As in serving: what was deleted before the day is in histories, and is not recommended.
        live = reader.tokens[0].live(reader.items[0], day_start(day, lake.config))
        if not len(live.keys_I):
            raise BadInput(f"{root}/date={day}: every item with tokens is deleted; there is nothing to recommend")
        popular = popular_items(root, dates, live, max(settings.top_k))
        evaluator = Evaluator(saved, reader.items[0], live, popular, lake, device)
        wanted, done = min(settings.max_requests, len(reader)), 0
        for batch in reader:
            evaluator.add(batch)
            done += len(batch)
            on_requests(done, wanted)
            if done >= wanted:
                break
        if not done:
            raise BadInput(f"{root}/date={day}: no request has a target with tokens; tokenise the items and write it again")
        report = _report(lake, stage, day, saved, evaluator)
        with while_nobody_is_forgotten(lake):
            _write(folder / EVALUATION_FILE, report)
            _write(folder / EXAMPLES_FILE, {"stage": stage, "date": day.isoformat(), "users": evaluator.examples})
        step.table("evaluation", _accounting(reader, done))
        step.extra |= report
        if gate and report["gate"]["reasons"]:
            raise GateFailed(f"evaluate {stage} on {day}: {'; '.join(report['gate']['reasons'])}; nothing was published")
    return step


def _report(lake: Lake, stage: str, day: dt.date, saved: SavedModel, evaluator: Evaluator) -> dict[str, Any]:
    groups = {name: totals.to_json() for name, totals in evaluator.groups.items()}
    previous = previous_loss(lake, stage, saved.metadata["codebook_version"])
    reasons = gate_reasons(lake, groups["all"]["loss"], previous)
    names = ("trained_through", "codebook_version", "preset", "token_set_version")
    return {
        "stage": stage,
        "evaluated_on": day.isoformat(),
        **{name: saved.metadata.get(name) for name in names},
        "weights_sha256": saved.weights_sha256,
        "beam": evaluator.settings.beam,
        "loss": groups["all"]["loss"],
        "metrics": _flat(
            {"loss": groups["all"]["loss"], **groups["all"]["generated"], "legal_share": groups["all"]["legal_share"]}
        ),
        "popularity": _flat(groups["all"]["popularity"]),
        "groups": groups,
        "gate": {"previous_loss": previous, "reasons": reasons, "passed": not reasons},
    }


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """What a table of models shows: the means that exist."""
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def previous_loss(lake: Lake, stage: str, codebook_version: str) -> float | None:
    """Loss of the previous published model of a stage, None without one, or if its tokens were others (not comparable)."""
    registry = Registry.of(lake)
    kind = PUBLISHED_KIND.get(stage)
    if kind is None or registry.latest(kind) is None:
        return None
    artefact = registry.load(kind)
    if EVALUATION_FILE not in artefact.files:
        return None
    report = json.loads(artefact.file(EVALUATION_FILE).read_text())
    return report["loss"] if report["codebook_version"] == codebook_version else None


def gate_reasons(lake: Lake, loss: float, previous: float | None) -> list[str]:
    """Why a loss must not be published; empty if it may."""
    settings = lake.config.evaluate
    reasons = []
    if settings.max_loss is not None and loss > settings.max_loss:
        reasons.append(f"loss {loss:.4f} is above evaluate.max_loss {settings.max_loss}")
    if previous is not None and settings.max_loss_increase is not None and loss > previous + settings.max_loss_increase:
        reasons.append(
            f"loss {loss:.4f} is more than evaluate.max_loss_increase {settings.max_loss_increase} above {previous:.4f}"
        )
    return reasons


def _accounting(reader: ShardReader, done: int) -> TableCounts:
    counts = reader.counts
    return TableCounts(
        rows_in=counts.requests + counts.requests_without_targets,
        rows_out=done,
        rows_dropped={"no_target_with_tokens": counts.requests_without_targets, "beyond_max_requests": counts.requests - done},
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(str(path), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
