"""From two slides and a transform to aligned patches.

The H&E is read as a translation reads it: the same working grid, the same pixels. The IHC is read once per patch, at
the places that the transform gives to the pixels of the H&E. What can be told from the tissue masks and the transform
alone (too little tissue, outside of the IHC slide) is told without reading a pixel.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import BoolImage, RGBImage
from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.ordered import ordered_map
from wsi2ihc.plan import TissueGrid
from wsi2ihc.registration.transform import Transform, moving_grid
from wsi2ihc.registration.warping import read_warped
from wsi2ihc.slide import Slide, WorkingGrid, agreeing_levels, known_mpp, read_overview, read_region, working_grid
from wsi2ihc.tissue import TissueMask, place_mask
from wsi2ihc.tissue.survey import mask_grid

from .agreement import agreement
from .cells import Tissue
from .coverage import tissue_share
from .filters import PatchFigures, why_rejected
from .measuring import Thickness, fold_density, looks
from .options import PairsOptions
from .views import Colors, colors_of, seen_as, tissue_of

_log = logging.getLogger(__name__)

CANDIDATE_SHARE = 0.05
"""Places with less tissue in the H&E are glass, and are not counted as patches."""

SAMPLES = 33
"""Points along each side of a patch at which the masks are looked up; the first and last are its outermost px."""


@dataclass(frozen=True, slots=True, eq=False)
class CutPatch:
    """A pair of patches, or the place of one that was not read.

    region:   in working px of the H&E slide
    x_um, y_um: top left corner on the H&E slide
    he, ihc:  pixels (rows, columns, 3); (0, 0, 3) where the masks alone left the patch out
    valid:    (rows, columns) bool, whether the px lies on the IHC slide; (0, 0) if nothing was read
    figures:  what was measured
    rejected: why it is left out, one of `filters.REASONS`; "" if it is kept
    unreadable: whether a slide cannot be read there; then it is left out as lying outside
    """

    region: Region
    x_um: float
    y_um: float
    he: RGBImage
    ihc: RGBImage
    valid: BoolImage
    figures: PatchFigures
    rejected: str
    unreadable: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class CutPlan:
    """A pair of slides made ready to be cut.

    grid:      the working grid of the H&E slide
    mpp:       µm per working px along (x, y), as it is; patches carry this
    regions:   places of patches with some tissue in the H&E, in raster order
    shares:    how much of each is tissue of the H&E, 0 to 1
    he_mask, ihc_mask: the tissue of both slides, each in its own level-0 px
    thickness: from which density on tissue is a fold
    he_colors, ihc_colors: of patches
    proved:    whether registration has found the transform, and so put it to the proof
    """

    he: Slide
    ihc: Slide
    transform: Transform
    options: PairsOptions
    grid: WorkingGrid
    mpp: tuple[float, float]
    regions: tuple[Region, ...]
    shares: tuple[float, ...]
    he_mask: TissueMask
    ihc_mask: TissueMask
    thickness: Thickness
    he_colors: Colors
    ihc_colors: Colors
    proved: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What is doubtful, one sentence each."""
        return (*self.he_colors.notes, *self.ihc_colors.notes)


def plan_cuts(
    he: Slide, ihc: Slide, transform: Transform, options: PairsOptions, *, proved: bool = True,
    tissue: Tissue | Path | None = None,
) -> CutPlan:  # fmt: skip
    """Find the tissue of both slides and the places of patches.

    Parameters
    ----------
    he, ihc
        Open slides.
    transform
        From µm of the H&E to µm of the IHC.
    options
        Size, resolution and distance of patches, and what they must fulfil.
    proved
        Whether registration has found the transform; of others a patch has to show something that agrees.
    tissue
        Of the H&E slide; None as the options say.

    Raises
    ------
    MaskError
        If a mask file does not fit the H&E slide.
    MissingResolutionError
        If the resolution of a slide is unknown.
    OptionError
        If ``options.mpp`` is more than four times finer than a slide's. A level within 5 % of it is taken as it is.
    UnreadableSlideError
        If a file is damaged.
    """
    he, ihc = agreeing_levels(he), agreeing_levels(ihc)
    grid = working_grid(he.info, options.mpp)
    working_grid(ihc.info, options.mpp)  # says what is wrong with it before anything is read
    seen = seen_as(he, options), seen_as(ihc, options)
    chosen = options.tissue if tissue is None else tissue
    he_mask, ihc_mask = tissue_of(seen[0], chosen), tissue_of(seen[1], "none" if chosen == "none" else "auto")
    he_colors, ihc_colors = colors_of(he, he_mask.glass, options), colors_of(ihc, ihc_mask.glass, options)
    thickness = Thickness(
        _fold_density(seen[0], he_mask, chosen == "auto", he_colors, "he"),
        _fold_density(seen[1], ihc_mask, chosen != "none", ihc_colors, "ihc"),
    )
    side, step = options.patch_size, options.step_px
    x, y = (np.arange(0, length - side + 1, step) for length in (grid.size.width, grid.size.height))
    shares = np.minimum(_tissue_areas(place_mask(he_mask, grid), x, y, side) / side**2, 1)
    rows, columns = np.nonzero(shares >= CANDIDATE_SHARE)
    regions = tuple(
        Region(left, top, side, side) for left, top in zip(x[columns].tolist(), y[rows].tolist(), strict=True)
    )
    return CutPlan(
        he, ihc, transform, options, grid, grid.mpp, regions, tuple(shares[rows, columns].tolist()),
        he_mask, ihc_mask, thickness, he_colors, ihc_colors, proved,
    )  # fmt: skip


