"""RQ-KMeans (V1 §2.1): k-means layer by layer on what the layers before left, one global codebook a layer.

Then all layers are refined together (``tokenization.refinement``) and, where asked for, clusters are bounded
(``tokenization.balance``).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from schemas.tokens import MOST_TOKENS
from tokenization import residual
from tokenization.assignment import Backend
from tokenization.balance import balance_clusters, cap_of
from tokenization.kmeans import Clustering, cluster_source, rows_of
from tokenization.lloyd import Callback, Source, all_of
from tokenization.progress import progress_bar
from tokenization.refinement import Refined, refine
from tokenization.refresh import Refresh, check_bounds, judged, refreshed
from tokenization.residual import Codes
from tokenization.residual_start import residual_start
from tokenization.vector_source import VectorSource, vectors_of
from tokenization.vectors import FloatArray, check_finite, scaled

WARM_REFINEMENTS = 3
"""Epochs from a previous version: they bring most of what there is, and more would change more codes."""
RELAXATION = 1.5
"""At 2 and above the steps no longer shrink, and tokens die."""


class RQKMeans(TransformerMixin, BaseEstimator):
    """Residual k-means quantiser: float vectors in, ``n_layers`` uint16 tokens out.

    Parameters:

    * ``n_layers``; ``codebook_size``, one for all layers or a tuple with one a layer, at most 65,536 tokens each;
    * ``iterations``, ``seed``, ``backend``, ``tolerance``, ``n_init``, ``n_threads``: as in ``KMeans``, for each layer;
    * ``refinements``: epochs of joint refinement after the layers' own iterations. Each compares every row with every token of
      every layer once; up to three more follow where the last is of no use; 0, or one layer: none. They reach as far from ten
      iterations a layer as from 25;
    * ``evenness``, from 0 (none) to 1: how strongly refinement evens the tokens (``tokenization.refinement``). The default does
      so at an error below that of the layers alone. A warm start ignores it;
    * ``balance``: None, or how many times the mean cluster the largest may be, at least 1; one for all layers or one a layer;
    * ``warm_start_codebooks``: arrays (size, dim), one a layer, of a previous version to start from. All layers are refined
      together from there, by at most WARM_REFINEMENTS plain epochs, or, with ``refinements=0``, each is clustered anew from its
      own. Refining keeps more codes, since clustering the first layer alone undoes its refinement;
    * ``max_churn``: the largest share of rows whose code may differ from the one that the warm start's codebooks give them. One
      epoch of refinement then, gone as far as that allows (``tokenization.refresh``). Without a warm start there is nothing to
      bound; not with ``balance``;
    * ``verbose``: a progress bar on standard error.

    Attributes: ``codebooks_``, a list of float32 (size, dim); ``codes_`` uint16 (n, n_layers) of the training rows, equal
    to ``encode`` of them; ``inertia_``, the sum of squared residuals after each layer; ``n_iter_``, iterations by layer;
    ``n_refinements_``, the epochs that ran; ``refresh_``, after a warm start what became of the codes, else None.

    With ``balance`` the ``codes_`` respect the bound, ⌈balance · n / size⌉ rows a token, so they may differ from ``encode``,
    which stays the nearest token: a pure function of a row, that no other row has a say in.
    X may be a memory map larger than memory, or an Arrow column, as for ``KMeans``: residuals of more than 256 MiB are recomputed
    block by block and never stored (on a GPU they lie in its memory). Codebooks, codes and inertia are a pure function of rows
    and parameters (``tokenization.lloyd``), one on processors and one on GPUs of a kind.
    """

    def __init__(
        self,
        n_layers: int = 3,
        codebook_size: int | tuple[int, ...] = 8192,
        *,
        iterations: int = 10,
        seed: int = 0,
        backend: Backend = "auto",
        tolerance: float = 1e-5,
        n_init: int = 1,
        n_threads: int | None = None,
        refinements: int = 15,
        evenness: float = 0.45,
        balance: float | tuple[float | None, ...] | None = None,
        warm_start_codebooks: Sequence[npt.ArrayLike] | None = None,
        max_churn: float | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_layers = n_layers
        self.codebook_size = codebook_size
        self.iterations = iterations
        self.seed = seed
        self.backend = backend
        self.tolerance = tolerance
        self.n_init = n_init
        self.n_threads = n_threads
        self.refinements = refinements
        self.evenness = evenness
        self.balance = balance
        self.warm_start_codebooks = warm_start_codebooks
        self.max_churn = max_churn
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        *,
        unchanged: npt.NDArray[np.bool_] | None = None,
        callback: Callback | None = None,
    ) -> "RQKMeans":
        """Train on X (n, dim). ``callback`` hears of every iteration of a layer, also of those that bound its clusters, and of
        every epoch of refinement, or try of a bounded refresh, as layer 0.

        ``unchanged``, bool (n,), names the rows that ``max_churn`` is about (None: all); the others are new.
        Raises BadVectors (a ValueError) naming rows with NaN or infinity or a column with values beyond 1e38, ValueError for
        parameters that don't fit.
        """
        rows = rows_of(self, X, reset=True)
        bounded = sum(cap is not None for cap in self._caps(rows.n))
        with progress_bar(self.iterations, self.n_layers, self.refinements, bounded, enabled=self.verbose) as bar:
            source = vectors_of(rows, max(self._sizes()), self.backend, self.n_threads)
            return self.fit_source(source, unchanged=unchanged, callback=all_of(callback, bar))

    def fit_source(
        self,
        source: VectorSource,
        *,
        unchanged: npt.NDArray[np.bool_] | None = None,
        callback: Callback | None = None,
    ) -> "RQKMeans":
        """``fit`` on vectors wherever they lie: the same codebooks for the same vectors, but for a GPU's (KMeans)."""
        self.n_features_in_ = source.dim
        sizes, caps = self._sizes(), self._caps(source.n)
        check_bounds(source.n, self.max_churn, unchanged)
        start = None if self.warm_start_codebooks is None else [_start(one, source.dim) for one in self.warm_start_codebooks]
        self.refresh_: Refresh | None = None
        self.n_iter_ = [0] * self.n_layers
        if start is not None and self.max_churn is not None:
            self.refresh_ = refreshed(source, start, self.max_churn, unchanged, callback)
            fitted = self.refresh_.fitted
        else:
            fitted = self._fit_freely(source, sizes, start, callback)
        self.n_refinements_ = fitted.epochs
        if any(caps):
            fitted = self._balanced(source, fitted, caps, callback)
        if start is not None and self.max_churn is None:
            self.refresh_ = judged(source.encode(scaled(source, source.extent()), start)[1], fitted, unchanged)
        if not any(self.n_iter_):  # else each layer said so when it was clustered
            _warn_of_dead_tokens(fitted)
        self.codebooks_, self.codes_, self.inertia_ = fitted.codebooks, fitted.codes, fitted.inertia
        return self

    def _fit_freely(
        self, source: VectorSource, sizes: tuple[int, ...], start: list[FloatArray] | None, callback: Callback | None
    ) -> Refined:
        """Layer by layer and then all together; from a warm start all together at once, where they are refined at all."""
        if not (self.refinements > 0 and self.n_layers > 1):
            return self._fit_layers(source, sizes, callback)
        if start is not None:
            return refine(source, start, min(self.refinements, WARM_REFINEMENTS), callback=callback)
        layers = self._fit_layers(source, sizes, callback).codebooks
        return refine(source, layers, self.refinements, evenness=self.evenness, relaxation=RELAXATION, callback=callback)

    def _fit_layers(self, source: VectorSource, sizes: tuple[int, ...], callback: Callback | None) -> Refined:
        fitted = Refined([], np.empty((source.n, self.n_layers), np.uint16), [], 0)
        self.n_iter_ = []
        for layer, size in enumerate(sizes):
            result = self._fit_layer(source.residuals(fitted.codebooks, fitted.codes), size, layer, callback)
            fitted.codebooks.append(result.centroids)
            fitted.codes[:, layer] = result.labels
            fitted.inertia.append(result.inertia)
            self.n_iter_.append(result.n_iter)
        return fitted

    def _fit_layer(self, rows: Source[npt.NDArray[np.int32]], size: int, layer: int, callback: Callback | None) -> Clustering:
        """The best of ``n_init`` starts, or that of a warm start."""
        warm, best = self.warm_start_codebooks, None
        for run in range(self.n_init if warm is None and layer else 1):
            start = warm[layer] if warm is not None else None
            if warm is None and layer:
                start = residual_start(rows, size, np.random.default_rng([self.seed + layer, run]))
            found = cluster_source(
                rows,
                size,
                iterations=self.iterations,
                seed=self.seed + layer,
                init=start,
                tolerance=self.tolerance,
                n_init=1 if layer else self.n_init,
                n_threads=self.n_threads,
                layer=layer + 1,
                callback=callback,
            )
            best = found if best is None or found.inertia < best.inertia else best
        assert best is not None
        return best

    def _balanced(self, source: VectorSource, fitted: Refined, caps: list[int | None], callback: Callback | None) -> Refined:
        """Each layer's clusters bounded by its cap, on what the bounded layers before it left."""
        done = Refined([], np.empty_like(fitted.codes), [], fitted.epochs)
        for layer, (codebook, cap) in enumerate(zip(fitted.codebooks, caps, strict=True)):
            left = source.residuals(done.codebooks, done.codes)
            if cap is None:
                sums, done.codes[:, layer] = left.assign(codebook)
                inertia = sums.distance
                done.codebooks.append(codebook)
            else:
                clustering = balance_clusters(left, codebook, cap, n_threads=self.n_threads, layer=layer + 1, callback=callback)
                done.codebooks.append(clustering.centroids)
                done.codes[:, layer], inertia = clustering.assignment.labels, clustering.assignment.total
            done.inertia.append(inertia)
        return done

    def encode(self, X: Any) -> Codes:
        """Greedy codes (n, n_layers) uint16 of X (n, dim); the same for a row whatever the rows beside it."""
        check_is_fitted(self)
        return residual.encode(rows_of(self, X, reset=False), self.codebooks_, self.backend, self.n_threads)

    def encode_beam(self, X: Any, beam: int = 5) -> Codes:
        """Codes (n, n_layers) uint16 by beam search over the layers: rarely worse than ``encode``, often closer."""
        check_is_fitted(self)
        return residual.encode_beam(rows_of(self, X, reset=False), self.codebooks_, beam)

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
        return residual.residual_norms(rows_of(self, X, reset=False), codes, self.codebooks_)

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
        if not all(1 <= one <= MOST_TOKENS for one in sizes):
            raise ValueError(f"codebook_size {size!r}: sizes must lie between 1 and {MOST_TOKENS}")
        warm = self.warm_start_codebooks
        if warm is not None and [len(np.asarray(one)) for one in warm] != list(sizes):
            raise ValueError(f"warm_start_codebooks have sizes {[len(np.asarray(one)) for one in warm]}; needs {list(sizes)}")
        if self.refinements < 0 or self.n_init < 1 or not 0 <= self.evenness <= 1:
            raise ValueError("refinements must be at least 0, n_init at least 1, evenness from 0 to 1")
        if self.max_churn is not None and self.balance is not None:
            raise ValueError("max_churn and balance: a bound on clusters moves codes, so both cannot be kept; give one of them")
        return sizes

    def _caps(self, n: int) -> list[int | None]:
        """The most rows a token of each layer, None where there is no bound."""
        balance = self.balance
        layers = list(balance) if isinstance(balance, (tuple, list)) else [balance] * self.n_layers
        if len(layers) != self.n_layers:
            raise ValueError(f"balance {balance!r}: needs one for each of the {self.n_layers} layers")
        return [None if one is None else cap_of(one, n, size) for one, size in zip(layers, self._sizes(), strict=True)]


def _warn_of_dead_tokens(fitted: Refined) -> None:
    used = [len(np.unique(tokens)) for tokens in fitted.codes.T]
    sizes = [len(codebook) for codebook in fitted.codebooks]
    if used != sizes:
        warnings.warn(f"layers of {sizes} tokens, {used} of them filled", ConvergenceWarning, stacklevel=4)


def _start(codebook: npt.ArrayLike, dim: int) -> FloatArray:
    start = np.ascontiguousarray(codebook, dtype=np.float32)
    if start.ndim != 2 or start.shape[1] != dim:
        raise ValueError(f"warm_start_codebooks: found shape {start.shape}; needs (size, {dim})")
    check_finite(start)
    return start
