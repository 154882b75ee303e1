"""Media files, read with limits: nothing here trusts a file, and every refusal is a reason for one row's quarantine.

A media address is ``file://`` and an absolute path as it stands on disk, nothing percent-encoded (ingest puts it there, after
checking that it lies inside the landing zone).
"""

import hashlib
import os
import re
import stat
import warnings
from io import BytesIO
from math import gcd

import numpy as np

from tokenization.encoders.base import SAMPLE_RATE, MediaLimits, Unreadable

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_CHANNELS = 16
SAMPLE_RATES = (1_000, 192_000)


def read_media(uri: str, limits: MediaLimits) -> bytes:
    """The bytes of a media file. Raises Unreadable for another scheme, a missing or irregular file, or one too large."""
    path = uri.removeprefix("file://")
    if path == uri or not path.startswith("/"):
        raise Unreadable(f"{uri}: not an absolute file:// address")
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable(f"{uri}: not a regular file")
            if status.st_size > limits.max_bytes:
                raise Unreadable(f"{uri}: {status.st_size} bytes, more than embed.max_media_bytes ({limits.max_bytes})")
            return stream.read(limits.max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(f"{uri}: {reason}") from error


def media_hash(contents: list[bytes]) -> str:
    """Hex sha256 of one file's bytes; of several, the sha256 of their hex digests in order."""
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def decode_picture(content: bytes, limits: MediaLimits) -> np.ndarray:
    """uint8 (height, width, 3): first frame, upright, transparency over white. Raises Unreadable."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=PICTURE_FORMATS) as picture:
                pixels = picture.width * picture.height
                if pixels > limits.max_pixels:
                    raise Unreadable(f"picture of {pixels} pixels, more than embed.max_media_pixels ({limits.max_pixels})")
                upright = ImageOps.exif_transpose(picture)
                if upright.has_transparency_data:
                    layered = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
                return np.asarray(upright.convert("RGB"))
    except Unreadable:
        raise
    except Exception as error:  # decoders meet corrupt bytes with errors of every type
        raise Unreadable(f"not a readable picture ({type(error).__name__}: {_first_line(error)})") from error


def decode_sound(content: bytes, limits: MediaLimits) -> np.ndarray:
    """float32 mono at 16 kHz, at most the first ``max_seconds``. Raises Unreadable."""
    import soundfile
    from scipy.signal import resample_poly

    try:
        with soundfile.SoundFile(BytesIO(content)) as sound:
            rate, channels = sound.samplerate, sound.channels
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1] or channels > MAX_CHANNELS:
                raise Unreadable(f"sound of {rate} samples a second and {channels} channels; allowed are "
                                 f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} and at most {MAX_CHANNELS}")  # fmt: skip
            blocks = sound.blocks(rate, frames=_frames(sound.frames, rate, limits), dtype="float32", always_2d=True)
            samples = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in blocks)])
    except Unreadable:
        raise
    except Exception as error:  # likewise
        raise Unreadable(f"not readable sound ({type(error).__name__}: {_first_line(error)})") from error
    if not len(samples):
        raise Unreadable("sound without samples")
    if not np.isfinite(samples).all():
        raise Unreadable("sound with samples that are no numbers")
    if rate == SAMPLE_RATE:
        return samples
    common = gcd(rate, SAMPLE_RATE)
    return resample_poly(samples, SAMPLE_RATE // common, rate // common).astype(np.float32)


def _frames(frames: int, rate: int, limits: MediaLimits) -> int:
    return min(frames, limits.max_seconds * rate) if frames >= 0 else limits.max_seconds * rate


def _first_line(error: Exception) -> str:
    """The first line of a decoder's complaint, without the address of the buffer that stands for the file."""
    line = str(error).splitlines()[0][:200] if str(error) else ""
    return re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", line)
