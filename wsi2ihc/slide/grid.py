"""The working grid: the one lattice of pixels, at the model's resolution, on which a slide is read and written.

Where a working pixel samples the slide is a function of its place on the slide alone, never of the window in which it
is read. Two windows that overlap agree there to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import OptionError
from ..geometry import Region, Size
from .protocol import SlideInfo
from .resolution import MPP_RANGE, Mpp, known_mpp

STEPS_PER_PX = 1024
"""Sample positions are multiples of 1/1024 level px. Pillow takes a box in float32, which has 24 bits: positions up to
16,384 px from the corner of a block are exact."""

AS_IS_TOLERANCE = 0.05
"""A level this close to the wanted resolution is read as it is. Slides and models named "20x" range from 0.46 to
0.5025 µm/px, and a network trained on such data stands 5 %; a resample by so little costs sharpness."""

MAX_ENLARGEMENT = 4.0
"""More than this, a pixel of the slide becomes 16 and more of the model's: a 5x scan shown to a 20x model. The network
would draw the nuclei from nothing."""

MAX_STEP = 2048.0
"""Level px per working px. One working px is computed from two steps each way at once; this bounds the memory."""

_MAX_SIDE_MISMATCH_PX = 2.0

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class WorkingGrid:
    """Working pixel (i, j) covers the level's px from ``origin + (i, j) · step`` to ``origin + (i + 1, j + 1) · step``.

    level:          the level that is read
    step:           level px per working px along (x, y); multiples of 1/1024
    origin:         top-left of working px (0, 0) in level px; multiples of 1/1024
    size:           working px, as many as cover the slide's bounds
    mpp:            µm per working px along (x, y); NaN where the slide's resolution is unknown
    downsample:     level-0 px per working px along (x, y)
    level0_origin:  top-left of working px (0, 0) in level-0 px
    """

    level: int
    step: tuple[float, float]
    origin: tuple[float, float]
    size: Size
    mpp: tuple[float, float]
    downsample: tuple[float, float]
    level0_origin: tuple[float, float]

    @property
    def is_level(self) -> bool:
        """Whether working px are the level's own px, so that nothing is resampled."""
        return self.step == (1.0, 1.0) and all(start.is_integer() for start in self.origin)

    def region_from_level0(self, region: Region) -> Region:
        """The working px that touch a region given in level-0 px of the slide; empty if it lies outside the grid."""
        x, right = _outward(region.x, region.right, self.level0_origin[0], 1 / self.downsample[0])
        y, bottom = _outward(region.y, region.bottom, self.level0_origin[1], 1 / self.downsample[1])
        return Region(x, y, right - x, bottom - y).intersection(Region(0, 0, self.size.width, self.size.height))


def _outward(start: int, stop: int, origin: float, scale: float) -> tuple[int, int]:
    """``(value - origin) · scale``, rounded away from the middle; what is whole but for rounding errors stays."""
    first, last = (start - origin) * scale, (stop - origin) * scale
    if start == stop:
        return math.floor(first), math.floor(first)
    return math.floor(first + _ROUNDING), math.ceil(last - _ROUNDING)


def working_grid(info: SlideInfo, mpp: float | None) -> WorkingGrid:
    """The grid for a model.

    Parameters
    ----------
    info
        The slide.
    mpp
        The model's resolution, µm/px, or None for level 0 as it is (not square, if the slide's px are not).

    Returns
    -------
    WorkingGrid
        Of the level closest to ``mpp``, as it is, if one lies within 5 % along both axes; else resampled, to square
        pixels, from the smallest level that has at least this resolution.

    Raises
    ------
    MissingResolutionError
        If ``mpp`` is given and the slide's resolution is unknown.
    OptionError
        If ``mpp`` is no resolution, or more than four times finer than the slide's.
    """
    if mpp is None:
        return _grid(info, 0, (1.0, 1.0))
    own = known_mpp(info)
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise OptionError(f"a resolution must be {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} µm per pixel, not {mpp}")
    needed = (mpp / own[0], mpp / own[1])
    if min(needed) * MAX_ENLARGEMENT * (1 + AS_IS_TOLERANCE) < 1:
        raise OptionError(
            f"{info.name}: at {max(own):.4g} µm per pixel the slide is {1 / min(needed):.3g} times coarser than the "
            f"{mpp:.4g} that are wanted, and at most {MAX_ENLARGEMENT:g} times is allowed; if the slide's resolution "
            f"is wrong, state it with {info.mpp_option}, else choose a coarser one, or a model for low magnification"
        )
    return _grid_for(info, needed)


