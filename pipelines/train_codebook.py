"""``onerec train-codebook``: RQ-KMeans on the fused vectors of a fusion version, published as a codebook.

A Beam job whose training runs on one worker, on a sample drawn by category; or, with ``codebook.training: exact``, a Beam job for
each step of it, on every vector. It starts from the previous codebook where that has the same sizes and a space that the new
one is near to, so that a refresh changes no more tokens than it must (``pipelines.codebook_refresh``). Run again on the same
vectors and configuration it publishes nothing new.
"""

import datetime as dt
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import versions
from pipelines.contents import create_contents, end_of
from pipelines.fused_inputs import quoted
from pipelines.runner import LOCAL, open_pipeline
from pipelines.work import WorkFolder, count, query_engine, work_folder
from schemas.config import CodebookSection
from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Registry
from schemas.runs import StepRun, TableCounts, step_run
from schemas.tables import CO_INTERACTION, ITEM_TOKENS, ITEM_VECTORS, ITEMS
from tokenization.pairs import latest_pairs, pair_rows
from tokenization.sampling import stratified_sample

if TYPE_CHECKING:
    from pipelines.codebook_refresh import Previous

STEP = "train-codebook"
_OF_TOKENIZE = {"collisions", "collision_cap", "collision_max_error", "collision_suffixes"}
"""Settings that do not touch the codebook."""
_HASHED_AT_ONCE = 65_536
_LARGE_PAIRS = pa.schema([("item_a", pa.large_string()), ("item_b", pa.large_string())])


