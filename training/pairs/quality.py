"""Patch quality: focus, folds, pen marks, tissue, agreement of both stains, and the limits of these metrics.

All functions work on the pixels of one patch, at the resolution that suits the metric (`reduced`). `PatchMetrics` holds
the results, `Limits` the options, and `rejection_reason` compares both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike

from wsi2ihc.errors import OptionError
from wsi2ihc.geometry import RGB, BoolImage, RGBImage
from wsi2ihc.registration.block_matches import vertex
from wsi2ihc.stains import DAB, EOSIN, HEMATOXYLIN, WHITE_LEVEL, Direction, dab_density, stain_terms
from wsi2ihc.text import flag, option

FloatPlane = npt.NDArray[np.float32]
"""(rows, columns) float32."""


def reduced(image: RGBImage, mpp: float, to_um: float) -> tuple[RGBImage, float]:
    """Downsample an image to about ``to_um`` µm per px by block means; return it with its µm per px. Never enlarges."""
    factor = max(1, min(round(to_um / mpp), *image.shape[:2]))
    if factor == 1:
        return image, mpp
    size = (image.shape[1] // factor, image.shape[0] // factor)
    cropped = image[: size[1] * factor, : size[0] * factor]
    return np.asarray(cv2.resize(cropped, size, interpolation=cv2.INTER_AREA), np.uint8), mpp * factor


def hematoxylin_of_he(image: RGBImage) -> FloatPlane:
    """Return the optical density of hematoxylin in an H&E image up to a constant; (rows, columns)."""
    return _amount(image, _terms(HEMATOXYLIN, EOSIN, 0))


def hematoxylin_of_ihc(image: RGBImage) -> FloatPlane:
    """Return the optical density of hematoxylin in an IHC image with DAB up to a constant; (rows, columns)."""
    return _amount(image, _terms(HEMATOXYLIN, DAB, 0))


def mean_density(image: RGBImage) -> FloatPlane:
    """Return the optical density relative to white, averaged over the channels."""
    return _amount(image, _mean_terms())


def _amount(image: RGBImage, tables: tuple[FloatPlane, ...]) -> FloatPlane:
    density: FloatPlane | None = None
    for channel, table in zip(cv2.split(image), tables, strict=True):
        part = np.asarray(cv2.LUT(channel, table), np.float32)
        density = part if density is None else np.asarray(cv2.add(density, part, dst=density), np.float32)
    assert density is not None
    return density


@functools.cache
def _terms(first: Direction, second: Direction, which: int) -> tuple[FloatPlane, ...]:
    return tuple(stain_terms(first, second)[which].astype(np.float32))


@functools.cache
def _mean_terms() -> tuple[FloatPlane, ...]:
    table = (-np.log10(np.maximum(np.arange(256), 1) / WHITE_LEVEL) / 3).astype(np.float32)
    return table, table, table


DETAIL_UM = 0.5
"""Resolution for focus and stain in µm per px: that of 20x."""

FINE_UM, COARSE_UM = 1.0, 4.0
"""Standard deviations of the Gaussians that separate fine, medium and coarse structure."""

FOLDS_AT_UM = 8.0
"""Resolution for folds in µm per px, at which single dense nuclei are averaged out."""

FOLD_OF_MEDIAN, FOLD_OF_DENSE = 1.7, 1.4
"""Density of a fold (two layers of tissue) relative to the median and to the 90th percentile. If more than a tenth of a
slide is folded, the second criterion misses folds."""

LEAST_FOLD_HE, LEAST_FOLD_IHC = 0.6, 0.4
"""Minimum density of a fold (mean of the channels, without DAB). Dense tumor and lymph follicles reach 0.5 in H&E, less
in the paler IHC."""

LEAST_TISSUE_DENSITY = 0.06
"""Minimum density of tissue px within the mask."""

PEN_AT_UM = 4.0
"""Resolution for pen marks in µm per px: the smallest nuclei are averaged out, and pen marks are far wider."""

STAINED_FROM = 0.2
"""Minimum DAB density of a stained px: QuPath's default threshold of 1+."""

_FAINT = 0.001


@dataclass(frozen=True, slots=True)
class FoldThreshold:
    """Optical density of both slides (mean of the channels, without DAB) above which tissue is a fold."""

    he: float = math.inf
    ihc: float = math.inf


