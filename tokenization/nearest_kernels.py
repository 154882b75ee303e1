"""Compiled loops of the nearest-centroid search: scores scanned for candidates, candidates decided in float64.

A scan keeps, for each row, every centroid whose score may be the smallest: the smallest score's upper bound is at least
its lower bound. Products come from a matrix library, tile by tile, so that a tile is scanned while the cache holds it; the
n × k matrix is never whole. Numba compiles once and keeps the machine code beside this file or in the user's cache.
"""

from typing import Any

import numpy as np

from tokenization.compiled import compiled, squared_distance

MAX_CANDIDATES = 128
"""Candidates that a row may keep; a row that needs more is overfull, and goes another way."""
OVERFULL = -1
INTEGER_RANGE = 2.0**29
"""Scores are compared as integers up to about this: LLVM makes vector code of a minimum of integers, not of one of floats."""
_RUN = 64
"""Scores whose smallest is remembered, so that only few are looked at again, one by one."""
_SUMMED = 4e-16
"""How far off squares summed in float64 may be, a term."""
_UNDERFLOW = 1e-30
"""More than float32 loses where products are too small for it."""
_MATH = {"reassoc", "nnan", "nsz", "contract"}
"""Scores are finite and their bounds allow for rounding in any order; infinities stay what they are."""


@compiled(_MATH)
def scan_float32(
    products: Any, squares: Any, first: int, unit: Any, slack: Any, best: Any, kept: Any, scores: Any, counts: Any
) -> None:
    """Scan a tile of float32 products (rows, width) of the centroids ``first`` …; score = |c|² − 2 x·c.

    Scores × ``unit`` fit INTEGER_RANGE. ``slack`` (rows,) float32 is twice the rounding bound of a row's scores. ``best``
    (rows,), ``kept`` and ``scores`` (rows, MAX_CANDIDATES) and ``counts`` (rows,) carry over from tile to tile.
    """
    rows, width = products.shape
    here = squares[first : first + width]
    scaled = here * unit
    factor = np.float32(2) * unit
    runs = (width + _RUN - 1) // _RUN
    smallest_of = np.empty(runs, np.int32)
    for row in range(rows):
        if counts[row] == OVERFULL:
            continue
        smallest = np.int32(2**31 - 1)
        for run in range(runs):
            low = np.int32(2**31 - 1)
            for column in range(run * _RUN, min((run + 1) * _RUN, width)):
                value = np.int32(scaled[column] - factor * products[row, column])
                low = value if value < low else low
            smallest_of[run] = low
            smallest = min(smallest, low)
        least = np.float32(smallest) / unit
        best[row] = min(best[row], least)
        limit = best[row] + slack[row]
        if least > limit:
            continue
        for run in range(runs):
            # Once more the slack, for what the integer is off the score.
            if counts[row] == OVERFULL or np.float32(smallest_of[run]) / unit > limit + slack[row]:
                continue
            near, place = np.int32(0), np.int32(0)
            for column in range(run * _RUN, min((run + 1) * _RUN, width)):
                inside = here[column] - np.float32(2) * products[row, column] <= limit
                near += np.int32(inside)
                place = max(place, np.int32(column) if inside else np.int32(0))
            if near == 1:
                score = here[place] - np.float32(2) * products[row, place]
                _keep(row, first + place, score, limit, kept, scores, counts)
                continue
            for column in range(run * _RUN, min((run + 1) * _RUN, width) if near else 0):
                score = here[column] - np.float32(2) * products[row, column]
                if score <= limit:
                    _keep(row, first + column, score, limit, kept, scores, counts)
                    if counts[row] == OVERFULL:
                        break


