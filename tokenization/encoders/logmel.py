"""Sound without weights: a log-mel spectrogram (as Whisper defines it) pooled over time."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from tokenization.encoders.base import SAMPLE_RATE, Kind, unit_rows

WINDOW, HOP, BANDS = 400, 160, 64
LOUDNESS_WEIGHT = 0.25
CHUNK_SAMPLES = 60 * SAMPLE_RATE


class LogMelEncoder:
    """float32 (N, 193): for each of 64 mel bands its mean over time less the mean of all bands, its spread, and its mean
    absolute change from frame to frame, each group at equal weight; last, at a quarter of it, the loudness.

    Windows of 25 ms every 10 ms, logarithm to base 10 floored at −10 and scaled as ``(x + 4) / 4``. Taking the overall
    mean out keeps the volume from drowning the timbre.
    """

    name = "logmel"
    kind: Kind = "audio"
    dim = 3 * BANDS + 1

    def encode(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, 193), unit length, for mono sound at 16 kHz."""
        if not inputs:
            return np.zeros((0, self.dim), np.float32)
        return unit_rows(np.stack([_describe(np.asarray(sound, np.float32)) for sound in inputs]))


def _describe(sound: np.ndarray) -> np.ndarray:
    frames_TM = np.concatenate(
        [log_mel(sound[start : start + CHUNK_SAMPLES]) for start in range(0, max(len(sound), 1), CHUNK_SAMPLES)]
    )
    mean_M = frames_TM.mean(axis=0)
    loudness = float(mean_M.mean())
    change_M = np.abs(np.diff(frames_TM, axis=0)).mean(axis=0) if len(frames_TM) > 1 else np.zeros(BANDS)
    groups = [_scaled(group) for group in (mean_M - loudness, frames_TM.std(axis=0), change_M)]
    return np.concatenate([*groups, [LOUDNESS_WEIGHT * loudness]])


def _scaled(group: np.ndarray) -> np.ndarray:
    """Unit length, except that a group without any signal (silence, up to rounding) stays zero."""
    norm = float(np.linalg.norm(group))
    return group / norm if norm > 1e-6 else np.zeros_like(group)


def log_mel(sound: np.ndarray) -> np.ndarray:
    """float64 (frames, 64): scaled logarithm of the mel energies of mono sound at 16 kHz."""
    padded = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1], axis=1)) ** 2
    return (np.log10(np.maximum(power @ _mel_filters().T, 1e-10)) + 4.0) / 4.0


@cache
def _mel_filters() -> np.ndarray:
    """(64, 201): triangular filters equally spaced on the mel scale (O'Shaughnessy 1987) from 0 Hz to 8 kHz."""
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    # The narrowest triangles fall between two frequencies: they take the nearest one.
    empty = filters.sum(axis=1) == 0
    filters[empty, np.abs(frequencies - edges[1:-1, None])[empty].argmin(axis=1)] = 1.0
    return filters / filters.sum(axis=1, keepdims=True)
