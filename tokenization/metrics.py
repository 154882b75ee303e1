"""What a codebook is worth, from the codes of items (reference §1, DESIGN §4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenization.labels import label_numbers
from tokenization.residual import check_codes
from tokenization.vectors import ArrayRows, BadVectors, as_matrix, blocks, to_float32

Keys = npt.NDArray[np.int64]
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_HISTOGRAM_EDGES = (1, 2, 3, 4, 5, 6, 11, 21, 51, 101)


def codebook_metrics(
    codes: Any,
    sizes: Sequence[int],
    vectors: Any = None,
    decoded: Any = None,
    labels: Any = None,
    pairs: Any = None,
) -> dict[str, Any]:
    """Metrics of codes (n, layers), every value JSON-able.

    ``vectors`` (n, dim) with ``decoded``, a sequence of reconstructions (n, dim) after 1, 2, … layers or the last alone,
    give the relative reconstruction error; ``labels`` (n,), None or "" for unknown, the normalised mutual information;
    ``pairs`` (m, 2) row numbers of co-watched items, the behaviour hit rate.

    ``layers``: one object a layer, over its own tokens: utilization (share of tokens in use), entropy (nats),
    entropy_ratio (÷ ln size), perplexity, gini (over all tokens), dead_tokens, size_quantiles (items a token).
    ``prefixes``: one object a depth: distinct, collision_share (items that share the prefix with another item),
    largest_bucket, and, with what they need, reconstruction_error (mean squared error ÷ total variance), nmi
    (arithmetic normalisation), behaviour_hit_rate (share of co-watched pairs with equal prefixes) and, the other way
    round, co_watched_share (share of the pairs of items with equal prefixes that are co-watched; None without such pairs).
    ``distinct_codes``, ``collision_share``, ``largest_bucket``, ``bucket_histogram`` (codes by how many items have them).
    Raises BadVectors for codes outside ``sizes`` or inputs of another length.
    """
    array = check_codes(codes, sizes)
    keys = prefix_keys(array)
    report: dict[str, Any] = {
        "items": len(array),
        "sizes": [int(size) for size in sizes],
        "layers": [_layer(array[:, layer], int(size)) for layer, size in enumerate(sizes)],
        "prefixes": [{"depth": depth, **_buckets(key)} for depth, key in enumerate(keys, start=1)],
    }
    whole = report["prefixes"][-1]
    report["distinct_codes"] = whole["distinct"]
    report["collision_share"] = whole["collision_share"]
    report["largest_bucket"] = whole["largest_bucket"]
    report["bucket_histogram"] = _bucket_histogram(keys[-1])
    if vectors is not None and decoded is not None:
        for depth, error in _reconstruction_errors(vectors, decoded, len(keys)).items():
            report["prefixes"][depth - 1]["reconstruction_error"] = error
        report["reconstruction_error"] = whole["reconstruction_error"]
    if labels is not None:
        label_keys, known = _label_keys(labels, len(array))
        for entry, key in zip(report["prefixes"], keys, strict=True):
            entry["nmi"] = normalised_mutual_information(key[known], label_keys[known])
    if pairs is not None:
        couples = _checked_pairs(pairs, len(array))
        for entry, key in zip(report["prefixes"], keys, strict=True):
            same = key[couples[:, 0]] == key[couples[:, 1]]
            entry["behaviour_hit_rate"] = float(same.mean()) if len(couples) else None
            entry["co_watched_share"] = _co_watched_share(key, couples[same])
    return report


def prefix_keys(codes: npt.NDArray[Any]) -> list[Keys]:
    """For each depth, keys (n,) int64 that are equal exactly where the prefixes are, and ordered as they are."""
    keys: list[Keys] = []
    current, span = np.zeros(len(codes), np.int64), 1
    for layer in range(codes.shape[1]):
        tokens = codes[:, layer].astype(np.int64)
        width = int(tokens.max(initial=0)) + 1
        if span * width >= 2**62:
            current, span = np.unique(current, return_inverse=True)[1].astype(np.int64), len(codes)
        current, span = current * width + tokens, span * width
        keys.append(current)
    return keys


def normalised_mutual_information(left: Keys, right: Keys) -> float | None:
    """Mutual information ÷ mean entropy of two labelings (n,); 1 where both are constant, None of nothing."""
    if not len(left):
        return None
    _, first = np.unique(left, return_inverse=True)
    _, second = np.unique(right, return_inverse=True)
    joint = first.astype(np.int64) * (int(second.max()) + 1) + second
    counts = [np.unique(values, return_counts=True)[1] for values in (first, second, joint)]
    first_entropy, second_entropy, joint_entropy = (_entropy(values) for values in counts)
    mean = (first_entropy + second_entropy) / 2
    if mean == 0:
        return 1.0
    return float(min(1.0, max(0.0, (first_entropy + second_entropy - joint_entropy) / mean)))


def _layer(tokens: npt.NDArray[Any], size: int) -> dict[str, Any]:
    counts = np.bincount(tokens, minlength=size)
    used = int((counts > 0).sum())
    entropy = _entropy(counts)
    quantiles = np.quantile(counts, _QUANTILES)
    return {
        "size": size,
        "utilization": used / size,
        "entropy": entropy,
        "entropy_ratio": entropy / float(np.log(size)) if size > 1 else 1.0,
        "perplexity": float(np.exp(entropy)),
        "gini": _gini(counts),
        "dead_tokens": size - used,
        "size_quantiles": {f"{quantile:g}": float(value) for quantile, value in zip(_QUANTILES, quantiles, strict=True)},
    }


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    present = counts[counts > 0].astype(np.float64)
    if not len(present):
        return 0.0
    shares = present / present.sum()
    return float(max(0.0, -(shares * np.log(shares)).sum()))


def _gini(counts: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of items a token: 0 all equal, towards 1 all on one."""
    total = counts.sum()
    if not total:
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    place = np.arange(1, len(ordered) + 1)
    return float(((2 * place - len(ordered) - 1) * ordered).sum() / (len(ordered) * total))


