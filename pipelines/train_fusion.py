"""``onerec train-fusion``: trains the fusion model on the lake's vectors and pairs, and publishes it.

Between two Beam jobs, in PyTorch, on one machine. Killed and started again it goes on from its last checkpoint; run again on
the same vectors, pairs and configuration it publishes nothing new. A refresh keeps the live token set's model unless
``fusion.start`` asks for a new one, since codes do not outlive their space (docs/decisions/refresh.md).
"""

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.contents import create_contents, end_of
from pipelines.fused_inputs import create_inputs, input_rows
from pipelines.versions import fusion_version
from pipelines.work import execute, query_engine
from schemas.config import FusionSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import CO_INTERACTION, ITEM_VECTORS, ITEMS, QUARANTINE
from tokenization.encoders import KINDS, Kind, encoder_set
from tokenization.fusion_model import FUSION_FILE, FusionModel, FusionShape, fusion_bytes, load_fusion
from tokenization.fusion_training import FusionData, pair_recall, split_pairs, train_fusion
from tokenization.modalities import by_kind, presence
from tokenization.pairs import latest_pairs, pair_rows

STEP = "train-fusion"
RECALL_AT = 50


def run(
    lake: Lake, date: dt.date | None = None, *, progress: Callable[[int, int, float], None] = lambda *_: None
) -> dict[str, Any]:
    """Train on the items as they are at the end of ``date`` and the pairs of the latest window that ends by then.

    ``progress`` hears (steps done, steps, loss). Returns the step's report. Raises BadInput without vectors or pairs, and where
    training diverges (then nothing is published).
    """
    section = lake.config.fusion
    registry = Registry.of(lake)
    with step_run(lake, STEP, date) as step:
        encoders, rows = _rows(lake, step, date)
        dims: dict[str, int] = {kind: _dim(rows, kind) for kind in encoders}
        shape = FusionShape(dims, section.dim, section.queries, section.layers, section.heads)
        day, named = latest_pairs(lake, step.reads(lake, CO_INTERACTION), date)
        pairs = pair_rows(named, rows["item_id"])
        if not len(pairs):
            found = f"{named.num_rows} pairs, none of two embedded items," if named.num_rows else "no pair"
            raise BadInput(
                f"{lake.table_uri(CO_INTERACTION)}: {found} by {date or 'any date'}; run `onerec co-interaction` first"
            )
        inputs_hash = _fingerprint(section, encoders, rows, pairs)
        before, start = _previous(registry, shape, encoders)
        if kept := section.start == "keep" and before is not None and registry.latest("token_set") is not None:
            registry.set_latest("fusion", str(before))
        latest = registry.latest("fusion")
        reused = kept or (latest is not None and registry.load("fusion", latest).metadata.get("inputs_hash") == inputs_hash)
        if not reused:
            data = FusionData(by_kind(rows, dims), presence(rows["presence_mask"].to_numpy(), shape.kinds, KINDS), pairs)
            training, held_out = split_pairs(pairs, rows["item_id"].to_pylist())
            before, start = (None, None) if section.start == "scratch" else (before, start)
            folder = lake.local_path("checkpoints", f"fusion-{inputs_hash[:12]}-{before or 'scratch'}")
            model, losses = train_fusion(
                shape,
                FusionData(data.vectors, data.present, training),
                section,
                start=start,
                checkpoints=folder,
                progress=lambda done, loss: progress(done, section.steps, loss),
            )
            metrics = {
                f"recall_at_{RECALL_AT}": _recalls(model, data, training, held_out),
                "items": rows.num_rows,
                "training_pairs": len(training),
                "held_out_pairs": len(held_out),
            }
            metadata = {
                "encoders": encoders,
                "shape": shape.to_json(),
                "dim": shape.dim,
                "metrics": metrics,
                "training": section.model_dump(mode="json"),
                "warm_started_from": before,
                "pairs_date": day.isoformat() if day else None,
                "inputs": dict(step.inputs),
                "inputs_hash": inputs_hash,
            }
            latest = registry.publish("fusion", metadata, {FUSION_FILE: fusion_bytes(model)}).version
            shutil.rmtree(folder, ignore_errors=True)
            step.table("pairs", TableCounts(len(pairs), len(training), rows_dropped={"held_out": len(held_out)}))
            step.extra["last_loss"] = round(losses[-1], 6) if losses else None
        else:
            step.table("pairs", TableCounts(len(pairs), 0, rows_dropped={"unchanged": len(pairs)}))
        artefact = registry.load("fusion", latest)
        step.extra |= {
            "fusion_version": artefact.version,
            "reused": reused,
            "kept": kept,
            "metrics": artefact.metadata["metrics"],
        }
    return step.to_json()


def _previous(registry: Registry, shape: FusionShape, encoders: Mapping[Kind, str]) -> tuple[str | None, FusionModel | None]:
    """The live token set's model, or before the first one the newest, where it has this shape and these encoders."""
    if registry.latest("fusion") is None:
        return None, None
    artefact, model = load_fusion(registry, fusion_version(registry, None, refresh=False))
    fits = model.shape == shape and artefact.metadata["encoders"] == dict(encoders)
    return (artefact.version, model) if fits else (None, None)


def _rows(lake: Lake, step: StepRun, date: dt.date | None) -> tuple[dict[Kind, str], pa.Table]:
    """The encoders that have vectors, and a row for each item that has any."""
    configured = encoder_set(lake.config.embed)
    with query_engine() as connection:
        create_contents(connection, lake.dataset(ITEMS, step.reads(lake, ITEMS)), end_of(date, lake.config))
        vectors, rejected = (lake.dataset(table, step.reads(lake, table)) for table in (ITEM_VECTORS, QUARANTINE))
        usable = create_inputs(connection, vectors, rejected, configured, lake.config.embed)
        if not usable:
            names = ", ".join(configured.values())
            raise BadInput(
                f"{lake.table_uri(ITEM_VECTORS)}: no vector of {names} for a live item; run `onerec embed` first "
                "(items without text, picture and sound have none)"
            )
        found = _kinds_found(connection)
        encoders = {kind: name for kind, name in configured.items() if kind in found}
        return encoders, input_rows(connection, encoders).to_arrow_table()


def _kinds_found(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {kind for (kind,) in execute(connection, "SELECT DISTINCT kind FROM inputs")}


def _dim(rows: pa.Table, kind: Kind) -> int:
    vector = next(value for value in rows[f"{kind}_vector"] if value.is_valid)
    return len(vector)


def _fingerprint(section: FusionSection, encoders: Mapping[Kind, str], rows: pa.Table, pairs: np.ndarray) -> str:
    """What decides the trained model: configuration, contents (by hash, in order of item) and pairs."""
    described = {"fusion": section.model_dump(mode="json"), "encoders": dict(encoders)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for item_id, content in zip(rows["item_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True):
        digest.update(f"{item_id}\0{content}\n".encode())
    digest.update(pairs.tobytes())
    return digest.hexdigest()


def _recalls(model: FusionModel, data: FusionData, training: np.ndarray, held_out: np.ndarray) -> dict[str, float | None]:
    """Held-out pair recall of each modality, of them side by side, and fused."""
    recalls = {kind: pair_recall(rows, training, held_out, RECALL_AT) for kind, rows in data.vectors.items()}
    side_by_side = np.concatenate(list(data.vectors.values()), axis=1)
    recalls["concat"] = pair_recall(side_by_side, training, held_out, RECALL_AT)
    recalls["fused"] = pair_recall(model.fuse(data.vectors, data.present), training, held_out, RECALL_AT)
    return recalls
