"""Tissue detection on an overview of the slide.

`detect_tissue` reads an overview at about 8 µm/px. `find_tissue` measures the background color and how far each pixel
differs from it in color, thresholds that evidence, excludes pen marks, and selects and smooths connected pieces on a
grid of 16 µm blocks.
"""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGB, WHITE, BoolImage, Region, RGBImage
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
from .background import BackgroundColor, MilliOD, extremes, find_background, optical_density, staining_warning
from .mask import TissueMask, enlarged, grown, pooled, shrunk, without_holes
from .pen_marks import FRINGE_UM, find_pen_marks

GRAY_FRACTION = 0.15
"""Chroma of gray areas as a fraction of their density, which is subtracted. Measured: edges of coverslips 0.13 to 0.15,
tissue 0.3 and more."""

STRONG_MILLI_OD = (25.0, 60.0)
"""Bounds of the threshold of certain tissue. The faintest legible tissue has about 25."""

WEAK_MILLI_OD = (9.0, 15.0)
"""Bounds of the threshold of tissue connected to certain tissue. JPEG noise on background has 3 to 7 (99.5th
percentile)."""

FAINT_MILLI_OD = (5.0, 8.0)
"""Bounds of the threshold of px that count where they are dense: twice the noise (90th percentile) of background."""

SPECKLE_UM, SPECKLE_SHARE = 200.0, 0.1
"""Least fraction of faint px in tissue, over the length of about two fat cells. Measured: fat 0.12 to 0.7, dirty
background 0.06."""

TINT_UM = 2_000.0
"""Color that is present everywhere over this length is a tint of the background, which pale tissue has to exceed."""

SPECK_UM2 = 2_500.0
"""Smallest piece that is kept: 50×50 µm, a few cells."""

CERTAIN_UM2 = 600.0
"""Least area of certain tissue in a piece..."""

PALE_UM2 = 2_000_000.0
"""...or, without certain tissue, least area of the piece (fat alone)."""

HOLE_UM2 = 200_000.0
"""Largest hole that is filled. A window is at least 128 µm wide, so excluding smaller holes saves little."""

CLOSE_UM, MARGIN_UM = 30.0, 26.0
"""Radius by which gaps are closed, and margin added around the tissue. The translation fades into the fill outside the
margin, so at least 50 µm around the tissue are shown."""

PEN_MARGIN_UM = 48.0
"""Width of the excluded band around pen marks: the translation fades outside the mask and must not show them."""

FINEST_UM = 8.0
"""Resolution in µm/px to which finer overviews are reduced."""

BLOCK_UM = 16.0
"""Largest block size of morphological operations..."""

LEAST_SIDE_PX = 128
"""...if the image keeps at least this many px along each axis."""


class Finding(NamedTuple):
    """Result of `find_tissue`: a mask (rows, columns) of the shape of the overview, and human-readable warnings."""

    tissue: BoolImage
    background: RGB
    warnings: tuple[str, ...]


