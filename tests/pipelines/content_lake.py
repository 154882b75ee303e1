"""A small catalogue with real pictures and sounds, written straight into a lake."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from schemas.lake import Lake
from schemas.tables import CO_INTERACTION, ITEMS
from tests.lake_rows import utc, write_rows

TOPICS = ("green tea", "mountain bikes", "jazz guitar", "night sky", "fresh bread", "old maps")


def picture(path: Path, topic: int, seed: int) -> str:
    """A picture whose colour and stripes say its topic; returns its URI."""
    random = np.random.default_rng((seed, topic))
    pixels = np.zeros((40, 56, 3), np.uint8)
    pixels[..., topic % 3] = 90 + 25 * topic
    pixels[:: 2 + topic, :, (topic + 1) % 3] = 200
    noisy = np.clip(pixels + random.integers(0, 30, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path)
    return path.as_uri()


def sound(path: Path, topic: int, seed: int) -> str:
    """Half a second of a chord that says its topic; returns its URI."""
    random = np.random.default_rng((seed, topic, 1))
    time = np.arange(4000) / 8000
    wave = np.sin(2 * np.pi * 200 * (topic + 1) * time) + 0.1 * random.normal(size=len(time))
    soundfile.write(path, (0.3 * wave).astype(np.float32), 8000)
    return path.as_uri()


def item(item_id: str, valid_from: str = "2026-01-01", **columns: Any) -> dict[str, Any]:
    """A row of ``items``."""
    return {"item_id": item_id, "valid_from": utc(valid_from), "deleted": False} | columns


def catalogue(folder: Path, items: int, seed: int = 0) -> list[dict[str, Any]]:
    """Items of all topics with text, a picture and a sound; every fifth has no sound, every seventh no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(items):
        topic = number % len(TOPICS)
        rows.append(
            item(
                f"i{number:04d}",
                title=f"{TOPICS[topic]} number {number}",
                tags=[TOPICS[topic]],
                category=TOPICS[topic],
                cover_uri=None if number % 7 == 6 else picture(folder / f"{seed}-{number}.png", topic, number),
                audio_uri=None if number % 5 == 4 else sound(folder / f"{seed}-{number}.wav", topic, number),
            )
        )
    return rows


def pairs_within_topics(items: int, day: dt.date) -> list[dict[str, Any]]:
    """Swing pairs between the items of a topic that lie close together in the catalogue."""
    return [
        {
            "kind": "swing",
            "item_a": f"i{a:04d}",
            "item_b": f"i{b:04d}",
            "score": 1.0,
            "support": 2,
            "date": day,
        }
        for a in range(items)
        for b in range(a + len(TOPICS), min(items, a + 5 * len(TOPICS)), len(TOPICS))
    ]


def fill(lake: Lake, folder: Path, items: int, day: dt.date = dt.date(2026, 1, 1)) -> None:
    """A catalogue and its pairs."""
    write_rows(lake, ITEMS, catalogue(folder, items))
    write_rows(lake, CO_INTERACTION, pairs_within_topics(items, day))
