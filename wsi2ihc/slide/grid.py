"""The working grid: pixels at the model's resolution, read the same in any region."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import OptionError
from ..geometry import RGB, Region, RGBImage, Size, ceil_to, floor_to
from .level_factors import has_exact_size
from .metadata import MPP_RANGE, Mpp, known_mpp
from .protocol import Slide, SlideInfo, fill_with

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

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class WorkingGrid:
    """Working pixel (i, j) covers the px of the level from ``origin + (i, j) · step``, ``step`` px each way."""

    level: int  # the level that is read
    step: tuple[float, float]  # level px per working px along (x, y); multiples of 1/1024
    origin: tuple[float, float]  # top-left of working px (0, 0) in level px; multiples of 1/1024
    size: Size  # working px, as many as cover the slide's bounds
    mpp: tuple[float, float]  # µm per working px along (x, y); NaN where the slide's resolution is unknown
    downsample: tuple[float, float]  # level-0 px per working px along (x, y)
    level0_origin: tuple[float, float]  # top-left of working px (0, 0) in level-0 px

    @property
    def is_level(self) -> bool:
        """Whether working px are the px of the level, without resampling."""
        return self.step == (1.0, 1.0) and all(start.is_integer() for start in self.origin)

    def region_from_level0(self, region: Region) -> Region:
        """Return the working px that overlap a region in level-0 px; empty if it lies outside the grid."""
        x, right = _outward(region.x, region.right, self.level0_origin[0], 1 / self.downsample[0])
        y, bottom = _outward(region.y, region.bottom, self.level0_origin[1], 1 / self.downsample[1])
        return Region(x, y, right - x, bottom - y).intersection(self.size.frame)


def _outward(start: int, stop: int, origin: float, scale: float) -> tuple[int, int]:
    """Return ``(value - origin) · scale`` rounded outward; integers up to rounding errors are kept."""
    first, last = (start - origin) * scale, (stop - origin) * scale
    if start == stop:
        return math.floor(first), math.floor(first)
    return math.floor(first + _ROUNDING), math.ceil(last - _ROUNDING)


def working_grid(info: SlideInfo, mpp: float | None) -> WorkingGrid:
    """Return the working grid of a slide for a model of ``mpp`` µm/px.

    The grid is that of the level closest to ``mpp``, without resampling, if it is within 5 % along both axes.
    Otherwise, it has square pixels, resampled from the smallest level of at least this resolution. If ``mpp`` is None,
    it is level 0 without resampling (not square if the slide's px are not).

    Raises
    ------
    MissingResolutionError
        If ``mpp`` is given and the slide's resolution is unknown.
    OptionError
        If ``mpp`` is invalid, or more than four times finer than the slide's.
    """
    if mpp is None:
        return _grid(info, 0, (1.0, 1.0))
    own = known_mpp(info)
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise OptionError(f"a resolution must be {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} µm/px, not {mpp}")
    needed = (mpp / own[0], mpp / own[1])
    if min(needed) * MAX_ENLARGEMENT * (1 + AS_IS_TOLERANCE) < 1:
        raise OptionError(
            f"{info.name}: at {max(own):.4g} µm/px the slide is {1 / min(needed):.3g} times coarser than the "
            f"{mpp:.4g} that are wanted, and at most {MAX_ENLARGEMENT:g} times is allowed; if the slide's resolution "
            f"is wrong, state it with {info.mpp_option}, else choose a coarser one, or a model for low magnification"
        )
    return _grid_for(info, needed)


def overview_grid(info: SlideInfo, downsample: float) -> WorkingGrid:
    """Return the grid of an overview of the slide's bounds, of ``downsample`` level-0 px per overview px, at least 1.

    If the slide's resolution is known, this holds along the finer axis, and the overview's px are square.
    """
    if not 1 <= downsample < math.inf:
        raise OptionError(f"the downsample of an overview must be at least 1, not {downsample}")
    mpp = info.mpp or (1.0, 1.0)
    return _grid_for(info, (downsample * min(mpp) / mpp[0], downsample * min(mpp) / mpp[1]))


def _grid_for(info: SlideInfo, needed: tuple[float, float]) -> WorkingGrid:
    """Return the grid with about this many level-0 px per working px."""
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
    """Whether a level has the aspect ratio of the slide; otherwise its position on the slide is unknown."""
    size, downsample = info.levels[level].size, info.levels[level].downsample
    # Philips pads its levels to whole tiles.
    return float(downsample).is_integer() or has_exact_size(info.size, size, downsample)


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


_BLOCK_PX = 3072
"""Side of the piece of a level that is resampled at once: 28 MB, and as much again inside Pillow. Far below the
16,384 px up to which `STEPS_PER_PX` is exact."""

_HAMMING, _BICUBIC = Image.Resampling.HAMMING, Image.Resampling.BICUBIC


def read_region(slide: Slide, grid: WorkingGrid, region: Region, fill: RGB | None = None) -> RGBImage:
    """Read the pixels of a region of the working grid.

    The slide lies on an endless plane of ``fill`` (by default its background), which is resampled with it: by a
    Hamming-windowed kernel if it shrinks (antialiased; Pillow's, as sharp as bicubic at two thirds of the cost), and
    bicubic if it grows. Any region, also beyond the grid, equals the same part of any larger region, bit for bit.

    Memory beside the result: one block of 3072² level px and its copy in Pillow, 66 MB, if it resamples.

    Parameters
    ----------
    region
        In working px.

    Raises
    ------
    UnreadableSlideError
        If the file is damaged there.
    """
    fill = slide.info.background if fill is None else fill
    if grid.is_level:
        origin = (int(grid.origin[0]), int(grid.origin[1]))
        return slide.read_level(grid.level, region.shifted(*origin), fill)
    pixels = np.empty((region.height, region.width, 3), np.uint8)
    for block in _blocks(grid, region):
        _resample(slide, grid, block, pixels[block.slices_in(region)], fill)
    return pixels


def read_overview(slide: Slide, grid: WorkingGrid, fill: RGB | None = None, *, workers: int | None = None) -> RGBImage:
    """Read the whole grid, (height, width, 3) uint8; meant for the small grids of `overview_grid`.

    Equals `read_region` of the whole grid, with several threads (by default one per CPU, at most four). Memory beside
    the result: 66 MB per worker, however large the level. What the file does not hold is skipped without reading.
    """
    fill = slide.info.background if fill is None else fill
    whole = grid.size.frame
    pixels = np.empty((whole.height, whole.width, 3), np.uint8)
    count = min(4, os.cpu_count() or 1) if workers is None else workers

    def read(block: Region) -> None:
        pixels[block.slices_in(whole)] = read_region(slide, grid, block, fill)

    with ThreadPoolExecutor(count, "overview") as pool:
        try:
            for future in [pool.submit(read, block) for block in _blocks(grid, whole)]:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return pixels


def _blocks(grid: WorkingGrid, region: Region) -> Iterator[Region]:
    """Yield pieces of a region that cover at most `_BLOCK_PX` level px and working px along each axis."""
    width, height = (max(1, int(_BLOCK_PX / max(step, 1.0))) for step in grid.step)
    for y in range(region.y, region.bottom, height):
        for x in range(region.x, region.right, width):
            yield Region(x, y, width, height).intersection(region)


def _resample(slide: Slide, grid: WorkingGrid, block: Region, out: RGBImage, fill: RGB) -> None:
    shrinks = min(grid.step) >= 1.0
    kernel, support = (_HAMMING, 1.0) if shrinks else (_BICUBIC, 2.0)
    x, across, left, right = _extent(block.x, block.right, grid.step[0], grid.origin[0], support)
    y, down, top, bottom = _extent(block.y, block.bottom, grid.step[1], grid.origin[1], support)
    source = Region(x.start, y.start, len(x), len(y))
    if slide.is_blank(grid.level, source):
        fill_with(out, fill)
        return
    image = Image.fromarray(slide.read_level(grid.level, source, fill))
    if (across, down) != (1, 1):
        image = image.reduce((across, down))
    # One axis at a time, always in this order: between them Pillow rounds to 8 bits, and left to itself (13.0) it
    # chooses the order by the shape of the image, so that windows of different shape would differ by a gray level.
    image = image.resize((block.width, image.height), kernel, (left, 0, right, image.height))
    image = image.resize((block.width, block.height), kernel, (0, top, block.width, bottom))
    out[...] = np.asarray(image)


def _extent(start: int, stop: int, step: float, origin: float, support: float) -> tuple[range, int, float, float]:
    """Return the level px to read for working px [start, stop) along one axis, and how to resample them.

    These are the level px; the side of the blocks that are averaged first, 1 for none; and where the working px begin
    and end, in blocks from the first. From steps of 4 on, blocks of 2, 4, … level px, on a grid that starts at the
    level's first px, are averaged first: this is four times as fast as the kernel, which still averages two px or more.

    Positions are counted in whole 1/1024 px and divided by powers of two only, so that nothing is rounded. The margin
    is the radius of the kernel around the outermost working px, so that Pillow never meets the edge of the read part.
    """
    side = 2 ** int(math.log2(step / 2)) if step >= 4 else 1
    first, last = (round((origin + value * step) * STEPS_PER_PX) for value in (start, stop))
    margin = math.ceil(support * max(step, 1.0) - step / 2) + side
    read = range(floor_to(first // STEPS_PER_PX - margin, side), ceil_to(-(-last // STEPS_PER_PX) + margin, side))
    unit = STEPS_PER_PX * side
    begin = read.start * STEPS_PER_PX
    return read, side, (first - begin) / unit, (last - begin) / unit
