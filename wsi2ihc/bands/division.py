"""A slide in bands: rows of tiles of the output that are translated by themselves, with the pixels of the whole.

Where a translation is exact, a band has cells of its own, which never cross its border: all that is done twice is the
halo there. Where windows are blended, the windows are those of the one plan of the slide, since their answers depend on
where they lie; a window that reaches into two bands is translated for both, and a core that lies in both is cut.

What is done twice, at the default heights: of an exact translation next to nothing, since a band holds whole rows of
cells, which have their halos in one piece as well (0 to 2 % more px of windows; 6 % where memory is short); of a
blended one, a row of windows at each border (10 to 20 %).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import BoolImage
from ..geometry import Region, Size, ceil_to
from ..plan import Plan, best_cell, plan_windows
from ..translation.job import Job
from ..translation.layout import chosen_cell
from ..translation.options import TranslateOptions
from ..translation.stages import FinishedCore

BAND_PX = 4096
BLENDED_BAND_PX = 8192
"""Heights, in working px, rounded up to whole tiles: what a killed run loses at most, against what is done twice."""


@dataclass(frozen=True, slots=True)
class Band:
    """One band.

    number:  from 0, top to bottom
    region:  what it shows, in working px
    rows:    its rows of tiles, counted in the output
    work:    the windows to translate
    shown:   the same windows with their cores cut to the region, which is the plan's extent
    """

    number: int
    region: Region
    rows: range
    work: Plan
    shown: Plan


def band_height(options: TranslateOptions, overlap_px: int, tile_px: int) -> int:
    """Height of a band in working px: as asked for, else the default; rounded up to whole tiles.

    Parameters
    ----------
    overlap_px
        What neighbouring windows share to be blended; 0 where translation is exact.
    tile_px
        Side of the output's tiles.
    """
    return ceil_to(options.band_px or (BLENDED_BAND_PX if overlap_px else BAND_PX), tile_px)


def cell_for_bands(job: Job, band_px: int) -> Size:
    """The size of cells that all bands share, working px: the one with the least work over bands of this height.

    Where windows are blended it is that of the job's plan, since the windows are.
    """
    if job.layout.overlap_px:
        return job.plan.cell
    regions = list(_regions(job.plan.extent, band_px))
    return chosen_cell(job.layout, job.options) or best_cell(regions, job.scene.covered, job.layout)


def divide(job: Job, cell: Size, band_px: int) -> tuple[Band, ...]:
    """All bands of a job. ``band_px`` is a multiple of the side of the output's tiles.

    Memory bound: some 100 bytes per window.
    """
    tile_px, bands = job.options.pyramid.tile_px, []
    for number, region in enumerate(_regions(job.plan.extent, band_px)):
        first = number * band_px // tile_px
        rows = range(first, first + -(-region.height // tile_px))
        if job.layout.overlap_px:
            work = _overlapping(job.plan, region)
        else:
            work = plan_windows(region, job.scene.covered, job.layout, cell)
        bands.append(Band(number, region, rows, work, _cut(work, region)))
    return tuple(bands)


def occupied_tiles(bands: Iterable[Band], tile_px: int) -> BoolImage:
    """Which tiles of the output hold any core; (rows, columns) bool."""
    return np.concatenate([band.shown.occupied_tiles(tile_px) for band in bands])


def cut_to_band(cores: Iterable[FinishedCore], region: Region) -> Iterator[FinishedCore]:
    """What of each core lies in a band; those that lie beside it are dropped. Order is kept."""
    for core in cores:
        whole = core.window.core
        part = whole.intersection(region)
        if part == whole:
            yield core
        elif not part.is_empty:
            inside = part.slices_in(whole)
            yield FinishedCore(replace(core.window, core=part), core.source[inside], core.pixels[inside])


def _regions(extent: Region, band_px: int) -> Iterator[Region]:
    for y in range(extent.y, extent.bottom, band_px):
        yield Region(extent.x, y, extent.width, min(band_px, extent.bottom - y))


def _overlapping(plan: Plan, region: Region) -> Plan:
    """The windows of a plan whose answers reach into a region."""
    windows = tuple(window for window in plan.windows if not window.answer.intersection(region).is_empty)
    return replace(plan, windows=windows)


def _cut(plan: Plan, region: Region) -> Plan:
    cut = (replace(window, core=window.core.intersection(region)) for window in plan.windows)
    return replace(plan, extent=region, windows=tuple(window for window in cut if not window.core.is_empty))
