"""Pixels of the synthetic H&E slide.

Every pixel is a function of the seed and its place alone: regions can be painted in any order, by several threads,
and meet without a seam.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..arrays import RGBImage
from ..geometry import Region, Size, ceil_to, floor_to
from .layout import STEP_PX, enlarged, slide_layout, tissue_layout
from .noise import FloatImage, at_region, texture
from .painting import paint_tissue
from .scene import Scene, populate
from .staining import scanned, transmitted

_MARGIN_PX = 4 * STEP_PX
"""More than any blur reaches (the widest is a box of 41 px)."""

_BAND_PX = 512  # painting takes about 150 bytes per px, so a large field is painted in bands


def synthetic_tissue(width: int, height: int, seed: int) -> RGBImage:
    """H&E-stained mucosa from edge to edge, at 0.5 µm/px: (height, width, 3) uint8 RGB.

    Crypts and the stroma between them, no glass. The same arguments give the same pixels.
    """
    rng = np.random.default_rng(seed)
    scene = populate(tissue_layout(Size(width, height), rng), rng)
    bands = [Region(0, y, width, min(_BAND_PX, height - y)) for y in range(0, height, _BAND_PX)]
    return np.concatenate([paint(scene, band) for band in bands])


def synthetic_scene(size: Size, seed: int) -> Scene:
    """Everything that lies on the demo slide of this size: a colon wall, a biopsy, glass and a pen stroke."""
    rng = np.random.default_rng(seed)
    return populate(slide_layout(size, rng), rng)


def paint(scene: Scene, region: Region) -> RGBImage:
    """The pixels of a region of the slide: (height, width, 3) uint8 RGB."""
    left, top = floor_to(region.x, STEP_PX) - _MARGIN_PX, floor_to(region.y, STEP_PX) - _MARGIN_PX
    right, bottom = ceil_to(region.right, STEP_PX) + _MARGIN_PX, ceil_to(region.bottom, STEP_PX) + _MARGIN_PX
    around = Region(left, top, right - left, bottom - top)
    layout = scene.layout
    edge = enlarged(layout.tissue_px, around) + 4 * at_region(texture(36, 36, 3), around)
    coverage = np.asarray(np.clip(edge / 3 + 0.5, 0, 1), np.float32)
    ink = enlarged(layout.pen, around)
    if coverage.any():
        stains = paint_tissue(scene, around)
        strength = coverage * enlarged(layout.stain, around)
        light = transmitted(stains.haematoxylin * strength, stains.eosin * strength, stains.erythrocyte * strength, ink)
        light = _focused(light, enlarged(layout.focus, around))
    else:
        nothing = np.zeros_like(ink)
        light = transmitted(nothing, nothing, nothing, ink)
    shading = 1 + 0.004 * at_region(texture(700, 700, 5), around)
    image = scanned(light, shading, at_region(texture(1.5, 1.5, 6), around))
    rows, columns = region.slices_in(around)
    return np.ascontiguousarray(image[rows, columns])


def _focused(light: FloatImage, focus: FloatImage) -> FloatImage:
    """Blur by the objective everywhere, and more where the tissue lies above or below the focal plane."""
    sharp = cv2.GaussianBlur(light, (5, 5), 0.65)
    if not focus.any():
        return np.asarray(sharp, np.float32)
    soft = cv2.GaussianBlur(light, (0, 0), 1.9)
    return np.asarray(sharp + (soft - sharp) * focus[..., None], np.float32)
