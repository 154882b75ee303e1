"""Churn: how many unchanged items get another code when new items arrive and the codebook is refreshed, or trained again."""

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from benchmarks.rq_kmeans_data import Dataset
from benchmarks.rq_kmeans_ours import estimator
from benchmarks.rq_kmeans_worker import Job
from tokenization.refresh import match_tokens

NEW_SHARE = 0.05
MAX_CHURN = 0.05


def churn(dataset: Dataset, iterations: int, seed: int) -> dict[str, float]:
    """Shares of old items whose code changes when 5 % of all items are new, and errors relative to the frozen codebook's.

    ``churn_warm``: a refresh within MAX_CHURN, ``churn_warm_unbounded`` without a bound; ``churn_cold``: trained from scratch,
    its tokens renumbered to match as well as they can, ``churn_cold_unmatched`` as they come.
    """
    vectors = np.load(dataset.vectors)
    order = np.random.default_rng([seed, 5]).permutation(len(vectors))
    old = np.ones(len(vectors), bool)
    old[order[: round(len(order) * NEW_SHARE)]] = False
    job = Job("ours", str(dataset.vectors), dataset.sizes, iterations, seed)
    before = estimator(job).fit(vectors[old])
    frozen = float((before.residual_norms(vectors, before.encode(vectors)).astype(np.float64) ** 2).sum())
    start = {"warm_start_codebooks": before.codebooks_}
    warm = estimator(job).set_params(**start, max_churn=MAX_CHURN).fit(vectors, unchanged=old)
    free = estimator(job).set_params(**start).fit(vectors)
    cold = estimator(job).fit(vectors)
    numbers = match_tokens(before.codes_, cold.codes_[old], dataset.sizes)
    matched = np.stack([number[cold.codes_[old, layer]] for layer, number in enumerate(numbers)], axis=1)
    figures = {
        "churn_warm": changed_share(before.codes_, warm.codes_[old]),
        "churn_warm_unbounded": changed_share(before.codes_, free.codes_[old]),
        "churn_cold": changed_share(before.codes_, matched),
        "churn_cold_unmatched": changed_share(before.codes_, cold.codes_[old]),
        "refresh_error_ratio": warm.inertia_[-1] / frozen,
        "refresh_error_ratio_unbounded": free.inertia_[-1] / frozen,
        "refresh_error_ratio_cold": cold.inertia_[-1] / frozen,
    }
    progress(f"churn of unchanged items: {figures}")
    return figures


def changed_share(before: npt.NDArray[np.uint16], after: npt.NDArray[np.uint16]) -> float:
    """Share of rows of which any token changed."""
    return float((before != after).any(axis=1).mean())
