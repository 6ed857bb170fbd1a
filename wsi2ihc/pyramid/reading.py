"""Reading a finished pyramid back, for previews."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tifffile import TiffFile

from ..arrays import RGBImage


def read_level(file: Path, level: int) -> RGBImage:
    """All pixels of one level, (height, width, 3) uint8 RGB; the caller sees to it that they fit into memory."""
    with TiffFile(file) as tiff:
        return np.asarray(tiff.series[0].levels[level].asarray(), np.uint8)


def read_overview(file: Path, max_px: int) -> RGBImage:
    """The whole image, no side longer than ``max_px``: (height, width, 3) uint8 RGB.

    Made from the smallest level that is at least as large, so at most twice ``max_px`` of each side is in memory.
    A smaller image comes as it is.
    """
    with TiffFile(file) as tiff:
        sizes = [max(level.shape[:2]) for level in tiff.series[0].levels]
    level = max((number for number, side in enumerate(sizes) if side >= max_px), default=0)
    pixels = read_level(file, level)
    scale = max_px / sizes[level]
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
