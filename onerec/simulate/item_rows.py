"""Rows of the items' table: who is born, changed or gone on a day."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onerec.simulate.catalogue import Ints, author_id, build_catalogue, item_id
from onerec.simulate.draws import Draws
from onerec.simulate.parameters import DAY_MS, Parameters
from onerec.simulate.texts import compose

ITEMS_PER_FOLDER = 1000


def has_cover(draws: Draws, items: Ints) -> NDArray[np.bool_]:
    """Which items have a picture: 97 of 100."""
    return draws.uniform("has cover", items) < 0.97


def has_sound(draws: Draws, items: Ints) -> NDArray[np.bool_]:
    """Which items have a sound: 9 of 10."""
    return draws.uniform("has sound", items) < 0.9


def item_path(item: int, suffix: str) -> str:
    """Where an item's picture (jpg) or sound (wav) lies below the landing zone."""
    return f"media/{item // ITEMS_PER_FOLDER:04d}/{item_id(item)}.{suffix}"


def item_versions(parameters: Parameters, items: Ints, day: int) -> list[dict[str, Any]]:
    """Item versions that a day's landing brings: the first day's brings the whole catalogue before it; times in ms.

    A version is a birth, a change of title and tags, or a death (``deleted``), each told once.
    """
    catalogue = build_catalogue(parameters)
    begin, end = parameters.midnight_ms(day), parameters.midnight_ms(day) + DAY_MS
    born, changed, died = catalogue.born_ms[items], catalogue.changed_ms[items], catalogue.died_ms[items]
    is_new = (born < end) & ((born >= begin) | (day == 0))
    is_changed = (changed >= begin) & (changed < end) & (changed < died)
    is_gone = (died >= begin) & (died < end)
    rows = _rows(parameters, items[is_new], 0, born[is_new], deleted=False)
    rows += _rows(parameters, items[is_changed], 1, changed[is_changed], deleted=False)
    for version, of_version in ((0, changed >= died), (1, changed < died)):
        gone = is_gone & of_version
        rows += _rows(parameters, items[gone], version, died[gone], deleted=True)
    return rows


def _rows(parameters: Parameters, items: Ints, version: int, valid_from: Ints, *, deleted: bool) -> list[dict[str, Any]]:
    if len(items) == 0:
        return []
    catalogue, draws = build_catalogue(parameters), Draws(parameters.seed)
    texts = compose(draws, items, catalogue.subtopic[items], catalogue.author[items], version)
    covers, sounds = parameters.media & has_cover(draws, items), parameters.media & has_sound(draws, items)
    return [
        {
            "item_id": item_id(item),
            "valid_from": int(valid_from[place]),
            "author_id": author_id(int(catalogue.author[item])),
            "category": text.category,
            "tags": text.tags,
            "title": text.title,
            "caption": text.caption,
            "ocr_text": text.ocr_text,
            "asr_text": text.asr_text,
            "cover_uri": item_path(item, "jpg") if covers[place] else None,
            "frame_uris": [],
            "audio_uri": item_path(item, "wav") if sounds[place] else None,
            "duration_ms": int(catalogue.duration_ms[item]),
            "upload_ts": int(catalogue.born_ms[item]),
            "deleted": deleted,
        }
        for place, (item, text) in enumerate(zip(items.tolist(), texts, strict=True))
    ]
