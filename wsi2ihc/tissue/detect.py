"""Where the tissue is on a small picture of the slide.

The order of the day is recall: tissue that is missed is a hole in the virtual slide, glass taken for tissue only costs
time. Evidence is chroma in optical density: stains absorb the three channels unequally, whereas dust, shadows,
coverslip edges and missing areas are grey. A little evidence is enough beside a lot of it (hysteresis), and less still
where the area has structure (fat: pale membranes around empty cells). All sizes are in µm.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage, RGBImage
from .glass import Glass, MilliOD, extremes, find_glass, optical_density
from .ink import FRINGE_UM, find_ink
from .shapes import enlarged, grown, pooled, shrunk, without_holes

GREY_SHARE = 0.15
"""Chroma that is expected of grey matter, as a share of its density; it does not count. Measured: edges of coverslips
0.13 to 0.15, tissue 0.3 and more."""

STRONG_MILLI_OD = (25.0, 60.0)
"""Bounds of the threshold that marks certain tissue. Tissue as faint as can still be read has some 25."""

WEAK_MILLI_OD = (9.0, 15.0)
"""Bounds of the threshold beside certain tissue. JPEG noise on glass reaches 3 to 7 (99.5th percentile)."""

FAINT_MILLI_OD = (5.0, 8.0)
"""Bounds of the threshold for px that count where they are frequent: twice the noise (90th percentile) of glass."""

SPECKLE_UM, SPECKLE_SHARE = 200.0, 0.1
"""Share of faint px, within about two fat cells, that makes tissue. Measured: fat 0.12 to 0.7, dirty glass 0.06."""

TINT_UM = 2_000.0
"""Colour that is nowhere absent over this length is glass with a tint, and pale tissue has to exceed it."""

SPECK_UM2 = 2_500.0
"""Smaller pieces are dropped: 50×50 µm, a few cells."""

CERTAIN_UM2 = 600.0
"""A piece needs this much certain tissue..."""

PALE_UM2 = 2_000_000.0
"""...or, where none of it is certain, this area with structure (tissue of fat alone)."""

HOLE_UM2 = 200_000.0
"""Smaller holes are filled: a window is 128 µm wide at the least, so that leaving them out saves little."""

CLOSE_UM, MARGIN_UM = 30.0, 26.0
"""Gaps up to twice the first are closed; the second is added all around. (The translation fades into the fill outside
of that, so that 50 µm and more around the tissue are shown.)"""

INK_MARGIN_UM = 48.0
"""Width of the band around ink that is left out: the translation fades outside the mask, and must not show the ink."""

FINEST_UM = 8.0
"""Overviews are reduced to about this many µm per px."""

BLOCK_UM = 16.0
"""Shapes are worked on in blocks of at most this size..."""

LEAST_SIDE_PX = 128
"""...but pictures are not made smaller than this many px each way."""


class Finding(NamedTuple):
    """What `find_tissue` sees.

    tissue:    (rows, columns) bool, of the overview's shape
    glass:     the slide's own glass colour
    warnings:  doubts, one sentence each, for people
    """

    tissue: BoolImage
    glass: RGB
    warnings: tuple[str, ...]


def find_tissue(overview: RGBImage, mpp: float) -> Finding:
    """Find the tissue on an overview of a slide.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB; missing areas filled with white or with the slide's background colour.
    mpp
        µm per pixel of the overview. 8 to 10 is intended; 0.5 to 40 works.

    Returns
    -------
    Finding
        Mask, glass colour, warnings. The mask is empty where there is no tissue.

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
        raise ValueError(f"µm per pixel of an overview must be positive, not {mpp}")
    # Finer pictures are noisier, and show nothing that matters here.
    height, width = overview.shape[:2]
    shrink = max(1, min(round(FINEST_UM / mpp), min(height, width) // LEAST_SIDE_PX))
    if shrink > 1:
        size = (-(-width // shrink), -(-height // shrink))
        reduced = np.asarray(cv2.resize(overview, size, interpolation=cv2.INTER_AREA), np.uint8)
        finding = _find(reduced, mpp * shrink)
        return finding._replace(tissue=enlarged(finding.tissue, overview.shape))
    return _find(np.ascontiguousarray(overview), mpp)


def _find(overview: RGBImage, mpp: float) -> Finding:
    """Evidence at the overview's resolution, and everything else on a grid of blocks of some 16 µm."""
    glass = find_glass(overview)
    evidence = _evidence(overview, glass.colour)
    sample = evidence[:: glass.step, :: glass.step]
    weak_from, strong_from = _thresholds(sample)
    noise = float(np.percentile(sample[glass.pixels], 90)) if glass.found else 0.0

    step = max(1, min(round(BLOCK_UM / mpp), min(evidence.shape) // LEAST_SIDE_PX))
    block_um = mpp * step
    candidates = pooled(evidence > weak_from, step)
    ink = find_ink(overview[::step, ::step], glass.colour, candidates, block_um)
    candidates |= enlarged(_speckled(evidence, float(np.clip(2 * noise, *FAINT_MILLI_OD)), mpp), candidates.shape)
    # Ink is out of focus; tissue that touches it comes back with the margin.
    candidates &= ~(grown(ink.strokes, max(FRINGE_UM / block_um, 3.0)) | ink.foreign)
    tissue = _tidy(_select(candidates, pooled(evidence > strong_from, step), block_um), ink.strokes, block_um)
    return Finding(enlarged(tissue, evidence.shape), glass.colour, _warnings(glass, ink.strokes))


def _evidence(overview: RGBImage, glass: RGB) -> MilliOD:
    """What the densities of the three channels differ by, less what is expected of grey matter of that density.

    Averaged over 3×3 px, which takes most of the JPEG's noise away.
    """
    most, least = extremes([cv2.blur(plane, (3, 3)) for plane in optical_density(overview, glass)])
    return np.asarray(cv2.addWeighted(most, 1 - GREY_SHARE / 2, least, -1 - GREY_SHARE / 2, 0), np.int16)


def _thresholds(evidence: MilliOD) -> tuple[int, int]:
    """(weak, strong): Otsu's threshold over everything, and again over what lies below it, within fixed bounds."""
    histogram = np.bincount(np.clip(evidence, 0, 255).ravel(), minlength=256)
    strong = _otsu(histogram)
    weak = _otsu(histogram[: max(strong, 1) + 1])
    return int(np.clip(weak, *WEAK_MILLI_OD)), int(np.clip(strong, *STRONG_MILLI_OD))


def _otsu(histogram: npt.NDArray[np.intp]) -> int:
    """The level that divides the histogram with the greatest variance between the parts (Otsu 1979)."""
    levels = np.arange(len(histogram))
    below = np.cumsum(histogram).astype(float)
    sum_below = np.cumsum(histogram * levels).astype(float)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def _speckled(evidence: MilliOD, faint_from: float, mpp: float) -> BoolImage:
    """Places where faint px are frequent: the membranes of fat, or pale tissue. On a coarser grid of the same area.

    Px are faint if they stand out from the least evidence around, which a wide tint of the glass does not. Their share
    is taken over `SPECKLE_UM`, which distinguishes tissue from dust. Gaps between them are filled; nothing is added
    around them.
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
    # A fifth of a cell: the blurred rim of solid tissue is less.
    between = cv2.morphologyEx((share > 255 // 5).view(np.uint8), cv2.MORPH_CLOSE, disc) > 0
    speckled: BoolImage = between & (cv2.blur(share, (window, window)) >= 255 * SPECKLE_SHARE)
    return speckled


def _select(candidates: BoolImage, certain: BoolImage, mpp: float) -> BoolImage:
    """The connected pieces of the candidates that hold certain tissue, or are large; no specks."""
    count, labels = cv2.connectedComponents(candidates.view(np.uint8), connectivity=8)
    area_um2 = np.bincount(labels[candidates], minlength=count) * mpp**2
    certain_um2 = np.bincount(labels[candidates & certain], minlength=count) * mpp**2
    picture_um2 = candidates.size * mpp**2
    keep = (certain_um2 >= min(CERTAIN_UM2, 0.005 * picture_um2)) & (area_um2 >= min(SPECK_UM2, 0.02 * picture_um2))
    keep |= area_um2 >= min(PALE_UM2, 0.25 * picture_um2)
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _tidy(tissue: BoolImage, strokes: BoolImage, mpp: float) -> BoolImage:
    """Close gaps, add the margin, fill small holes, and take out the ink and a band around it."""
    if not tissue.any():
        return tissue
    tissue |= shrunk(grown(tissue, (CLOSE_UM + MARGIN_UM) / mpp), CLOSE_UM / mpp)
    return without_holes(tissue, HOLE_UM2 / mpp**2) & ~grown(strokes, INK_MARGIN_UM / mpp)


def _warnings(glass: Glass, strokes: BoolImage) -> tuple[str, ...]:
    found: list[str] = []
    if not glass.found:
        found.append(f"no clear glass was seen on the slide; its colour is taken to be {glass.colour}")
    share = float(strokes.mean())
    if share >= 0.001:
        found.append(f"{share:.1%} of the slide is covered by pen marks or other dark matter, which is left out")
    return tuple(found)
