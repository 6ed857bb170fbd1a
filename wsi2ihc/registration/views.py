"""A slide as registration sees it: pixels, µm, and its own glass; and a small copy of it in memory.

Coarse searching looks at all of both slides many times. It does so on overviews, which are slides themselves, so that
one code reads and warps them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..arrays import RGB, BoolImage, RGBImage
from ..geometry import Region
from ..slide import Slide, SlideInfo, WorkingGrid, known_mpp, overview_grid, read_overview, read_region
from ..slide.memory_slide import MemorySlide
from ..tissue import find_tissue
from .transform import FloatArray, LocalField, Transform

OVERVIEW_PX = 1024
"""Long side of an overview, about."""

MARGIN = 0.1
"""Glass around the tissue that an overview shows, as a share of the tissue's longer side."""

WORTH_A_LOOK = 0.7
"""Where the tissue with its margin is shorter than this share of the slide, the overview shows it alone."""

COARSEST_MPP = 48.0
"""Working grids end at 50 µm per px."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideView:
    """A slide whose resolution is known, and the colour of its glass."""

    slide: Slide
    glass: RGB

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per level-0 px along (x, y)."""
        return known_mpp(self.slide.info)

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """The scanned area as (x, y, width, height)."""
        bounds, (mpp_x, mpp_y) = self.slide.info.bounds, self.mpp
        return bounds.x * mpp_x, bounds.y * mpp_y, bounds.width * mpp_x, bounds.height * mpp_y


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """A slide in small, or the part of it that has tissue.

    view:       the small copy, a slide by itself; its µm begin at its own corner
    tissue:     (rows, columns) bool, of the copy's px
    origin_um:  where that corner lies on the slide
    """

    view: SlideView
    tissue: BoolImage
    origin_um: tuple[float, float]

    def distance_um(self, one: FloatArray, other: FloatArray) -> float:
        """How far two affine maps (2, 3) are apart, as the mean over the tissue."""
        rows, columns = np.nonzero(self.tissue)
        some = slice(None, None, max(1, len(rows) // 1000))
        (mpp_x, mpp_y) = self.view.mpp
        places = np.column_stack([columns[some] * mpp_x, rows[some] * mpp_y, np.ones(len(rows[some]))])
        return float(np.hypot(*((one - other) @ places.T)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class OverviewPair:
    """The overviews of both slides."""

    fixed: Overview
    moving: Overview

    @property
    def longest_um(self) -> float:
        """Longer side of what either shows."""
        return max(max(one.view.extent_um[2:]) for one in (self.fixed, self.moving))

    @property
    def finest_mpp(self) -> float:
        """µm per px that both have."""
        return max(max(one.view.mpp) for one in (self.fixed, self.moving))

    def mpp(self, side_px: int) -> float:
        """µm per px at which the longer side has so many px; no finer than both have, no coarser than can be read."""
        return min(max(self.longest_um / side_px, self.finest_mpp), COARSEST_MPP)

    def on_slides(self, transform: Transform) -> Transform:
        """A transform between the overviews as one between the slides."""
        (fixed_x, fixed_y), (moving_x, moving_y) = self.fixed.origin_um, self.moving.origin_um
        return moved(transform, (-fixed_x, -fixed_y), (-moving_x, -moving_y))


def look_at(slide: Slide) -> Overview:
    """The overview of a slide.

    Raises
    ------
    MissingResolutionError
        If its resolution is unknown: positions are in µm.
    UnreadableSlideError
        If the file is damaged.
    """
    info, (mpp_x, mpp_y) = slide.info, known_mpp(slide.info)
    glance, pixels = _overview(slide, max(info.bounds.width * mpp_x, info.bounds.height * mpp_y), None)
    finding = find_tissue(pixels, math.sqrt(glance.mpp[0] * glance.mpp[1]))
    tissue = np.asarray(finding.tissue, np.bool_)
    if (part := _tissue_region(tissue)) is None or part == _all_of(glance):
        return _as_overview(info, glance, _all_of(glance), pixels, finding.glass, tissue)
    # most of the slide is glass: look at the rest more closely
    longest_um = max(part.width * glance.mpp[0], part.height * glance.mpp[1])
    level0 = _level0_region(part, glance)
    grid, pixels = _overview(slide, longest_um, level0)
    region = grid.region_from_level0(level0)
    mask = cv2.resize(
        tissue[part.slices_in(_all_of(glance))].astype(np.uint8), (region.width, region.height),
        interpolation=cv2.INTER_NEAREST,
    )  # fmt: skip
    return _as_overview(info, grid, region, pixels, finding.glass, mask > 0)


def _overview(slide: Slide, longest_um: float, part: Region | None) -> tuple[WorkingGrid, RGBImage]:
    """The whole slide, or the part given in level-0 px, at a resolution at which ``longest_um`` are `OVERVIEW_PX`."""
    grid = overview_grid(slide.info, max(1.0, longest_um / OVERVIEW_PX / min(known_mpp(slide.info))))
    return grid, read_overview(slide, grid) if part is None else read_region(slide, grid, grid.region_from_level0(part))


def _all_of(grid: WorkingGrid) -> Region:
    return Region(0, 0, grid.size.width, grid.size.height)


def _tissue_region(tissue: BoolImage) -> Region | None:
    """The box around the tissue with a margin, if it is well below the whole; the whole else. None without tissue."""
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    whole = Region(0, 0, tissue.shape[1], tissue.shape[0])
    box = Region(int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    part = box.grown(max(4, round(MARGIN * max(box.width, box.height)))).intersection(whole)
    return part if max(part.width, part.height) < WORTH_A_LOOK * max(whole.width, whole.height) else whole


def _level0_region(part: Region, grid: WorkingGrid) -> Region:
    (x, y), (across, down) = grid.level0_origin, grid.downsample
    left, top = math.floor(x + part.x * across), math.floor(y + part.y * down)
    right, bottom = math.ceil(x + part.right * across), math.ceil(y + part.bottom * down)
    return Region(left, top, right - left, bottom - top)


def _as_overview(
    info: SlideInfo, grid: WorkingGrid, region: Region, pixels: RGBImage, glass: RGB, tissue: BoolImage
) -> Overview:
    starts = [
        (origin + start * step) * mpp
        for origin, start, step, mpp in zip(
            grid.level0_origin, (region.x, region.y), grid.downsample, known_mpp(info), strict=True
        )
    ]
    view = SlideView(MemorySlide(pixels, info.name, grid.mpp), glass)
    return Overview(view, tissue, (starts[0], starts[1]))


def moved(transform: Transform, fixed_um: tuple[float, float], moving_um: tuple[float, float]) -> Transform:
    """The same transform between frames whose corners lie at ``fixed_um`` and ``moving_um`` of the present ones."""
    matrix = transform.matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ np.array(fixed_um) - np.array(moving_um)
    field = transform.field
    if field is not None:
        origin = (field.origin_um[0] - fixed_um[0], field.origin_um[1] - fixed_um[1])
        field = LocalField(origin, field.spacing_um, field.coefficients)
    return dataclasses.replace(transform, matrix=matrix, field=field)
