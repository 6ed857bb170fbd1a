"""Pairs whose H&E and IHC do not lie on each other, or do not belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

NO_BETTER = "no better than chance"
"""Reason for a pair whose H&E agrees as well with the IHC of others."""

LEAST_MEDIAN = 0.15
"""Median correlation below which the two stains of most pairs have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class Misaligned:
    """A pair that does not agree.

    number:       in the data set
    correlation, residual_um:
                  as `Agreement` has them
    chance:       correlation that one stranger in 100 reaches with its H&E; None where that is not known
    reason:       in words
    """

    number: int
    correlation: float | None
    residual_um: float | None
    chance: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """Of a data set.

    misaligned:   the worst first: by correlation
    median_correlation, median_residual_um:
                  of the pairs where they are known; None where they are of none
    least_correlation:
                  below it a pair is an outlier; None for too few pairs
    median_chance:
                  of what one stranger in 100 reaches; None where it is known of none
    no_better:    how many of the misaligned are no better than that
    unknown:      pairs with too little in them to be compared
    """

    misaligned: tuple[Misaligned, ...]
    median_correlation: float | None
    median_residual_um: float | None
    least_correlation: float | None
    median_chance: float | None
    no_better: int
    unknown: int


def find_misaligned(agreements: Sequence[Agreement], chances: Sequence[float | None]) -> Alignment:
    """Find the pairs with a large residual, or a correlation far below those of the others or within reach of chance.

    Correlations bunch up below 1; Fisher's transform (artanh) spreads them, and the median and the median absolute
    deviation of what it gives are what `FAR_BELOW` counts from. Of a data set where many pairs are wrong that says
    little; that is what chances are for.

    Parameters
    ----------
    agreements
        Of all pairs.
    chances
        As `chance_correlations` gives them.
    """
    known = [one.correlation for one in agreements if one.correlation is not None]
    residuals = [one.residual_um for one in agreements if one.residual_um is not None]
    least = _least_correlation(known)
    found = [
        Misaligned(number, one.correlation, one.residual_um, chance, ", ".join(reasons))
        for number, (one, chance) in enumerate(zip(agreements, chances, strict=True))
        if (reasons := list(_reasons(one, least, chance)))
    ]
    likely = [chance for chance in chances if chance is not None]
    found.sort(key=lambda one: (math.inf if one.correlation is None else one.correlation, one.number))
    return Alignment(
        tuple(found),
        float(np.median(known)) if known else None,
        float(np.median(residuals)) if residuals else None,
        least,
        float(np.median(likely)) if likely else None,
        sum(NO_BETTER in one.reason for one in found),
        sum(one.correlation is None and one.residual_um is None for one in agreements),
    )


def _least_correlation(known: Sequence[float]) -> float | None:
    if len(known) < LEAST_PAIRS:
        return None
    spread = np.arctanh(np.clip(known, -0.999, 0.999))
    median = float(np.median(spread))
    deviation = 1.4826 * float(np.median(np.abs(spread - median)))  # of a normal distribution: its standard deviation
    return math.tanh(median - FAR_BELOW * max(deviation, LEAST_DEVIATION))


def _reasons(one: Agreement, least: float | None, chance: float | None) -> Iterator[str]:
    if one.residual_um is not None and one.residual_um > MOST_RESIDUAL_UM:
        yield "large residual"
    if one.correlation is not None and least is not None and one.correlation < least:
        yield "low correlation"
    if one.correlation is not None and chance is not None and one.correlation <= chance:
        yield NO_BETTER
