"""Seams of a virtual slide: steps at the borders of a grid, relative to those elsewhere and to those of its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import Region
from wsi2ihc.slide import read_region
from wsi2ihc.translation.seams import BLOCK_PX as SHADE_STRIP_PX
from wsi2ihc.translation.seams import Moments, ShadeMetrics, ShadeStatistics

from .slide_grid import SlideComparison, read_he
from .slide_origin import BorderGrid

MAX_WINDOWS = 64
"""Largest number of windows per axis, evenly spread over the borders."""

MIN_WINDOWS = 4

MAX_REACH_PX = 128
"""Largest distance from a border at which steps are measured."""

JPEG_BLOCK_PX = 8

INSIDE_PAIRS = 4
"""Number of pairs of strips on each side of a border with which the pair across it is compared."""

MIN_TEXTURE = 2.0
"""Mean difference of neighboring pixels, in gray levels; windows up to this are background or fill, and not used."""


@dataclass(frozen=True, slots=True)
class GridSeams:
    """Steps at the borders of a grid, along the axis where they are more significant (larger absolute z)."""

    borders_of: str  # label of the grid
    # mean step at borders over that at other multiples of 8 px from them; None if too few windows have tissue
    contrast: float | None
    z: float | None  # z-score of the step at borders relative to the steps at the other positions
    borders: int  # number of windows with tissue that were measured
    is_relative: bool = False  # whether steps were divided by those of the source
    # differences in shade, see `ShadeMetrics`; None without the source
    shade_z: float | None = None
    shade_step: float | None = None


def measure_seams(pair: SlideComparison, grid: BorderGrid) -> GridSeams:
    """Measure the virtual slide at the borders of a grid, relative to its source if that is given.

    Borders are only compared with positions at multiples of 8 px from them: if JPEG block borders coincide with grid
    borders, they coincide with all of these, so compression affects all of them alike. Steps are divided by those of
    the source at the same positions, which can be borders of its own tiles.
    """
    found = [_measure_axis(pair, grid, axis) for axis in (0, 1)]
    known = [(contrast, z) for contrast, z, _ in found if contrast is not None and z is not None]
    contrast, z = max(known, key=lambda one: abs(one[1]), default=(None, None))
    # without the source, shades of the tissue itself cannot be distinguished from those of windows
    shades = ShadeMetrics(None, None)
    if pair.he is not None:
        shades = ShadeStatistics(_sum_shades(pair, grid, 0), _sum_shades(pair, grid, 1)).metrics()
    windows = sum(count for _, _, count in found)
    return GridSeams(grid.label, contrast, z, windows, pair.he is not None, shades.z, shades.step)


def _measure_axis(pair: SlideComparison, grid: BorderGrid, axis: int) -> tuple[float | None, float | None, int]:
    """Return contrast, z and number of windows of the borders that are crossed along x (``axis`` 0) or y (1)."""
    reach = min(MAX_REACH_PX, grid.spacing_px[axis] // 2 // JPEG_BLOCK_PX * JPEG_BLOCK_PX)
    profiles, sources = [], []
    for region in _windows(pair, grid, axis, reach):
        steps = _steps(read_region(pair.virtual, pair.grid, region), axis)[JPEG_BLOCK_PX - 1 :: JPEG_BLOCK_PX]
        if steps.mean() > MIN_TEXTURE:
            profiles.append(steps)
            if (he := read_he(pair, region)) is not None:
                sources.append(_steps(he, axis)[JPEG_BLOCK_PX - 1 :: JPEG_BLOCK_PX])
    if len(profiles) < MIN_WINDOWS:
        return None, None, len(profiles)
    profile = np.mean([one / one.mean() for one in profiles], axis=0)
    if sources:
        profile /= np.mean([one / max(one.mean(), 1e-6) for one in sources], axis=0)
    middle = reach // JPEG_BLOCK_PX - 1
    others = np.delete(profile, middle)
    contrast = float(profile[middle] / others.mean())
    return contrast, float((profile[middle] - others.mean()) / max(float(others.std()), 1e-6)), len(profiles)


def _sum_shades(pair: SlideComparison, grid: BorderGrid, axis: int) -> Moments:
    """Sum the products of differences between strips that are the width of the overlap apart.

    The first position is that of pairs across borders, the others are those of pairs on either side of them.
    """
    period, moments = grid.spacing_px[axis], Moments.zeros(1 + 2 * INSIDE_PAIRS)
    side = SHADE_STRIP_PX if period >= 16 * SHADE_STRIP_PX else SHADE_STRIP_PX // 2
    half = min(-(-grid.overlap_px // (2 * side)), period // side // 8)
    apart = 1 + 2 * half
    count = INSIDE_PAIRS + half + apart  # strips on either side
    if count + half > period // side:
        return moments
    for region in _windows(pair, grid, axis, count * side):
        pixels, he = read_region(pair.virtual, pair.grid, region), read_he(pair, region)
        if he is None or _steps(pixels, axis).mean() <= MIN_TEXTURE:
            continue
        strips = np.hstack([image.mean(axis=axis).reshape(2 * count, side, 3).mean(axis=1) for image in (pixels, he)])
        differences, across = strips[apart:] - strips[:-apart], count - 1 - half
        # The weight is the length of the window along the border, in strips.
        moments.add(0, differences[across : across + 1], weight=count)
        moments.add(1, differences[:INSIDE_PAIRS], weight=count)
        moments.add(1 + INSIDE_PAIRS, differences[-INSIDE_PAIRS:], weight=count)
    return moments


def _windows(pair: SlideComparison, grid: BorderGrid, axis: int, reach: int) -> list[Region]:
    """Return windows across the borders, evenly spread: twice ``reach`` long across them, and ``reach`` along them."""
    size, period = pair.grid.size, grid.spacing_px[axis]
    across, along = (size.width, size.height) if axis == 0 else (size.height, size.width)
    positions = [
        (border, start)
        for border in range(grid.origin_px[axis] % period, across - reach + 1, period)
        if border >= reach
        for start in range(0, along - reach + 1, reach)
    ]
    chosen = positions[:: max(1, -(-len(positions) // MAX_WINDOWS))]
    if axis == 0:
        return [Region(border - reach, start, 2 * reach, reach) for border, start in chosen]
    return [Region(start, border - reach, reach, 2 * reach) for border, start in chosen]


def _steps(pixels: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.float64]:
    """Return the mean absolute difference between each line of pixels and the next, along x (``axis`` 0) or y (1).

    The axes of the array are the other way round: (y, x, color).
    """
    steps = np.abs(np.diff(pixels.astype(np.int16), axis=1 - axis))
    return np.asarray(steps.mean(axis=(axis, 2)), np.float64)