def find_tissue(overview: RGBImage, mpp: float) -> Finding:
    """Find the tissue on an overview of a slide.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB, with missing areas filled with white or the background color.
    mpp
        µm/px of the overview. 8 to 10 is intended; 0.5 to 40 works.

    Raises
    ------
    ValueError
        If the overview is not an RGB image of at least one px, or ``mpp`` is not positive.

    Notes
    -----
    Memory: about 15 bytes per px of the overview, beside it.
    """
    if overview.ndim != 3 or overview.shape[2] != 3 or overview.dtype != np.uint8 or overview.size == 0:
        raise ValueError(f"an overview is a (rows, columns, 3) uint8 image, not {overview.shape} {overview.dtype}")
    if not 0 < mpp < np.inf:
        raise ValueError(f"µm/px of an overview must be positive, not {mpp}")
    # Finer images are noisier and show nothing that matters here.
    height, width = overview.shape[:2]
    shrink = max(1, min(round(FINEST_UM / mpp), min(height, width) // LEAST_SIDE_PX))
    if shrink > 1:
        size = (-(-width // shrink), -(-height // shrink))
        reduced = np.asarray(cv2.resize(overview, size, interpolation=cv2.INTER_AREA), np.uint8)
        finding = _find(reduced, mpp * shrink)
        return finding._replace(tissue=enlarged(finding.tissue, overview.shape))
    return _find(np.ascontiguousarray(overview), mpp)


def _find(overview: RGBImage, mpp: float) -> Finding:
    """Compute the evidence at the resolution of the overview, and the mask on a grid of blocks of about 16 µm."""
    background = find_background(overview)
    evidence = _evidence(overview, background.color)
    sample = evidence[:: background.step, :: background.step]
    weak_from, strong_from = _thresholds(sample)
    noise = float(np.percentile(sample[background.pixels], 90)) if background.found else 0.0

    step = max(1, min(round(BLOCK_UM / mpp), min(evidence.shape) // LEAST_SIDE_PX))
    block_um = mpp * step
    candidates = pooled(evidence > weak_from, step)
    ink = find_pen_marks(overview[::step, ::step], background.color, candidates, block_um)
    candidates |= enlarged(_speckled(evidence, float(np.clip(2 * noise, *FAINT_MILLI_OD)), mpp), candidates.shape)
    # Pen marks are out of focus; the margin adds tissue that touches them again.
    candidates &= ~(grown(ink.strokes, max(FRINGE_UM / block_um, 3.0)) | ink.foreign)
    tissue = _tidy(_select(candidates, pooled(evidence > strong_from, step), block_um), ink.strokes, block_um)
    return Finding(enlarged(tissue, evidence.shape), background.color, _warnings(background, ink.strokes))


def _evidence(overview: RGBImage, background: RGB) -> MilliOD:
    """Return the difference between the channels' densities, less that of gray areas of the same density.

    Means over 3×3 px remove most of the JPEG noise.
    """
    most, least = extremes([cv2.blur(plane, (3, 3)) for plane in optical_density(overview, background)])
    return np.asarray(cv2.addWeighted(most, 1 - GRAY_FRACTION / 2, least, -1 - GRAY_FRACTION / 2, 0), np.int16)


def _thresholds(evidence: MilliOD) -> tuple[int, int]:
    """Return the weak and the strong threshold.

    The strong one is Otsu's threshold of all px, the weak one that of the px below it; both within fixed bounds.
    """
    histogram = np.bincount(np.clip(evidence, 0, 255).ravel(), minlength=256)
    strong = _otsu(histogram)
    weak = _otsu(histogram[: max(strong, 1) + 1])
    return int(np.clip(weak, *WEAK_MILLI_OD)), int(np.clip(strong, *STRONG_MILLI_OD))


def _otsu(histogram: npt.NDArray[np.intp]) -> int:
    """Return the threshold that maximizes the between-class variance (Otsu 1979).

    scikit-image's function counts in float32, and its first call costs each translation 0.15 s of imports.
    """
    levels = np.arange(len(histogram))
    below = np.cumsum(histogram).astype(float)
    sum_below = np.cumsum(histogram * levels).astype(float)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def _speckled(evidence: MilliOD, faint_from: float, mpp: float) -> BoolImage:
    """Return a mask of areas where faint px are dense (membranes of fat, or pale tissue), on a coarser grid.

    Px are faint if they exceed the least evidence around them, which a wide tint of the background does not. Their
    fraction over `SPECKLE_UM` distinguishes tissue from dust. Gaps between them are filled; nothing is added around
    them.
    """
    height, width = evidence.shape
    cell_px = max(1, min(round(SPECKLE_UM / 8 / mpp), min(evidence.shape) // 16))
    size = (-(-width // cell_px), -(-height // cell_px))
    window, wide = (
        max(3, min(round(length_um / mpp / cell_px), min(size))) // 2 * 2 + 1 for length_um in (SPECKLE_UM, TINT_UM)
    )
    tint = cv2.erode(cv2.resize(evidence, size, interpolation=cv2.INTER_AREA), np.ones((wide, wide), np.uint8))
    least = cv2.resize(np.clip(tint, 0, None) + np.int16(faint_from), (width, height), interpolation=cv2.INTER_NEAREST)
    faint = cv2.compare(evidence, least, cv2.CMP_GT)
    share = cv2.resize(faint, size, interpolation=cv2.INTER_AREA)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window))
    # The blurred rim of solid tissue covers less than a fifth of a cell.
    between = cv2.morphologyEx((share > 255 // 5).view(np.uint8), cv2.MORPH_CLOSE, disc) > 0
    speckled: BoolImage = between & (cv2.blur(share, (window, window)) >= 255 * SPECKLE_SHARE)
    return speckled


def _select(candidates: BoolImage, certain: BoolImage, mpp: float) -> BoolImage:
    """Keep connected pieces that hold certain tissue or are large, but no specks."""
    count, labels = cv2.connectedComponents(candidates.view(np.uint8), connectivity=8)
    area_um2 = np.bincount(labels[candidates], minlength=count) * mpp**2
    certain_um2 = np.bincount(labels[candidates & certain], minlength=count) * mpp**2
    overview_um2 = candidates.size * mpp**2
    keep = (certain_um2 >= min(CERTAIN_UM2, 0.005 * overview_um2)) & (area_um2 >= min(SPECK_UM2, 0.02 * overview_um2))
    keep |= area_um2 >= min(PALE_UM2, 0.25 * overview_um2)
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _tidy(tissue: BoolImage, strokes: BoolImage, mpp: float) -> BoolImage:
    """Close gaps, add the margin, fill small holes, and exclude pen marks and a band around them."""
    if not tissue.any():
        return tissue
    tissue |= shrunk(grown(tissue, (CLOSE_UM + MARGIN_UM) / mpp), CLOSE_UM / mpp)
    return without_holes(tissue, HOLE_UM2 / mpp**2) & ~grown(strokes, PEN_MARGIN_UM / mpp)


def _warnings(background: BackgroundColor, strokes: BoolImage) -> tuple[str, ...]:
    found: list[str] = []
    if not background.found:
        found.append(f"no clear background was found on the slide; its color is assumed to be {background.color}")
    share = float(strokes.mean())
    if share >= 0.001:
        found.append(f"{share:.1%} of the slide is covered by pen marks or other dark areas, which are excluded")
    return tuple(found)


logger = logging.getLogger(__name__)

DETECTION_MPP = 8.0
"""µm/px of the overview for detection: 32 px of a 40x scan."""

LARGEST_OVERVIEW_PX = 16_000_000
"""Overviews of larger slides are coarser; bounds the memory of detection to about 300 MB."""

LEAST_OVERVIEW_SIDE_PX = 512
"""Overviews of small slides (such as a cropped region) are finer, as far as level 0 allows."""

PIECE_PX = 512
"""Side, in level-0 px, of the pieces in which areas that were never scanned are found."""

BACKGROUND_OVERVIEW_PX = 1_000_000
"""Size of the overview on which the background color alone is measured."""


def detect_tissue(slide: Slide, *, mpp: float = DETECTION_MPP) -> TissueMask:
    """Find the tissue of a slide on an overview.

    Parameters
    ----------
    slide
        An open slide. Its scanned area (bounds) is searched; missing pixels count as background. Lower levels that
        differ from level 0 are not used.
    mpp
        µm/px of the mask. Coarser if the mask had more than 16 million px, finer if it were less than 512 px wide
        or high.

    Returns
    -------
    TissueMask
        Empty if there is no tissue. A warning says if the slide does not look like H&E.

    Raises
    ------
    MissingResolutionError
        If the resolution of the slide is unknown, because sizes are defined in µm.
    UnreadableSlideError
        If the file is damaged.
    """
    known_mpp(slide.info)
    problems, slide = level_problems(slide), agreeing_levels(slide)
    info, grid = slide.info, mask_grid(slide.info, mpp)
    # White is taken for an area that was never scanned; another color could be taken for pen marks.
    overview = read_overview(slide, grid, WHITE)
    tissue, background, warnings = find_tissue(overview, math.sqrt(grid.mpp[0] * grid.mpp[1]))
    logger.info(
        "%s: %.1f %% tissue, background %s (overview %s)", info.name, 100 * tissue.mean(), background, grid.size
    )
    return TissueMask(
        pixels=tissue,
        origin=grid.level0_origin,
        pixel_size=grid.downsample,
        background=background,
        warnings=(*problems, *warnings, *_staining_warnings(overview, tissue, background)),
        bounds_origin=(info.bounds.x, info.bounds.y),
    )


def whole_slide(slide: Slide) -> TissueMask:
    """Return a mask of the scanned area, without the areas that have no pixels, and measure the background color."""
    bounds = slide.info.bounds
    background, warnings = measure_background(slide)
    scanned = _scanned_pieces(slide)
    return TissueMask(
        pixels=scanned,
        origin=(bounds.x, bounds.y),
        pixel_size=(bounds.width / scanned.shape[1], bounds.height / scanned.shape[0]),
        background=background,
        warnings=warnings,
        bounds_origin=(bounds.x, bounds.y),
    )


def _scanned_pieces(slide: Slide) -> BoolImage:
    """Return which pieces of about `PIECE_PX` have pixels in the file, (rows, columns)."""
    bounds = slide.info.bounds
    rows, columns = (max(1, round(side / PIECE_PX)) for side in (bounds.height, bounds.width))
    ys = [bounds.y + bounds.height * row // rows for row in range(rows + 1)]
    xs = [bounds.x + bounds.width * column // columns for column in range(columns + 1)]
    scanned = np.array(
        [
            [not slide.is_blank(0, Region(left, top, right - left, bottom - top)) for left, right in pairwise(xs)]
            for top, bottom in pairwise(ys)
        ]
    )
    return np.ones((1, 1), np.bool_) if scanned.all() else scanned


def measure_background(slide: Slide) -> tuple[RGB, tuple[str, ...]]:
    """Measure the background color of a slide for a mask from another source; also return warnings about the slide."""
    problems, slide = level_problems(slide), agreeing_levels(slide)
    downsample = _limited_downsample(slide.info, 1.0, BACKGROUND_OVERVIEW_PX)
    overview = read_overview(slide, overview_grid(slide.info, downsample), WHITE)
    background = find_background(overview).color
    return background, (*problems, *_staining_warnings(overview, np.ones(overview.shape[:2], np.bool_), background))


def mask_grid(info: SlideInfo, mpp: float = DETECTION_MPP) -> WorkingGrid:
    """Return the grid of a slide's mask, as fine as memory allows if the resolution of the slide is unknown."""
    side_px = min(info.bounds.width, info.bounds.height)
    downsample = min(mpp / min(info.mpp), side_px / LEAST_OVERVIEW_SIDE_PX) if info.mpp else 1.0
    return overview_grid(info, _limited_downsample(info, downsample, LARGEST_OVERVIEW_PX))


def _limited_downsample(info: SlideInfo, downsample: float, largest_px: int) -> float:
    """Return the downsample of an overview of at most about ``largest_px``; at least 1."""
    return max(1.0, downsample, math.sqrt(info.bounds.area_px / largest_px))


def _staining_warnings(overview: RGBImage, tissue: BoolImage, background: RGB) -> tuple[str, ...]:
    warning = staining_warning(overview, tissue, background)
    return () if warning is None else (warning,)
