"""Texts as numbers: categories of items, which may be few or many, short or of any length."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def label_numbers(labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """Of each label (n,) its place among the distinct ones in order.

    Not by an array of the labels: NumPy gives each of them the width of the longest.
    """
    place = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.fromiter((place[label] for label in labels), np.int64, len(labels))
