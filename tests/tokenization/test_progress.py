"""The bar of training."""

import pytest

from tokenization.lloyd import Iteration
from tokenization.progress import progress_bar


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
