"""Churn: how many unchanged items get another code when new items arrive and the codebook is trained again."""

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from benchmarks.rq_kmeans_data import Dataset
from benchmarks.rq_kmeans_ours import estimator
from benchmarks.rq_kmeans_worker import Job

NEW_SHARE = 0.05


def churn(dataset: Dataset, iterations: int, seed: int) -> dict[str, float]:
    """Shares of old items whose code changes, after a warm start and after a cold retrain, when 5 % of all items are new."""
    vectors = np.load(dataset.vectors)
    order = np.random.default_rng([seed, 5]).permutation(len(vectors))
    old = np.sort(order[round(len(order) * NEW_SHARE) :])
    job = Job("ours", str(dataset.vectors), dataset.sizes, iterations, seed)
    before = estimator(job).fit(vectors[old])
    warm = estimator(job).set_params(warm_start_codebooks=before.codebooks_).fit(vectors)
    cold = estimator(job).fit(vectors)
    figures = {
        "churn_warm": changed_share(before.codes_, warm.codes_[old]),
        "churn_cold": changed_share(before.codes_, cold.codes_[old]),
    }
    progress(f"churn of unchanged items: {figures}")
    return figures


def changed_share(before: npt.NDArray[np.uint16], after: npt.NDArray[np.uint16]) -> float:
    """Share of rows of which any token changed."""
    return float((before != after).any(axis=1).mean())