def run(
    lake: Lake,
    date: dt.date | None = None,
    *,
    fusion_version: str | None = None,
    runner: str = LOCAL,
    options: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train on the fused vectors of ``fusion_version`` (None: the newest). Returns the step's report.

    Raises BadInput without fused vectors, or with fewer distinct ones than the largest layer has tokens.
    """
    section = lake.config.codebook
    registry = Registry.of(lake)
    with step_run(lake, STEP, date) as step, work_folder(lake, STEP) as work, query_engine() as connection:
        version = versions.fusion_version(registry, fusion_version, refresh=fusion_version is None)
        connection.register("vectors", lake.dataset(ITEM_VECTORS, step.reads(lake, ITEM_VECTORS)))
        create_contents(connection, lake.dataset(ITEMS, step.reads(lake, ITEMS)), end_of(date, lake.config))
        rows = _training_rows(connection, version, section)
        if not rows.num_rows:
            raise BadInput(
                f"{lake.table_uri(ITEM_VECTORS)}: no fused vector of fusion {version}; "
                f"run `onerec fuse --fusion-version {version}` first"
            )
        day, named = latest_pairs(lake, step.reads(lake, CO_INTERACTION), date)
        inputs_hash = _fingerprint(section, version, rows, named)
        latest = registry.latest("codebook")
        before = versions.codebook_version(registry, None, refresh=False) if latest else None
        known = dict.fromkeys(one for one in (latest, before) if one)
        same = next((one for one in known if registry.load("codebook", one).metadata.get("inputs_hash") == inputs_hash), None)
        reused = same is not None
        if same is not None:
            published = same
            if same != latest:
                registry.set_latest("codebook", same)
        else:
            from pipelines.codebook_refresh import find_previous

            dim = _check_sizes(connection, version, rows, section)
            previous = find_previous(connection, registry, before, version, dim, section)
            tokens = _tokens(lake, step, connection, previous, rows, len(section.sizes))
            rows = rows.append_column("tokens", tokens)
            metadata = {
                "encoders": registry.load("fusion", version).metadata["encoders"],
                "fusion_version": version,
                "pairs_date": day.isoformat() if day else None,
                "inputs": dict(step.inputs),
                "inputs_hash": inputs_hash,
            }
            progress(f"train-codebook: {rows.num_rows} vectors of fusion {version}, layers of {list(section.sizes)}")
            if runner == LOCAL:
                from tokenization import arithmetic

                path = arithmetic.described(section.backend, rows.num_rows * dim * max(section.sizes))
                progress(f"train-codebook: assignment by {path}")
            pairs = pair_rows(named, rows["item_id"])
            if section.training == "exact":
                from pipelines.exact_codebook import ExactTraining

                vectors = connection.sql(f"SELECT vector FROM ({_fused(version)}) ORDER BY item_id").to_arrow_reader()
                training = ExactTraining(registry, work, section, previous, runner, options, progress)
                categories = rows["category"].to_pylist()
                published = training.publish(vectors, (rows.num_rows, dim), categories, rows["tokens"], pairs, metadata)
            else:
                published = _train_on_sample(registry, work, section, previous, runner, options, rows, pairs, metadata)
        step.table(ITEM_VECTORS, _accounting(connection, version, rows.num_rows, reused=reused))
        # By its version: another run may have moved ``latest`` on meanwhile.
        artefact = registry.load("codebook", published)
        if not reused:
            progress(f"train-codebook: {_in_words(artefact.metadata['refresh'])}")
        step.extra |= {
            "codebook_version": artefact.version,
            "fusion_version": version,
            "reused": reused,
            "warm_started_from": artefact.metadata.get("warm_started_from"),
            "refresh": artefact.metadata.get("refresh"),
            "metrics": _summary(artefact.metadata["metrics"]),
        }
    return step.to_json()


def _train_on_sample(
    registry: Registry,
    work: WorkFolder,
    section: CodebookSection,
    previous: "Previous | None",
    runner: str,
    options: Sequence[str],
    rows: pa.Table,
    pairs: npt.NDArray[np.int64],
    metadata: dict[str, Any],
) -> str:
    """Have one worker train on rows (item_id, content_hash, category, vector, tokens) and publish; returns the version."""
    from pipelines.codebook_transform import PUBLISHED, TrainCodebook
    from pipelines.part_transforms import map_parts

    if previous:
        previous.save(work)
    task = {
        "training": work.write_part("training", rows),
        "pairs": work.write_part("pairs", pa.table({"a": pairs[:, 0], "b": pairs[:, 1]})),
        "section": section.model_dump(mode="json"),
        "metadata": metadata,
        "previous": previous.metadata if previous else None,
        "progress_bar": runner == LOCAL and sys.stderr.isatty(),
    }
    with open_pipeline(runner, options) as pipeline:
        map_parts(pipeline, [json.dumps(task)], TrainCodebook(registry.root, work))
    return work.read_bytes(PUBLISHED).decode()


def _tokens(
    lake: Lake,
    step: StepRun,
    connection: duckdb.DuckDBPyConnection,
    previous: "Previous | None",
    rows: pa.Table,
    layers: int,
) -> pa.ChunkedArray:
    """The tokens (``layers`` of them, without a suffix) that each of ``rows`` has with the previous codebook; null for a new or
    changed item, and for all without such a codebook."""
    if previous is None:
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.list_(pa.int32()))])
    connection.register("item_tokens", lake.dataset(ITEM_TOKENS, step.reads(lake, ITEM_TOKENS)))
    connection.register("named", rows.select(["item_id", "content_hash"]))
    known = (
        f"SELECT item_id, content_hash, min(tokens[1:{layers}]) AS tokens FROM item_tokens "
        f"WHERE codebook_version = {quoted(previous.metadata['version'])} AND len(tokens) >= {layers} GROUP BY ALL"
    )
    found = f"SELECT tokens FROM named LEFT JOIN ({known}) USING (item_id, content_hash) ORDER BY item_id"
    return connection.sql(found).to_arrow_table()["tokens"]


def _accounting(connection: duckdb.DuckDBPyConnection, version: str, sampled: int, *, reused: bool) -> TableCounts:
    """Fused vectors of the version: trained on, beyond the sample, or on whose sample this very codebook was trained before."""
    total = count(connection, f"SELECT count(*) FROM vectors WHERE kind = 'fused' AND source = {quoted(version)}")
    dropped = {"beyond_sample": total - sampled, "unchanged": sampled if reused else 0}
    return TableCounts(total, 0 if reused else sampled, rows_dropped=dropped)


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures that a report shows; the codebook keeps all of them."""
    whole = metrics["prefixes"][-1]
    return {
        "items": metrics["items"],
        "utilization": [round(layer["utilization"], 4) for layer in metrics["layers"]],
        "entropy_ratio": [round(layer["entropy_ratio"], 4) for layer in metrics["layers"]],
        "collision_share": metrics["collision_share"],
        "reconstruction_error": whole.get("reconstruction_error"),
        "nmi": [entry["nmi"] for entry in metrics["prefixes"]],
        "behaviour_hit_rate": [entry["behaviour_hit_rate"] for entry in metrics["prefixes"]],
    }


def _in_words(refresh: dict[str, Any] | None) -> str:
    """What became of unchanged items' codes, in words."""
    if refresh is None:
        return "trained from scratch; no codebook of these sizes before it"
    how = {"previous": "refreshed from", "rotated": "turned and refreshed from", "matched": "trained from scratch, matched to"}
    found, cold = refresh["churn"], refresh["churn_cold"]
    beside = f"; from scratch {cold['changed']:.1%}" if cold and refresh["start"] != "matched" else ""
    changed = f"{found['changed']:.1%} of {found['items']:,} unchanged items changed code{beside}"
    return f"{how[refresh['start']]} {refresh['version']}: {changed}"


def _fused(version: str) -> str:
    return f"SELECT item_id, content_hash, vector FROM vectors WHERE kind = 'fused' AND source = {quoted(version)}"


def _training_rows(connection: duckdb.DuckDBPyConnection, version: str, section: CodebookSection) -> pa.Table:
    """item_id, content_hash, category and, of a sample, vector of the training items, by item_id."""
    fused = _fused(version)
    named = connection.sql(
        f"SELECT v.item_id, v.content_hash, category FROM ({fused}) v LEFT JOIN contents USING (item_id) ORDER BY v.item_id"
    ).to_arrow_table()
    if section.training == "exact":
        return named
    chosen = stratified_sample(
        named["item_id"].to_pylist(), named["category"].to_pylist(), section.max_training_items, section.seed
    )
    connection.register("chosen", named.take(pa.array(chosen)).drop_columns("content_hash"))
    return connection.sql(f"SELECT * FROM ({fused}) JOIN chosen USING (item_id) ORDER BY item_id").to_arrow_table()


def _check_sizes(connection: duckdb.DuckDBPyConnection, version: str, rows: pa.Table, section: CodebookSection) -> int:
    """The dimension of the vectors, of which there must be as many distinct ones as the largest layer has tokens."""
    needed = max(section.sizes)
    if rows.num_rows >= needed:
        # By hash: of a count that only has to be large enough, a rare pair of equal hashes takes one away.
        training = f"SELECT vector FROM ({_fused(version)}) SEMI JOIN training USING (item_id)"
        connection.register("training", rows.select(["item_id"]))
        distinct = count(connection, f"SELECT count(DISTINCT hash(vector)) FROM ({training})")
        if distinct >= needed:
            return count(connection, f"SELECT len(vector) FROM ({training}) LIMIT 1")
        found = f"{distinct} distinct fused vectors among {rows.num_rows} items"
    else:
        distinct, found = rows.num_rows, f"{rows.num_rows} fused vectors"
    fitting = 1 << max(0, (distinct // 8).bit_length() - 1)
    raise BadInput(
        f"codebook.sizes {list(section.sizes)}: {found} cannot fill {needed} tokens; set smaller layers, for example "
        f"--set codebook.sizes=[{', '.join([str(fitting)] * len(section.sizes))}]"
    )


def _fingerprint(section: CodebookSection, version: str, rows: pa.Table, pairs: pa.Table) -> str:
    """What decides the codebook and its metrics, but for the one it starts from."""
    described = {"codebook": section.model_dump(mode="json", exclude=_OF_TOKENIZE), "fusion_version": version}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    both = pairs.select(["item_a", "item_b"]).cast(_LARGE_PAIRS)  # sorting joins a column, which may pass 2 GiB
    ordered = both.sort_by([("item_a", "ascending"), ("item_b", "ascending")])
    for table in (rows.select(["item_id", "content_hash", "category"]), ordered):
        for batch in table.to_batches(max_chunksize=_HASHED_AT_ONCE):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                digest.update(json.dumps(values).encode())
    return digest.hexdigest()
