"""Ranking quality of a list of items against the relevant ones. Rows are requests; items are integer keys."""

import math
from collections.abc import Sequence


def recall_at(k: int, ranked: Sequence[int], relevant: set[int]) -> float:
    """Share of the relevant items among the first k; ``relevant`` is not empty."""
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def ndcg_at(k: int, ranked: Sequence[int], relevant: set[int]) -> float:
    """Normalised discounted cumulative gain at k with gain 1 for a relevant item; ``relevant`` is not empty."""
    gained = sum(1 / math.log2(place + 2) for place, item in enumerate(ranked[:k]) if item in relevant)
    return gained / sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))


class RankingTotals:
    """Means of recall and NDCG at several k over requests."""

    def __init__(self, top_k: Sequence[int]) -> None:
        self.top_k = tuple(top_k)
        self.requests = 0
        self._sums = {f"{name}@{k}": 0.0 for name in ("recall", "ndcg") for k in top_k}

    def add(self, ranked: Sequence[int], relevant: set[int]) -> None:
        """Count a request; one without relevant items says nothing and is not counted."""
        if not relevant:
            return
        self.requests += 1
        for k in self.top_k:
            self._sums[f"recall@{k}"] += recall_at(k, ranked, relevant)
            self._sums[f"ndcg@{k}"] += ndcg_at(k, ranked, relevant)

    def to_json(self) -> dict[str, float | int | None]:
        """``requests`` and the means, None without any request."""
        means = {name: round(total / self.requests, 6) if self.requests else None for name, total in self._sums.items()}
        return {"requests": self.requests, **means}
