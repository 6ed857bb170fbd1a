"""Tissue masks of open slides."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import numpy as np

from ..arrays import RGB, WHITE, BoolImage, RGBImage
from ..geometry import Region
from ..slide import (
    Slide,
    SlideInfo,
    WorkingGrid,
    agreeing_levels,
    known_mpp,
    level_problems,
    overview_grid,
    read_overview,
)
from .detect import find_tissue
from .glass import find_glass
from .mask import TissueMask
from .staining import staining_warning

logger = logging.getLogger(__name__)

DETECTION_MPP = 8.0
"""µm per px at which tissue is looked for: 32 px of a 40x scan."""

LARGEST_OVERVIEW_PX = 16_000_000
"""Larger slides are looked at more coarsely; bounds the memory of detection to some 300 MB."""

LEAST_OVERVIEW_SIDE_PX = 512
"""Small slides (a region cut out for a test) are looked at more finely, as far as level 0 allows."""

PIECE_PX = 512
"""Side of the pieces, in level-0 px, that a slide of which parts were never scanned is looked at in."""

GLANCE_PX = 1_000_000
"""Size of the overview from which the colour of glass is measured where no tissue is looked for."""


def detect_tissue(slide: Slide, *, mpp: float = DETECTION_MPP) -> TissueMask:
    """Find the tissue of a slide, on an overview.

    Parameters
    ----------
    slide
        An open slide; its scanned area (bounds) is searched, and what it does not hold counts as glass. Lower levels
        that do not show what level 0 shows are not used.
    mpp
        µm per px of the mask; coarser on slides of which it would have more than 16 million px, finer on those of
        which it would be less than 512 px wide or high.

    Returns
    -------
    TissueMask
        Empty where there is no tissue. The warnings say if the slide does not look like H&E.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown: what counts as a speck is defined in µm.
    UnreadableSlideError
        If the file is damaged.
    """
    known_mpp(slide.info)  # raises where it is not
    doubts, slide = level_problems(slide), agreeing_levels(slide)
    info, grid = slide.info, mask_grid(slide.info, mpp)
    overview = _look(slide, grid)
    tissue, glass, warnings = find_tissue(overview, math.sqrt(grid.mpp[0] * grid.mpp[1]))
    logger.info("%s: %.1f %% is tissue, glass is %s (overview %s)", info.name, 100 * tissue.mean(), glass, grid.size)
    return TissueMask(
        pixels=tissue,
        origin=grid.level0_origin,
        pixel_size=grid.downsample,
        glass=glass,
        warnings=(*doubts, *warnings, *_doubts(overview, tissue, glass)),
        bounds_origin=(info.bounds.x, info.bounds.y),
    )


def whole_slide(slide: Slide) -> TissueMask:
    """A mask in which all of the scanned area is tissue, but what the file holds no pixels of; the glass colour is
    measured all the same.

    Raises
    ------
    UnreadableSlideError
        If the file is damaged.
    """
    bounds = slide.info.bounds
    glass, warnings = measure_glass(slide)
    held = _held(slide)
    return TissueMask(
        pixels=held,
        origin=(bounds.x, bounds.y),
        pixel_size=(bounds.width / held.shape[1], bounds.height / held.shape[0]),
        glass=glass,
        warnings=warnings,
        bounds_origin=(bounds.x, bounds.y),
    )


def _held(slide: Slide) -> BoolImage:
    """Which parts of the scanned area the file holds pixels of, in pieces of about `PIECE_PX`; (rows, columns)."""
    bounds = slide.info.bounds
    rows, columns = (max(1, round(side / PIECE_PX)) for side in (bounds.height, bounds.width))
    ys = [bounds.y + bounds.height * row // rows for row in range(rows + 1)]
    xs = [bounds.x + bounds.width * column // columns for column in range(columns + 1)]
    held = np.array(
        [
            [not slide.is_blank(0, Region(left, top, right - left, bottom - top)) for left, right in pairwise(xs)]
            for top, bottom in pairwise(ys)
        ]
    )
    return np.ones((1, 1), np.bool_) if held.all() else held


def measure_glass(slide: Slide) -> tuple[RGB, tuple[str, ...]]:
    """The slide's glass colour, and what is doubtful about the slide; for masks that come from elsewhere.

    Raises
    ------
    UnreadableSlideError
        If the file is damaged.
    """
    doubts, slide = level_problems(slide), agreeing_levels(slide)
    overview = _look(slide, overview_grid(slide.info, _coarse_enough(slide.info, 1.0, GLANCE_PX)))
    glass = find_glass(overview).colour
    return glass, (*doubts, *_doubts(overview, np.ones(overview.shape[:2], np.bool_), glass))


def mask_grid(info: SlideInfo, mpp: float = DETECTION_MPP) -> WorkingGrid:
    """The grid of a slide's mask: of `detect_tissue`, and for outlines. As fine as memory allows without resolution."""
    side_px = min(info.bounds.width, info.bounds.height)
    downsample = min(mpp / min(info.mpp), side_px / LEAST_OVERVIEW_SIDE_PX) if info.mpp else 1.0
    return overview_grid(info, _coarse_enough(info, downsample, LARGEST_OVERVIEW_PX))


def _look(slide: Slide, grid: WorkingGrid) -> RGBImage:
    # White is taken for area that was never scanned; another background colour could pass for ink.
    return read_overview(slide, grid, WHITE)


def _coarse_enough(info: SlideInfo, downsample: float, largest_px: int) -> float:
    """The downsample of an overview of at most about ``largest_px``; at least 1."""
    return max(1.0, downsample, math.sqrt(info.bounds.area_px / largest_px))


def _doubts(overview: RGBImage, tissue: BoolImage, glass: RGB) -> tuple[str, ...]:
    warning = staining_warning(overview, tissue, glass)
    return () if warning is None else (warning,)
