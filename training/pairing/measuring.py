"""What a patch shows beside its pair: whether it is in focus, folded, under ink, and how much of it is stained.

Everything is measured on reduced pictures, at µm per px that are the same for all slides.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike

from wsi2ihc.arrays import BoolImage, RGBImage
from wsi2ihc.stains import DAB
from wsi2ihc.training.stain import WHITE_LEVEL, dab_density

from .optical import FloatPlane, mean_density, reduced

DETAIL_UM = 0.5
"""µm per px at which focus and stain are looked at: that of 20x."""

FINE_UM, COARSE_UM = 1.0, 4.0
"""Standard deviations of the Gaussians that part fine from middle, and middle from wide structure."""

FOLDS_AT_UM = 8.0
"""µm per px at which folds are looked for: single nuclei, which are as dense, are averaged away."""

FOLD_OF_MEDIAN, FOLD_OF_DENSE = 1.7, 1.4
"""A fold is two layers of tissue: nearly twice as dense as the median, and 1.4 times as dense as the 90th percentile. A
slide that is folded over a tenth and more hides its folds from the second."""

LEAST_FOLD_HE, LEAST_FOLD_IHC = 0.6, 0.4
"""Densities (mean of the channels, without DAB) below which nothing is a fold. Dense tumour and lymph follicles reach
0.5 in H&E; in the paler IHC less."""

LEAST_TISSUE_DENSITY = 0.06
"""Density below which a px of the mask is glass."""

PEN_AT_UM = 4.0
"""µm per px at which ink is looked for: the smallest nuclei are averaged away, and pens are far wider."""

STAINED_FROM = 0.2
"""Density of DAB from which a px counts as stained: QuPath's default threshold of 1+."""

_FAINT = 0.001


@dataclass(frozen=True, slots=True)
class Thickness:
    """From which optical density on (mean of the channels, DAB left out) tissue of the two slides is a fold."""

    he: float = math.inf
    ihc: float = math.inf


@dataclass(frozen=True, slots=True)
class Looks:
    """What two patches show; the fields are those of `filters.PatchFigures`."""

    sharpness_he: float
    sharpness_ihc: float
    folds: float
    pen: float
    stained: float


def looks(he: RGBImage, ihc: RGBImage, valid: BoolImage, mpp: float, thickness: Thickness) -> Looks:
    """Look at the patches of a pair: (rows, columns, 3) uint8 RGB and (rows, columns) bool, ``mpp`` µm per px."""
    he, detail_mpp = reduced(he, mpp, DETAIL_UM)
    ihc, _ = reduced(ihc, mpp, DETAIL_UM)
    return Looks(
        sharpness_he=sharpness(he, detail_mpp),
        sharpness_ihc=sharpness(ihc, detail_mpp),
        folds=max(
            _share(without_dab(he, detail_mpp, "he") > thickness.he),
            _share(without_dab(ihc, detail_mpp, "ihc") > thickness.ihc),
        ),
        pen=max(pen_share(he, detail_mpp, blue_too=True), pen_share(ihc, detail_mpp, blue_too=False)),
        stained=stained_share(ihc, valid),
    )


