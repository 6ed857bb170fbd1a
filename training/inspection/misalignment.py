"""Pairs whose H&E and IHC do not lie on each other, or do not belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pairing.agreement import Agreement

MOST_RESIDUAL_UM = 10.0
"""Greatest offset of a pair that is all right: the default of ``wsi2ihc pairs``."""

ASSUMED_MPP = 0.5
"""Where nothing says µm per px: those of 20x, so that the greatest offset is 20 px."""

FAR_BELOW = 3.5
"""Robust standard deviations below the median from which on a correlation is an outlier (Iglewicz and Hoaglin, How to
Detect and Handle Outliers, 1993)."""

LEAST_PAIRS = 20
"""Fewer correlations are no distribution."""

LEAST_DEVIATION = 0.05
"""Of the transformed correlations: data that agree perfectly have no outliers for that."""

LEAST_MEDIAN = 0.15
"""Median correlation below which the two stains of most pairs have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class Misaligned:
    """A pair that does not agree.

    number:       in the data set
    correlation, residual_um:
                  as `Agreement` has them
    reason:       in words
    """

    number: int
    correlation: float | None
    residual_um: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """Of a data set.

    misaligned:   the worst first: by correlation
    median_correlation, median_residual_um:
                  of the pairs where they are known; None where they are of none
    least_correlation:
                  below it a pair is an outlier; None for too few pairs
    unknown:      pairs with too little in them to be compared
    """

    misaligned: tuple[Misaligned, ...]
    median_correlation: float | None
    median_residual_um: float | None
    least_correlation: float | None
    unknown: int


def find_misaligned(agreements: Sequence[Agreement]) -> Alignment:
    """Find the pairs with a large residual, or a correlation far below those of the others.

    Correlations bunch up below 1; Fisher's transform (artanh) spreads them, and the median and the median absolute
    deviation of what it gives are what `FAR_BELOW` counts from.
    """
    known = [one.correlation for one in agreements if one.correlation is not None]
    residuals = [one.residual_um for one in agreements if one.residual_um is not None]
    least = _least_correlation(known)
    found = [
        Misaligned(number, one.correlation, one.residual_um, reason)
        for number, one in enumerate(agreements)
        if (reason := _reason(one, least))
    ]
    found.sort(key=lambda one: (math.inf if one.correlation is None else one.correlation, one.number))
    return Alignment(
        tuple(found),
        float(np.median(known)) if known else None,
        float(np.median(residuals)) if residuals else None,
        least,
        sum(one.correlation is None and one.residual_um is None for one in agreements),
    )


def _least_correlation(known: Sequence[float]) -> float | None:
    if len(known) < LEAST_PAIRS:
        return None
    spread = np.arctanh(np.clip(known, -0.999, 0.999))
    median = float(np.median(spread))
    deviation = 1.4826 * float(np.median(np.abs(spread - median)))  # of a normal distribution: its standard deviation
    return math.tanh(median - FAR_BELOW * max(deviation, LEAST_DEVIATION))


def _reason(one: Agreement, least: float | None) -> str:
    reasons = []
    if one.residual_um is not None and one.residual_um > MOST_RESIDUAL_UM:
        reasons.append("large residual")
    if one.correlation is not None and least is not None and one.correlation < least:
        reasons.append("low correlation")
    return ", ".join(reasons)
