"""The bar of training."""

import pytest

from tests.tokenization.vector_cases import matrix
from tokenization.kmeans import KMeans
from tokenization.lloyd import Iteration
from tokenization.progress import progress_bar
from tokenization.rq_kmeans import RQKMeans


@pytest.mark.parametrize(
    ("layers", "epochs", "heard", "shown"),
    [
        (1, 0, [(1, 5)], "5/5"),
        (1, 15, [(1, 5)], "5/5"),
        (3, 15, [(1, 5), (2, 5), (3, 5)], "15/60"),
        (3, 15, [(3, 5), (0, 15)], "60/60"),
        (3, 15, [(3, 5), (0, 15), (0, 17)], "60/60"),
    ],
)
def test_it_is_full_once_all_layers_and_epochs_are_done_and_not_before(capsys, layers, epochs, heard, shown):
    with progress_bar(5, layers, epochs) as tell:
        for layer, iteration in heard:
            tell(Iteration(layer, iteration, 5, 1.0, 0, 0.1))
    assert shown in capsys.readouterr().err.split("\r")[-3:][0]


def test_bounded_layers_come_last(capsys):
    with progress_bar(5, 2, 3, 1) as tell:
        for layer, iteration, greedy in [(1, 5, True), (2, 5, True), (0, 3, True), (2, 1, False), (2, 2, False)]:
            tell(Iteration(layer, iteration, 5, 1.0, 0, 0.1, greedy=greedy))
    last = capsys.readouterr().err.split("\r")[-3:][0]
    assert "18/22" in last
    assert "layer 2, bounding clusters" in last


def test_an_estimator_draws_it_where_it_is_asked_to(capsys):
    vectors = matrix("normal", 60, 3, 0)
    RQKMeans(2, 4, iterations=2, tolerance=0, refinements=3, balance=1.5).fit(vectors)
    assert capsys.readouterr().err == ""
    RQKMeans(2, 4, iterations=2, tolerance=0, refinements=3, balance=1.5, verbose=True).fit(vectors)
    told = capsys.readouterr().err
    assert all(part in told for part in ("k-means:", "layer 1, inertia", "refinement 3", "layer 2, bounding clusters"))
    KMeans(4, iterations=2, verbose=True).fit(vectors)
    assert "/2 [" in capsys.readouterr().err
