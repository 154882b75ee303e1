"""Looks up any code: whether it is legal, and the features of the item it stands for, as known at the request.

A code stands for the item of rank 0 among those that share it (the lowest rank there is). The policy can only say codes, so
the reward model is trained on the same features that it will be asked about: those of the code's item, not of its twin that
happened to be shown. Shape suffixes: C codes, V item versions, W tags, L layers; queries are (…, L).
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from schemas.errors import BadInput
from schemas.shards import ITEM_TABLE, TOKEN_TABLE, stable_key
from trainer.batches import TAGS
from trainer.item_table import ItemTable, ItemTokens
from trainer.shard_files import DayShards
from trainer.user_days import log_bucket
from trainer.windows import Array


@dataclass(frozen=True)
class CandidateFeatures:
    """What is known about the items of some codes; Q is the queries' shape without L."""

    tokens_QL: Tensor
    """int64."""
    legal_Q: Tensor
    """bool: some item has this code."""
    author_key_Q: Tensor
    """int64, 0 = unknown."""
    tag_key_QW: Tensor
    """int64, 0 = none."""
    duration_Q: Tensor
    """int64 bucket, 0 = unknown."""

    def to(self, device: torch.device | str) -> "CandidateFeatures":
        """The same on a device."""
        return CandidateFeatures(
            self.tokens_QL.to(device),
            self.legal_Q.to(device),
            self.author_key_Q.to(device),
            self.tag_key_QW.to(device),
            self.duration_Q.to(device),
        )


@dataclass(frozen=True)
class Catalogue:
    """All legal codes of one state of the item tokens, and the item versions behind them."""

    sizes: tuple[int, ...]
    code_C: Array
    """int64, ascending: the tokens as the digits of one number."""
    item_key_C: Array
    items: ItemTable
    duration_bucket_V: Array
    category_V: pa.Array
    deleted_V: Array

    @classmethod
    def of_day(cls, day: DayShards, live_at: dt.datetime | None = None) -> "Catalogue":
        """The catalogue of a day's shards; ``live_at``: without items deleted before that moment.

        Raises BadInput for files that cannot be believed.
        """
        for file in (day.items, day.tokens):
            file.verify()
        items = day.items.table(ITEM_TABLE)
        tokens = ItemTokens.from_arrow(day.tokens.table(TOKEN_TABLE), day.codebook_sizes, str(day.tokens.path))
        if live_at is not None:
            tokens = tokens.live(ItemTable.from_arrow(items, str(day.items.path)), live_at)
        return cls.of(items, tokens, day.codebook_sizes, str(day.items.path))

    @classmethod
    def of(cls, items: pa.Table, tokens: ItemTokens, sizes: tuple[int, ...], where: str) -> "Catalogue":
        """From an ITEM_TABLE and the items' tokens. Raises BadInput if a code does not fit an int64."""
        if int(np.prod([float(size) for size in sizes])) >= 2**63:
            raise BadInput(f"{where}: codebook sizes {sizes} have more codes than 64 bits can number")
        code_I = _numbers(tokens.tokens_IL, sizes)
        first = np.lexsort((tokens.keys_I, tokens.rank_I, code_I))
        code_C, place = np.unique(code_I[first], return_index=True)
        duration_V = np.asarray(items["duration_ms"].to_numpy(), dtype=np.int64)
        return cls(
            sizes=sizes,
            code_C=code_C,
            item_key_C=tokens.keys_I[first][place],
            items=ItemTable.from_arrow(items, where),
            duration_bucket_V=np.where(duration_V > 0, log_bucket(duration_V / 1000, 3, first=1), 0),
            category_V=items["category"].combine_chunks(),
            deleted_V=np.asarray(items["deleted"].to_numpy(), dtype=bool),
        )

    def __len__(self) -> int:
        """Number of legal codes."""
        return len(self.code_C)

    def item_keys(self, codes: Array) -> tuple[Array, Array]:
        """Keys of the items that codes (…, L) stand for (0 where illegal), and which are legal: both (…)."""
        in_range = np.all((codes >= 0) & (codes < np.array(self.sizes)), axis=-1)
        number = np.where(in_range, _numbers(codes, self.sizes), -1)
        if not len(self.code_C):
            return np.zeros(number.shape, np.int64), np.zeros(number.shape, bool)
        place = np.minimum(np.searchsorted(self.code_C, number), len(self.code_C) - 1)
        legal = self.code_C[place] == number
        return np.where(legal, self.item_key_C[place], 0), legal

    def features(self, codes: Tensor, moment_B: Tensor) -> CandidateFeatures:
        """Features of codes (B, G, L) as known before each request's moment (int64 microseconds); all on the CPU.

        A legal code whose item was not yet known at that moment has unknown attributes, and its tokens.
        """
        codes_BGL = codes.cpu().numpy()
        key_BG, legal_BG = self.item_keys(codes_BGL)
        version_BG = self.items.versions(key_BG, moment_B.cpu().numpy()[:, None])
        known_BG = (version_BG >= 0) & legal_BG
        if known_BG.any():
            author_BG = np.where(known_BG, self.items.author_key_V[version_BG], 0)
            tag_BGW = np.where(known_BG[..., None], self.items.tag_key_VW[version_BG], 0)
            duration_BG = np.where(known_BG, self.duration_bucket_V[version_BG], 0)
        else:
            author_BG, duration_BG = np.zeros(key_BG.shape, np.int64), np.zeros(key_BG.shape, np.int64)
            tag_BGW = np.zeros((*key_BG.shape, TAGS), np.int64)
        return CandidateFeatures(
            torch.from_numpy(codes_BGL.astype(np.int64)),
            torch.from_numpy(legal_BG),
            torch.from_numpy(author_BG),
            torch.from_numpy(tag_BGW),
            torch.from_numpy(duration_BG),
        )

    def members(self, codes: Tensor, moment_B: Tensor, *, category: str | None = None, tag: str | None = None) -> Tensor:
        """bool (B, G): whether a code's item had this category, or this among its first tags, before the request."""
        key_BG, legal_BG = self.item_keys(codes.cpu().numpy())
        version_BG = self.items.versions(key_BG, moment_B.cpu().numpy()[:, None])
        known_BG = (version_BG >= 0) & legal_BG
        if not len(self.deleted_V):
            return torch.from_numpy(known_BG)
        member_V = np.ones(len(self.deleted_V), bool)
        if category is not None:
            equal = pc.fill_null(pc.equal(self.category_V, category), False)
            member_V &= np.asarray(equal.to_numpy(zero_copy_only=False), dtype=bool)
        if tag is not None:
            member_V &= (self.items.tag_key_VW == stable_key(tag)).any(axis=1)
        return torch.from_numpy(known_BG & member_V[version_BG])


def _numbers(codes: Array, sizes: tuple[int, ...]) -> Array:
    """Codes (…, L) as int64 numbers in mixed radix."""
    number = np.zeros(codes.shape[:-1], np.int64)
    for layer, size in enumerate(sizes):
        number = number * size + codes[..., layer]
    return number