def _buckets(keys: Keys) -> dict[str, Any]:
    counts = np.unique(keys, return_counts=True)[1]
    return {
        "distinct": len(counts),
        "collision_share": float(counts[counts > 1].sum() / len(keys)) if len(keys) else 0.0,
        "largest_bucket": int(counts.max(initial=0)),
    }


def _co_watched_share(keys: Keys, hits: npt.NDArray[np.int64]) -> float | None:
    """Distinct pairs of different items among ``hits`` ÷ pairs of different items with equal keys."""
    counts = np.unique(keys, return_counts=True)[1]
    possible = int((counts * (counts - 1) // 2).sum())
    if not possible:
        return None
    ordered = np.sort(hits[hits[:, 0] != hits[:, 1]], axis=1)
    return len(np.unique(ordered, axis=0)) / possible


def _bucket_histogram(keys: Keys) -> list[dict[str, Any]]:
    """Codes and items by the number of items that have the code: 1, 2, …, 5, 6–10, 11–20, 21–50, 51–100, more."""
    counts = np.unique(keys, return_counts=True)[1]
    bins = np.searchsorted(_HISTOGRAM_EDGES, counts, side="right") - 1
    rows = []
    for position, low in enumerate(_HISTOGRAM_EDGES):
        inside = counts[bins == position]
        high = _HISTOGRAM_EDGES[position + 1] - 1 if position + 1 < len(_HISTOGRAM_EDGES) else None
        rows.append({"from": low, "to": high, "codes": len(inside), "items": int(inside.sum())})
    return rows


def _reconstruction_errors(vectors: Any, decoded: Any, depths: int) -> dict[int, float | None]:
    """Mean squared error ÷ total variance by depth; None where the vectors do not vary."""
    matrix = as_matrix(vectors)
    by_depth = dict(enumerate(decoded, start=1)) if isinstance(decoded, (list, tuple)) else {depths: decoded}
    if depths not in by_depth or max(by_depth) > depths:
        raise BadVectors(f"decoded: found {len(by_depth)} depths; needs all {depths}, or the last alone")
    variance = _total_variance(matrix)
    errors: dict[int, float | None] = {}
    for depth, reconstruction in by_depth.items():
        other = as_matrix(reconstruction)
        if other.shape != matrix.shape:
            raise BadVectors(f"decoded: found shape {other.shape} at depth {depth}; the vectors have {matrix.shape}")
        squares = (
            float(((block - to_float32(other[start:stop]).astype(np.float64)) ** 2).sum())
            for start, stop, block in blocks(ArrayRows(matrix))
        )
        errors[depth] = sum(squares) / variance if variance else None
    return errors


def _total_variance(matrix: npt.NDArray[Any]) -> float:
    """Sum of squared distances from the mean, block by block in float64."""
    if not len(matrix):
        return 0.0
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, _, block in blocks(ArrayRows(matrix))) / len(matrix)
    return sum(float(((block - mean) ** 2).sum()) for _, _, block in blocks(ArrayRows(matrix)))


def _label_keys(labels: Any, count: int) -> tuple[Keys, npt.NDArray[np.bool_]]:
    values = np.asarray(labels, dtype=object)
    if values.shape != (count,):
        raise BadVectors(f"labels: found shape {values.shape}; needs one for each of the {count} codes")
    known = np.array([value is not None and value != "" for value in values], bool)
    return label_numbers([str(value) if ok else "" for value, ok in zip(values, known, strict=True)]), known


def _checked_pairs(pairs: Any, count: int) -> npt.NDArray[np.int64]:
    couples = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if len(couples) and not 0 <= couples.min() <= couples.max() < count:
        raise BadVectors(f"pairs: row numbers must lie in 0…{count - 1}")
    return couples
