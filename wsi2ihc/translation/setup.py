"""Everything that is settled before the first window is read: where to look, what with, in which pieces."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import MissingResolutionError, NoTissueError, OptionError
from ..generator.protocol import Translator
from ..geometry import Region, Size, ceil_to
from ..plan import Layout, Plan, TissueGrid, plan_windows
from ..slide import Slide, WorkingGrid, to_srgb_transform, working_grid
from ..tissue import TissueMask, detect_tissue, load_mask, whole_slide
from .options import GIB, TranslateOptions
from .reading import RegionReader

logger = logging.getLogger(__name__)

LARGEST_EXACT_RADIUS_PX = 256
"""Beyond this dependency radius the halo is most of every window, and blending is the sensible default."""

BATCH_OF_SMALL_WINDOWS_PX = 4_000_000
"""With an automatic batch size, a batch on a GPU holds about this many pixels."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The slide as the translation sees it."""

    grid: WorkingGrid
    extent: Region
    mask: TissueMask
    tissue: TissueGrid
    reader: RegionReader


def set_scene(slide: Slide, model_mpp: float | None, options: TranslateOptions) -> Scene:
    """Choose the working grid, find the tissue, and make the reader.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    NoTissueError
        If there is nothing to translate in the region.
    """
    if slide.info.mpp is None:
        raise MissingResolutionError(
            f"{slide.info.name}: the slide does not state its resolution; give it with --mpp (µm per pixel, "
            "about 0.25 at 40x and 0.5 at 20x)"
        )
    grid = working_grid(slide.info, model_mpp)
    extent = Region(0, 0, grid.size.width, grid.size.height)
    if options.region is not None:
        extent = grid.region_from_level0(options.region)
        if extent.is_empty:
            raise OptionError(f"{slide.info.name}: --region {options.region} lies outside the slide")
    mask = find_mask(slide, options)
    colour = None
    if options.icc == "srgb" and slide.info.icc_profile is not None:
        colour = to_srgb_transform(slide.info.icc_profile)
    reader = RegionReader(slide, grid, mask.glass, colour, options.on_read_error == "glass")
    return Scene(grid, extent, mask, _on_grid(mask, grid), reader)


def find_mask(slide: Slide, options: TranslateOptions) -> TissueMask:
    """The tissue mask that the options ask for."""
    if options.tissue == "auto":
        mask = detect_tissue(slide)
    elif options.tissue == "none":
        mask = whole_slide(slide)
    else:
        mask = load_mask(options.tissue, slide)
    if mask.is_empty:
        raise NoTissueError(
            f"{slide.info.name}: no tissue was found; if there is some, draw it (--tissue FILE.geojson) "
            "or translate everything (--tissue none)"
        )
    return mask


def _on_grid(mask: TissueMask, grid: WorkingGrid) -> TissueGrid:
    origin = [
        (mask.origin[axis] - grid.level0_origin[axis]) / grid.downsample[axis] for axis in (0, 1)
    ]
    size = [mask.pixel_size[axis] / grid.downsample[axis] for axis in (0, 1)]
    return TissueGrid(mask.pixels, (origin[0], origin[1]), (size[0], size[1]))


def choose_layout(translator: Translator, options: TranslateOptions, max_window_px: int) -> Layout:
    """Windows as this translator needs them: with a halo where it is exact, overlapping where it is not."""
    overlap_px = 0
    if options.blend == "overlap" or not translator.is_exact:
        unit = 2 * translator.lattice_px
        overlap_px = ceil_to(options.overlap_px or max(128, unit), unit)
    multiple = translator.multiple_px
    return Layout(translator.halo_px, overlap_px, translator.lattice_px, multiple, max_window_px)


def largest_window_px(translator: Translator, options: TranslateOptions, cap_px: int) -> int:
    """How many px a window may have under the memory bound.

    Half of what is left beside the process as it stands is for the network; the rest is for windows waiting to be
    read or encoded, open tiles, and the allocator's slack.
    """
    left_bytes = options.max_memory_bytes - resident_bytes()
    share = max(left_bytes, GIB // 8) // 2
    per_px = translator.bytes_per_px + 3 * 16
    return max(1, min(cap_px, int(share / per_px)))


def resident_bytes() -> int:
    """Memory that this process holds now, or has held at most where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (a kernel file, not a path of ours)
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def make_plan(scene: Scene, layout: Layout, options: TranslateOptions, name: str) -> Plan:
    """Plan the windows.

    Raises
    ------
    NoTissueError
        If the extent holds no tissue.
    """
    cell = None
    if options.core_px:
        side = ceil_to(options.core_px, layout.lattice_px)
        cell = Size(side, side)
    plan = plan_windows(scene.extent, scene.tissue, layout, cell)
    if not plan.windows:
        raise NoTissueError(f"{name}: no tissue in --region {options.region}; choose another, or --tissue none")
    return plan


def answer_to_glass(translator: Translator, layout: Layout, glass: RGB) -> RGB:
    """The generator's own answer to this slide's glass: what untranslated area is filled with.

    The mean over whole periods of the lattice, since an upsampling network may answer flat input with a fine pattern.
    """
    side = ceil_to(2 * layout.halo_px + 4 * layout.lattice_px + 64, math.lcm(layout.multiple_px, layout.lattice_px))
    window = np.empty((1, side, side, 3), dtype=np.uint8)
    window[:] = glass
    answer = translator(window)[0]
    period = layout.lattice_px
    inner = answer[answer.shape[0] // 4 :, answer.shape[1] // 4 :]
    rows, columns = (max(period, length // 2 // period * period) for length in inner.shape[:2])
    mean = inner[:rows, :columns].reshape(-1, 3).mean(axis=0)
    return tuple(int(value) for value in np.rint(mean))  # type: ignore[return-value]


def default_workers() -> int:
    """Cores that this process may use, 32 at most: more threads than that only wait for the disk."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return min(cores, 32)


def batch_size(options: TranslateOptions, plan: Plan, on_gpu: bool) -> int:
    """Windows per call: as asked for, else one on a CPU and some four megapixels on a GPU."""
    if options.batch_size:
        return options.batch_size
    if not on_gpu:
        return 1
    return max(1, BATCH_OF_SMALL_WINDOWS_PX * len(plan.windows) // max(plan.window_px, 1))


