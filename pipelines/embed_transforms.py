"""The Beam side of ``onerec embed``: content in, one outcome a (item, kind) out.

Content travels as text or as addresses of media; a picture or a sound exists only inside the worker that encodes it.
Everything is keyed by the hash of the content, so that what two items share is encoded once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from pipelines.work import WorkFolder, read_part
from schemas.config import EmbedSection
from tokenization.encoders import Encoder, Kind, MediaLimits, Unreadable, load_encoder, media_limits, unit_rows
from tokenization.encoders.media import decode_picture, decode_sound, media_hash, read_media
from tokenization.threads import torch_threads

OUTCOME = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("content_hash", pa.string()),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("uris", pa.list_(pa.string())),
        pa.field("reasons", pa.list_(pa.string())),
    ]
)
"""``outcome`` is encoded (with its vector), copied (another item has the vector), unchanged or rejected (with reasons)."""
OUTCOMES = "outcomes"
BATCHES_AT_ONCE = 8
"""Batches of an encoder in one Beam batch, so that it can put texts of similar length together."""
MAX_HELD_BYTES = 256 * 2**20
"""Decoded content that a worker holds before it encodes."""


@dataclass(frozen=True)
class Content:
    """One piece of content and the items that have it."""

    kind: Kind
    item_ids: tuple[str, ...]
    content_hash: str | None = None
    text: str | None = None
    uris: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What decides whether two contents are the same."""
        assert self.content_hash is not None
        return self.kind, self.content_hash

    def outcomes(self, outcome: str, **values: Any) -> Iterator[dict[str, Any]]:
        """A row of OUTCOME for each item."""
        for item_id in self.item_ids:
            yield {
                "item_id": item_id,
                "kind": self.kind,
                "outcome": outcome,
                "content_hash": self.content_hash,
                "uris": list(self.uris),
                **values,
            }


def read_contents(part: str, kinds: Sequence[Kind]) -> Iterator[Content]:
    """The contents of the items in a part (item_id, text, text_hash, image_uris, audio_uris), one a kind that is there."""
    for row in read_part(part).to_pylist():
        if "text" in kinds and row["text"]:
            yield Content("text", (row["item_id"],), row["text_hash"], row["text"])
        for kind in kinds:
            if kind != "text" and row[f"{kind}_uris"]:
                yield Content(kind, (row["item_id"],), uris=tuple(row[f"{kind}_uris"]))


def read_known(part: str) -> Iterator[tuple[tuple[str, str], str]]:
    """((kind, content hash), item) of the vectors in a part (kind, content_hash, item_id)."""
    for row in read_part(part).to_pylist():
        yield (row["kind"], row["content_hash"]), row["item_id"]


class HashContent(beam.DoFn):
    """Content with its hash; media that cannot be read come out under ``rejected``, as outcomes with every reason."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits

    def process(self, content: Content) -> Iterator[Any]:
        """One element: the content, or its outcomes."""
        if content.content_hash is not None:
            yield content
            return
        read, reasons = _read_all(content, self._limits)
        if reasons:
            for row in content.outcomes("rejected", reasons=reasons):
                yield beam.pvalue.TaggedOutput("rejected", row)
            return
        yield replace(content, content_hash=media_hash(read))


def decide(element: tuple[tuple[str, str], Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
    """Of one content: outcomes of the items that have its vector or can copy it, and the content itself if none has it."""
    _, groups = element
    known = set(groups["known"])
    contents = list(groups["contents"])
    for content in contents:
        if content.item_ids[0] in known:
            yield beam.pvalue.TaggedOutput("done", next(content.outcomes("unchanged")))
        elif known:
            yield beam.pvalue.TaggedOutput("done", next(content.outcomes("copied")))
    if contents and not known:
        yield replace(contents[0], item_ids=tuple(sorted({item for content in contents for item in content.item_ids})))


class EncoderHandler(ModelHandler[Content, list[dict[str, Any]], Encoder]):
    """RunInference's way to an encoder: a batch of contents in, their outcomes out."""

    def __init__(self, name: str, batch_size: int, threads: int, limits: MediaLimits) -> None:
        size = batch_size * BATCHES_AT_ONCE
        super().__init__(min_batch_size=size, max_batch_size=size)
        self._name = name
        self._batch_size = batch_size
        self._threads = threads
        self._limits = limits

    def load_model(self) -> Encoder:
        """The encoder, once a worker."""
        return load_encoder(self._name, self._batch_size)

    def get_metrics_namespace(self) -> str:
        """Where Beam counts its inferences."""
        return f"embed {self._name}"

    def get_num_bytes(self, batch: Sequence[Content]) -> int:
        """Bytes of a batch as it travels."""
        return sum(len(content.text or "") + sum(map(len, content.uris)) for content in batch)

    def run_inference(
        self,
        batch: Sequence[Content],
        model: Encoder,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002 (the interface)
    ) -> Iterator[list[dict[str, Any]]]:
        """The outcomes of each content: encoded, or rejected with every reason."""
        for contents in _portions(batch, self._limits):
            inputs = [value for _, values, reasons in contents if not reasons for value in values]
            with torch_threads(self._threads):
                rows = model.encode(inputs)
            start = 0
            for content, values, reasons in contents:
                vector = np.full(model.dim, np.nan, np.float32)
                if not reasons:
                    vector = unit_rows(rows[start : start + len(values)].mean(axis=0, keepdims=True))[0]
                    start += len(values)
                    if not np.isfinite(vector).all():
                        reasons = [f"{content.kind}: {model.name} gives a vector that is zero or not finite"]
                if reasons:
                    yield list(content.outcomes("rejected", reasons=reasons))
                else:
                    yield list(content.outcomes("encoded", vector=vector.tolist()))


