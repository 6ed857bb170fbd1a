"""Misaligned and mismatched pairs.

A pair is reported if its residual is large, its correlation is an outlier among all pairs, or its correlation is not
above the null distribution. `null_correlations` estimates that distribution for each pair, from the correlation of its
H&E with the IHC of other pairs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import RGBImage

from ..pairs.quality import (
    CORRELATION_BAND_UM,
    MATCHED_AT_UM,
    Agreement,
    FloatPlane,
    hematoxylin_of_he,
    hematoxylin_of_ihc,
    reduced,
)

MAX_RESIDUAL_UM = 10.0
"""Maximum residual of an aligned pair: the default of ``wsi2ihc pairs``."""

ASSUMED_MPP = 0.5
"""Resolution of patches of unknown resolution, in µm per px: that of 20x."""

OUTLIER_DEVIATIONS = 3.5
"""Robust standard deviations below the median at which a correlation becomes an outlier (Iglewicz and Hoaglin, How to
Detect and Handle Outliers, 1993)."""

MIN_PAIRS = 20
"""Minimum number of correlations to look for outliers."""

MIN_DEVIATION = 0.05
"""Lower bound of the deviation of transformed correlations, so that nearly equal correlations have no outliers."""

NO_BETTER = "no better than chance"
"""Reason for a pair whose H&E correlates as well with the IHC of other pairs."""

MIN_MEDIAN = 0.15
"""Median correlation below which most pairs are considered unrelated."""


@dataclass(frozen=True, slots=True)
class Misaligned:
    """A misaligned pair."""

    number: int  # index in the dataset
    correlation: float | None
    residual_um: float | None
    chance: float | None  # 99th percentile of the null distribution; None if unknown
    reason: str  # reasons, for display


@dataclass(frozen=True, slots=True)
class AlignmentFindings:
    """Alignment of the pairs of a dataset; None if unknown."""

    misaligned: tuple[Misaligned, ...]  # misaligned pairs by correlation, the lowest first
    median_correlation: float | None
    median_residual_um: float | None
    least_correlation: float | None  # correlation below which a pair is an outlier
    median_chance: float | None  # median of the 99th percentiles of the null distributions
    no_better: int  # number of misaligned pairs that do not exceed that percentile
    unknown: int  # number of pairs with too little structure to be compared


def find_misaligned(agreements: Sequence[Agreement], chances: Sequence[float | None]) -> AlignmentFindings:
    """Find pairs with a large residual, an outlying correlation or a correlation explained by chance.

    Outliers are found by median and median absolute deviation after Fisher's transform (artanh), except among pairs
    that are aligned by themselves. They are not reliable if many pairs are wrong; the comparison with the null
    distribution is.

    ``chances`` are the output of `null_correlations`.
    """
    known = [one.correlation for one in agreements if one.correlation is not None]
    residuals = [one.residual_um for one in agreements if one.residual_um is not None]
    least = _least_correlation(known)
    found = [
        Misaligned(number, one.correlation, one.residual_um, chance, ", ".join(reasons))
        for number, (one, chance) in enumerate(zip(agreements, chances, strict=True))
        if (reasons := list(_reasons(one, least, chance)))
    ]
    known_chances = [chance for chance in chances if chance is not None]
    found.sort(key=lambda one: (math.inf if one.correlation is None else one.correlation, one.number))
    return AlignmentFindings(
        tuple(found),
        float(np.median(known)) if known else None,
        float(np.median(residuals)) if residuals else None,
        least,
        float(np.median(known_chances)) if known_chances else None,
        sum(NO_BETTER in one.reason for one in found),
        sum(one.correlation is None and one.residual_um is None for one in agreements),
    )


def _least_correlation(known: Sequence[float]) -> float | None:
    if len(known) < MIN_PAIRS:
        return None
    transformed = np.arctanh(np.clip(known, -0.999, 0.999))
    median = float(np.median(transformed))
    deviation = 1.4826 * float(np.median(np.abs(transformed - median)))  # equals sigma for a normal distribution
    return math.tanh(median - OUTLIER_DEVIATIONS * max(deviation, MIN_DEVIATION))


def _reasons(one: Agreement, least: float | None, chance: float | None) -> Iterator[str]:
    if one.residual_um is not None and one.residual_um > MAX_RESIDUAL_UM:
        yield "large residual"
    if one.correlation is not None and least is not None and one.correlation < least and not _is_aligned(one, chance):
        yield "low correlation"
    if one.correlation is not None and chance is not None and one.correlation <= chance:
        yield NO_BETTER


def _is_aligned(one: Agreement, chance: float | None) -> bool:
    """Return whether a pair is aligned, however much better the others are: no measurable offset, and a correlation
    closer to 1 than to the 99th percentile of the null distribution.
    """
    if one.correlation is None or one.residual_um is None or chance is None:
        return False
    return one.residual_um <= MATCHED_AT_UM and one.correlation > (1 + chance) / 2


STRUCTURE_MPP = 4.0
"""Resolution of stored structure in µm per px: the finest scale of the band used for correlations."""

MAX_STRUCTURE_PX = 64
"""Maximum longer side of stored structure (16 kB a pair); larger patches are stored at a coarser resolution."""

MIN_SIDE_UM = 48.0
"""Minimum side of a patch; smaller ones contain so few cells that mismatched pairs often correlate."""

MISMATCHED_PAIRS = 200
"""Pairs, evenly spaced among those of the same size, that each pair is compared with."""

MIN_MISMATCHED_PAIRS = 9
"""Minimum number of mismatched pairs; with so few, one wrong pair in ten is not detected."""

MISMATCHED_PER_MATCH = 100
"""Inverse of the false-negative rate: one mismatched pair in so many correlates above the threshold."""

SAME_FIELD = 0.5
"""Correlation of two H&E images above which they show the same field (copies, a second scan, large overlap) and do not
count as mismatched. Of 1.7 million combinations of real patches, one in 10,000 has 0.46."""

BATCH_SIZE = 256
"""Pairs that are compared at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Structure of a pair at low resolution."""

    # band-pass filtered hematoxylin with mean 0 and norm 1
    he: npt.NDArray[np.float16]
    ihc: npt.NDArray[np.float16]


def structure_of(he: RGBImage, ihc: RGBImage, mpp: float) -> Structure | None:
    """Return the structure of two images (rows, columns, 3); None if they are small or of one color."""
    if min(he.shape[:2]) * mpp < MIN_SIDE_UM:
        return None
    he, coarse_mpp = reduced(he, mpp, MATCHED_AT_UM)
    ihc, _ = reduced(ihc, mpp, MATCHED_AT_UM)
    first, second = (
        _normalized(_structure(plane, coarse_mpp)) for plane in (hematoxylin_of_he(he), hematoxylin_of_ihc(ihc))
    )
    return None if first is None or second is None else Structure(first, second)


def null_correlations(structures: Sequence[Structure | None]) -> list[float | None]:
    """Estimate for each pair the 99th percentile of the correlation of its H&E with the IHC of other pairs.

    For fewer than 100 mismatched pairs it is the maximum. None for a pair without structure or with too few other pairs
    of the same size.

    Memory bound: `MISMATCHED_PAIRS` + `BATCH_SIZE` structures in float32.
    """
    sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(structures):
        if one is not None:
            sizes[one.he.shape].append(number)
    chances: list[float | None] = [None] * len(structures)
    for numbers in sizes.values():
        evenly = np.unique(np.linspace(0, len(numbers) - 1, MISMATCHED_PAIRS).round().astype(int))
        others = np.array(numbers)[evenly]
        he, ihc = _stacked(structures, others, "he"), _stacked(structures, others, "ihc")
        for begin in range(0, len(numbers), BATCH_SIZE):
            batch = np.array(numbers[begin : begin + BATCH_SIZE])
            own = _stacked(structures, batch, "he")
            is_mismatched = (own @ he.T < SAME_FIELD) & (batch[:, np.newaxis] != others)
            for number, correlations, chosen in zip(batch.tolist(), own @ ihc.T, is_mismatched, strict=True):
                chances[number] = _upper_percentile(correlations[chosen])
    return chances


def _upper_percentile(correlations: npt.NDArray[np.float32]) -> float | None:
    if correlations.size < MIN_MISMATCHED_PAIRS:
        return None
    return float(np.sort(correlations)[-1 - correlations.size // MISMATCHED_PER_MATCH])


def _stacked(
    structures: Sequence[Structure | None], numbers: npt.NDArray[np.int_], stain: str
) -> npt.NDArray[np.float32]:
    """Return the structures of one stain as an array (numbers, px)."""
    return np.array([getattr(structures[number], stain).ravel() for number in numbers], np.float32)


def _structure(plane: FloatPlane, mpp: float) -> FloatPlane:
    """Return the band-pass filtered plane at `STRUCTURE_MPP` or coarser."""
    finest_um, widest_um = CORRELATION_BAND_UM
    scale = min(1.0, mpp / STRUCTURE_MPP, MAX_STRUCTURE_PX / max(plane.shape))
    size = (max(2, round(plane.shape[1] * scale)), max(2, round(plane.shape[0] * scale)))
    narrow = cv2.resize(cv2.GaussianBlur(plane, (0, 0), finest_um / mpp), size, interpolation=cv2.INTER_AREA)
    # blur the reduced plane with the wide Gaussian: equal to 1 %, and much faster
    coarse = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.subtract(narrow, cv2.GaussianBlur(coarse, (0, 0), widest_um * scale / mpp)), np.float32)


def _normalized(plane: FloatPlane) -> npt.NDArray[np.float16] | None:
    plane = plane - plane.mean()
    length = math.sqrt(float(np.square(plane).sum()))
    return (plane / length).astype(np.float16) if length > 0 else None
