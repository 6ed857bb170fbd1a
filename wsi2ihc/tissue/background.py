"""Background color of a slide, optical density, and the check for H&E staining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike

from ..geometry import RGB, BoolImage, RGBImage

MilliOD: TypeAlias = npt.NDArray[np.int16]
"""Optical density of one channel in thousandths: (rows, columns) int16, 0 to 2,408."""

DARKEST_BACKGROUND = 120
"""Lowest gray level of background; the darkest background in public data is at 180."""

MOST_TINT = 24
"""Greatest difference between the channels of background. In scans it is neutral to about 10 levels."""

FLATNESS = 6
"""Greatest range of gray levels in 3×3 px of background: above scanner noise, below the structure of tissue."""

MODE_HALF_WIDTH = 3
"""Gray levels around the mode that belong to it."""

SAMPLE_PX = 1_000_000
"""Number of px of the overview, sampled on a regular grid, on which the color is measured."""


class BackgroundColor(NamedTuple):
    """Background of a slide.

    Attributes
    ----------
    step
        Distance of the sampled px in the overview.
    pixels
        Which of the sampled px (``overview[::step, ::step]``) are flat background of nearly this color.
    found
        False if no background was found and the color was inferred from the least absorbing px.
    """

    color: RGB
    step: int
    pixels: BoolImage
    found: bool


def find_background(overview: RGBImage) -> BackgroundColor:
    """Estimate the background color of a slide.

    Background is bright, nearly neutral and flat: the brightest substantial mode of such pixels is used. Many formats
    fill areas that were never scanned with pure white. These count only if there is no other background, because the
    color has to match the surroundings of the tissue. If tissue fills the image, the background is assumed to be
    neutral and as bright as the least absorbed channel of the brightest pixels: eosin hardly absorbs red, and no stain
    makes a channel brighter than the background.

    """
    step = max(1, math.isqrt(overview.shape[0] * overview.shape[1] // SAMPLE_PX))
    sample = np.ascontiguousarray(overview[::step, ::step])
    gray = cv2.cvtColor(sample, cv2.COLOR_RGB2GRAY)
    most, least = extremes(cv2.split(sample))
    square = np.ones((3, 3), np.uint8)
    span = cv2.subtract(cv2.dilate(gray, square), cv2.erode(gray, square))
    flat = (span <= FLATNESS) & (cv2.subtract(most, least) <= MOST_TINT) & (gray >= DARKEST_BACKGROUND)
    for candidates in (flat & (least < 255), flat):
        mode = _brightest_mode(np.bincount(gray[candidates], minlength=256), gray.size)
        if mode is not None:
            break
    else:
        return BackgroundColor(_least_absorbed(sample), step, np.zeros(gray.shape, np.bool_), found=False)
    pixels = candidates & (np.abs(gray.astype(np.int16) - mode) <= MODE_HALF_WIDTH)
    red, green, blue = (int(value) for value in np.rint(np.median(sample[pixels], axis=0)))
    return BackgroundColor((red, green, blue), step, pixels, found=True)


def optical_density(image: RGBImage, background: RGB) -> tuple[MilliOD, MilliOD, MilliOD]:
    """Return the optical density relative to the background in thousandths, one plane per channel.

    ``OD = log10((background + 1) / (value + 1))``: the Beer-Lambert law, with one gray level added to avoid log(0).
    Pixels brighter than the background have density 0.
    """
    values = np.arange(256)
    planes = []
    for channel, plane in enumerate(cv2.split(image)):
        density = 1000 * np.log10((background[channel] + 1) / (values + 1))
        table = np.rint(np.clip(density, 0, None)).astype(np.int16)
        planes.append(np.asarray(cv2.LUT(plane, table), np.int16))
    red, green, blue = planes
    return red, green, blue


def extremes(planes: Sequence[MatLike]) -> tuple[MatLike, MatLike]:
    """Return the pixelwise maximum and minimum of three planes."""
    first, second, third = planes
    return cv2.max(cv2.max(first, second), third), cv2.min(cv2.min(first, second), third)


def _brightest_mode(histogram: npt.NDArray[np.intp], pixels: int) -> int | None:
    """Return the gray level of the brightest peak that has at least 15 % of the mass of the highest peak.

    Return None if there are too few candidates, or if they spread over so many levels that they are pale tissue.
    """
    mass = np.convolve(histogram, np.ones(2 * MODE_HALF_WIDTH + 1, int), "same")
    if mass.max() < max(0.002 * pixels, 8) or mass.max() < 0.3 * histogram.sum():
        return None
    around = np.lib.stride_tricks.sliding_window_view(np.pad(mass, 5, mode="edge"), 11)
    peaks = np.flatnonzero((mass == around.max(axis=1)) & (mass >= 0.15 * mass.max()))
    # The mode of a plateau of equal sums is its middle.
    plateau = peaks[(peaks > peaks[-1] - 7) & (mass[peaks] == mass[peaks[-1]])]
    return int(plateau[len(plateau) // 2])


def _least_absorbed(sample: RGBImage) -> RGB:
    bright = [float(np.percentile(sample[..., channel], 99.5)) for channel in range(3)]
    value = int(np.clip(max(bright), 180, 255))
    return value, value, value


LEAST_GREEN_EXCESS = 1.4
"""Lowest ratio of green absorption to red and blue absorption of an H&E slide."""

STAINED_MILLI_OD = (50, 900)
"""Range of the mean density of evaluated px: paler px are background, darker ones have lost their hue."""

_MIN_STAINED_PX = 30


def green_excess(overview: RGBImage, tissue: BoolImage, background: RGB | None = None) -> float | None:
    """Return ``2 ΣG / (ΣR + ΣB)`` of the optical densities of stained tissue, or None if too few px are stained.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB.
    tissue
        (rows, columns) bool. Background in the mask is ignored.
    background
        Background color of the slide. By default, it is estimated from the overview.
    """
    planes = optical_density(np.ascontiguousarray(overview), background or find_background(overview).color)
    total = planes[0] + planes[1] + planes[2]
    stained = tissue & (total > 3 * STAINED_MILLI_OD[0]) & (total < 3 * STAINED_MILLI_OD[1])
    if np.count_nonzero(stained) < _MIN_STAINED_PX:
        return None
    red, green, blue = (int(plane[stained].sum(dtype=np.int64)) for plane in planes)
    return 2 * green / max(red + blue, 1)


def staining_warning(overview: RGBImage, tissue: BoolImage, background: RGB | None = None) -> str | None:
    """Return a warning if the slide does not look like H&E, else None.

    DAB IHC, gray and blue slides are recognized. Special stains in pink and purple (PAS) are not distinguished from
    H&E. The parameters are those of `green_excess`.
    """
    excess = green_excess(overview, tissue, background)
    if excess is None or excess >= LEAST_GREEN_EXCESS:
        return None
    return (
        f"this slide does not look like H&E: its tissue absorbs green {excess:.2f} times as much as red and blue, and "
        "H&E 1.6 times or more; models for H&E give meaningless results on other stains"
    )
