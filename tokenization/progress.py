"""A progress bar for training, as a callback."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tokenization.balance import ITERATIONS
from tokenization.lloyd import Callback, Iteration


@contextmanager
def progress_bar(
    iterations: int, layers: int = 1, epochs: int = 0, bounded: int = 0, *, enabled: bool = True
) -> Iterator[Callback | None]:
    """A bar on standard error over ``layers`` × ``iterations``, ``epochs`` of all layers, which take about as long as an
    iteration of each, at most (of one layer there are none), and the iterations of ``bounded`` layers; None where it is not
    ``enabled``."""
    if not enabled:
        yield None
        return
    epochs = epochs if layers > 1 else 0
    free = (iterations + epochs) * layers
    with tqdm(total=free + (1 + ITERATIONS) * bounded, desc="k-means", unit="iteration", leave=False) as bar:

        def tell(done: Iteration) -> None:
            where = f"layer {done.layer}"
            if not done.layer:
                bar.n = min(iterations + done.iteration, iterations + epochs) * layers
                where = f"refinement {done.iteration}"
            elif done.greedy:
                bar.n = (done.layer - 1) * iterations + done.iteration
            else:
                bar.n = max(bar.n, free) + 1
                where += ", bounding clusters"
            bar.set_postfix_str(f"{where}, inertia {done.inertia:.6g}")

        yield tell
