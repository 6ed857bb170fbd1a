"""Pen marks and other black or unnaturally colored areas."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGB, BoolImage, RGBImage
from .background import extremes, optical_density
from .mask import grown

_SEED, _WEAK, _CERTAIN = np.uint8(1), np.uint8(2), np.uint8(4)

STROKE_UM = 60.0
"""Least width of a pen stroke at its widest point; thinner lines are vessels, fibers or noise."""

STROKE_AREA_UM2 = 20_000.0
"""Smallest pen mark that is excluded."""

FRINGE_UM = 60.0
"""Width of the blurred edge of a pen mark, which lies on the coverslip and is out of focus."""

BACKGROUND_CONTACT = 0.2
"""Least fraction of the outline of a red or black pen mark that lies on background.

Blood and folds have the same colors and lie in the tissue; pen marks surround it and lie partly on background.
"""


class PenMarks(NamedTuple):
    """Masks of pen marks, (rows, columns) bool.

    Attributes
    ----------
    strokes
        Pen marks and dark areas, which hide the slide.
    foreign
        Px of green and blue dyes, of any size. Inside tissue they are specks that need no hole.
    """

    strokes: BoolImage
    foreign: BoolImage


def find_pen_marks(overview: RGBImage, background: RGB, tissue: BoolImage, mpp: float) -> PenMarks:
    """Find pen marks on an overview (rows, columns, 3) uint8 RGB, at about 16 µm per px: pens are coarse.

    ``tissue`` (rows, columns) are the px that differ in color from the background, pen marks included. It distinguishes
    pen marks on background from blood in tissue.
    """
    classes = _classify(np.ascontiguousarray(overview), background)
    return PenMarks(_strokes(classes, tissue, mpp), (classes & _CERTAIN) > 0)


def _strokes(classes: npt.NDArray[np.uint8], tissue: BoolImage, mpp: float) -> BoolImage:
    width = min(int(STROKE_UM / mpp) // 2 * 2 + 1, min(classes.shape) // 8 * 2 + 1)
    seeds = cv2.morphologyEx(classes & _SEED, cv2.MORPH_OPEN, np.ones((width, width), np.uint8)) > 0
    if not seeds.any():
        return np.zeros(classes.shape, np.bool_)
    count, found = cv2.connectedComponents(classes & _WEAK, connectivity=8)
    labels = np.asarray(found, np.int32)
    is_pen_mark = np.bincount(labels[seeds], minlength=count) * mpp**2 >= STROKE_AREA_UM2
    is_pen_mark[0] = False
    candidates = is_pen_mark[labels]
    foreign = np.bincount(labels[(classes & _CERTAIN) > 0], minlength=count)
    certain = foreign >= 0.5 * np.bincount(labels[candidates], minlength=count)
    strokes: BoolImage = (is_pen_mark & (certain | _is_over_background(labels, candidates, tissue, mpp)))[labels]
    return strokes


def _is_over_background(
    labels: npt.NDArray[np.int32], candidates: BoolImage, tissue: BoolImage, mpp: float
) -> npt.NDArray[np.bool_]:
    """Return for each component whether enough of its outline lies on background; its blurred edge does not count."""
    fringe_px = max(FRINGE_UM / mpp, 4.0)
    surroundings = ~grown(candidates, fringe_px)
    background_near, tissue_near = (grown(where & surroundings, fringe_px + 3) for where in (~tissue, tissue))
    count = int(labels.max()) + 1
    on_background = np.bincount(labels[background_near & ~tissue_near], minlength=count)
    outline = np.bincount(labels[background_near | tissue_near], minlength=count)
    result: npt.NDArray[np.bool_] = on_background > BACKGROUND_CONTACT * outline
    return result


def _classify(overview: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """Return seed, weak and certain bits of each px, (rows, columns) uint8, by a table of all 5-6-5-bit colors."""
    index = np.arange(1 << 16)
    colors = np.stack([index >> 11 << 3 | 4, (index >> 5 & 63) << 2 | 2, (index & 31) << 3 | 4], axis=-1)
    table = _classes_of(colors.astype(np.uint8)[np.newaxis], background)
    packed = cv2.cvtColor(overview, cv2.COLOR_RGB2BGR565).view(np.uint16)[..., 0]
    classes: npt.NDArray[np.uint8] = table[packed]
    return classes


def _classes_of(colors: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """Return the bits of each color in one row."""
    planes = optical_density(colors, background)
    red, green, blue = (np.maximum(plane / 1000, 0.005) for plane in planes)
    most, least = extremes((red, green, blue))
    chroma, mean = most - least, (red + green + blue) / 3
    is_green = (red > 1.25 * green) & (blue > 0.9 * green)
    is_blue = (red > 0.95 * green) & (blue < 0.7 * green)
    is_red = (red < 0.25 * green) & (blue > 0.62 * green)
    certain = (is_green & (chroma > 0.1)) | (is_blue & (chroma > 0.35))
    seed = certain | (is_red & (green > 0.4)) | ((red > 0.62 * green) & (blue > 0.74 * green) & (mean > 0.6))
    weak = seed | (is_green & (chroma > 0.05)) | (is_blue & (chroma > 0.2))
    weak |= (is_red & (green > 0.3)) | ((red > 0.55 * green) & (blue > 0.7 * green) & (mean > 0.4))
    return (seed * _SEED | weak * _WEAK | certain * _CERTAIN).astype(np.uint8).ravel()
