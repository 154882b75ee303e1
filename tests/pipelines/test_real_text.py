"""Real catalogue text (Amazon, Industrial and Scientific) through embed, by the weights that are at hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import embed
from schemas.lake import Lake
from schemas.tables import ITEM_VECTORS, ITEMS
from tests.lake_rows import write_rows
from tests.pipelines.content_lake import item
from tokenization.encoders import load_encoder
from tokenization.modalities import vector_matrix

pytestmark = pytest.mark.slow
ITEM_COUNT = 200


def test_two_hundred_products(make_lake: Callable[..., Lake], real_data: Callable[[str], Path]) -> None:
    source = json.loads((real_data("amazon-industrial") / "item.json").read_text())
    chosen = {f"p{name}": product for name, product in list(source.items())[:ITEM_COUNT]}
    lake = make_lake()
    write_rows(
        lake,
        ITEMS,
        [item(name, title=product["title"], caption=product["description"].strip("[]' ")) for name, product in chosen.items()],
    )
    counts = embed.run(lake)["tables"]["item_vectors"]
    with_text = sum(bool(product["title"].strip() or product["description"].strip("[]' ")) for product in chosen.values())
    assert counts["rows_in"] == 3 * ITEM_COUNT
    assert counts["rows_out"] == with_text
    assert counts["rows_dropped"] == {"no_content": 3 * ITEM_COUNT - with_text, "unchanged": 0}

    rows = lake.read(ITEM_VECTORS).sort_by("item_id")
    vectors = vector_matrix(rows["vector"])
    assert vectors.shape == (with_text, 384)
    names = rows["item_id"].to_pylist()
    titles = [chosen[name]["title"] for name in names]
    # A title alone finds its own product: the vector is of this text and not of another's.
    asked = load_encoder(lake.config.embed.text_encoder).encode(titles)
    nearest = (asked @ vectors.T).argsort(axis=1)[:, ::-1][:, :5]
    found = [any(titles[other] == titles[row] for other in nearest[row]) for row in range(len(titles))]
    assert np.mean(found) > 0.9
