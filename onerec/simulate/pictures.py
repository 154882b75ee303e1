"""Thumbnails: a topic's pictogram on a sub-topic's pattern and colours, with the item's word on a band below.

Topics differ in shape, sub-topics in pattern and hue, items in place, size, tilt and shade: gradients of the picture
(a HOG encoder's food) carry the hierarchy, and people recognise an item by its word.
"""

import colorsys
import io
from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, sin

from PIL import Image, ImageDraw, ImageFont

from onerec.simulate.parameters import SUBTOPICS_PER_TOPIC, TOPICS
from onerec.simulate.pictograms import PICTOGRAMS

SIZE = 128
"""Width and height of a thumbnail, pixels."""
_SCALE = 2
_FULL = SIZE * _SCALE
_BAND = 27 * _SCALE
Colour = tuple[int, int, int]


def render_thumbnail(subtopic: int, word: str, chances: list[float]) -> bytes:
    """A JPEG of SIZE × SIZE pixels; ``chances`` are eight numbers from 0 to 1 that vary place, size, tilt and shade."""
    topic, kind = divmod(subtopic, SUBTOPICS_PER_TOPIC)
    hue = (topic / TOPICS + (kind - 2.5) * 0.012 + (chances[0] - 0.5) * 0.015) % 1
    dark = _colour(hue, 0.66, 0.46 + 0.1 * chances[1])
    middle = _colour(hue + 0.015, 0.56, 0.68 + 0.1 * chances[2])
    light = _colour(hue + 0.04, 0.16, 0.99)
    accent = _colour(hue + 0.45, 0.60, 0.98)

    picture = Image.new("RGB", (_FULL, _FULL), middle)
    paint = ImageDraw.Draw(picture)
    _PATTERNS[kind](paint, dark, chances[3])
    reach = _FULL * (0.29 + 0.05 * chances[4])
    centre = (_FULL * (0.46 + 0.08 * chances[5]), (_FULL - _BAND) * (0.48 + 0.06 * chances[6]))
    tilt = (chances[7] - 0.5) * 0.36

    def place(x: float, y: float) -> tuple[float, float]:
        """From the pictogram's unit square (−1…1, y down) to pixels."""
        return (
            centre[0] + reach * (x * cos(tilt) - y * sin(tilt)),
            centre[1] + reach * (x * sin(tilt) + y * cos(tilt)),
        )

    halo = reach * 1.22
    paint.ellipse((centre[0] - halo, centre[1] - halo, centre[0] + halo, centre[1] + halo), fill=middle)
    PICTOGRAMS[topic](paint, place, reach, light, dark, accent)
    _write_word(paint, word, dark)
    small = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return file.getvalue()


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_word(paint: ImageDraw.ImageDraw, word: str, dark: Colour) -> None:
    paint.rectangle((0, _FULL - _BAND, _FULL, _FULL), fill=tuple(channel // 3 for channel in dark))
    size = 17 * _SCALE
    while size > 7 * _SCALE and paint.textlength(word, font=_font(size)) > _FULL - 12 * _SCALE:
        size -= _SCALE
    paint.text((_FULL / 2, _FULL - _BAND / 2), word, fill=(255, 255, 255), font=_font(size), anchor="mm")


def _stripes(angle: float) -> Callable[[ImageDraw.ImageDraw, Colour, float], None]:
    def draw(paint: ImageDraw.ImageDraw, colour: Colour, chance: float) -> None:
        step, along, across = _FULL / 7, (cos(angle), sin(angle)), (-sin(angle), cos(angle))
        for number in range(-8, 9):
            middle = (number + chance) * step
            x, y = _FULL / 2 + across[0] * middle, _FULL / 2 + across[1] * middle
            ends = (x - along[0] * _FULL, y - along[1] * _FULL, x + along[0] * _FULL, y + along[1] * _FULL)
            paint.line(ends, fill=colour, width=round(step * 0.45))

    return draw


def _dots(paint: ImageDraw.ImageDraw, colour: Colour, chance: float) -> None:
    step = _FULL / 6
    for row in range(-1, 8):
        for column in range(-1, 8):
            x, y = (column + chance + 0.5 * (row % 2)) * step, (row + 0.3) * step
            paint.ellipse((x - step * 0.27, y - step * 0.27, x + step * 0.27, y + step * 0.27), fill=colour)


def _rays(paint: ImageDraw.ImageDraw, colour: Colour, chance: float) -> None:
    middle = (_FULL / 2, _FULL * 0.4)
    for ray in range(12):
        turn = (ray + chance) * pi / 6
        edges = [(middle[0] + _FULL * cos(turn + side), middle[1] + _FULL * sin(turn + side)) for side in (-0.12, 0.12)]
        paint.polygon([middle, *edges], fill=colour)


def _checks(paint: ImageDraw.ImageDraw, colour: Colour, chance: float) -> None:
    step = _FULL / 6
    for row in range(-1, 8):
        for column in range(-1, 8):
            if (row + column) % 2:
                x, y = (column + chance) * step, (row + chance) * step
                paint.rectangle((x, y, x + step, y + step), fill=colour)


_PATTERNS = (_stripes(0.0), _dots, _stripes(pi / 4), _rays, _checks, _stripes(pi / 2))
