"""Pixels of the working grid: any region, the same wherever the region is cut."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from ..arrays import RGB, RGBImage
from ..geometry import Region, ceil_to, floor_to
from .grid import STEPS_PER_PX, WorkingGrid
from .pixels import fill_with
from .protocol import Slide

_BLOCK_PX = 3072
"""Side of the piece of a level that is resampled at once: 28 MB, and as much again inside Pillow. Far below the
16,384 px up to which `STEPS_PER_PX` is exact."""

_HAMMING, _BICUBIC = Image.Resampling.HAMMING, Image.Resampling.BICUBIC


def read_region(slide: Slide, grid: WorkingGrid, region: Region, fill: RGB | None = None) -> RGBImage:
    """The pixels of a region of the working grid.

    The slide is taken to lie on an endless plane of ``fill``, which is resampled with it: a Hamming-windowed kernel
    where it shrinks (antialiased; Pillow's, as sharp as bicubic at two thirds of the cost), bicubic where it grows.
    Any region equals the same part of any larger region, bit for bit.

    Parameters
    ----------
    slide
        An open slide.
    grid
        Its working grid.
    region
        In working px; may lie partly or wholly outside the grid.
    fill
        Colour of what the slide does not hold; by default its background.

    Returns
    -------
    RGBImage
        (height, width, 3) uint8.

    Raises
    ------
    UnreadableSlideError
        Where the file is damaged.

    Notes
    -----
    Memory beside the result: one block of 3072² level px and its copy in Pillow, 66 MB, if it resamples.
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
    """The whole grid, (height, width, 3) uint8; meant for the small grids of `overview_grid`.

    Equals `read_region` of all of the grid, with several threads. Memory beside the result: 66 MB per worker,
    however large the level. What the file does not hold is skipped without reading.

    Parameters
    ----------
    slide
        An open slide.
    grid
        Of the slide.
    fill
        Colour of what the slide does not hold; by default its background.
    workers
        Threads; by default one per CPU, at most four.

    Raises
    ------
    UnreadableSlideError
        Where the file is damaged.
    """
    fill = slide.info.background if fill is None else fill
    whole = Region(0, 0, grid.size.width, grid.size.height)
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
    """Pieces of a region that cover at most `_BLOCK_PX` level px, and working px, each way."""
    width, height = (max(1, int(_BLOCK_PX / max(step, 1.0))) for step in grid.step)
    for y in range(region.y, region.bottom, height):
        for x in range(region.x, region.right, width):
            yield Region(x, y, width, height).intersection(region)


def _resample(slide: Slide, grid: WorkingGrid, block: Region, out: RGBImage, fill: RGB) -> None:
    """Read and resample one block into ``out``."""
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
    # chooses the order by the shape of the image, so that windows of different shape would differ by a grey level.
    image = image.resize((block.width, image.height), kernel, (left, 0, right, image.height))
    image = image.resize((block.width, block.height), kernel, (0, top, block.width, bottom))
    out[...] = np.asarray(image)


def _extent(start: int, stop: int, step: float, origin: float, support: float) -> tuple[range, int, float, float]:
    """Along one axis, for working px [start, stop): the level px to read, and what to do with them.

    From steps of 4 on, blocks of 2, 4, … level px, which lie on a lattice of their own from the level's first px, are
    averaged first: it is four times as fast as the kernel, which still has two px and more to average.

    Returns
    -------
    tuple
        Level px; the side of those blocks, 1 for none; where the working px begin and end, in blocks from the first.

    Notes
    -----
    Counted in whole 1/1024 px and divided by powers of two only, so that nothing is rounded. The margin is what the
    kernel reaches beyond the outermost working px, from its centre, so that Pillow never meets the edge of what was
    read.
    """
    side = 2 ** int(math.log2(step / 2)) if step >= 4 else 1
    first, last = (round((origin + value * step) * STEPS_PER_PX) for value in (start, stop))
    margin = math.ceil(support * max(step, 1.0) - step / 2) + side
    read = range(floor_to(first // STEPS_PER_PX - margin, side), ceil_to(-(-last // STEPS_PER_PX) + margin, side))
    unit = STEPS_PER_PX * side
    begin = read.start * STEPS_PER_PX
    return read, side, (first - begin) / unit, (last - begin) / unit
