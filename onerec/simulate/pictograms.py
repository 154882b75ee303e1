"""One simple sign a topic, drawn in the unit square: −1…1 to the right and down."""

from collections.abc import Callable, Sequence
from math import cos, pi, sin

from PIL import ImageDraw

Place = Callable[[float, float], tuple[float, float]]
Colour = tuple[int, int, int]
Pictogram = Callable[["ImageDraw.ImageDraw", Place, float, Colour, Colour, Colour], None]
"""Draws with (paint, unit square → pixels, pixels a unit, light, dark, accent)."""


class _Pen:
    def __init__(self, paint: ImageDraw.ImageDraw, place: Place, reach: float) -> None:
        self._paint, self._place, self._reach = paint, place, reach

    def shape(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self._paint.polygon([self._place(x, y) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, *, flat: float = 1.0) -> None:
        self.shape([(x + radius * cos(k * pi / 24), y + flat * radius * sin(k * pi / 24)) for k in range(48)], colour)

    def arc(self, x: float, y: float, radius: float, turns: tuple[float, float], width: float, colour: Colour) -> None:
        """A thick arc between two angles, in turns clockwise from the right."""
        angles = [2 * pi * (turns[0] + (turns[1] - turns[0]) * k / 32) for k in range(33)]
        outer = [(x + (radius + width / 2) * cos(a), y + (radius + width / 2) * sin(a)) for a in angles]
        inner = [(x + (radius - width / 2) * cos(a), y + (radius - width / 2) * sin(a)) for a in reversed(angles)]
        self.shape(outer + inner, colour)

    def line(self, points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        pixels = [self._place(x, y) for x, y in points]
        self._paint.line(pixels, fill=colour, width=max(1, round(width * self._reach)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.disc(x, y, width / 2, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def _bowl(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.disc(0, 0.05, 0.95, light)
    pen.box(-1, -1, 1, 0.03, dark)
    pen.disc(0, 0.03, 0.95, accent, flat=0.26)
    for x in (-0.4, 0, 0.4):
        pen.line([(x, -0.35), (x + 0.12, -0.55), (x - 0.05, -0.75), (x + 0.08, -0.95)], 0.1, light)


def _mountains(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.disc(0.6, -0.6, 0.3, accent)
    pen.shape([(-0.1, 0.85), (0.5, -0.3), (1.1, 0.85)], dark)
    pen.shape([(-1.1, 0.85), (-0.25, -0.85), (0.6, 0.85)], light)
    pen.shape([(-0.53, -0.3), (-0.25, -0.85), (0.02, -0.3), (-0.15, -0.15), (-0.3, -0.35)], accent)


def _notes(pen: _Pen, light: Colour, _dark: Colour, accent: Colour) -> None:
    pen.disc(-0.55, 0.65, 0.33, light, flat=0.8)
    pen.disc(0.55, 0.5, 0.33, light, flat=0.8)
    pen.line([(-0.28, 0.6), (-0.28, -0.75)], 0.14, light)
    pen.line([(0.82, 0.45), (0.82, -0.9)], 0.14, light)
    pen.shape([(-0.35, -0.8), (0.89, -1.0), (0.89, -0.62), (-0.35, -0.42)], accent)


def _ball(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.disc(0, 0, 0.95, light)
    corner = [(0.36 * sin(2 * pi * k / 5), -0.36 * cos(2 * pi * k / 5)) for k in range(5)]
    pen.shape(corner, accent)
    for x, y in corner:
        pen.line([(x, y), (x * 2.5, y * 2.5)], 0.1, dark)
    pen.arc(0, 0, 0.92, (0, 1), 0.1, dark)


def _cat(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.shape([(-0.85, -0.95), (-0.85, 0.2), (-0.1, -0.45)], light)
    pen.shape([(0.85, -0.95), (0.85, 0.2), (0.1, -0.45)], light)
    pen.disc(0, 0.15, 0.85, light, flat=0.85)
    pen.disc(-0.35, 0.0, 0.16, dark)
    pen.disc(0.35, 0.0, 0.16, dark)
    pen.shape([(-0.13, 0.28), (0.13, 0.28), (0, 0.44)], accent)
    for side in (-1, 1):
        pen.line([(side * 0.35, 0.42), (side * 1.05, 0.3)], 0.06, dark)
        pen.line([(side * 0.35, 0.52), (side * 1.02, 0.62)], 0.06, dark)


def _gamepad(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.disc(-0.62, 0.15, 0.48, light)
    pen.disc(0.62, 0.15, 0.48, light)
    pen.box(-0.62, -0.33, 0.62, 0.4, light)
    pen.box(-0.82, 0.0, -0.34, 0.16, dark)
    pen.box(-0.66, -0.16, -0.5, 0.32, dark)
    for x, y in ((0.6, -0.1), (0.6, 0.28), (0.41, 0.09), (0.79, 0.09)):
        pen.disc(x, y, 0.11, accent)


def _chip(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    for offset in (-0.45, -0.15, 0.15, 0.45):
        pen.line([(offset, -0.95), (offset, 0.95)], 0.1, light)
        pen.line([(-0.95, offset), (0.95, offset)], 0.1, light)
    pen.box(-0.68, -0.68, 0.68, 0.68, light)
    pen.box(-0.45, -0.45, 0.45, 0.45, dark)
    pen.box(-0.2, -0.2, 0.2, 0.2, accent)


def _dress(pen: _Pen, light: Colour, _dark: Colour, accent: Colour) -> None:
    pen.line([(-0.25, -0.55), (-0.2, -0.98)], 0.12, light)
    pen.line([(0.25, -0.55), (0.2, -0.98)], 0.12, light)
    pen.shape([(-0.4, -0.7), (0, -0.5), (0.4, -0.7), (0.25, -0.05), (0.85, 0.95), (-0.85, 0.95), (-0.25, -0.05)], light)
    pen.shape([(-0.27, -0.12), (0.27, -0.12), (0.3, 0.06), (-0.3, 0.06)], accent)


def _plant(pen: _Pen, light: Colour, _dark: Colour, accent: Colour) -> None:
    pen.line([(0, 0.5), (0, -0.5)], 0.1, light)
    for side, y in ((-1, 0.1), (1, -0.15), (-1, -0.4), (1, -0.6)):
        pen.shape([(0, y + 0.15), (side * 0.25, y - 0.25), (side * 0.85, y - 0.3), (side * 0.6, y + 0.12)], light)
    pen.shape([(-0.5, 0.4), (0.5, 0.4), (0.36, 0.98), (-0.36, 0.98)], accent)


def _car(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.shape([(-0.55, -0.05), (-0.32, -0.55), (0.35, -0.55), (0.65, -0.05)], light)
    pen.shape([(-0.38, -0.08), (-0.23, -0.4), (0.0, -0.4), (0.0, -0.08)], dark)
    pen.shape([(0.08, -0.08), (0.08, -0.4), (0.28, -0.4), (0.47, -0.08)], dark)
    pen.shape([(-1.0, -0.08), (0.75, -0.08), (1.02, 0.08), (1.02, 0.42), (-1.0, 0.42)], light)
    for x in (-0.55, 0.55):
        pen.disc(x, 0.42, 0.28, dark)
        pen.disc(x, 0.42, 0.14, accent)


def _flask(pen: _Pen, light: Colour, dark: Colour, accent: Colour) -> None:
    pen.shape([(-0.22, -0.9), (0.22, -0.9), (0.22, -0.25), (0.85, 0.9), (-0.85, 0.9), (-0.22, -0.25)], light)
    pen.shape([(-0.36, 0.22), (0.36, 0.22), (0.66, 0.78), (-0.66, 0.78)], accent)
    pen.line([(-0.34, -0.9), (0.34, -0.9)], 0.14, light)
    for x, y, radius in ((-0.15, 0.45, 0.1), (0.2, 0.6, 0.12), (0.05, -0.05, 0.08)):
        pen.disc(x, y, radius, dark)


def _dancer(pen: _Pen, light: Colour, _dark: Colour, accent: Colour) -> None:
    pen.disc(0.1, -0.78, 0.2, light)
    pen.line([(0.05, -0.55), (0.0, 0.1)], 0.24, light)
    pen.line([(0.02, -0.45), (0.55, -0.7), (0.95, -0.95)], 0.13, light)
    pen.line([(0.02, -0.42), (-0.5, -0.55), (-0.95, -0.3)], 0.13, light)
    pen.line([(0.0, 0.2), (0.15, 0.6), (0.05, 1.0)], 0.15, light)
    pen.line([(0.0, 0.2), (-0.5, 0.45), (-1.0, 0.6)], 0.15, light)
    pen.shape([(-0.12, -0.05), (0.14, -0.05), (0.5, 0.38), (-0.5, 0.38)], accent)


def _bind(draw: Callable[[_Pen, Colour, Colour, Colour], None]) -> Pictogram:
    def pictogram(paint: ImageDraw.ImageDraw, place: Place, reach: float, light: Colour, dark: Colour, accent: Colour) -> None:
        draw(_Pen(paint, place, reach), light, dark, accent)

    return pictogram


PICTOGRAMS = tuple(
    _bind(draw) for draw in (_bowl, _mountains, _notes, _ball, _cat, _gamepad, _chip, _dress, _plant, _car, _flask, _dancer)
)
