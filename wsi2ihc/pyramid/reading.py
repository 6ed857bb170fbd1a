"""Reading a finished pyramid back, for previews."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tifffile import TiffFile

from ..arrays import RGBImage


def read_level(file: Path, level: int) -> RGBImage:
    """All pixels of one level, (height, width, 3) uint8 RGB; the caller sees to it that they fit into memory."""
    if file.is_dir():
        from .omezarr import open_level

        return np.ascontiguousarray(np.moveaxis(np.asarray(open_level(file, level)[:], np.uint8), 0, 2))
    with TiffFile(file) as tiff:
        return np.asarray(tiff.series[0].levels[level].asarray(), np.uint8)


def read_overview(file: Path, max_px: int) -> RGBImage:
    """The whole image, no side longer than ``max_px``: (height, width, 3) uint8 RGB.

    Made from the smallest level that is at least as large, so at most twice ``max_px`` of each side is in memory.
    A smaller image comes as it is.
    """
    sizes = _longest_sides(file)
    level = max((number for number, side in enumerate(sizes) if side >= max_px), default=0)
    pixels = read_level(file, level)
    scale = max_px / sizes[level]
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _longest_sides(file: Path) -> list[int]:
    """Of each level, px."""
    if file.is_dir():
        from .omezarr import count_levels, open_level

        return [max(open_level(file, number).shape[1:]) for number in range(count_levels(file))]
    with TiffFile(file) as tiff:
        return [max(level.shape[:2]) for level in tiff.series[0].levels]