@compiled(_MATH)
def scan_int8(
    products: Any,
    squares: Any,
    scales: Any,
    longest: float,
    coarsest: float,
    first: int,
    unit: Any,
    row_scales: Any,
    row_errors: Any,
    row_norms: Any,
    slack: Any,
    best: Any,
    kept: Any,
    scores: Any,
    counts: Any,
) -> None:
    """The same for int32 products of 8-bit vectors: score = |c|² − 2 s_x s_c (x̂·ĉ), with a bound for each row and tile.

    By Cauchy and Schwarz |x·c − x̂·ĉ| ≤ |x − x̂| |ĉ| + |x| |c − ĉ|. Of centroids: ``squares``, ``scales`` s_c, and of the tile's
    ``longest`` |ĉ| and ``coarsest`` |c − ĉ|; of rows: ``row_scales`` 2 s_x, ``row_errors`` 2 |x − x̂|, ``row_norms`` 2 |x|.
    ``best`` is the smallest upper bound so far, ``scores`` are lower bounds.
    """
    rows, width = products.shape
    here, by = squares[first : first + width], scales[first : first + width]
    scaled = here * unit
    runs = (width + _RUN - 1) // _RUN
    smallest_of = np.empty(runs, np.int32)
    for row in range(rows):
        if counts[row] == OVERFULL:
            continue
        factor = row_scales[row] * unit
        smallest = np.int32(2**31 - 1)
        for run in range(runs):
            low = np.int32(2**31 - 1)
            for column in range(run * _RUN, min((run + 1) * _RUN, width)):
                value = np.int32(scaled[column] - factor * by[column] * np.float32(products[row, column]))
                low = value if value < low else low
            smallest_of[run] = low
            smallest = min(smallest, low)
        least = np.float32(smallest) / unit
        bound = np.float32(row_errors[row] * longest + row_norms[row] * coarsest)
        best[row] = min(best[row], least + bound)
        limit = best[row] + slack[row]
        if least - bound > limit:
            continue
        for run in range(runs):
            if counts[row] == OVERFULL or np.float32(smallest_of[run]) / unit - bound > limit + slack[row]:
                continue
            for column in range(run * _RUN, min((run + 1) * _RUN, width)):
                score = here[column] - row_scales[row] * by[column] * np.float32(products[row, column]) - bound
                if score <= limit:
                    _keep(row, first + column, score, limit, kept, scores, counts)
                    if counts[row] == OVERFULL:
                        break


@compiled(set())
def _keep(row: int, centroid: int, score: Any, limit: Any, kept: Any, scores: Any, counts: Any) -> None:
    """Add a candidate; a full row first drops those that a smaller score has ruled out since."""
    count = counts[row]
    if count == MAX_CANDIDATES:
        count = 0
        for place in range(MAX_CANDIDATES):
            if scores[row, place] <= limit:
                kept[row, count], scores[row, count] = kept[row, place], scores[row, place]
                count += 1
        if count == MAX_CANDIDATES:
            counts[row] = OVERFULL
            return
    kept[row, count], scores[row, count] = centroid, score
    counts[row] = count + 1


@compiled(set())
def decide(block: Any, centroids: Any, limits: Any, kept: Any, scores: Any, counts: Any, labels: Any) -> None:
    """Label of each row that has candidates: the nearest of several by float64 differences (ties: the lowest index).

    ``limits`` (rows,) is the largest score that is still a candidate. Rows without candidates, or overfull, get label −1.
    """
    for row in range(len(block)):
        labels[row] = -1
        left = 0
        for place in range(max(counts[row], 0)):
            if scores[row, place] <= limits[row]:
                kept[row, left] = kept[row, place]
                left += 1
        if left == 1:
            labels[row] = kept[row, 0]
            continue
        nearest = np.inf
        for place in range(left):
            centroid = kept[row, place]
            distance = squared_distance(block[row], centroids[centroid])
            if distance < nearest or (distance == nearest and centroid < labels[row]):
                nearest, labels[row] = distance, centroid


@compiled({"reassoc", "contract"})
def norms_of(block: Any, norms: Any) -> None:
    """Norm (n,) float64 of each float32 row (n, dim)."""
    for row in range(len(block)):
        total = 0.0
        for column in range(block.shape[1]):
            value = np.float64(block[row, column])
            total += value * value
        norms[row] = np.sqrt(total)


