"""Whether a slide's own pixels step at the borders of a grid: of its tiles, or of the cores it was made of.

As in `wsi2ihc.translation.seams`, but of a finished file and without the slide that it was made from: the mean
difference of neighbouring pixels across the borders, among those at other places of the grid; and the differences in
shade, as in `wsi2ihc.translation.shades`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import Region
from wsi2ihc.slide import read_region, working_grid
from wsi2ihc.translation.shades import BLOCK_PX as STRIP_PX
from wsi2ihc.translation.shades import Moments, ShadeFigures, ShadeSums

from .origin import CellGrid
from .squares import SlidePair, read_he

WINDOWS = 64
"""Places that are looked at for either axis, evenly spread over the borders."""

LEAST_WINDOWS = 4

REACH_PX = 128
"""What is looked at of a cell on either side of a border; phases beyond are not compared."""

BLOCK_PX = 8
"""JPEG's blocks."""

INSIDE_PAIRS = 4
"""Pairs of strips on either side of a border that its own pair is compared with."""

PLAIN = 2.0
"""Mean difference of neighbouring pixels, in grey levels, below which a window lies on glass or fill."""


@dataclass(frozen=True, slots=True)
class GridSeams:
    """Steps at the borders of a grid, along the axis where they stand out more.

    what:      the grid is of
    contrast:  mean difference across borders over that at the other phases; None where too few borders have tissue
    z:         how many standard deviations of the other phases it is off
    borders:   windows with tissue at a border that were looked at
    is_relative: whether steps of the source were divided out
    shade_z, shade_step: of the differences in shade, see `ShadeFigures`; None without the source
    """

    what: str
    contrast: float | None
    z: float | None
    borders: int
    is_relative: bool = False
    shade_z: float | None = None
    shade_step: float | None = None


def measure_grid(pair: SlidePair, cells: CellGrid) -> GridSeams:
    """Measure the virtual slide at the borders of a grid, relative to its source where that is at hand.

    Borders are compared with places at multiples of 8 px from them only: where JPEG's blocks meet at the borders, they
    meet at all of these, so that what its compression does is done at all alike. Steps that the source has at the same
    places (the tiles that its scanner stored) are divided out.
    """
    found = [
        _measure_axis(pair, axis, period, origin % period)
        for axis, (period, origin) in enumerate(zip(cells.cell_px, cells.origin_px, strict=True))
    ]
    borders = sum(count for _, _, count in found)
    known = [(contrast, z) for contrast, z, _ in found if contrast is not None and z is not None]
    contrast, z = max(known, key=lambda one: abs(one[1]), default=(None, None))
    # the shades of the tissue itself cannot be told from those of windows without the source
    shades = ShadeFigures(None, None) if pair.he is None else _measure_shades(pair, cells)
    return GridSeams(cells.what, contrast, z, borders, pair.he is not None, shades.z, shades.step)


def _measure_axis(pair: SlidePair, axis: int, period: int, origin: int) -> tuple[float | None, float | None, int]:
    """Contrast, z, and how many windows, of the borders that are crossed along x (0) or y (1)."""
    grid = working_grid(pair.virtual.info, None)
    reach = min(REACH_PX, period // 2 // BLOCK_PX * BLOCK_PX)
    profiles, sources = [], []
    for region in _windows(grid.size.width, grid.size.height, axis, range(origin, 10**7, period), reach):
        steps = _steps(read_region(pair.virtual, grid, region), axis)[BLOCK_PX - 1 :: BLOCK_PX]
        if steps.mean() > PLAIN:
            profiles.append(steps)
            if (he := read_he(pair, grid, region)) is not None:
                sources.append(_steps(he, axis)[BLOCK_PX - 1 :: BLOCK_PX])
    if len(profiles) < LEAST_WINDOWS:
        return None, None, len(profiles)
    profile = np.mean([one / one.mean() for one in profiles], axis=0)
    if sources:
        profile /= np.mean([one / max(one.mean(), 1e-6) for one in sources], axis=0)
    middle = reach // BLOCK_PX - 1
    others = np.delete(profile, middle)
    contrast = float(profile[middle] / others.mean())
    return contrast, float((profile[middle] - others.mean()) / max(float(others.std()), 1e-6)), len(profiles)


def _measure_shades(pair: SlidePair, cells: CellGrid) -> ShadeFigures:
    sums = (
        _sum_shades(pair, axis, period, origin % period, cells.overlap_px)
        for axis, (period, origin) in enumerate(zip(cells.cell_px, cells.origin_px, strict=True))
    )
    return ShadeSums(*sums).figures()


def _sum_shades(pair: SlidePair, axis: int, period: int, origin: int, overlap_px: int) -> Moments:
    """Sum the differences between strips, whose distance is the overlap, across borders and on either side of them."""
    grid, moments = working_grid(pair.virtual.info, None), Moments.zeros(1 + 2 * INSIDE_PAIRS)
    side = STRIP_PX if period >= 16 * STRIP_PX else STRIP_PX // 2
    half = min(-(-overlap_px // side), period // side // 4) // 2
    count = INSIDE_PAIRS + half + (apart := 1 + 2 * half)  # strips on either side
    if count + half > period // side:
        return moments
    for region in _windows(grid.size.width, grid.size.height, axis, range(origin, 10**7, period), count * side):
        pixels = read_region(pair.virtual, grid, region)
        he = read_he(pair, grid, region)
        if he is None or _steps(pixels, axis).mean() <= PLAIN:
            continue
        strips = np.hstack([image.mean(axis=axis).reshape(2 * count, side, 3).mean(axis=1) for image in (pixels, he)])
        differences = strips[apart:] - strips[:-apart]
        moments.add(0, differences[[count - 1 - half]], count)
        moments.add(1, differences[:INSIDE_PAIRS], count)
        moments.add(1 + INSIDE_PAIRS, differences[-INSIDE_PAIRS:], count)
    return moments


def _windows(width: int, height: int, axis: int, borders: range, reach: int) -> list[Region]:
    """Windows of twice the reach across a border, half as long along it, evenly spread."""
    along, across = (height, width) if axis == 0 else (width, height)
    places = [
        (border, start)
        for border in itertools.takewhile(lambda place: place <= across - reach, borders)
        if border >= reach
        for start in range(0, along - reach + 1, reach)
    ]
    chosen = places[:: max(1, -(-len(places) // WINDOWS))]
    if axis == 0:
        return [Region(border - reach, start, 2 * reach, reach) for border, start in chosen]
    return [Region(start, border - reach, reach, 2 * reach) for border, start in chosen]


def _steps(pixels: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.float64]:
    """Mean absolute difference between each line of pixels and the next, along x (0) or y (1)."""
    values = pixels.astype(np.int16)
    steps = np.abs(np.diff(values, axis=1 - axis))
    return np.asarray(steps.mean(axis=(axis, 2)), np.float64)
