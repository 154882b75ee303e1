"""The token set: encoders, fusion model, codebook, item tokens and trie that belong together (DESIGN §4).

Consumers read a token set and never "the latest" of its parts. The artefact ``token_set`` holds ``trie.safetensors``, the
legal codes of the items that are live, and ``items.parquet``, whose row i (item_id) is row i of the trie.
"""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from schemas.errors import BadInput
from schemas.lake import Lake
from schemas.registry import Artefact, Registry
from schemas.tables import ITEM_TOKENS, ITEM_VECTORS, ITEMS
from tokenization.trie import TokenTrie

KIND = "token_set"
TRIE_FILE = "trie.safetensors"
ITEMS_FILE = "items.parquet"


def publish_token_set(lake: Lake, codebook_version: str | None = None) -> Artefact:
    """Publish the token set of a codebook (None: the newest) and make it the live one.

    Raises BadInput, with what to run, where its parts are damaged or do not belong together: a codebook of another encoder
    set than its fusion model, items whose tokens are missing or of an older vector, tokens outside the codebook.
    """
    registry = Registry.of(lake)
    codebook = registry.load("codebook", codebook_version)
    fusion_version = codebook.metadata.get("fusion_version")
    if not fusion_version:
        raise BadInput(f"{codebook.folder}: names no fusion version, so no items can be tokenised with it")
    fusion = registry.load("fusion", fusion_version)
    encoders = fusion.metadata["encoders"]
    if codebook.metadata.get("encoders") != encoders:
        raise BadInput(
            f"codebook {codebook.version}: of encoders {codebook.metadata.get('encoders')}, but its fusion {fusion_version} "
            f"has {encoders}; run `onerec train-codebook` again"
        )
    for part in (codebook, fusion):
        for name in part.files:
            part.file(name)
    sizes = [int(size) for size in codebook.metadata["sizes"]]
    tokens_version = lake.table_version(ITEM_TOKENS)
    tokens = lake.read(ITEM_TOKENS, filter=pads.field("codebook_version") == codebook.version, version=tokens_version).sort_by(
        "item_id"
    )
    _check_current(lake, tokens, codebook.version, fusion_version)
    codes = _codes(tokens, sizes, lake.config.codebook.collision_suffixes, codebook.version)
    sizes = _code_sizes(codes.shape[1], sizes, lake.config.codebook.collision_suffixes)
    live = np.flatnonzero(pc.is_in(tokens["item_id"], value_set=_live_items(lake)).to_numpy())
    if not len(live):
        raise BadInput(f"{lake.table_uri(ITEMS)}: every tokenised item is deleted; there is nothing to recommend")
    rows = tokens.take(pa.array(live))
    trie = TokenTrie.build(codes[live], ranks=rows["rank"].to_numpy(), sizes=sizes)  # rows are in the order of the ids
    metadata = {
        "encoders": encoders,
        "fusion_version": fusion_version,
        "codebook_version": codebook.version,
        "codebook_sizes": sizes,  # of a code's tokens: with suffixes one more than the codebook's
        "item_tokens_version": tokens_version,
        "items": tokens.num_rows,
        "live_items": len(live),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / TRIE_FILE
        trie.save(path)
        return registry.publish(KIND, metadata, {TRIE_FILE: path, ITEMS_FILE: _item_file(rows)})


def token_set_of(registry: Registry, codebook_version: str) -> Artefact | None:
    """The live token set if it is of a codebook, else the newest one that is; None without any."""
    if registry.latest(KIND) is None:
        return None
    for version in (None, *reversed(registry.versions(KIND))):
        artefact = registry.load(KIND, version)
        if artefact.metadata.get("codebook_version") == codebook_version:
            return artefact
    return None


def _check_current(lake: Lake, tokens: pa.Table, codebook: str, fusion: str) -> None:
    """Every fused vector of the fusion version has tokens, of this very vector, and nothing else has."""
    fused = lake.read(
        ITEM_VECTORS,
        columns=["item_id", "content_hash"],
        filter=(pads.field("kind") == "fused") & (pads.field("source") == fusion),
    ).sort_by("item_id")
    if not tokens.num_rows:
        raise BadInput(f"{lake.table_uri(ITEM_TOKENS)}: no tokens of codebook {codebook}; run `onerec tokenize --refresh` first")
    if not fused.equals(tokens.select(["item_id", "content_hash"]).cast(fused.schema)):
        pairs = [set(zip(rows["item_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)) for rows in (fused, tokens)]
        twice = tokens.num_rows - len(pairs[1])
        raise BadInput(
            f"{lake.table_uri(ITEM_TOKENS)}: {len(pairs[0] - pairs[1])} of {fused.num_rows} fused vectors (fusion {fusion}) have "
            f"no tokens of codebook {codebook}, {len(pairs[1] - pairs[0])} tokens no vector, {twice} are there twice; "
            f"run `onerec tokenize --codebook-version {codebook}{' --retokenise' if twice else ''}` first"
        )


def _code_sizes(width: int, sizes: list[int], suffixes: int) -> list[int]:
    """Tokens of each place of a code: the codebook's layers, and a suffix where codes have one (codebook.collisions)."""
    return [*sizes, suffixes][:width]


def _codes(tokens: pa.Table, sizes: list[int], suffixes: int, codebook: str) -> np.ndarray:
    """int32 (n, layers, and one for a suffix). Raises BadInput for tokens that the codebook does not have."""
    lengths = pc.unique(pc.list_value_length(tokens["tokens"])).to_pylist()
    if lengths in ([len(sizes)], [len(sizes) + 1]):
        codes: np.ndarray = pc.list_flatten(tokens["tokens"]).to_numpy().reshape(-1, lengths[0])
        if ((codes >= 0) & (codes < np.array(_code_sizes(lengths[0], sizes, suffixes)))).all():
            return codes
    raise BadInput(
        f"item_tokens, codebook_version={codebook}: tokens that do not fit the codebook's sizes {sizes} (and a suffix's, "
        f"{suffixes}); run `onerec tokenize --codebook-version {codebook} --retokenise`"
    )


def _live_items(lake: Lake) -> pa.Array:
    """Items whose latest version is not a deletion."""
    versions = lake.read(ITEMS, columns=["item_id", "valid_from", "deleted"]).sort_by(
        [("item_id", "ascending"), ("valid_from", "ascending")]
    )
    if not versions.num_rows:
        return pa.array([], pa.string())
    ids = versions["item_id"].combine_chunks()
    last = np.append(pc.not_equal(ids[:-1], ids[1:]).to_numpy(zero_copy_only=False), True)
    return ids.filter(pa.array(last & ~versions["deleted"].to_numpy()))


def _item_file(rows: pa.Table) -> bytes:
    stream = BytesIO()
    pq.write_table(rows.select(["item_id"]).replace_schema_metadata(None), stream, compression="zstd")
    return stream.getvalue()
