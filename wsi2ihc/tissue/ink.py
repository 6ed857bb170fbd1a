"""Pen marks and other black or unnaturally coloured matter.

Colours are judged by the ratios of their optical densities, which do not change with the amount of dye. Haematoxylin
and eosin both absorb green most (Ruifrok and Johnston 2001: H 0.65, 0.70, 0.29; E 0.07, 0.99, 0.11). Green ink
absorbs green least; blue ink absorbs red more than green, and far more than blue; red ink absorbs green and blue
alike and red not at all; black ink absorbs all three. Measured at 4 to 30 µm/px (5th to 95th percentile): on H&E, red
over green 0.1 to 0.8 and blue over green 0.1 to 0.7 (where dense, 0.1 to 0.8 and 0.15 to 0.78); on red pens 0.07 to
0.23 and 0.66 to 1.1.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage, RGBImage
from .glass import extremes, optical_density
from .shapes import grown

_SEED, _WEAK, _CERTAIN = np.uint8(1), np.uint8(2), np.uint8(4)

STROKE_UM = 60.0
"""Ink is at least this wide somewhere; thinner lines are vessels, fibres or noise."""

STROKE_AREA_UM2 = 20_000.0
"""The smallest dot of ink that is left out."""

FRINGE_UM = 60.0
"""Ink lies on the coverslip, out of focus: its edges fade over about this length."""

GLASS_CONTACT = 0.2
"""Red or black matter is ink if at least this share of its outline (without other ink) lies on glass.

Blood and folds have the same colours and lie in the tissue; pens are drawn around it, partly over glass.
"""


class Ink(NamedTuple):
    """Matter that is no tissue; both (rows, columns) bool.

    strokes:  pen marks and dark areas, which hide the slide
    foreign:  px of green and blue dyes, of any size; inside tissue they are specks that need no hole
    """

    strokes: BoolImage
    foreign: BoolImage


def find_ink(overview: RGBImage, glass: RGB, tissue: BoolImage, mpp: float) -> Ink:
    """Find pen marks.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB; some 16 µm per px are enough, since pens are coarse.
    glass
        Colour of the slide's glass.
    tissue
        (rows, columns) bool: what differs in colour from glass, ink included. Tells ink over glass from blood within
        tissue.
    mpp
        µm per pixel of the overview.
    """
    classes = _classify(np.ascontiguousarray(overview), glass)
    return Ink(_strokes(classes, tissue, mpp), (classes & _CERTAIN) > 0)


def _strokes(classes: npt.NDArray[np.uint8], tissue: BoolImage, mpp: float) -> BoolImage:
    width = min(int(STROKE_UM / mpp) // 2 * 2 + 1, min(classes.shape) // 8 * 2 + 1)
    seeds = cv2.morphologyEx(classes & _SEED, cv2.MORPH_OPEN, np.ones((width, width), np.uint8)) > 0
    if not seeds.any():
        return np.zeros(classes.shape, np.bool_)
    count, found = cv2.connectedComponents(classes & _WEAK, connectivity=8)
    labels = np.asarray(found, np.int32)
    is_ink = np.bincount(labels[seeds], minlength=count) * mpp**2 >= STROKE_AREA_UM2
    is_ink[0] = False
    candidates = is_ink[labels]
    foreign = np.bincount(labels[(classes & _CERTAIN) > 0], minlength=count)
    certain = foreign >= 0.5 * np.bincount(labels[candidates], minlength=count)
    strokes: BoolImage = (is_ink & (certain | _is_over_glass(labels, candidates, tissue, mpp)))[labels]
    return strokes


def _is_over_glass(
    labels: npt.NDArray[np.int32], candidates: BoolImage, tissue: BoolImage, mpp: float
) -> npt.NDArray[np.bool_]:
    """For each component, whether enough of its outline lies on glass. The blurred fringe of ink counts as neither."""
    fringe_px = max(FRINGE_UM / mpp, 4.0)
    surroundings = ~grown(candidates, fringe_px)
    glass_near, tissue_near = (grown(where & surroundings, fringe_px + 3) for where in (~tissue, tissue))
    count = int(labels.max()) + 1
    on_glass = np.bincount(labels[glass_near & ~tissue_near], minlength=count)
    outline = np.bincount(labels[glass_near | tissue_near], minlength=count)
    result: npt.NDArray[np.bool_] = on_glass > GLASS_CONTACT * outline
    return result


def _classify(overview: RGBImage, glass: RGB) -> npt.NDArray[np.uint8]:
    """Seed, weak and certain bits of every px, (rows, columns) uint8, from a table over all colours at 5, 6, 5 bits."""
    index = np.arange(1 << 16)
    colours = np.stack([index >> 11 << 3 | 4, (index >> 5 & 63) << 2 | 2, (index & 31) << 3 | 4], axis=-1)
    table = _classes_of(colours.astype(np.uint8)[np.newaxis], glass)
    packed = cv2.cvtColor(overview, cv2.COLOR_RGB2BGR565).view(np.uint16)[..., 0]
    classes: npt.NDArray[np.uint8] = table[packed]
    return classes


def _classes_of(colours: RGBImage, glass: RGB) -> npt.NDArray[np.uint8]:
    """Bits for each colour of one row."""
    planes = optical_density(colours, glass)
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
