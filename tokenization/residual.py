"""Residual codes: encode, beam search, decode, with nothing but the codebooks (no engine).

Layer l quantises what the layers before it left (V1 §2.1): R¹ = x; s_l = argmin_k ‖R^l − c^l_k‖; R^{l+1} = R^l − c^l_{s_l}.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.assignment import Backend, NearestCentroid
from tokenization.shortlist import Shortlist
from tokenization.threads import one_thread_each, threads_or_cores
from tokenization.vectors import BadVectors, FloatArray, Rows, as_rows, blocks, check_vectors

Codes = npt.NDArray[np.uint16]

_PARTS, _FEWEST_ROWS, _MOST_ROWS = 4, 512, 2**15
"""Parts a thread of what is encoded at once, and how small and large they may be."""


def encode(vectors: Any, codebooks: Sequence[FloatArray], backend: Backend = "auto", threads: int | None = None) -> Codes:
    """Greedy codes (n, layers) uint16 of vectors (n, dim): an array, a memory map or an Arrow column of lists.

    A pure function of each row, whatever ``backend`` scores and however many ``threads`` (None: one a core) share the rows.
    Raises BadVectors for a wrong dimension, NaN, infinity or values beyond 1e38.
    """
    rows = _rows_of(vectors, codebooks)
    return Encoder(codebooks, rows.n, backend, threads)(rows)


class Encoder:
    """``encode`` for many calls: ``codebooks`` are made ready once. ``rows``: how many all calls together are about, from which
    ``auto`` chooses its arithmetic (``tokenization.assignment``)."""

    def __init__(self, codebooks: Sequence[FloatArray], rows: int, backend: Backend = "auto", threads: int | None = None) -> None:
        self._codebooks = codebooks
        self._layers = [NearestCentroid(codebook, backend, threads=1, rows=rows) for codebook in codebooks]
        self._threads = threads_or_cores(threads)

    def __call__(self, vectors: Any) -> Codes:
        """Codes (n, layers) of vectors (n, dim)."""
        rows = _rows_of(vectors, self._codebooks)
        codes = np.empty((rows.n, len(self._layers)), np.uint16)
        with one_thread_each(), ThreadPoolExecutor(self._threads) as pool:
            for start, stop, block in blocks(rows):
                check_vectors(block, start)
                # A thread takes all layers of its rows, so none waits for the others between two layers.
                step = min(max(-(-len(block) // (_PARTS * self._threads)), _FEWEST_ROWS), _MOST_ROWS)
                parts = [slice(first, first + step) for first in range(0, len(block), step)]
                work = [pool.submit(_encode_part, block[part], self._layers, codes[start:stop][part]) for part in parts]
                for one in work:
                    one.result()
        return codes


def _encode_part(rows: FloatArray, layers: Sequence[NearestCentroid], codes: Codes) -> None:
    """Fill in the codes (n, layers) of rows (n, dim)."""
    from tokenization.nearest_kernels import subtract_listed

    left = rows.copy()
    for layer, nearest in enumerate(layers):
        tokens = nearest(left)
        codes[:, layer] = tokens
        subtract_listed(left, nearest.centroids, tokens)


def left_by(vectors: FloatArray, codes: npt.NDArray[Any], codebooks: Sequence[FloatArray]) -> FloatArray:
    """What the codes (n, layers) leave of vectors (n, dim) float32: the layers' centroids subtracted one after the other, so
    that each layer is given, bit by bit, what ``encode`` gives it. The vectors themselves where there are no codebooks."""
    left = vectors.copy() if len(codebooks) else vectors
    for layer, codebook in enumerate(codebooks):
        left -= codebook[codes[:, layer]]
    return left


def encode_beam(vectors: Any, codebooks: Sequence[FloatArray], beam: int = 5) -> Codes:
    """Codes (n, layers) uint16 by beam search: after each layer the ``beam`` prefixes of smallest error live on, and the
    best of the last layer's is the code (ties: the smaller code). A pure function of each row, decided in float64.

    ``beam=1`` is ``encode``; with a beam of at least all prefixes before the last layer it is exhaustive search. Its error is
    at most that of ``encode`` wherever the greedy prefix lives on until the last layer, so always with two layers;
    with three or more, prefixes that are better at first may push it out, and end worse: rare, but possible.
    Raises BadVectors as ``encode`` does, ValueError for a beam below 1.
    """
    if beam < 1:
        raise ValueError(f"beam {beam}: must be at least 1")
    if beam == 1:
        return encode(vectors, codebooks)
    rows = _rows_of(vectors, codebooks)
    layers = [Shortlist(codebook) for codebook in codebooks]
    codes = np.empty((rows.n, len(layers)), np.uint16)
    for start, stop, block in blocks(rows, width=4 * beam * rows.dim):
        check_vectors(block, start)
        codes[start:stop] = _beam_block(block.astype(np.float64), layers, beam)
    return codes


def _beam_block(block: npt.NDArray[np.float64], layers: list[Shortlist], beam: int) -> Codes:
    residuals, prefixes = block[:, None, :], np.zeros((len(block), 1, 0), np.uint16)
    row = np.arange(len(block))[:, None]
    for layer, shortlist in enumerate(layers):
        found = shortlist(residuals, beam if layer + 1 < len(layers) else 1)
        # Prefixes stay in the order of their codes, so that ties fall to the smaller code.
        order = np.lexsort([found.token, found.prefix], axis=1)
        parent, token = found.prefix[row, order], found.token[row, order]
        prefixes = np.concatenate([prefixes[row, parent], token[:, :, None].astype(np.uint16)], axis=2)
        residuals = residuals[row, parent] - shortlist.centroids[token]
    whole: Codes = prefixes[:, 0]
    return whole


def decode(codes: Any, codebooks: Sequence[FloatArray], layers: int | None = None) -> FloatArray:
    """Reconstruction (n, dim) float32: the sum of the codes' centroids, or of their first ``layers``.

    Raises BadVectors for codes of another shape, or a token that its layer does not have.
    """
    checked = check_codes(codes, [len(codebook) for codebook in codebooks])
    decoded = np.zeros((len(checked), codebooks[0].shape[1]), np.float32)
    for layer, codebook in enumerate(codebooks[:layers]):
        decoded += codebook[checked[:, layer]]
    return decoded


def residual_norms(vectors: Any, codes: Any, codebooks: Sequence[FloatArray]) -> FloatArray:
    """Norm (n,) float32 of what the codes leave of each vector.

    Raises BadVectors as ``encode`` does, and for codes that are not one a vector or hold a token that its layer does not have.
    """
    rows = _rows_of(vectors, codebooks)
    checked = check_codes(codes, [len(codebook) for codebook in codebooks])
    if len(checked) != rows.n:
        raise BadVectors(f"found {len(checked)} codes for {rows.n} vectors; needs one each")
    norms = np.empty(rows.n, np.float32)
    for start, stop, block in blocks(rows):
        check_vectors(block, start)
        difference = block.astype(np.float64) - decode(checked[start:stop], codebooks)
        norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return norms


def check_codes(codes: Any, sizes: Sequence[int]) -> npt.NDArray[np.integer[Any]]:
    """Integer codes (n, layers), every token inside its layer. Raises BadVectors naming the first bad row."""
    array = np.asarray(codes)
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[1] != len(sizes):
        raise BadVectors(f"codes: found shape {array.shape} of {array.dtype}; needs (n, {len(sizes)}) integers")
    bad = ((array < 0) | (array >= np.asarray(sizes))).any(axis=1) if len(array) else np.zeros(0, bool)
    if bad.any():
        row = int(bad.argmax())
        raise BadVectors(f"codes: row {row} is {array[row].tolist()}; its tokens must lie below {list(sizes)}")
    return array


def _rows_of(vectors: Any, codebooks: Sequence[FloatArray]) -> Rows:
    rows = as_rows(vectors)
    if rows.dim != codebooks[0].shape[1]:
        raise BadVectors(f"vectors: found {rows.dim} columns; the codebook was trained on {codebooks[0].shape[1]}")
    return rows
