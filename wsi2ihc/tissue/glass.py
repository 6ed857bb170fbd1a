"""The colour of a slide's own glass, and optical densities relative to it.

Nothing here compares with a fixed white: glass lies at 180 grey in some collections and at 255 in others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike

from ..arrays import RGB, BoolImage, RGBImage

MilliOD: TypeAlias = npt.NDArray[np.int16]
"""Optical density of one channel in thousandths: (rows, columns) int16, 0 to 2,408."""

DARKEST_GLASS = 120
"""Grey level below which nothing is taken for glass; the darkest glass met in public data is at 180."""

MOST_TINT = 24
"""Greatest difference between the channels of glass. Scanners' glass is neutral to about 10 levels."""

FLATNESS = 6
"""Greatest range of grey levels among neighbouring px of glass: above scanner noise, below tissue's structure."""

MODE_HALF_WIDTH = 3
"""Grey levels around the mode that belong to it."""

SAMPLE_PX = 1_000_000
"""The colour is measured on about so many px of the overview, taken at regular steps."""


class Glass(NamedTuple):
    """A slide's glass.

    colour:  its RGB
    step:    distance of the sampled px in the overview
    pixels:  which of the sampled px (``overview[::step, ::step]``) are flat glass of nearly this colour
    found:   False where no glass was seen and the colour was inferred from the least absorbing px
    """

    colour: RGB
    step: int
    pixels: BoolImage
    found: bool


def find_glass(overview: RGBImage) -> Glass:
    """Estimate the colour of uncovered glass.

    Glass is bright, nearly neutral and flat: the brightest substantial mode of such pixels is taken. Areas that were
    never scanned are filled with pure white by many formats; they count only where there is no other glass, since it
    is the tissue's surroundings that have to match. Where tissue fills the frame, glass is taken to be neutral and as
    bright as the least absorbed channel of the brightest pixels: eosin leaves red nearly untouched, and no stain makes
    a channel brighter than the glass.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB, at any resolution.
    """
    step = max(1, math.isqrt(overview.shape[0] * overview.shape[1] // SAMPLE_PX))
    sample = np.ascontiguousarray(overview[::step, ::step])
    grey = cv2.cvtColor(sample, cv2.COLOR_RGB2GRAY)
    most, least = extremes(cv2.split(sample))
    square = np.ones((3, 3), np.uint8)
    span = cv2.subtract(cv2.dilate(grey, square), cv2.erode(grey, square))
    flat = (span <= FLATNESS) & (cv2.subtract(most, least) <= MOST_TINT) & (grey >= DARKEST_GLASS)
    for candidates in (flat & (least < 255), flat):
        mode = _brightest_mode(np.bincount(grey[candidates], minlength=256), grey.size)
        if mode is not None:
            break
    else:
        return Glass(_least_absorbed(sample), step, np.zeros(grey.shape, np.bool_), found=False)
    pixels = candidates & (np.abs(grey.astype(np.int16) - mode) <= MODE_HALF_WIDTH)
    red, green, blue = (int(value) for value in np.rint(np.median(sample[pixels], axis=0)))
    return Glass((red, green, blue), step, pixels, found=True)


def optical_density(image: RGBImage, glass: RGB) -> tuple[MilliOD, MilliOD, MilliOD]:
    """Thousandths of optical density relative to the glass, one plane per channel; 0 where brighter than glass.

    ``OD = log10((glass + 1) / (value + 1))``: Beer-Lambert's law, with one grey level added against log(0).
    """
    values = np.arange(256)
    planes = []
    for channel, plane in enumerate(cv2.split(image)):
        density = 1000 * np.log10((glass[channel] + 1) / (values + 1))
        table = np.rint(np.clip(density, 0, None)).astype(np.int16)
        planes.append(np.asarray(cv2.LUT(plane, table), np.int16))
    red, green, blue = planes
    return red, green, blue


def extremes(planes: Sequence[MatLike]) -> tuple[MatLike, MatLike]:
    """(greatest, least) of three planes, px by px."""
    first, second, third = planes
    return cv2.max(cv2.max(first, second), third), cv2.min(cv2.min(first, second), third)


def _brightest_mode(histogram: npt.NDArray[np.intp], pixels: int) -> int | None:
    """Grey level of the brightest peak that holds at least 15 % of what the highest holds.

    None where the candidates are too few, or spread over so many levels that they are pale tissue and not glass.
    """
    mass = np.convolve(histogram, np.ones(2 * MODE_HALF_WIDTH + 1, int), "same")
    if mass.max() < max(0.002 * pixels, 8) or mass.max() < 0.3 * histogram.sum():
        return None
    around = np.lib.stride_tricks.sliding_window_view(np.pad(mass, 5, mode="edge"), 11)
    peaks = np.flatnonzero((mass == around.max(axis=1)) & (mass >= 0.15 * mass.max()))
    # A plateau of equal sums has its mode in its middle.
    plateau = peaks[(peaks > peaks[-1] - 7) & (mass[peaks] == mass[peaks[-1]])]
    return int(plateau[len(plateau) // 2])


def _least_absorbed(sample: RGBImage) -> RGB:
    bright = [float(np.percentile(sample[..., channel], 99.5)) for channel in range(3)]
    value = int(np.clip(max(bright), 180, 255))
    return value, value, value
