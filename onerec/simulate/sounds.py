"""Short sounds: a topic has its chord and timbre, a sub-topic its rhythm and octave, an item its detune and noise."""

import io
import wave

import numpy as np

from onerec.simulate.catalogue import Floats
from onerec.simulate.parameters import SUBTOPICS_PER_TOPIC

SAMPLE_RATE = 16_000
SECONDS = 1.0
_ROOTS = (0, 5, 10, 3, 8, 1, 6, 11, 4, 9, 2, 7)
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 5, 7), (0, 4, 8), (0, 3, 6), (0, 7, 12))
_BEATS = (1, 2, 3, 4, 6, 8)


def render_sound(subtopic: int, chances: list[float]) -> bytes:
    """A WAV of one second, 16 kHz, mono, 16 bits; ``chances`` are four numbers from 0 to 1 that vary the item."""
    topic, kind = divmod(subtopic, SUBTOPICS_PER_TOPIC)
    time = np.arange(int(SAMPLE_RATE * SECONDS)) / SAMPLE_RATE
    beats = _BEATS[kind]
    phase = (time * beats + chances[0] * 0.3) % 1
    envelope = np.exp(-phase * (2.0 + 3.0 * (topic % 3)))
    steps = np.floor(time * beats).astype(int)
    chord = np.array(_CHORDS[topic % len(_CHORDS)])
    tone = np.zeros_like(time)
    for voice, interval in enumerate(chord):
        # odd topics break their chord, one note a beat
        sounding = steps % len(chord) == voice if topic % 2 else np.ones_like(steps, dtype=bool)
        tone += sounding * _voice(time, _ROOTS[topic] + interval + 12 * (kind % 2) + 0.3 * (chances[1] - 0.5), topic)
    # a chirp so fast that it folds over is noise, and the same everywhere
    chirp = np.cumsum(np.arange(len(time)) * (1.1 + 0.01 * chances[2]))
    noise = (0.02 + 0.05 * chances[3] + 0.1 * (topic % 4 == 3)) * np.sin(chirp)
    sound = envelope * (tone + noise)
    samples = np.round(sound / max(1e-9, float(np.abs(sound).max())) * 0.8 * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def _voice(time: Floats, semitones: float, topic: int) -> Floats:
    """A note above A3 with the topic's overtones."""
    frequency = 220.0 * 2 ** (semitones / 12)
    tone = np.zeros_like(time)
    for overtone in range(1, 2 + topic // 2):
        tone += np.sin(2 * np.pi * frequency * overtone * time) / overtone ** (1.0 + 0.2 * (topic % 5))
    return tone
