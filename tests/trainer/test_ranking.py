"""Recall and NDCG against numbers worked out by hand."""

import math

import pytest

from trainer.ranking import RankingTotals, ndcg_at, recall_at


@pytest.mark.parametrize(
    ("k", "ranked", "relevant", "recall", "ndcg"),
    [
        (2, [1, 2, 3], {1}, 1.0, 1.0),
        (2, [2, 1, 3], {1}, 1.0, 1 / math.log2(3)),
        (2, [2, 3, 1], {1}, 0.0, 0.0),
        (3, [1, 9, 2], {1, 2}, 1.0, (1 + 0.5) / (1 + 1 / math.log2(3))),
        (1, [1, 2], {1, 2}, 0.5, 1.0),
        (5, [], {1}, 0.0, 0.0),
    ],
)
def test_by_hand(k, ranked, relevant, recall, ndcg):
    assert recall_at(k, ranked, relevant) == pytest.approx(recall)
    assert ndcg_at(k, ranked, relevant) == pytest.approx(ndcg)


def test_means_are_over_requests_that_have_something_relevant():
    totals = RankingTotals((1, 2))
    totals.add([1, 2], {1})
    totals.add([1, 2], {3})
    totals.add([1, 2], set())
    assert totals.to_json() == {"requests": 2, "recall@1": 0.5, "recall@2": 0.5, "ndcg@1": 0.5, "ndcg@2": 0.5}
    assert RankingTotals((1,)).to_json() == {"requests": 0, "recall@1": None, "ndcg@1": None}
