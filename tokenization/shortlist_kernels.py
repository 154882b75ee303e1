"""Compiled loops that find a row's several best tokens: float32 scores scanned for candidates, float64 decides among them."""

from typing import Any

import numpy as np

from tokenization.compiled import compiled, squared_distance
from tokenization.nearest_kernels import OVERFULL

_STEP = 128
"""Scores that are looked at together: mostly none of them is small enough, which vector code finds out at once."""


@compiled({"reassoc", "nnan", "nsz", "contract"})
def scan(
    products: Any, squares: Any, offsets: Any, first: int, prefix: int, slack: Any, best: Any, kept: Any, scores: Any, counts: Any
) -> None:
    """Scan products (rows, width) of one prefix of each row with the tokens ``first`` …; score = offset + |c|² − 2 r·c.

    ``best`` (rows, keep) holds the smallest scores so far, ascending (infinite at first); every score up to the last of them
    + ``slack`` (rows,) is kept: ``kept`` (rows, most, 2) prefix and token, ``scores`` (rows, most), ``counts`` (rows,).
    """
    rows, width = products.shape
    last = best.shape[1] - 1
    here = squares[first : first + width]
    for row in range(rows):
        if counts[row] == OVERFULL:
            continue
        limit = best[row, last] + slack[row]
        for start in range(0, width, _STEP):
            stop = min(start + _STEP, width)
            small = 0
            for column in range(start, stop):
                small += here[column] - np.float32(2) * products[row, column] <= limit - offsets[row]
            if small == 0:
                continue
            for column in range(start, stop):
                score = offsets[row] + (here[column] - np.float32(2) * products[row, column])
                if score <= limit:
                    if score < best[row, last]:
                        place = last
                        while place > 0 and best[row, place - 1] > score:
                            best[row, place] = best[row, place - 1]
                            place -= 1
                        best[row, place] = score
                        limit = best[row, last] + slack[row]
                    _keep(row, prefix, first + column, score, limit, kept, scores, counts)
                    if counts[row] == OVERFULL:
                        break
            if counts[row] == OVERFULL:
                break


@compiled(set())
def _keep(row: int, prefix: int, token: int, score: Any, limit: Any, kept: Any, scores: Any, counts: Any) -> None:
    """Add a candidate; a full row first drops those that smaller scores have ruled out since."""
    count, most = counts[row], scores.shape[1]
    if count == most:
        count = 0
        for place in range(most):
            if scores[row, place] <= limit:
                kept[row, count, 0], kept[row, count, 1] = kept[row, place, 0], kept[row, place, 1]
                scores[row, count] = scores[row, place]
                count += 1
        if count == most:
            counts[row] = OVERFULL
            return
    kept[row, count, 0], kept[row, count, 1], scores[row, count] = prefix, token, score
    counts[row] = count + 1


@compiled({"reassoc", "contract"})
def decide(residuals: Any, centroids: Any, limits: Any, kept: Any, scores: Any, counts: Any, chosen: Any, errors: Any) -> None:
    """The best candidates by float64 differences: ``chosen`` (rows, keep, 2) prefix and token, ``errors`` (rows, keep).

    ``residuals`` (rows, prefixes, dim) float64. Candidates are in ascending order of (prefix, token); those with a score above
    ``limits`` (rows,) don't count. Ascending by error; ties: the candidate that comes first. Overfull rows are left alone.
    """
    last = errors.shape[1] - 1
    for row in range(len(counts)):
        if counts[row] == OVERFULL:
            continue
        errors[row, :] = np.inf
        for number in range(counts[row]):
            if scores[row, number] > limits[row]:
                continue
            prefix, token = kept[row, number, 0], kept[row, number, 1]
            error = squared_distance(residuals[row, prefix], centroids[token])
            if error < errors[row, last]:
                place = last
                while place > 0 and errors[row, place - 1] > error:
                    errors[row, place] = errors[row, place - 1]
                    chosen[row, place, 0], chosen[row, place, 1] = chosen[row, place - 1, 0], chosen[row, place - 1, 1]
                    place -= 1
                errors[row, place] = error
                chosen[row, place, 0], chosen[row, place, 1] = prefix, token
