"""RQ-KMeans (V1 §2.1): k-means layer by layer on what the layers before left, one global codebook a layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from tokenization import residual
from tokenization.assignment import Backend
from tokenization.kmeans import Callback, _validated, cluster
from tokenization.residual import Codes
from tokenization.vectors import ArrayRows, FloatArray

MAX_CODEBOOK_SIZE = 65536


class RQKMeans(TransformerMixin, BaseEstimator):
    """Residual k-means quantiser: float vectors in, ``n_layers`` uint16 tokens out.

    Parameters: ``n_layers``; ``codebook_size``, one size for all layers or a tuple with one a layer (at most 65,536);
    ``iterations``, ``seed``, ``backend``, ``tolerance``, ``n_init``, ``n_threads`` as in ``KMeans``, for each layer;
    ``warm_start_codebooks``, a list of arrays (size, dim), to start every layer from a previous version.

    Attributes: ``codebooks_``, a list of float32 (size, dim); ``codes_`` uint16 (n, n_layers) of the training rows, equal
    to ``encode`` of them; ``inertia_``, the sum of squared residuals after each layer; ``n_iter_``, iterations by layer.

    X may be a memory map larger than memory: residuals are recomputed block by block and never stored.
    """

    def __init__(
        self,
        n_layers: int = 3,
        codebook_size: int | tuple[int, ...] = 8192,
        *,
        iterations: int = 25,
        seed: int = 0,
        backend: Backend = "auto",
        tolerance: float = 1e-5,
        n_init: int = 1,
        n_threads: int | None = None,
        warm_start_codebooks: Sequence[npt.ArrayLike] | None = None,
    ) -> None:
        self.n_layers = n_layers
        self.codebook_size = codebook_size
        self.iterations = iterations
        self.seed = seed
        self.backend = backend
        self.tolerance = tolerance
        self.n_init = n_init
        self.n_threads = n_threads
        self.warm_start_codebooks = warm_start_codebooks

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> "RQKMeans":  # noqa: ARG002
        """Train every layer on X (n, dim); ``callback`` hears of every iteration.

        Raises BadVectors (a ValueError) naming rows with NaN or infinity, ValueError for parameters that don't fit.
        """
        matrix = _validated(self, X, reset=True)
        sizes = self._sizes()
        codebooks: list[FloatArray] = []
        codes = np.empty((len(matrix), self.n_layers), np.uint16)
        inertia, n_iter = [], []
        for layer, size in enumerate(sizes):
            result = cluster(
                ResidualRows(ArrayRows(matrix), tuple(codebooks), codes),
                size,
                iterations=self.iterations,
                seed=self.seed + layer,
                backend=self.backend,
                init=None if self.warm_start_codebooks is None else self.warm_start_codebooks[layer],
                tolerance=self.tolerance,
                n_init=self.n_init,
                n_threads=self.n_threads,
                layer=layer + 1,
                callback=callback,
            )
            codebooks.append(result.centroids)
            codes[:, layer] = result.labels
            inertia.append(result.inertia)
            n_iter.append(result.n_iter)
        self.codebooks_ = codebooks
        self.codes_ = codes
        self.inertia_ = inertia
        self.n_iter_ = n_iter
        return self

    def encode(self, X: Any) -> Codes:
        """Greedy codes (n, n_layers) uint16 of X (n, dim); the same for a row whatever the rows beside it."""
        check_is_fitted(self)
        return residual.encode(_validated(self, X, reset=False), self.codebooks_)

    def encode_beam(self, X: Any, beam: int = 5) -> Codes:
        """Codes (n, n_layers) uint16 by beam search over the layers: rarely worse than ``encode``, often closer."""
        check_is_fitted(self)
        return residual.encode_beam(_validated(self, X, reset=False), self.codebooks_, beam)

    def transform(self, X: Any) -> Codes:
        """``encode``, under the name that scikit-learn's pipelines call."""
        return self.encode(X)

    def decode(self, codes: Any, layers: int | None = None) -> FloatArray:
        """Reconstruction (n, dim) float32 of codes (n, n_layers), or of their first ``layers``."""
        check_is_fitted(self)
        return residual.decode(codes, self.codebooks_, layers)

    def residual_norms(self, X: Any, codes: Any) -> FloatArray:
        """Norm (n,) float32 of what the codes leave of each row of X."""
        check_is_fitted(self)
        return residual.residual_norms(_validated(self, X, reset=False), codes, self.codebooks_)

    def __sklearn_tags__(self) -> Any:
        """scikit-learn's tags: codes are integers whatever type the vectors have."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sizes(self) -> tuple[int, ...]:
        size = self.codebook_size
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,) * self.n_layers
        if self.n_layers < 1 or len(sizes) != self.n_layers:
            raise ValueError(f"codebook_size {size!r}: needs one size for each of the {self.n_layers} layers")
        if not all(1 <= one <= MAX_CODEBOOK_SIZE for one in sizes):
            raise ValueError(f"codebook_size {size!r}: sizes must lie between 1 and {MAX_CODEBOOK_SIZE}")
        warm = self.warm_start_codebooks
        if warm is not None and [len(np.asarray(one)) for one in warm] != list(sizes):
            raise ValueError(f"warm_start_codebooks have sizes {[len(np.asarray(one)) for one in warm]}; needs {list(sizes)}")
        return sizes


@dataclass(frozen=True)
class ResidualRows:
    """What the first layers leave of some rows, computed when read."""

    rows: ArrayRows
    codebooks: tuple[FloatArray, ...]
    codes: Codes

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    @property
    def dim(self) -> int:
        """Columns."""
        return self.rows.dim

    def block(self, start: int, stop: int) -> FloatArray:
        """Residuals of rows ``start`` to ``stop``."""
        return self._subtract(self.rows.block(start, stop), self.codes[start:stop])

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Residuals of the rows at ``indices``."""
        return self._subtract(self.rows.take(indices), self.codes[indices])

    def _subtract(self, block: FloatArray, codes: Codes) -> FloatArray:
        if not self.codebooks:
            return block
        left = block.copy()
        for layer, codebook in enumerate(self.codebooks):
            left -= codebook[codes[:, layer]]
        return left
