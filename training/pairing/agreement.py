"""How well the two patches of a pair lie on each other: measured from their haematoxylin, whatever placed them.

Both figures look at structures between nuclei and groups of cells. What is wider (where the tissue is dense at all)
agrees anywhere in a patch: unfiltered haematoxylin still correlates by up to 0.6 where the IHC is 100 µm off, and by
less than 0.02 in these bands. What is finer is lost to an offset that is well within the limits, and is not the same in
the next section of a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from wsi2ihc.arrays import RGBImage
from wsi2ihc.registration.matching import vertex

from .optical import FloatPlane, haematoxylin_of_he, haematoxylin_of_ihc, reduced

MATCHED_AT_UM = 1.0
"""µm per px at which offsets are measured."""

OFFSET_BAND_UM = (1.0, 20.0)
CORRELATION_BAND_UM = (4.0, 30.0)
"""Standard deviations of the Gaussians between which structure is looked at. An offset of 8 µm takes the correlation of
single nuclei (up to 12 µm) down to 0, and that of the band from 4 to 30 µm from 0.97 to 0.6."""

REACH_UM = 20.0
"""Greatest offset along x and y that is looked for."""

BLOCKS = 3
"""Blocks along each side of a patch."""

LEAST_BLOCK_UM = 50.0
"""Side below which a block holds too few cells to be found again; blocks of small patches overlap."""

LEAST_COUNTED = 3
"""Of fewer blocks no offset is told."""

LEAST_PEAK, LEAST_MARGIN, PEAK_RADIUS_UM = 0.2, 0.05, 8.0
"""A block counts if its correlation is so high somewhere, and by so much lower everywhere beyond the radius."""

LEAST_CONTRAST = 0.01
"""Standard deviation of the haematoxylin's density below which there is nothing but noise: 2 grey levels."""


class Agreement(NamedTuple):
    """How the patches agree; None where there is too little to be compared.

    correlation: Pearson's, of the haematoxylin in `CORRELATION_BAND_UM`, at zero offset
    residual_um: median length of the offsets at which blocks agree best
    counted:     blocks that have such an offset
    """

    correlation: float | None
    residual_um: float | None
    counted: int


def agreement(he: RGBImage, ihc: RGBImage, mpp: float) -> Agreement:
    """Compare the patches of a pair.

    Parameters
    ----------
    he, ihc
        Of one shape, (rows, columns, 3) uint8 RGB.
    mpp
        µm per px.
    """
    he, coarse_mpp = reduced(he, mpp, MATCHED_AT_UM)
    ihc, _ = reduced(ihc, mpp, MATCHED_AT_UM)
    fixed, moving = haematoxylin_of_he(he), haematoxylin_of_ihc(ihc)
    lengths = [math.hypot(*offset) for offset in block_offsets(fixed, moving, coarse_mpp)]
    residual = float(np.median(lengths)) if len(lengths) >= LEAST_COUNTED else None
    return Agreement(_correlation(fixed, moving, coarse_mpp), residual, len(lengths))


def block_offsets(fixed: FloatPlane, moving: FloatPlane, mpp: float) -> list[tuple[float, float]]:
    """Where blocks of ``fixed`` are found in ``moving``, in µm (x, y) from their own place; only of those that count.

    Both are (rows, columns), of any unit and offset. Blocks lie so that all of the search does within the patch.
    """
    fixed, moving = (_band(plane, mpp, *OFFSET_BAND_UM) for plane in (fixed, moving))
    reach = max(1, min(round(REACH_UM / mpp), min(fixed.shape) // 6))
    tops, height = _blocks(fixed.shape[0], reach, mpp)
    lefts, width = _blocks(fixed.shape[1], reach, mpp)
    found = []
    for top in tops:
        for left in lefts:
            block = fixed[top : top + height, left : left + width]
            around = moving[top - reach : top + height + reach, left - reach : left + width + reach]
            if min(block.std(), around.std()) < LEAST_CONTRAST:
                continue
            scores = np.asarray(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED), np.float32)
            if (peak := _distinct_peak(scores, PEAK_RADIUS_UM / mpp)) is not None:
                found.append(((peak[0] - reach) * mpp, (peak[1] - reach) * mpp))
    return found


def _blocks(length: int, reach: int, mpp: float) -> tuple[list[int], int]:
    """Starts of the blocks along one side, and their length; all in px."""
    inner = length - 2 * reach
    block = min(inner, max(inner // BLOCKS, math.ceil(LEAST_BLOCK_UM / mpp)))
    return [reach + (inner - block) * index // (BLOCKS - 1) for index in range(BLOCKS)], block


def _distinct_peak(scores: FloatPlane, radius_px: float) -> tuple[float, float] | None:
    """(x, y) of the highest score, to a part of a px; None if it is low, at the edge, or one of several."""
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    rows, columns = scores.shape
    if not best >= LEAST_PEAK or not (0 < x < columns - 1 and 0 < y < rows - 1):
        return None
    down, across = np.ogrid[:rows, :columns]
    beyond = (down - y) ** 2 + (across - x) ** 2 > radius_px**2
    if beyond.any() and float(scores[beyond].max()) > best - LEAST_MARGIN:
        return None
    return x + vertex(*scores[y, x - 1 : x + 2].tolist()), y + vertex(*scores[y - 1 : y + 2, x].tolist())


def _correlation(fixed: FloatPlane, moving: FloatPlane, mpp: float) -> float | None:
    fixed, moving = (_band(plane, mpp, *CORRELATION_BAND_UM) for plane in (fixed, moving))
    if min(fixed.std(), moving.std()) < LEAST_CONTRAST:
        return None
    return float(np.corrcoef(fixed.ravel(), moving.ravel())[0, 1])


def _band(plane: FloatPlane, mpp: float, finest_um: float, widest_um: float) -> FloatPlane:
    """Structures between two scales: the difference of two Gaussians."""
    narrow = cv2.GaussianBlur(plane, (0, 0), finest_um / mpp)
    # The wide one at a coarser scale: the same to a thousandth, at a tenth of the time.
    step = max(1, int(widest_um / mpp / 5))
    size = (-(-plane.shape[1] // step), -(-plane.shape[0] // step))
    coarse = cv2.GaussianBlur(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), (0, 0), widest_um / mpp / step)
    wide = cv2.resize(coarse, (plane.shape[1], plane.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.subtract(narrow, wide), np.float32)
