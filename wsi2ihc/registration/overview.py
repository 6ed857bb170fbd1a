"""Overviews of slides for registration, and stain density."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGB, BoolImage, Region, RGBImage
from ..slide import Slide, SlideInfo, WorkingGrid, known_mpp, overview_grid, read_overview, read_region
from ..slide.readers.image_reader import MemorySlide
from ..stains import DAB, EOSIN, HEMATOXYLIN, Direction, unmixing
from ..tissue import find_tissue
from .transform import FloatArray, LocalField, Transform

OVERVIEW_PX = 1024
"""Approximate long side of an overview."""

MARGIN = 0.1
"""Margin around the tissue in an overview, as a fraction of the longer side of the tissue."""

MIN_OVERVIEW = 0.7
"""The overview is cropped to the tissue and its margin if they are shorter than this fraction of the slide."""

COARSEST_MPP = 48.0
"""Working grids end at 50 µm per px."""


@dataclass(frozen=True, slots=True, eq=False)
class RegistrationView:
    """Slide of known resolution and the color of its background."""

    slide: Slide
    background: RGB

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per level-0 px along (x, y)."""
        return known_mpp(self.slide.info)

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """Scanned area as (x, y, width, height)."""
        bounds, (mpp_x, mpp_y) = self.slide.info.bounds, self.mpp
        return bounds.x * mpp_x, bounds.y * mpp_y, bounds.width * mpp_x, bounds.height * mpp_y


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """Downsampled slide, or the part of it that has tissue."""

    view: RegistrationView  # downsampled copy, with positions in µm from its own corner
    tissue: BoolImage  # (rows, columns) bool, in px of the copy
    origin_um: tuple[float, float]  # position of that corner on the slide

    def distance_um(self, one: FloatArray, other: FloatArray) -> float:
        """Return the mean distance of two affine maps (2, 3) over the tissue."""
        rows, columns = np.nonzero(self.tissue)
        some = slice(None, None, max(1, len(rows) // 1000))
        (mpp_x, mpp_y) = self.view.mpp
        points = np.column_stack([columns[some] * mpp_x, rows[some] * mpp_y, np.ones(len(rows[some]))])
        return float(np.hypot(*((one - other) @ points.T)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class OverviewPair:
    """Overviews of both slides."""

    fixed: Overview
    moving: Overview

    @property
    def longest_um(self) -> float:
        """Longest side of both overviews."""
        return max(max(one.view.extent_um[2:]) for one in (self.fixed, self.moving))

    @property
    def finest_mpp(self) -> float:
        """Finest resolution that both have, in µm per px."""
        return max(max(one.view.mpp) for one in (self.fixed, self.moving))

    def mpp(self, side_px: int) -> float:
        """Return the resolution at which the longer side has a number of px, within the readable range."""
        return min(max(self.longest_um / side_px, self.finest_mpp), COARSEST_MPP)

    def on_slides(self, transform: Transform) -> Transform:
        """Convert a transform between the overviews to one between the slides."""
        (fixed_x, fixed_y), (moving_x, moving_y) = self.fixed.origin_um, self.moving.origin_um
        return moved(transform, (-fixed_x, -fixed_y), (-moving_x, -moving_y))


def overview_of(slide: Slide) -> Overview:
    """Read the overview of a slide.

    Raises
    ------
    MissingResolutionError
        If its resolution is unknown: positions are in µm.
    UnreadableSlideError
        If the file is damaged.
    """
    info, (mpp_x, mpp_y) = slide.info, known_mpp(slide.info)
    overview, pixels = _overview(slide, max(info.bounds.width * mpp_x, info.bounds.height * mpp_y), None)
    finding = find_tissue(pixels, math.sqrt(overview.mpp[0] * overview.mpp[1]))
    tissue = np.asarray(finding.tissue, np.bool_)
    if (part := _tissue_region(tissue)) is None or part == _all_of(overview):
        return _as_overview(info, overview, _all_of(overview), pixels, finding.background, tissue)
    # most of the slide is background: read the tissue at a finer resolution
    longest_um = max(part.width * overview.mpp[0], part.height * overview.mpp[1])
    level0 = _level0_region(part, overview)
    grid, pixels = _overview(slide, longest_um, level0)
    region = grid.region_from_level0(level0)
    mask = cv2.resize(
        tissue[part.slices_in(_all_of(overview))].astype(np.uint8), (region.width, region.height),
        interpolation=cv2.INTER_NEAREST,
    )  # fmt: skip
    return _as_overview(info, grid, region, pixels, finding.background, mask > 0)


def _overview(slide: Slide, longest_um: float, part: Region | None) -> tuple[WorkingGrid, RGBImage]:
    """Read a slide or a part in level-0 px, at the resolution at which ``longest_um`` is `OVERVIEW_PX`."""
    grid = overview_grid(slide.info, max(1.0, longest_um / OVERVIEW_PX / min(known_mpp(slide.info))))
    return grid, read_overview(slide, grid) if part is None else read_region(slide, grid, grid.region_from_level0(part))


def _all_of(grid: WorkingGrid) -> Region:
    return Region(0, 0, grid.size.width, grid.size.height)


def _tissue_region(tissue: BoolImage) -> Region | None:
    """Return the bounding box of the tissue with a margin, or the entire image if that is little larger."""
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    image = Region(0, 0, tissue.shape[1], tissue.shape[0])
    box = Region(int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    part = box.grown(max(4, round(MARGIN * max(box.width, box.height)))).intersection(image)
    return part if max(part.width, part.height) < MIN_OVERVIEW * max(image.width, image.height) else image


def _level0_region(part: Region, grid: WorkingGrid) -> Region:
    (x, y), (across, down) = grid.level0_origin, grid.downsample
    left, top = math.floor(x + part.x * across), math.floor(y + part.y * down)
    right, bottom = math.ceil(x + part.right * across), math.ceil(y + part.bottom * down)
    return Region(left, top, right - left, bottom - top)


def _as_overview(
    info: SlideInfo, grid: WorkingGrid, region: Region, pixels: RGBImage, background: RGB, tissue: BoolImage
) -> Overview:
    starts = [
        (origin + start * step) * mpp
        for origin, start, step, mpp in zip(
            grid.level0_origin, (region.x, region.y), grid.downsample, known_mpp(info), strict=True
        )
    ]
    view = RegistrationView(MemorySlide(pixels, info.name, grid.mpp), background)
    return Overview(view, tissue, (starts[0], starts[1]))


def moved(transform: Transform, fixed_um: tuple[float, float], moving_um: tuple[float, float]) -> Transform:
    """Return the transform between frames whose origins are shifted by ``fixed_um`` and ``moving_um``."""
    matrix = transform.matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ np.array(fixed_um) - np.array(moving_um)
    field = transform.field
    if field is not None:
        origin = (field.origin_um[0] - fixed_um[0], field.origin_um[1] - fixed_um[1])
        field = LocalField(origin, field.spacing_um, field.coefficients)
    return dataclasses.replace(transform, matrix=matrix, field=field)


Stain: TypeAlias = Literal["he", "ihc"]

FloatImages: TypeAlias = npt.NDArray[np.float32]
"""(rows, columns, 2) float32: mean optical density (base 10) of the three channels; density of hematoxylin."""

TISSUE_DENSITY = 0.08
"""Smallest mean optical density of tissue. Dirt and JPEG noise on background stay below 0.05."""

_SECOND: dict[Stain, Direction] = {"he": EOSIN, "ihc": DAB}
"""Second stain beside hematoxylin."""


def structure(pixels: RGBImage, background: RGB, stain: Stain) -> FloatImages:
    """Compute the two densities of an image, (rows, columns, 2), which are not negative; 0 for the background color."""
    mean, hematoxylin = (
        functools.reduce(cv2.add, [cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)])
        for channels, tables in (((cv2.split(pixels)), tables) for tables in _tables(background, stain))
    )
    return np.asarray(np.maximum(np.dstack([mean, hematoxylin]), 0), np.float32)


@functools.lru_cache(64)
def _tables(background: RGB, stain: Stain) -> tuple[tuple[npt.NDArray[np.float32], ...], ...]:
    """Return lookup tables from gray level to density: two densities by three channels."""
    levels = np.maximum(np.arange(256), 1)
    densities = [np.maximum(-np.log10(levels / max(value, 1)), 0) for value in background]
    weights = unmixing(HEMATOXYLIN, _SECOND[stain])[:, 0]
    return (
        tuple(np.asarray(density / 3, np.float32) for density in densities),
        tuple(np.asarray(density * share, np.float32) for density, share in zip(densities, weights, strict=True)),
    )
