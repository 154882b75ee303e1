"""Codebook metrics, against naive Python."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from tests.tokenization.vector_cases import matrix
from tokenization.metrics import codebook_metrics, normalised_mutual_information, prefix_keys
from tokenization.vectors import BadVectors


@st.composite
def coded_items(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    codes = draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=50))
    return np.array(codes, np.uint16), sizes


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(coded_items())
def test_every_figure_is_that_of_naive_counting(case):
    codes, sizes = case
    report = codebook_metrics(codes, sizes)
    rows = [tuple(code) for code in codes.tolist()]
    for layer, (size, found) in enumerate(zip(sizes, report["layers"], strict=True)):
        counts = Counter(code[layer] for code in rows)
        every = sorted(counts.get(token, 0) for token in range(size))
        entropy = -sum(count / len(rows) * math.log(count / len(rows)) for count in counts.values())
        gini = sum(abs(one - other) for one in every for other in every) / (2 * size * sum(every))
        assert found["utilization"] == len(counts) / size
        assert found["dead_tokens"] == size - len(counts)
        assert found["entropy"] == pytest.approx(entropy, abs=1e-12)
        assert found["entropy_ratio"] == pytest.approx(entropy / math.log(size) if size > 1 else 1, abs=1e-12)
        assert found["perplexity"] == pytest.approx(math.exp(entropy))
        assert found["gini"] == pytest.approx(gini, abs=1e-12)
        for name, value in found["size_quantiles"].items():
            place = float(name) * (size - 1)  # between the two sizes at either side of it
            low, high = every[math.floor(place)], every[math.ceil(place)]
            assert value == pytest.approx(low + (high - low) * (place - math.floor(place)))
    for depth, found in enumerate(report["prefixes"], start=1):
        counts = Counter(code[:depth] for code in rows)
        assert found["distinct"] == len(counts)
        assert found["collision_share"] == pytest.approx(sum(counts[code[:depth]] > 1 for code in rows) / len(rows))
        assert found["largest_bucket"] == max(counts.values())
    buckets = Counter(Counter(rows).values())
    for row in report["bucket_histogram"]:
        sizes_inside = [size for size in buckets if row["from"] <= size <= (row["to"] or math.inf)]
        assert row["codes"] == sum(buckets[size] for size in sizes_inside)
        assert row["items"] == sum(size * buckets[size] for size in sizes_inside)
    json.dumps(report, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(coded_items(), st.data())
def test_labels_and_pairs(case, data):
    codes, sizes = case
    labels = data.draw(st.lists(st.sampled_from(["a", "b", "c", None, ""]), min_size=len(codes), max_size=len(codes)))
    row = st.integers(0, len(codes) - 1)
    pairs = data.draw(st.lists(st.tuples(row, row), max_size=20))
    report = codebook_metrics(codes, sizes, labels=labels, pairs=pairs)
    known = [place for place, label in enumerate(labels) if label]
    for depth, found in enumerate(report["prefixes"], start=1):
        prefixes = ["-".join(map(str, code[:depth])) for code in codes.tolist()]
        if known:
            theirs = normalized_mutual_info_score([labels[place] for place in known], [prefixes[place] for place in known])
            assert found["nmi"] == pytest.approx(theirs, abs=1e-9)
        else:
            assert found["nmi"] is None
        hits = [prefixes[one] == prefixes[other] for one, other in pairs]
        assert found["behaviour_hit_rate"] == (pytest.approx(sum(hits) / len(hits)) if hits else None)
        together = [pair for pair in itertools.combinations(range(len(prefixes)), 2) if prefixes[pair[0]] == prefixes[pair[1]]]
        watched = {tuple(sorted(pair)) for pair in pairs}
        share = sum(pair in watched for pair in together) / len(together) if together else None
        assert found["co_watched_share"] == (pytest.approx(share) if together else None)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_reconstruction_errors_by_depth_are_those_of_plain_python(count, dim, depths, seed, many_blocks):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dim)).astype(np.float32)
    decoded = [random.standard_normal((count, dim)).astype(np.float32) for _ in range(depths)]
    with pytest.MonkeyPatch.context() as patch:
        if many_blocks:
            patch.setattr("tokenization.vectors._BLOCK_VALUES", 4)
        report = codebook_metrics(np.zeros((count, depths), int), [1] * depths, vectors, decoded)
    rows = vectors.astype(float).tolist()
    means = [sum(column) / count for column in zip(*rows, strict=True)]
    variance = sum((value - mean) ** 2 for row in rows for value, mean in zip(row, means, strict=True))
    for found, reconstruction in zip(report["prefixes"], decoded, strict=True):
        others = reconstruction.astype(float).tolist()
        error = sum((a - b) ** 2 for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True))
        assert found["reconstruction_error"] == (pytest.approx(error / variance) if variance else None)


def test_reconstruction_error_is_relative_to_the_variance():
    vectors = matrix("normal", 40, 5, 0)
    mean = np.tile(vectors.mean(axis=0), (40, 1))
    report = codebook_metrics(np.zeros((40, 2), int), [1, 1], vectors, [mean, vectors])
    assert report["prefixes"][0]["reconstruction_error"] == pytest.approx(1, rel=1e-5)
    assert report["prefixes"][1]["reconstruction_error"] == report["reconstruction_error"] == 0
    assert "reconstruction_error" not in codebook_metrics(np.zeros((40, 2), int), [1, 1], vectors, vectors)["prefixes"][0]
    flat = codebook_metrics(np.zeros((3, 1), int), [1], np.ones((3, 2)), np.ones((3, 2)))
    assert flat["reconstruction_error"] is None


def test_no_items_are_a_report_too():
    report = codebook_metrics(np.zeros((0, 2), int), [4, 4], labels=[], pairs=[])
    assert report["layers"][0]["utilization"] == 0
    assert report["collision_share"] == 0
    json.dumps(report, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 65535)] * 6), min_size=1, max_size=30))
def test_keys_order_and_separate_prefixes_even_where_they_overflow_an_integer(rows):
    codes = np.array(rows)
    for depth, keys in enumerate(prefix_keys(codes), start=1):
        prefixes = [tuple(row[:depth]) for row in rows]
        place = {prefix: number for number, prefix in enumerate(sorted(set(prefixes)))}
        expected = np.array([place[prefix] for prefix in prefixes])
        assert (np.unique(keys, return_inverse=True)[1] == expected).all()


def test_constant_labelings_agree_fully():
    assert normalised_mutual_information(np.zeros(3, np.int64), np.zeros(3, np.int64)) == 1


@pytest.mark.parametrize(
    ("codes", "more", "message"),
    [
        ([[0, 4]], {}, r"row 0 is \[0, 4\]"),
        ([[-1, 0]], {}, r"row 0 is \[-1, 0\]"),
        ([[0.5, 0]], {}, "integers"),
        ([[0, 0]], {"labels": ["a", "b"]}, "one for each of the 1 codes"),
        ([[0, 0]], {"pairs": [(0, 1)]}, "row numbers"),
        ([[0, 0]], {"vectors": np.ones((1, 2)), "decoded": np.ones((1, 3))}, "shape"),
    ],
)
def test_what_does_not_fit_is_refused(codes, more, message):
    with pytest.raises(BadVectors, match=message):
        codebook_metrics(np.array(codes), [4, 4], **more)
