"""Bands: rows of tiles as units of resumable work.

An exact translation plans the windows of each band on their own, in cores that end at its border: any cores give the
same pixels. A blended translation depends on its windows, so that bands take those of the one plan, and a row of
windows across a border is translated for both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..geometry import BoolImage, Region, Size, ceil_to
from .job import TranslationJob
from .options import TranslateOptions
from .stages import FinishedCore
from .window_size import requested_core_size
from .windows import Plan, best_core_size, plan_windows

BAND_PX = 4096
BLENDED_BAND_PX = 8192
"""Default heights in working px: a compromise between work lost by an interruption and work done twice."""


@dataclass(frozen=True, slots=True)
class Band:
    """A band of the output."""

    number: int  # position from top to bottom, from 0
    region: Region  # region of the output, in working px
    rows: range  # rows of tiles of the output
    work: Plan  # windows to translate
    shown: Plan  # the same windows, with cores cropped to the region, which is the extent of this plan


def band_height(options: TranslateOptions, overlap_px: int, tile_px: int) -> int:
    """Return the requested or default height of a band in working px, rounded up to whole tiles.

    ``overlap_px`` is the overlap of blended windows; 0 if translation is exact.
    """
    return ceil_to(options.band_px or (BLENDED_BAND_PX if overlap_px else BAND_PX), tile_px)


def core_for_bands(job: TranslationJob, band_px: int) -> Size:
    """Return the core size with the least work over all bands of this height, in working px.

    Blended windows are those of the job's plan, and so is their core size.
    """
    if job.layout.overlap_px:
        return job.plan.core_size
    regions = list(_band_regions(job.plan.extent, band_px))
    return requested_core_size(job.layout, job.options) or best_core_size(regions, job.prepared.covered, job.layout)


def divide_into_bands(job: TranslationJob, core_size: Size, band_px: int) -> tuple[Band, ...]:
    """Divide a job into bands. ``band_px`` is a multiple of the tile size.

    Memory bound: about 100 bytes per window.
    """
    tile_px, bands = job.options.pyramid.tile_px, []
    for number, region in enumerate(_band_regions(job.plan.extent, band_px)):
        first = number * band_px // tile_px
        rows = range(first, first + -(-region.height // tile_px))
        if job.layout.overlap_px:
            work = _windows_overlapping(job.plan, region)
        else:
            work = plan_windows(region, job.prepared.covered, job.layout, core_size)
        bands.append(Band(number, region, rows, work, _crop_plan(work, region)))
    return tuple(bands)


def occupied_tiles(bands: Iterable[Band], tile_px: int) -> BoolImage:
    """Return which tiles of the output contain a core; (rows, columns) bool."""
    return np.concatenate([band.shown.occupied_tiles(tile_px) for band in bands])


def crop_to_band(cores: Iterable[FinishedCore], region: Region) -> Iterator[FinishedCore]:
    """Crop cores to a band, and drop those outside it. Order is kept."""
    for finished in cores:
        core = finished.window.core
        part = core.intersection(region)
        if part == core:
            yield finished
        elif not part.is_empty:
            inside = part.slices_in(core)
            yield FinishedCore(replace(finished.window, core=part), finished.source[inside], finished.pixels[inside])


def _band_regions(extent: Region, band_px: int) -> Iterator[Region]:
    for y in range(extent.y, extent.bottom, band_px):
        yield Region(extent.x, y, extent.width, min(band_px, extent.bottom - y))


def _windows_overlapping(plan: Plan, region: Region) -> Plan:
    """Select the windows of a plan whose outputs overlap a region."""
    windows = tuple(window for window in plan.windows if not window.output_region.intersection(region).is_empty)
    return replace(plan, windows=windows)


def _crop_plan(plan: Plan, region: Region) -> Plan:
    cropped = (replace(window, core=window.core.intersection(region)) for window in plan.windows)
    return replace(plan, extent=region, windows=tuple(window for window in cropped if not window.core.is_empty))
