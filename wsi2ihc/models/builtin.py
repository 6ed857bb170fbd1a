"""Built-in models without weights: ``identity`` and ``counterstain``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGBBatch, RGBImage

WHITE_LEVEL = 245.0  # gray level of unstained background, 235 to 250 on most scanners. Brighter pixels are not changed.

HEMATOXYLIN = (0.644211, 0.716556, 0.266844)
EOSIN = (0.092789, 0.954111, 0.283111)

_BLOCK_PX = 1 << 16  # pixels per block, so that its data (20 bytes per px) fits in the cache of a core


def identity(windows: RGBBatch) -> RGBBatch:
    """Return the images unchanged."""
    return windows


def counterstain(windows: RGBBatch) -> RGBBatch:
    """Remove eosin from H&E images (N, H, W, 3) uint8, pixel by pixel.

    Memory bound: 20 bytes per px of a block of 65,536, beside the output. OpenCV releases the GIL.
    """
    output = np.empty_like(windows)
    if windows.size == 0:
        return output
    width = windows.shape[2]
    rows = max(1, _BLOCK_PX // width)
    for image, result in zip(windows, output, strict=True):
        for top in range(0, len(image), rows):
            result[top : top + rows] = _remove_eosin(image[top : top + rows])
    return output


def _remove_eosin(image: RGBImage) -> RGBImage:
    factors, colors = _tables()
    red, green, blue = cv2.split(image)
    light = cv2.LUT(red, factors[0])
    light = cv2.multiply(light, cv2.LUT(green, factors[1]))
    light = cv2.multiply(light, cv2.LUT(blue, factors[2]), dtype=cv2.CV_8U)
    merged: RGBImage = np.asarray(cv2.merge([cv2.LUT(light, table) for table in colors]), np.uint8)
    return merged


@functools.cache
def _tables() -> tuple[tuple[npt.NDArray[np.float32], ...], tuple[npt.NDArray[np.uint8], ...]]:
    """Return, per channel, the factor of each level for green light, and the color of each green level."""
    stains = np.array([HEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    unmixing = np.linalg.inv(np.vstack([stains, np.cross(*stains)]))
    hematoxylin = stains[0]
    green = hematoxylin[1]
    transmitted = np.maximum(np.arange(256), 1) / WHITE_LEVEL  # level 0, of infinite density, counts as 1
    factors = transmitted ** (green * unmixing[:, :1])
    factors[0] *= WHITE_LEVEL
    remaining = np.minimum(np.arange(256) / WHITE_LEVEL, 1.0)
    colors = np.rint(WHITE_LEVEL * remaining ** (hematoxylin[:, np.newaxis] / green))
    return tuple(factors.astype(np.float32)), tuple(colors.astype(np.uint8))


class PixelTranslator:
    """`Translator` for a pixelwise function."""

    halo_px = 0
    stride_px = 1
    multiple_px = 1
    is_exact = True

    def __init__(self, function: Callable[[RGBBatch], RGBBatch], bytes_per_px: float) -> None:
        self._function = function
        self.bytes_per_px = bytes_per_px

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate a batch of windows; cores have the size of the windows."""
        return self._function(windows)