class WriteOutcomes(beam.DoFn):
    """Writes outcomes as parts of the work folder."""

    ROWS = 1024

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._rows: list[dict[str, Any]] = []

    def start_bundle(self) -> None:
        """A bundle that failed is tried again from its start."""
        self._rows = []

    def process(self, row: dict[str, Any]) -> None:
        """Hold one outcome; write when there are enough."""
        self._rows.append(row)
        if len(self._rows) >= self.ROWS:
            self._write()

    def finish_bundle(self) -> None:
        """Write the rest."""
        if self._rows:
            self._write()

    def _write(self) -> None:
        self._work.write_part(OUTCOMES, pa.Table.from_pylist(self._rows, schema=OUTCOME))
        self._rows = []


def embed_contents(
    pipeline: Any,
    parts: list[str],
    known_parts: list[str],
    encoders: Mapping[Kind, str],
    section: EmbedSection,
    work: WorkFolder,
) -> None:
    """Build the pipeline: contents of ``parts`` against the vectors of ``known_parts``; outcomes go to the work folder."""
    limits = media_limits(section)
    contents = (
        pipeline
        | "parts" >> beam.Create(parts)
        | "spread parts" >> beam.Reshuffle()
        | "read contents" >> beam.FlatMap(read_contents, tuple(encoders))
        | "hash" >> beam.ParDo(HashContent(limits)).with_outputs("rejected", main="contents")
    )
    known = pipeline | "known parts" >> beam.Create(known_parts) | "read known" >> beam.FlatMap(read_known)
    keyed = contents.contents | "by content" >> beam.Map(lambda content: (content.key, content))
    decided = (
        {"contents": keyed, "known": known}
        | beam.CoGroupByKey()
        | "decide" >> beam.FlatMap(decide).with_outputs("done", main="encode")
    )
    written = [contents.rejected, decided.done]
    for kind, name in encoders.items():
        written.append(
            decided.encode
            | f"only {kind}" >> beam.Filter(lambda content, wanted: content.kind == wanted, kind)
            | f"encode {kind}" >> RunInference(EncoderHandler(name, section.batch_size, section.threads, limits))
            | f"outcomes of {kind}" >> beam.FlatMap(lambda rows: rows)
        )
    written | beam.Flatten() | "write" >> beam.ParDo(WriteOutcomes(work))


def _read_all(content: Content, limits: MediaLimits) -> tuple[list[bytes], list[str]]:
    read, reasons = [], []
    for uri in content.uris:
        try:
            read.append(read_media(uri, limits))
        except Unreadable as error:
            reasons.append(f"{content.kind}: {error}")
    return read, reasons


def _portions(batch: Sequence[Content], limits: MediaLimits) -> Iterator[list[tuple[Content, list[Any], list[str]]]]:
    """The batch, decoded: (content, inputs, reasons), in portions of at most about MAX_HELD_BYTES."""
    held: list[tuple[Content, list[Any], list[str]]] = []
    size = 0
    for content in batch:
        values, reasons = _decoded(content, limits)
        held.append((content, values, reasons))
        size += sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        if size > MAX_HELD_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _decoded(content: Content, limits: MediaLimits) -> tuple[list[Any], list[str]]:
    if content.kind == "text":
        return [content.text], []
    read, reasons = _read_all(content, limits)
    if not reasons and media_hash(read) != content.content_hash:
        reasons = [f"{content.kind}: {uri}: changed while it was read" for uri in content.uris]
    if reasons:
        return [], reasons
    decode = decode_picture if content.kind == "image" else decode_sound
    values = []
    for uri, data in zip(content.uris, read, strict=True):
        try:
            values.append(decode(data, limits))
        except Unreadable as error:
            reasons.append(f"{content.kind}: {uri}: {error}")
    return values, reasons
