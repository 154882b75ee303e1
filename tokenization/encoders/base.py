"""What every encoder is: content of one kind in, unit vectors out.

Shapes: N inputs, D dimensions. Pictures are uint8 arrays (height, width, 3); sound is float32 mono at ``SAMPLE_RATE``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Kind = Literal["text", "image", "audio"]
KINDS: tuple[Kind, ...] = ("text", "image", "audio")
"""Kinds in the order of their bits in ``presence_mask``: bit 0 text, bit 1 image, bit 2 audio."""
SAMPLE_RATE = 16_000
"""Samples a second of all sound that encoders see."""


class Encoder(Protocol):
    """Turns content of one kind into vectors. The same input gives the same vector, whatever else is in the call."""

    name: str
    kind: Kind
    dim: int

    def encode(self, inputs: Sequence[Any]) -> np.ndarray:
        """float32 (N, D), each row of unit length: N texts, pictures or sounds, by ``kind``."""
        ...


@dataclass(frozen=True)
class MediaLimits:
    """What a media file may cost before it is refused (bytes, pixels) or cut (seconds)."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000
    max_seconds: int = 600


class Unreadable(Exception):
    """One piece of content that cannot be encoded; the message is the reason that goes to quarantine."""


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale each row of (N, D) to unit length, as float32. Rows that are zero or not finite come out as NaN."""
    rows = np.asarray(rows, dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        return (rows / np.where((norms > 0) & np.isfinite(norms), norms, np.nan)).astype(np.float32)