def _tissue_areas(
    tissue: TissueGrid, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], side_px: int
) -> npt.NDArray[np.float64]:
    """Working px of tissue in each square whose corners are at ``x`` × ``y``: (rows, columns)."""
    (left, top), (width, height) = tissue.origin, tissue.pixel_size
    down = _sums_of_rows(tissue.pixels, (y - top) / height, side_px / height)
    return np.asarray(_sums_of_rows(down.T, (x - left) / width, side_px / width).T * (width * height))


def _sums_of_rows(values: npt.NDArray[Any], starts: npt.NDArray[Any], length: float) -> npt.NDArray[np.float64]:
    """Sums of so many rows from each start, (starts, columns); a row that lies there in part counts in part."""
    count = len(values)
    sums = np.zeros((count + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])

    def up_to(ends: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        ends = np.clip(ends, 0, count)
        whole = np.minimum(ends.astype(np.intp), count - 1)
        return np.asarray(sums[whole] + (ends - whole)[:, np.newaxis] * (sums[whole + 1] - sums[whole]))

    return up_to(starts + length) - up_to(starts)


def cut(plan: CutPlan, *, workers: int = 1) -> Generator[CutPatch, None, None]:
    """The patches of a plan, in raster order, kept or not; read and measured by ``workers`` threads.

    Memory bound: at most ``workers + 2`` patches and what a thread needs to make one, however large the slides. It is
    broken by whoever keeps the patches.

    Raises
    ------
    UnreadableSlideError
        Where a file is damaged.
    """
    items = zip(plan.regions, plan.shares, strict=True)
    with ThreadPoolExecutor(max(1, workers), "cut") as pool:
        patches = ordered_map(pool, lambda item: _cut_one(plan, *item), items, max(1, workers) + 1)
        with closing(patches):
            yield from patches


def _cut_one(plan: CutPlan, region: Region, tissue_he: float) -> CutPatch:
    places_um = moving_grid(plan.transform, *_sampled(plan, region))
    inside = _inside(plan.ihc, places_um)
    tissue_ihc = float(_holds(plan.ihc_mask, plan.ihc, places_um).mean())
    figures = PatchFigures(tissue_he=tissue_he, tissue_ihc=tissue_ihc, valid=float(inside.mean()))
    limits = plan.options.limits
    # A sample outside is a px outside, but a share of the samples only nearly a share of the px.
    certain = not inside.any() or limits.min_valid == 1
    if (rejected := why_rejected(figures, limits)) and (rejected == "tissue" or certain):
        return _left_out(plan, region, figures, rejected)
    try:
        he, ihc, valid = _read(plan, region)
    except UnreadableSlideError as error:
        if plan.options.on_read_error == "fail":
            raise
        _log.info("a patch is left out: %s", error)
        return _left_out(plan, region, dataclasses.replace(figures, valid=0.0), "outside", unreadable=True)
    figures = _measured(figures, he, ihc, valid, plan)
    rejected = why_rejected(figures, limits, proved=plan.proved)
    return CutPatch(region, *_corner_um(plan, region), he, ihc, valid, figures, rejected)


def _read(plan: CutPlan, region: Region) -> tuple[RGBImage, RGBImage, BoolImage]:
    """The pixels of both, and where the IHC slide has any."""
    he = read_region(plan.he, plan.grid, region, plan.he_mask.glass)
    x_um, y_um = _centres_um(plan, region)
    warped = read_warped(plan.ihc, plan.transform, _mean(plan.mpp), x_um, y_um, plan.ihc_mask.glass)
    return plan.he_colors.convert(he), plan.ihc_colors.convert(warped.pixels), warped.valid


def _left_out(
    plan: CutPlan, region: Region, figures: PatchFigures, reason: str, *, unreadable: bool = False
) -> CutPatch:
    """A patch without pixels."""
    none = np.zeros((0, 0, 3), np.uint8)
    return CutPatch(region, *_corner_um(plan, region), none, none, none[..., 0] > 0, figures, reason, unreadable)


def _measured(figures: PatchFigures, he: RGBImage, ihc: RGBImage, valid: BoolImage, plan: CutPlan) -> PatchFigures:
    """The figures with what is told from pixels."""
    mpp = _mean(plan.mpp)
    agree = agreement(he, ihc, mpp)
    look = looks(he, ihc, valid, mpp, plan.thickness)
    return dataclasses.replace(
        figures,
        tissue_he=min(figures.tissue_he, tissue_share(he, mpp, plan.he_colors.background)),
        tissue_ihc=min(figures.tissue_ihc, tissue_share(ihc, mpp, plan.ihc_colors.background)),
        valid=float(valid.mean()),
        correlation=agree.correlation,
        residual_um=agree.residual_um,
        sharpness_he=look.sharpness_he,
        sharpness_ihc=look.sharpness_ihc,
        folds=look.folds,
        pen=look.pen,
        stained=look.stained,
    )


def _centres_um(plan: CutPlan, region: Region) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centres of the columns and rows of a region on the H&E slide, in µm."""
    return tuple(  # type: ignore[return-value]
        (plan.grid.level0_origin[axis] + (np.arange(start, start + count) + 0.5) * plan.grid.downsample[axis]) * mpp
        for axis, (start, count, mpp) in enumerate(
            zip((region.x, region.y), (region.width, region.height), known_mpp(plan.he.info), strict=True)
        )
    )


def _sampled(plan: CutPlan, region: Region) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Some of the centres, the outermost among them."""
    x_um, y_um = _centres_um(plan, region)
    return np.linspace(x_um[0], x_um[-1], SAMPLES), np.linspace(y_um[0], y_um[-1], SAMPLES)


def _corner_um(plan: CutPlan, region: Region) -> tuple[float, float]:
    x, y = (
        (plan.grid.level0_origin[axis] + start * plan.grid.downsample[axis]) * known_mpp(plan.he.info)[axis]
        for axis, start in enumerate((region.x, region.y))
    )
    return x, y


def _inside(slide: Slide, places_um: npt.NDArray[np.float64]) -> BoolImage:
    """Whether places lie on the scanned area of a slide."""
    bounds, (mpp_x, mpp_y) = slide.info.bounds, known_mpp(slide.info)
    x, y = places_um[..., 0], places_um[..., 1]
    across, down = x / mpp_x, y / mpp_y
    inside: BoolImage = (across >= bounds.x) & (across <= bounds.right) & (down >= bounds.y) & (down <= bounds.bottom)
    return inside


def _holds(mask: TissueMask, slide: Slide, places_um: npt.NDArray[np.float64]) -> BoolImage:
    """Whether places on a slide lie in its tissue mask."""
    at = np.floor((places_um / known_mpp(slide.info) - mask.origin) / mask.pixel_size)
    rows, columns = mask.pixels.shape
    within = np.all((at >= 0) & (at < (columns, rows)), axis=-1)
    column, row = np.moveaxis(np.where(within[..., np.newaxis], at, 0).astype(np.intp), -1, 0)
    held: BoolImage = within & mask.pixels[row, column]
    return held


def _fold_density(slide: Slide, mask: TissueMask, is_detected: bool, colors: Colors, stain: str) -> float:
    """From which density on tissue of a slide is a fold, from an overview. A mask that was drawn has another grid."""
    found = mask if is_detected else tissue_of(slide, "auto")
    grid = mask_grid(slide.info)  # on which the mask was found
    overview = colors.convert(read_overview(slide, grid, mask.glass))
    return fold_density(overview, _mean(grid.mpp), found.pixels, stain)


def _mean(pair: tuple[float, float]) -> float:
    return math.sqrt(pair[0] * pair[1])