def sharpness(image: RGBImage, mpp: float) -> float:
    """Fine structure of the green channel relative to middle-sized structure: about 0.35 to 1.3 in focus.

    Standard deviations of the optical density below `FINE_UM`, and between that and `COARSE_UM`. Their ratio depends
    neither on the strength of the stain nor on how much of the patch is tissue. Real slides have 0.9 to 1.3, soft ones
    0.35 to 0.9; after a Gaussian blur of 2 µm 0.13 to 0.20. Coarser than 0.5 µm per px, scales count in px.
    """
    image, mpp = reduced(image, mpp, DETAIL_UM)
    unit = max(1.0, 2 * mpp / FINE_UM)
    density = np.asarray(cv2.LUT(np.ascontiguousarray(image[..., 1]), _density_table()), np.float32)
    smooth = cv2.GaussianBlur(density, (0, 0), FINE_UM * unit / mpp)
    fine = _spread(cv2.subtract(density, smooth))
    # What is left is wide enough for a coarser scale, at a tenth of the time.
    smooth = cv2.resize(smooth, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    wide = cv2.GaussianBlur(smooth, (0, 0), COARSE_UM * unit / mpp / 4)
    return fine / (_spread(cv2.subtract(smooth, wide)) + _FAINT)


def fold_density(overview: RGBImage, mpp: float, tissue: BoolImage, stain: str) -> float:
    """The optical density from which tissue of a slide is a fold, from an overview of the slide.

    Parameters
    ----------
    overview
        (rows, columns, 3) uint8 RGB, `FOLDS_AT_UM` or finer.
    mpp
        Its µm per px.
    tissue
        Where its tissue is, of the same shape.
    stain
        "he" or "ihc"

    Returns
    -------
    float
        Infinite where the slide has no tissue.
    """
    density = without_dab(overview, mpp, stain)
    size = (density.shape[1], density.shape[0])
    inside = cv2.resize(tissue.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    amounts = density[inside & (density > LEAST_TISSUE_DENSITY)]
    if amounts.size == 0:
        return math.inf
    median, dense = np.percentile(amounts, (50, 90))
    least = LEAST_FOLD_HE if stain == "he" else LEAST_FOLD_IHC
    return float(max(FOLD_OF_MEDIAN * median, FOLD_OF_DENSE * dense, least))


def without_dab(image: RGBImage, mpp: float, stain: str) -> FloatPlane:
    """Optical density, the mean of the channels, at `FOLDS_AT_UM`; for "ihc" less what DAB makes of it."""
    image, _ = reduced(image, mpp, FOLDS_AT_UM)
    density = mean_density(image)
    if stain == "he":
        return density
    share = float(np.mean(DAB) / np.linalg.norm(DAB))
    return np.asarray(density - np.float32(share) * dab_density(image), np.float32)


def pen_share(image: RGBImage, mpp: float, *, blue_too: bool) -> float:
    """Share of a patch in the colours of green, blue and black ink.

    The colours are those of `wsi2ihc.tissue`'s search on overviews, the certain ones. Red ink is left to that search:
    within tissue it looks like blood. So is blue ink on IHC, which has the colour of its haematoxylin.
    """
    image, _ = reduced(image, mpp, PEN_AT_UM)
    packed = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR565).view(np.uint16)[..., 0]
    return float(_ink_table(blue_too)[packed].mean())


def stained_share(ihc: RGBImage, valid: BoolImage) -> float:
    """Share of the valid px whose density of DAB is above `STAINED_FROM`; 0 where none is valid."""
    stained = dab_density(ihc) > STAINED_FROM
    if valid.all():
        return _share(stained)
    size = (ihc.shape[1], ihc.shape[0])
    inside = cv2.resize(valid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return float(stained[inside].mean()) if inside.any() else 0.0


def _spread(plane: MatLike) -> float:
    return float(cv2.meanStdDev(plane)[1][0, 0])


def _share(where: npt.NDArray[np.bool_]) -> float:
    return float(where.mean())


@functools.cache
def _density_table() -> FloatPlane:
    return (-np.log10(np.maximum(np.arange(256), 1) / WHITE_LEVEL)).astype(np.float32)


@functools.cache
def _ink_table(blue_too: bool) -> npt.NDArray[np.bool_]:
    """Whether each colour, packed to 5, 6 and 5 bits, is ink; the ratios are those of `wsi2ihc.tissue.ink`."""
    index = np.arange(1 << 16)
    levels = np.stack([index >> 11 << 3 | 4, (index >> 5 & 63) << 2 | 2, (index & 31) << 3 | 4])
    red, green, blue = np.maximum(-np.log10(levels / WHITE_LEVEL), 0.005)
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    is_green = (red > 1.25 * green) & (blue > 0.9 * green) & (most - least > 0.1)
    is_blue = (red > 0.95 * green) & (blue < 0.7 * green) & (most - least > 0.35)
    # DAB over haematoxylin is neutral, too, but not so dark
    is_black = (red > 0.62 * green) & (blue > 0.74 * green) & (red + green + blue > 3.3)
    ink: npt.NDArray[np.bool_] = is_green | is_black
    return ink | is_blue if blue_too else ink