def measure_quality(
    he: RGBImage, ihc: RGBImage, valid: BoolImage, mpp: float, fold_threshold: FoldThreshold
) -> dict[str, float]:
    """Measure sharpness, folds, pen marks and stained area of a pair of patches, by the fields of `PatchMetrics`."""
    he, detail_mpp = reduced(he, mpp, DETAIL_UM)
    ihc, _ = reduced(ihc, mpp, DETAIL_UM)
    return {
        "sharpness_he": sharpness(he, detail_mpp),
        "sharpness_ihc": sharpness(ihc, detail_mpp),
        "folds": max(
            _fraction(without_dab(he, detail_mpp, "he") > fold_threshold.he),
            _fraction(without_dab(ihc, detail_mpp, "ihc") > fold_threshold.ihc),
        ),
        "pen": max(pen_fraction(he, detail_mpp, blue_too=True), pen_fraction(ihc, detail_mpp, blue_too=False)),
        "stained": stained_fraction(ihc, valid),
    }


def sharpness(image: RGBImage, mpp: float) -> float:
    """Return the ratio of fine to medium structure of the green channel: about 0.35 to 1.3 in focus.

    Ratio of the standard deviations of optical density below `FINE_UM` and between `FINE_UM` and `COARSE_UM`,
    independent of the stain's strength and the amount of tissue. Sharp slides have 0.9 to 1.3, soft ones 0.35 to 0.9;
    after a Gaussian blur of 2 µm 0.13 to 0.20. Above 0.5 µm per px, the scales are relative to px.
    """
    image, mpp = reduced(image, mpp, DETAIL_UM)
    unit = max(1.0, 2 * mpp / FINE_UM)
    density = np.asarray(cv2.LUT(np.ascontiguousarray(image[..., 1]), _density_table()), np.float32)
    smooth = cv2.GaussianBlur(density, (0, 0), FINE_UM * unit / mpp)
    fine = _deviation(cv2.subtract(density, smooth))
    # the smoothed image can be downsampled, which takes a tenth of the time
    smooth = cv2.resize(smooth, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    wide = cv2.GaussianBlur(smooth, (0, 0), COARSE_UM * unit / mpp / 4)
    return fine / (_deviation(cv2.subtract(smooth, wide)) + _FAINT)


def fold_density(overview: RGBImage, mpp: float, tissue: BoolImage, stain: str) -> float:
    """Return the optical density above which tissue of a slide is a fold; infinite for a slide without tissue.

    Parameters
    ----------
    overview
        Overview (rows, columns, 3) uint8 RGB, `FOLDS_AT_UM` or finer.
    tissue
        Tissue mask of the same shape.
    stain
        "he" or "ihc".
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
    """Return the optical density at `FOLDS_AT_UM`, averaged over the channels; for "ihc" without that of DAB."""
    image, _ = reduced(image, mpp, FOLDS_AT_UM)
    density = mean_density(image)
    if stain == "he":
        return density
    share = float(np.mean(DAB) / np.linalg.norm(DAB))
    return np.asarray(density - np.float32(share) * dab_density(image), np.float32)


def pen_fraction(image: RGBImage, mpp: float, *, blue_too: bool) -> float:
    """Return the fraction of a patch in the colors of green, blue and black pen marks.

    Uses the unambiguous colors of `wsi2ihc.tissue`'s detection on overviews. Red is left to that detection, since it
    resembles blood within tissue, and so is blue on IHC, which has the color of hematoxylin.
    """
    image, _ = reduced(image, mpp, PEN_AT_UM)
    packed = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR565).view(np.uint16)[..., 0]
    return float(_pen_table(blue_too)[packed].mean())


def stained_fraction(ihc: RGBImage, valid: BoolImage) -> float:
    """Return the fraction of valid px with a DAB density above `STAINED_FROM`; 0 without valid px."""
    stained = dab_density(ihc) > STAINED_FROM
    if valid.all():
        return _fraction(stained)
    size = (ihc.shape[1], ihc.shape[0])
    inside = cv2.resize(valid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return float(stained[inside].mean()) if inside.any() else 0.0


def _deviation(plane: MatLike) -> float:
    return float(cv2.meanStdDev(plane)[1][0, 0])


def _fraction(where: npt.NDArray[np.bool_]) -> float:
    return float(where.mean())


@functools.cache
def _density_table() -> FloatPlane:
    return (-np.log10(np.maximum(np.arange(256), 1) / WHITE_LEVEL)).astype(np.float32)


@functools.cache
def _pen_table(blue_too: bool) -> npt.NDArray[np.bool_]:
    """Return for each color in 5, 6 and 5 bits whether it is a pen mark; ratios as in `wsi2ihc.tissue.pen_marks`."""
    index = np.arange(1 << 16)
    levels = np.stack([index >> 11 << 3 | 4, (index >> 5 & 63) << 2 | 2, (index & 31) << 3 | 4])
    red, green, blue = np.maximum(-np.log10(levels / WHITE_LEVEL), 0.005)
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    is_green = (red > 1.25 * green) & (blue > 0.9 * green) & (most - least > 0.1)
    is_blue = (red > 0.95 * green) & (blue < 0.7 * green) & (most - least > 0.35)
    # DAB over hematoxylin is also neutral, but less dark
    is_black = (red > 0.62 * green) & (blue > 0.74 * green) & (red + green + blue > 3.3)
    ink: npt.NDArray[np.bool_] = is_green | is_black
    return ink | is_blue if blue_too else ink


SEEN_AT_UM = 2.0
"""Resolution for tissue in µm per px, at which JPEG noise is averaged out, but not nuclei and fibers."""

LEAST_DENSITY = 0.02
"""Minimum optical density of tissue, in the darkest channel relative to the slide's background. The stroma of an IHC
without DAB is not denser. 0.2 % of background px exceed it (1.5 % on one slide), and 84 % of the tissue mask of a pale
IHC, where 0.08 would leave 40 %. Background as dense as this, under a coverslip, is left to the mask."""

CLOSED_UM = 10.0
"""Radius of the closing: gaps of up to twice this width between fibers, in capillaries and membranes are closed."""

GAP_UM2 = 20_000.0
"""Maximum area of a gap that counts as tissue, such as a lumen, an alveolus or a fat cell of up to 160 µm."""

EDGE_FRACTION = 1 / 8
"""Maximum fraction of the patch for such a gap at its edge, whose size is unknown and which may be background."""


def tissue_fraction(image: RGBImage, mpp: float, background: RGB) -> float:
    """Return the fraction of a patch that is tissue, including small gaps, on a slide of this background color."""
    image, mpp = reduced(image, mpp, SEEN_AT_UM)
    bright = tuple(math.ceil(value * 10**-LEAST_DENSITY) for value in background)
    clear = cv2.inRange(image, np.array(bright), np.array((255, 255, 255)))
    if not clear.any():
        return 1.0
    radius = max(1, round(CLOSED_UM / mpp))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # opening of the background is closing of the tissue
    gaps = cv2.morphologyEx(clear, cv2.MORPH_OPEN, disc)
    count, labels, components, _ = cv2.connectedComponentsWithStats(gaps, connectivity=4)
    areas_um2 = components[:, cv2.CC_STAT_AREA] * mpp**2
    allowed_um2 = np.full(count, GAP_UM2)
    allowed_um2[_at_edge(labels, count)] = min(GAP_UM2, EDGE_FRACTION * labels.size * mpp**2)
    is_open = areas_um2 > allowed_um2
    is_open[0] = False  # label 0 is tissue
    return 1 - float(areas_um2[is_open].sum()) / (labels.size * mpp**2)


def _at_edge(labels: np.ndarray, count: int) -> BoolImage:
    """Check which labels touch an edge."""
    found = np.zeros(count, np.bool_)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        found[line] = True
    return found


MATCHED_AT_UM = 1.0
"""Resolution for offsets in µm per px."""

OFFSET_BAND_UM = (1.0, 20.0)
CORRELATION_BAND_UM = (4.0, 30.0)
"""Standard deviations of the Gaussians of the band-pass filters. An offset of 8 µm reduces the correlation of single
nuclei (up to 12 µm) to 0, and that of the band from 4 to 30 µm from 0.97 to 0.6."""

MAX_OFFSET_UM = 20.0
"""Search range of offsets along x and y."""

BLOCKS = 3
"""Blocks along each side of a patch."""

LEAST_BLOCK_UM = 50.0
"""Minimum side of a block; smaller ones contain too few cells. Blocks of small patches overlap."""

LEAST_COUNTED = 3
"""Minimum number of matched blocks for a residual."""

LEAST_PEAK, LEAST_MARGIN, PEAK_RADIUS_UM = 0.2, 0.05, 8.0
"""Minimum correlation of a matched block, and its margin over the correlation beyond the radius."""

LEAST_CONTRAST = 0.01
"""Minimum standard deviation of the hematoxylin density; less is noise (2 gray levels)."""


class Agreement(NamedTuple):
    """Agreement of two patches: Pearson's correlation of hematoxylin in `CORRELATION_BAND_UM` at zero offset, and the
    median length of the offsets of matched blocks; None if there is too little structure.
    """

    correlation: float | None
    residual_um: float | None
    counted: int


def agreement(he: RGBImage, ihc: RGBImage, mpp: float) -> Agreement:
    """Compare the patches of a pair: (rows, columns, 3) uint8 RGB, ``mpp`` µm per px."""
    he, coarse_mpp = reduced(he, mpp, MATCHED_AT_UM)
    ihc, _ = reduced(ihc, mpp, MATCHED_AT_UM)
    fixed, moving = hematoxylin_of_he(he), hematoxylin_of_ihc(ihc)
    lengths = [math.hypot(*offset) for offset in block_offsets(fixed, moving, coarse_mpp)]
    residual = float(np.median(lengths)) if len(lengths) >= LEAST_COUNTED else None
    return Agreement(_correlation(fixed, moving, coarse_mpp), residual, len(lengths))


def block_offsets(fixed: FloatPlane, moving: FloatPlane, mpp: float) -> list[tuple[float, float]]:
    """Return the offsets (x, y) in µm of the blocks of ``fixed`` that match in ``moving``.

    Both planes are (rows, columns), in any unit. The whole search range of all blocks lies within the patch.
    """
    fixed, moving = (_band(plane, mpp, *OFFSET_BAND_UM) for plane in (fixed, moving))
    reach = max(1, min(round(MAX_OFFSET_UM / mpp), min(fixed.shape) // 6))
    tops, height = _blocks(fixed.shape[0], reach, mpp)
    lefts, width = _blocks(fixed.shape[1], reach, mpp)
    found = []
    for top in tops:
        for left in lefts:
            block = fixed[top : top + height, left : left + width]
            around = moving[top - reach : top + height + reach, left - reach : left + width + reach]
            if min(block.std(), around.std()) < LEAST_CONTRAST:
                continue
            scores = np.asarray(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED), np.float32)
            if (peak := _distinct_peak(scores, PEAK_RADIUS_UM / mpp)) is not None:
                found.append(((peak[0] - reach) * mpp, (peak[1] - reach) * mpp))
    return found


def _blocks(length: int, reach: int, mpp: float) -> tuple[list[int], int]:
    """Return the starts of the blocks along one side and their length in px."""
    inner = length - 2 * reach
    block = min(inner, max(inner // BLOCKS, math.ceil(LEAST_BLOCK_UM / mpp)))
    return [reach + (inner - block) * index // (BLOCKS - 1) for index in range(BLOCKS)], block


def _distinct_peak(scores: FloatPlane, radius_px: float) -> tuple[float, float] | None:
    """Return the subpixel (x, y) of the highest score; None if it is low, at the edge or ambiguous."""
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    rows, columns = scores.shape
    if not best >= LEAST_PEAK or not (0 < x < columns - 1 and 0 < y < rows - 1):
        return None
    down, across = np.ogrid[:rows, :columns]
    beyond = (down - y) ** 2 + (across - x) ** 2 > radius_px**2
    if beyond.any() and float(scores[beyond].max()) > best - LEAST_MARGIN:
        return None
    return x + vertex(*scores[y, x - 1 : x + 2].tolist()), y + vertex(*scores[y - 1 : y + 2, x].tolist())


def _correlation(fixed: FloatPlane, moving: FloatPlane, mpp: float) -> float | None:
    fixed, moving = (_band(plane, mpp, *CORRELATION_BAND_UM) for plane in (fixed, moving))
    if min(fixed.std(), moving.std()) < LEAST_CONTRAST:
        return None
    return float(np.corrcoef(fixed.ravel(), moving.ravel())[0, 1])


def _band(plane: FloatPlane, mpp: float, finest_um: float, widest_um: float) -> FloatPlane:
    """Return the difference of two Gaussians."""
    narrow = cv2.GaussianBlur(plane, (0, 0), finest_um / mpp)
    # the wide Gaussian at a coarser scale: equal to 0.1 %, in a tenth of the time
    step = max(1, int(widest_um / mpp / 5))
    size = (-(-plane.shape[1] // step), -(-plane.shape[0] // step))
    coarse = cv2.GaussianBlur(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), (0, 0), widest_um / mpp / step)
    wide = cv2.resize(coarse, (plane.shape[1], plane.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.subtract(narrow, wide), np.float32)


Reason = Literal["tissue", "outside", "residual", "correlation", "blur", "fold", "pen"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Reasons of rejection; the first one that applies is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMetrics:
    """Quality metrics of one patch. None: not measured, or not measurable."""

    # tissue fraction of the H&E and the IHC: the minimum of the slide's mask and the patch's px; of the mask alone if
    # that is too small for the patch to be read
    tissue_he: float
    tissue_ihc: float
    valid: float  # fraction of px inside the IHC slide
    correlation: float | None = None  # correlation of hematoxylin at zero offset, -1 to 1
    residual_um: float | None = None  # median remaining offset of blocks
    # ratio of fine to coarse structure; below 0.2 out of focus, 0.35 to 1.5 in focus
    sharpness_he: float | None = None
    sharpness_ihc: float | None = None
    folds: float | None = None  # fraction of the patch far denser than the slide's tissue; maximum of both stains
    pen: float | None = None  # fraction of the patch in colors of pen marks; maximum of both stains
    stained: float | None = None  # fraction of valid px with a DAB density above `STAINED_FROM`


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the quality metrics; each field's text is the help of its command-line option.

    Each limit has a value that disables it. A metric that could not be measured passes all limits, see
    `rejection_reason`.

    Raises
    ------
    OptionError
        If a limit has an invalid value.
    """

    min_tissue: float = option(0.5, "Minimum tissue fraction of the H&E and of the IHC (0: no limit).")
    min_valid: float = option(1.0, "Minimum fraction of px inside the IHC slide (0: no limit).")
    max_residual_um: float = option(10.0, "Maximum measured offset between H&E and IHC in µm (0: no limit).")
    min_correlation: float = option(0.15, "Minimum correlation of the hematoxylin of both stains (-1: no limit).")
    min_sharpness: float = option(0.25, "Minimum sharpness of both stains (0: no limit).")
    max_folds: float = option(0.15, "Maximum fraction of folds in either stain (1: no limit).")
    max_pen: float = option(0.05, "Maximum fraction of pen marks in either stain (1: no limit).")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            least, most = _RANGES[one.name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise OptionError(f"{flag(one.name)} must be a number, {least:g} to {most:g}, not {value!r:.40}")


_RANGES = {
    "min_tissue": (0, 1), "min_valid": (0, 1), "max_residual_um": (0, 1e6), "min_correlation": (-1, 1),
    "min_sharpness": (0, 1e6), "max_folds": (0, 1), "max_pen": (0, 1),
}  # fmt: skip

LIMIT_OF: dict[Reason, tuple[str, str]] = {
    "tissue": ("min_tissue", "lower"),
    "outside": ("min_valid", "lower"),
    "residual": ("max_residual_um", "raise"),
    "correlation": ("min_correlation", "lower"),
    "blur": ("min_sharpness", "lower"),
    "fold": ("max_folds", "raise"),
    "pen": ("max_pen", "raise"),
}
"""Limit of each reason, and the direction that relaxes it."""


def rejection_reason(metrics: PatchMetrics, limits: Limits, *, verified: bool = True) -> Reason | Literal[""]:
    """Return the first reason of rejection in the order of `REASONS`; "" if the patch is kept.

    Metrics that could not be measured pass all limits. If the transform is not ``verified``, however, a patch needs a
    residual or a correlation.
    """
    unknown = (
        not verified and limits.min_correlation > -1 and metrics.residual_um is None and metrics.correlation is None
    )
    failing = (reason for reason in REASONS if _fails(reason, metrics, limits) or (unknown and reason == "correlation"))
    return next(failing, "")


def mask_rejection(metrics: PatchMetrics, limits: Limits) -> Reason | Literal[""]:
    """Return the reason why a patch is rejected without reading its pixels; "" if they have to be read."""
    reason = rejection_reason(metrics, limits)
    # the fraction of samples outside only approximates the fraction of px, except for none or all
    is_certain = metrics.valid == 0 or limits.min_valid == 1
    return reason if reason == "tissue" or is_certain else ""


def _fails(reason: Reason, metrics: PatchMetrics, limits: Limits) -> bool:
    if reason == "tissue":
        # outside of the IHC slide there is no tissue either; such a patch is rejected as outside
        lies_outside = _fails("outside", metrics, limits)
        return (metrics.tissue_he if lies_outside else min(metrics.tissue_he, metrics.tissue_ihc)) < limits.min_tissue
    if reason == "outside":
        return metrics.valid < limits.min_valid
    if reason == "residual":
        return 0 < limits.max_residual_um < (metrics.residual_um or 0.0)
    if reason == "correlation":
        return metrics.correlation is not None and metrics.correlation < limits.min_correlation
    if reason == "blur":
        known = [value for value in (metrics.sharpness_he, metrics.sharpness_ihc) if value is not None]
        return min(known, default=math.inf) < limits.min_sharpness
    if reason == "fold":
        return (metrics.folds or 0.0) > limits.max_folds
    return (metrics.pen or 0.0) > limits.max_pen
