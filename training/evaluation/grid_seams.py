"""Whether a slide's own pixels step at the borders of a grid: of its tiles, or of the cores it was made of.

As in `wsi2ihc.translation.seams`, but of a finished file and without the slide that it was made from: the mean
difference of neighbouring pixels across the borders, among those at other places of the grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import Region
from wsi2ihc.slide import read_region, working_grid

from .origin import CellGrid
from .squares import SlidePair, read_he

WINDOWS = 64
"""Places that are looked at for either axis, evenly spread over the borders."""

LEAST_WINDOWS = 4

REACH_PX = 128
"""What is looked at of a cell on either side of a border; phases beyond are not compared."""

BLOCK_PX = 8
"""JPEG's blocks."""

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
    """

    what: str
    contrast: float | None
    z: float | None
    borders: int
    is_relative: bool = False


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
    return GridSeams(cells.what, contrast, z, borders, pair.he is not None)


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
