"""Area under the ROC curve, by ranks."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def area_under_curve(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float | None:
    """The chance that a positive scores above a negative, ties counting half (Mann–Whitney). None without both."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
