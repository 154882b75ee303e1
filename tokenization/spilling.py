"""Where the items of an over-full code go: to the nearest last-layer token, under the same prefix, that has room.

The first tokens of an item never change, so prefixes are independent of each other and can be worked on apart. Under a prefix
the leaving items choose one after the other, the best described first (smallest residual norm, then item id), so the result
is independent of the order of the rows. Each costs one look at all last-layer centroids, as encoding does.

Shape suffixes: M leaving items, H codes that are held, K tokens of the last layer, D dimension, L layers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.assignment import float64_bound
from tokenization.collisions import over_full
from tokenization.metrics import prefix_keys
from tokenization.residual import Codes, check_codes, left_by, residual_norms
from tokenization.vectors import ArrayRows, BadVectors, FloatArray, as_matrix, check_finite

_BLOCK_SCORES = 2**21


def spread(
    vectors: Any,
    codes: Any,
    item_ids: Any,
    codebooks: Sequence[FloatArray],
    cap: int,
    max_error: float | None = None,
    kept: Any = None,
) -> Codes:
    """Codes (n, L) uint16 of which at most ``cap`` are equal, as far as ``max_error`` lets items move (see ``spill``).

    ``kept`` (n,) bool: items that keep their code whatever happens. Raises BadVectors as ``residual_norms`` does.
    """
    matrix, array = as_matrix(vectors), np.asarray(codes)
    norms = residual_norms(matrix, array, codebooks)
    leaving = over_full(array, item_ids, norms, cap, kept)
    found: Codes = array.astype(np.uint16)
    if leaving.any():
        held, counts = np.unique(array[~leaving], axis=0, return_counts=True)
        ids = np.asarray(item_ids)[leaving]
        found[leaving] = spill(matrix[leaving], array[leaving], ids, norms[leaving], codebooks, held, counts, cap, max_error)
    return found


def spill(
    vectors_MD: Any,
    codes_ML: Any,
    item_ids: Any,
    norms: Any,
    codebooks: Sequence[FloatArray],
    held_HL: Any,
    held_counts: Any,
    cap: int,
    max_error: float | None = None,
) -> Codes:
    """New codes (M, L) uint16 of items that leave their codes; ``held_HL`` are the other items' codes, with how many have each.

    An item goes to the nearest token of the last layer (ties: the smaller) whose code has fewer than ``cap`` items. Where
    that lies farther than (1 + ``max_error``) times its own distance, or no code has room, it stays where it is. Distances are
    decided in float64, so they do not depend on the batch or the machine. Raises BadVectors for codes that do not fit.
    """
    rows = ArrayRows(as_matrix(vectors_MD))
    sizes = [len(codebook) for codebook in codebooks]
    codes, held = check_codes(codes_ML, sizes), check_codes(held_HL, sizes)
    if len(codes) != rows.n:
        raise BadVectors(f"found {len(codes)} codes for {rows.n} vectors; needs one each")
    prefixes = _prefixes(np.concatenate([codes, held]))
    order = np.lexsort((np.unique(np.asarray(item_ids), return_inverse=True)[1], np.asarray(norms), prefixes[: rows.n]))
    by_prefix = np.argsort(prefixes[rows.n :], kind="stable")
    held_prefixes = prefixes[rows.n :][by_prefix]
    held_tokens, counts = held[by_prefix, -1], np.asarray(held_counts)[by_prefix]
    moved: Codes = codes.astype(np.uint16)
    room_K, current = np.empty(0, np.int64), -1
    layer = _LastLayer(codebooks)
    step = max(1, _BLOCK_SCORES // max(sizes[-1], rows.dim))
    for start in range(0, rows.n, step):
        block = order[start : start + step]
        layer.look(rows.take(block), codes[block])
        for place, row in enumerate(block.tolist()):
            if prefixes[row] != current:
                current = prefixes[row]
                here = slice(*np.searchsorted(held_prefixes, [current, current + 1]))
                room_K = cap - np.bincount(held_tokens[here], counts[here], minlength=sizes[-1]).astype(np.int64)
            token = layer.nearest(place, room_K > 0, max_error)
            if token is not None:
                moved[row, -1] = token
                room_K[token] -= 1
    return moved


class _LastLayer:
    """Distances of a block of rows B to the last layer's centroids."""

    def __init__(self, codebooks: Sequence[FloatArray]) -> None:
        self._earlier = codebooks[:-1]
        self._centroids_KD = codebooks[-1].astype(np.float64)
        self._square_K = np.einsum("kd,kd->k", self._centroids_KD, self._centroids_KD)

    def look(self, vectors_BD: FloatArray, codes_BL: npt.NDArray[Any]) -> None:
        """Take up a block."""
        check_finite(vectors_BD)
        self._own_B = codes_BL[:, -1].astype(np.int64)
        self._residual_BD = left_by(vectors_BD, codes_BL, self._earlier).astype(np.float64)
        self._score_BK = self._square_K - 2 * self._residual_BD @ self._centroids_KD.T
        norm_B = np.sqrt(np.einsum("bd,bd->b", self._residual_BD, self._residual_BD))
        largest = float(np.sqrt(self._square_K.max()))
        self._slack_B = float64_bound(vectors_BD.shape[1], norm_B, largest)

    def nearest(self, row: int, open_K: npt.NDArray[np.bool_], max_error: float | None) -> int | None:
        """The nearest open token of a row of the block, unless it lies too far away."""
        from tokenization.nearest_kernels import nearest_listed

        if not open_K.any():
            return None
        score_K = np.where(open_K, self._score_BK[row], np.inf)
        near = np.flatnonzero(score_K <= np.nextafter(score_K.min() + self._slack_B[row], np.inf))
        # By the loop that decides in encoding, so that both tell apart the same distances.
        label = np.zeros(1, np.int64)
        nearest_listed(self._residual_BD[row : row + 1], self._centroids_KD, near[None], label)
        token = int(label[0])
        if max_error is not None:
            squared, own = self._squared(row, np.array([token, self._own_B[row]]))
            if squared > (1 + max_error) ** 2 * own:
                return None
        return token

    def _squared(self, row: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        difference = self._residual_BD[row] - self._centroids_KD[tokens]
        squared: npt.NDArray[np.float64] = np.einsum("kd,kd->k", difference, difference)
        return squared


def _prefixes(codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Keys (n,) that are equal where all tokens but the last are."""
    return prefix_keys(codes)[-2] if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
