"""How long the codebook command line takes: to start, and to inspect 10 million items (``--quick``: 1 million)."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from benchmarks.harness import finish, median_seconds, options, progress, slope
from schemas.config import Config
from schemas.lake import Lake, create_lake
from schemas.registry import Registry
from schemas.tables import ITEM_TOKENS
from tokenization.codebook import publish_codebook
from tokenization.rq_kmeans import RQKMeans

ONEREC = str(Path(sys.executable).with_name("onerec"))
SIZES = (8192, 8192, 8192)


def make_lake(folder: Path, items: int, generator: np.random.Generator) -> Lake:
    """A lake with one codebook and so many items whose tokens are drawn with a heavy tail."""
    lake = create_lake(str(folder), Config())
    model = RQKMeans(n_layers=3, codebook_size=(64, 64, 64), iterations=2).fit(
        generator.standard_normal((2000, 16)).astype(np.float32)
    )
    model.codebooks_ = [generator.standard_normal((size, 16)).astype(np.float32) for size in SIZES]
    version = publish_codebook(Registry.of(lake), model, {"sizes": list(SIZES), "metrics": {}}).version
    tokens = (8192 * generator.random((items, 3)) ** 1.5).astype(np.int32)
    table = pa.table(
        {
            "item_id": pa.array(np.char.mod("i%09d", np.arange(items))),
            "tokens": pa.ListArray.from_arrays(np.arange(0, 3 * items + 1, 3, dtype=np.int32), tokens.ravel()),
            "rank": pa.array(np.zeros(items, np.int32)),
            "residual_norm": pa.array(generator.random(items, dtype=np.float32)),
            "content_hash": pa.array(["0" * 16] * items),
            "codebook_version": pa.array([version] * items),
        }
    ).cast(ITEM_TOKENS.schema)
    write_deltalake(lake.table_uri(ITEM_TOKENS), table, mode="append")
    return lake


def run_command(*arguments: str) -> None:
    """One command as a person types it."""
    subprocess.run([ONEREC, *arguments], check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    chosen = options(__doc__ or "")
    largest = 1_000_000 if chosen.quick else 10_000_000
    generator = np.random.default_rng(chosen.seed)
    figures = {"help_s": median_seconds(lambda: run_command("codebook", "--help"), 5)}
    progress(f"codebook --help: {figures['help_s']:.2f} s")
    seconds = {}
    for items in (largest // 4, largest // 2, largest):
        with tempfile.TemporaryDirectory() as folder:
            lake = make_lake(Path(folder) / "lake", items, generator)
            seconds[items] = median_seconds(lambda root=lake.root: run_command("codebook", "inspect", "--lake", root))
        progress(f"inspect {items:,} items: {seconds[items]:.2f} s")
    figures |= {
        "inspect_10m_s": seconds.get(10_000_000),
        "inspect_s": {str(items): value for items, value in seconds.items()},
        "inspect_s_per_million_items": slope(list(seconds), list(seconds.values())) * 1e6,
    }
    finish("codebook_cli", figures, ["numpy", "pyarrow", "deltalake"], keep=chosen.keep)


if __name__ == "__main__":
    main()
