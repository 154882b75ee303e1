"""A progress bar for training, as a callback."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tokenization.lloyd import Callback, Iteration


@contextmanager
def progress_bar(iterations: int, layers: int = 1, epochs: int = 0, *, enabled: bool = True) -> Iterator[Callback | None]:
    """A bar on standard error over ``layers`` × ``iterations`` and ``epochs`` of all layers, which take about as long as an
    iteration of each, at most (of one layer there are none); None where it is not ``enabled``."""
    if not enabled:
        yield None
        return
    epochs = epochs if layers > 1 else 0
    with tqdm(total=(iterations + epochs) * layers, desc="k-means", unit="iteration", leave=False) as bar:

        def tell(done: Iteration) -> None:
            if done.layer:
                bar.n = (done.layer - 1) * iterations + done.iteration
            else:
                bar.n = min(iterations + done.iteration, iterations + epochs) * layers
            where = f"layer {done.layer}" if done.layer else f"refinement {done.iteration}"
            bar.set_postfix_str(f"{where}, inertia {done.inertia:.6g}")

        yield tell
