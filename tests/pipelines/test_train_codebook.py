"""Training a codebook: what the step reports is the codebook that it published, whatever others publish meanwhile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines import train_codebook
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
