"""Reads shards as batches of requests, in an order that only the seed decides, and resumes at the exact request.

An epoch is one permutation of all its requests, drawn from (seed, epoch) over their canonical order (date, bucket, user,
request). It is cut into global batches; of each, rank r of w takes the positions r, r + w, …, so any number of ranks reads
the same global batches. Blocks (record batches) are decoded on demand and kept in a bounded cache: the permutation is
global, so a day much larger than the cache is decoded many times; shuffling blocks first would trade randomness for that.
"""

import datetime as dt
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from schemas.errors import BadInput
from schemas.shards import ITEM_TABLE, LIFELONG, TARGET_MASK, TOKEN_TABLE, USER_DAY
from trainer.batches import RequestBatch
from trainer.features import Lengths, Piece, request_pieces, to_batch
from trainer.item_table import ItemTable, ItemTokens
from trainer.shard_files import DayShards, ShardFile, one_codebook, open_day
from trainer.user_days import UserDays, decode, masks_like, target_mask
from trainer.windows import Array

Targets = Literal["all", "rsft"]
Split = Literal["train", "holdout", "all"]
_INDEX_COLUMNS = ["user_id", "holdout", "request_events", "event_item_key", "event_target"]


@dataclass(frozen=True)
class _Block:
    """A record batch of a data file, and what belongs to it."""

    day: int
    file: ShardFile
    index: int
    mask: pa.RecordBatch | None
    lifelong: ShardFile | None


@dataclass
class ReaderCounts:
    """What the reader left out, and why, of all that the dates hold."""

    requests: int = 0
    targets: int = 0
    requests_other_split: int = 0
    requests_without_targets: int = 0
    targets_without_tokens: int = 0
    targets_over_cap: int = 0


@dataclass
class _Index:
    block: list[Array] = field(default_factory=list)
    request: list[Array] = field(default_factory=list)