@compiled(set())
def begin(norms: Any, per_norm: float, fixed: float, slack: Any, best: Any, counts: Any) -> None:
    """Before the first tile: ``slack`` (rows,) float32 is ``per_norm`` · norm + ``fixed``, or more; nothing is found yet."""
    for row in range(len(norms)):
        slack[row] = np.float32((per_norm * norms[row] + fixed) * (1 + 1e-6))  # more than rounding to float32 takes away
        best[row] = np.inf
        counts[row] = 0


@compiled(set())
def subtract_listed(block: Any, centroids: Any, labels: Any) -> None:
    """Subtract from each row (n, dim) the centroid (k, dim) of its label (n,), in place."""
    for row in range(len(block)):
        centroid = centroids[labels[row]]
        for column in range(block.shape[1]):
            block[row, column] -= centroid[column]


@compiled({"reassoc", "contract"})
def quantise_rows(matrix: Any, codes: Any, scales: Any, errors: Any, lengths: Any) -> None:
    """8-bit ``codes`` (n, dim) of rows and their ``scales`` (n,) float32; float64 norms (n,) of x − x̂ and of x̂, rounded up."""
    rows, dim = matrix.shape
    for row in range(rows):
        largest = np.float32(0)
        for column in range(dim):
            largest = max(largest, abs(matrix[row, column]))
        scale = largest / np.float32(127)
        if scale == 0:
            scale = np.float32(1)
        inverse = np.float32(1) / scale
        left, length = 0.0, 0.0
        for column in range(dim):
            value = min(max(np.rint(matrix[row, column] * inverse), np.float32(-127)), np.float32(127))
            codes[row, column] = np.int8(value)
            restored = np.float64(value) * np.float64(scale)
            difference = np.float64(matrix[row, column]) - restored
            left += difference * difference
            length += restored * restored
        scales[row] = scale
        errors[row] = np.sqrt(left) * (1 + 1e-9)
        lengths[row] = np.sqrt(length) * (1 + 1e-9)


@compiled(set())
def nearest_listed(block: Any, centroids: Any, listed: Any, labels: Any) -> None:
    """Label of each row: the nearest of the centroids ``listed`` (n, most) for it, by float64 (ties: the lowest index)."""
    for row in range(len(block)):
        nearest = np.inf
        for place in range(listed.shape[1]):
            centroid = np.int64(listed[row, place])
            distance = squared_distance(block[row], centroids[centroid])
            if distance < nearest or (distance == nearest and centroid < labels[row]):
                nearest, labels[row] = distance, centroid


@compiled(_MATH)
def _product(left: Any, right: Any) -> Any:
    """The float32 product of two vectors (dim,), summed in any order."""
    total = np.float32(0)
    for column in range(len(left)):
        total += left[column] * right[column]
    return total


@compiled(set())
def nearest_of_neighbours(
    block: Any, order: Any, centroids: Any, squares: Any, neighbours: Any, last: Any, per_norm: float, fixed: float, labels: Any
) -> None:
    """Labels of the rows ``order`` of a block: the nearest of the ``neighbours`` (k, most) of their ``last`` centroid.

    float32 scores |c|² − 2 x·c keep what their bound, ``per_norm`` · |x| + ``fixed``, leaves in question, and float64 decides
    among that (ties: the lowest index, if each list of neighbours ascends). Rows that follow one another with the same last
    centroid find its neighbours in the cache.
    """
    most = neighbours.shape[1]
    scores = np.empty(most, np.float32)
    for row in order:
        labels[row] = last[row]
        vector, near = block[row], neighbours[last[row]]
        best = np.float32(np.inf)
        for place in range(most):
            scores[place] = squares[near[place]] - np.float32(2) * _product(vector, centroids[near[place]])
            best = min(best, scores[place])
        square = np.float64(_product(vector, vector))
        slack = per_norm * np.sqrt(square) + fixed + _SUMMED * len(vector) * square + _UNDERFLOW
        limit = best + np.float32(slack * (1 + 1e-6))
        nearest, kept = np.inf, 0
        for place in range(most):
            if scores[place] <= limit:
                kept += 1
                labels[row] = near[place]
        if kept != 1:
            for place in range(most):
                if not scores[place] > limit:
                    distance = squared_distance(vector, centroids[near[place]])
                    if distance < nearest:
                        nearest, labels[row] = distance, near[place]
