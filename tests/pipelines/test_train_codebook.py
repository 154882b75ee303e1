"""Training a codebook: what the step reports is the codebook that it published, whatever others publish meanwhile."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import train_codebook
from schemas.config import CodebookSection
from schemas.lake import Lake
from schemas.registry import Artefact, Registry
from schemas.tables import ITEM_VECTORS, ITEMS
from tests.lake_rows import utc, write_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("training", ["sample", "exact"])
def test_a_run_reports_the_codebook_that_it_published_also_where_another_run_publishes_one_at_once(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch, training: str
) -> None:
    lake = make_lake(codebook={"sizes": [4, 4], "iterations": 2, "refinements": 1, "training": training})
    registry = Registry.of(lake)
    fusion = registry.publish("fusion", {"encoders": {"text": "hand"}}, {"fusion": b"-"}).version
    names = [f"i{number:02d}" for number in range(40)]
    common = {"kind": "fused", "source": fusion, "presence_mask": 1}
    rows = zip(names, np.random.default_rng(0).normal(size=(40, 3)).tolist(), strict=True)
    write_rows(lake, ITEM_VECTORS, [common | {"item_id": name, "content_hash": name, "vector": vector} for name, vector in rows])
    write_rows(lake, ITEMS, [{"item_id": name, "valid_from": utc("2026-01-01"), "category": name[-1]} for name in names])
    whole, published = Registry.publish, []

    def overtaken(self: Registry, kind: str, metadata: Any, files: Any, **how: Any) -> Artefact:
        published.append(whole(self, kind, metadata, files, **how))
        published.append(whole(self, kind, {**metadata, "inputs_hash": "another's"}, files, **how))
        return published[0]

    monkeypatch.setattr(Registry, "publish", overtaken)
    report = train_codebook.run(lake)
    ours, others = (artefact.version for artefact in published)
    assert ours != others == registry.latest("codebook")
    assert report["codebook_version"] == ours


@pytest.mark.parametrize("at_once", [2, 65_536])
def test_what_was_trained_on_is_known_by_every_item_and_pair_whatever_the_order_of_pairs_and_the_pieces_of_columns(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(train_codebook, "_HASHED_AT_ONCE", at_once)
    section, random = CodebookSection(sizes=(4, 4)), np.random.default_rng(0)
    items = [("a", "h1", "x"), ("é", "h2", None), ("\U0001f3b5", "h3", ""), ("z", "h4", "x"), ("zz", "h5", "ü")]
    pairs = [(items[one][0], items[other][0]) for one, other in random.integers(0, 5, (9, 2)).tolist()]

    def found(items: list[Any], pairs: list[Any]) -> str:
        columns = dict(zip(("item_id", "content_hash", "category"), zip(*items, strict=True), strict=True))
        named = pa.table({"item_b": [b for _, b in pairs], "item_a": [a for a, _ in pairs]}).slice(0)
        both = pa.concat_tables([named.slice(0, 4), named.slice(4)])
        rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        return train_codebook._fingerprint(section, "f1", rows, both)

    described = {"codebook": section.model_dump(mode="json", exclude=train_codebook._OF_TOKENIZE), "fusion_version": "f1"}
    expected = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for one in [*items, *sorted(pairs)]:
        expected.update(json.dumps(one).encode())
    assert found(items, pairs) == found(items, pairs[::-1]) == expected.hexdigest()
    for number in range(len(pairs)):
        assert found(items, pairs[:number] + pairs[number + 1 :]) != expected.hexdigest()
    assert found([*items[:-1], ("zz", "h5", "u")], pairs) != expected.hexdigest()