class ShardReader:
    """Iterates ``RequestBatch``es of one epoch from the current position; ``epoch`` then moves on.

    ``batch_requests`` is the size of a *global* batch (all ranks together). ``targets`` names the mask, ``split`` the users.
    ``codebook_version`` refuses shards of another one. Raises BadInput for shards that cannot be believed.
    """

    def __init__(
        self,
        shards_root: Path | str,
        dates: Sequence[dt.date],
        *,
        seed: int,
        batch_requests: int,
        targets: Targets = "all",
        split: Split = "train",
        codebook_version: str | None = None,
        lengths: Lengths | None = None,
        max_targets: int = 5,
        rank: int = 0,
        world: int = 1,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        if batch_requests % world or not 0 <= rank < world:
            raise BadInput(f"rank {rank} of {world}: batches of {batch_requests} requests cannot be shared evenly")
        self.lengths = lengths or Lengths()
        self.max_targets = max_targets
        self.seed = seed
        self.batch_requests = batch_requests
        self.rank, self.world = rank, world
        self.epoch = 0
        self.position = 0
        self.counts = ReaderCounts()
        self.days = [open_day(Path(shards_root), date, targets) for date in sorted(dates)]
        if not self.days:
            raise BadInput(f"{shards_root}: no dates to read; run `onerec shards` first")
        self.codebook_version, self.codebook_sizes = one_codebook(self.days, codebook_version, Path(shards_root))
        self.items = [_item_table(day.items) for day in self.days]
        self.tokens = [_item_tokens(day.tokens, day.codebook_sizes) for day in self.days]
        self.fingerprint = self._fingerprint(targets, split)
        self._blocks: list[_Block] = []
        self._cache: OrderedDict[int, tuple[UserDays, int]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._lifelong: tuple[Path, pa.Table] | None = None
        index = _Index()
        for day, shards in enumerate(self.days):
            for bucket, file in shards.data:
                self._index_file(index, day, file, shards, bucket, split)
        empty = [np.zeros(0, np.int64)]
        self._block_of = np.concatenate(index.block or empty)
        self._request_of = np.concatenate(index.request or empty)
        self.counts.requests = len(self._block_of)

    def __len__(self) -> int:
        """Requests of an epoch, over all ranks."""
        return len(self._block_of)

    def __iter__(self) -> Iterator[RequestBatch]:
        """Batches from the current position to the end of the epoch; the last may be smaller.

        ``state_dict()`` taken after a batch resumes with the next one.
        """
        epoch, order = self.epoch, self._order(self.epoch)
        while self.epoch == epoch and self.position < len(order):
            chosen = order[self.position : self.position + self.batch_requests]
            self.position += len(chosen)
            if self.position >= len(order):
                self.epoch, self.position = epoch + 1, 0
            mine = chosen[self.rank :: self.world]
            if len(mine):
                yield self.read(mine)
            if self.epoch != epoch:
                return

    def read(self, requests: Array) -> RequestBatch:
        """The requests at these places of the canonical order, as one batch in the order given."""
        pieces: list[Piece] = []
        places: list[Array] = []
        blocks = self._block_of[requests]
        for number in np.unique(blocks):
            where = np.flatnonzero(blocks == number)
            block = self._blocks[number]
            pieces.append(
                request_pieces(
                    self._decoded(int(number)),
                    self._request_of[requests[where]],
                    self.items[block.day],
                    self.tokens[block.day],
                    self.lengths,
                    self.max_targets,
                )
            )
            places.append(where)
        return to_batch(pieces, np.argsort(np.concatenate(places)))

    def state_dict(self) -> dict[str, Any]:
        """Where the reader stands: the same at every rank."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand there again. Raises BadInput if the shards, their selection or the seed are not those of the state."""
        if state["fingerprint"] != self.fingerprint or state["seed"] != self.seed:
            raise BadInput("the shards, dates, targets or seed are not those the training began with; start it afresh")
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self, epoch: int) -> Array:
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self))

    def _fingerprint(self, targets: str, split: str) -> str:
        parts = [targets, split, repr(self.lengths), str(self.max_targets), *(day.fingerprint for day in self.days)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _index_file(self, index: _Index, day: int, file: ShardFile, shards: DayShards, bucket: int, split: Split) -> None:
        file.verify()
        mask_file = shards.masks[file.sha256] if shards.masks else None
        if mask_file:
            mask_file.verify()
        lifelong = shards.lifelong.get(bucket)
        if lifelong:
            lifelong.verify()
        batches = list(file.batches(USER_DAY, _INDEX_COLUMNS))
        masks = masks_like(batches, mask_file.table(TARGET_MASK) if mask_file else None, file.path)
        for number, (batch, mask) in enumerate(zip(batches, masks, strict=True)):
            requests = self._usable_requests(batch, mask, day, file.path, split)
            index.block.append(np.full(len(requests), len(self._blocks)))
            index.request.append(requests)
            self._blocks.append(_Block(day, file, number, mask, lifelong))

    def _usable_requests(self, batch: pa.RecordBatch, mask: pa.RecordBatch | None, day: int, where: Path, split: Split) -> Array:
        """Numbers (within the block) of the requests that have a target with tokens, and belong to the split."""
        per_user = np.asarray(batch["request_events"].value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
        events = np.asarray(batch["request_events"].flatten().to_numpy(), dtype=np.int64)
        target_E = target_mask(batch, mask, where)
        item_E = np.asarray(batch["event_item_key"].flatten().to_numpy(), dtype=np.int64)
        if events.sum() != len(target_E) or len(item_E) != len(target_E) or np.any(events < 0):
            raise BadInput(f"{where}: request_events does not add up to the events; write it again with `onerec shards`")
        known_E = self.tokens[day].known(item_E)
        request_E = np.repeat(np.arange(len(events)), events)
        holdout = np.asarray(batch["holdout"].to_numpy(zero_copy_only=False), dtype=bool)
        in_split = np.full(len(events), True) if split == "all" else np.repeat(holdout == (split == "holdout"), per_user)
        usable = np.bincount(request_E[target_E & known_E], minlength=len(events))
        keep = in_split & (usable > 0)
        self.counts.requests_other_split += int((~in_split).sum())
        self.counts.requests_without_targets += int((in_split & (usable == 0)).sum())
        self.counts.targets_without_tokens += int((target_E & ~known_E & in_split[request_E]).sum())
        self.counts.targets += int(np.minimum(usable[keep], self.max_targets).sum())
        self.counts.targets_over_cap += int(np.maximum(usable[keep] - self.max_targets, 0).sum())
        return np.flatnonzero(keep)

    def _decoded(self, number: int) -> UserDays:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number][0]
        block = self._blocks[number]
        batch = block.file.batch(block.index, USER_DAY)
        days = decode(batch, block.mask, self._lifelong_table(block.lifelong), block.file.path)
        # Merged histories repeat what the record batch holds: about three times its size.
        self._cache[number] = (days, 3 * batch.nbytes)
        while len(self._cache) > 1 and sum(size for _, size in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return days

    def _lifelong_table(self, file: ShardFile | None) -> pa.Table | None:
        if file is None:
            return None
        if self._lifelong is None or self._lifelong[0] != file.path:
            self._lifelong = (file.path, file.table(LIFELONG))
        return self._lifelong[1]


def _item_table(file: ShardFile) -> ItemTable:
    file.verify()
    return ItemTable.from_arrow(file.table(ITEM_TABLE), str(file.path))


def _item_tokens(file: ShardFile, sizes: tuple[int, ...]) -> ItemTokens:
    file.verify()
    return ItemTokens.from_arrow(file.table(TOKEN_TABLE), sizes, str(file.path))
