"""Pictures without weights: histograms of oriented gradients for shape, a colour histogram for the rest."""

from collections.abc import Sequence

import numpy as np

from tokenization.encoders.base import Kind, unit_rows

SIDE = 96
ORIENTATIONS, CELL, BLOCK = 9, 16, 2
GRADIENT_DIM = (SIDE // CELL - BLOCK + 1) ** 2 * BLOCK**2 * ORIENTATIONS
COLOUR_LEVELS = 4
COLOUR_DIM = COLOUR_LEVELS**3


class HogEncoder:
    """float32 (N, 964): 900 gradient values (Dalal and Triggs 2005; 5 × 5 blocks of 2 × 2 cells, 9 orientations) of the
    picture at 96 × 96, then the square roots of a colour histogram (4 × 4 × 4 levels of red, green, blue).

    Both parts have equal weight; a picture without any gradient is its colours alone.
    """

    name = "hog"
    kind: Kind = "image"
    dim = GRADIENT_DIM + COLOUR_DIM

    def encode(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, 964), unit length, for pictures (height, width, 3) uint8."""
        if not inputs:
            return np.zeros((0, self.dim), np.float32)
        return unit_rows(np.stack([_describe(picture) for picture in inputs]))


def _describe(picture: np.ndarray) -> np.ndarray:
    from PIL import Image
    from skimage.feature import hog

    pixels = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    gradients = hog(
        pixels,
        orientations=ORIENTATIONS,
        pixels_per_cell=(CELL, CELL),
        cells_per_block=(BLOCK, BLOCK),
        channel_axis=-1,
    )
    levels = (pixels.reshape(-1, 3).astype(np.int64) * COLOUR_LEVELS) // 256
    bins = (levels[:, 0] * COLOUR_LEVELS + levels[:, 1]) * COLOUR_LEVELS + levels[:, 2]
    colours = np.sqrt(np.bincount(bins, minlength=COLOUR_DIM) / len(bins))
    strength = np.linalg.norm(gradients)
    return np.concatenate([gradients / strength if strength > 0 else gradients, colours])