def overview_grid(info: SlideInfo, downsample: float) -> WorkingGrid:
    """The grid of an overview of the slide's bounds.

    Parameters
    ----------
    info
        The slide.
    downsample
        Level-0 px per overview px, at least 1. Where the slide's resolution is known, this holds along the finer
        axis, and the overview's px are square; else along both.

    Raises
    ------
    OptionError
        If ``downsample`` is below 1.
    """
    if not 1 <= downsample < math.inf:
        raise OptionError(f"the downsample of an overview must be at least 1, not {downsample}")
    mpp = info.mpp or (1.0, 1.0)
    return _grid_for(info, (downsample * min(mpp) / mpp[0], downsample * min(mpp) / mpp[1]))


def _grid_for(info: SlideInfo, needed: tuple[float, float]) -> WorkingGrid:
    """The grid of about so many level-0 px per working px."""
    usable = [level for level in range(len(info.levels)) if _is_usable(info, level)]
    misfit = {level: max(abs(info.levels[level].downsample / value - 1) for value in needed) for level in usable}
    closest = min(usable, key=lambda level: misfit[level])
    if misfit[closest] <= AS_IS_TOLERANCE:
        return _grid(info, closest, (1.0, 1.0))
    fine_enough = [level for level in usable if info.levels[level].downsample <= min(needed)]
    level = max(fine_enough, key=lambda level: info.levels[level].downsample, default=0)
    downsample = info.levels[level].downsample
    return _grid(info, level, (needed[0] / downsample, needed[1] / downsample))


def _is_usable(info: SlideInfo, level: int) -> bool:
    """Whether a level has the slide's shape; one that has not lies on the slide in an unknown way."""
    size, downsample = info.levels[level].size, info.levels[level].downsample
    if float(downsample).is_integer():  # Philips pads its levels to whole tiles
        return True
    return all(
        abs(small - large / downsample) <= _MAX_SIDE_MISMATCH_PX
        for small, large in ((size.width, info.size.width), (size.height, info.size.height))
    )


def _grid(info: SlideInfo, level: int, step: tuple[float, float]) -> WorkingGrid:
    if max(step) > MAX_STEP:
        raise OptionError(
            f"{info.name}: the slide cannot be reduced {max(step):.4g} times at once; {MAX_STEP:g} is the most"
        )
    downsample, bounds = info.levels[level].downsample, info.bounds
    fineness = 1 if step == (1.0, 1.0) else STEPS_PER_PX
    steps = [max(1, round(value * fineness)) for value in step]
    starts = [math.floor(value / downsample * fineness + _ROUNDING) for value in (bounds.x, bounds.y)]
    stops = [value / downsample * fineness for value in (bounds.right, bounds.bottom)]
    sizes = [
        max(1, math.ceil((stop - start) / step - _ROUNDING))
        for start, stop, step in zip(starts, stops, steps, strict=True)
    ]
    spans = [value / fineness * downsample for value in steps]
    mpp: Mpp = info.mpp or (math.nan, math.nan)
    return WorkingGrid(
        level=level,
        step=(steps[0] / fineness, steps[1] / fineness),
        origin=(starts[0] / fineness, starts[1] / fineness),
        size=Size(sizes[0], sizes[1]),
        mpp=(mpp[0] * spans[0], mpp[1] * spans[1]),
        downsample=(spans[0], spans[1]),
        level0_origin=(starts[0] / fineness * downsample, starts[1] / fineness * downsample),
    )
