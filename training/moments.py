"""Correlation from sums that are kept per group, and its bootstrap over groups.

Patches of one slide or region are alike, so an interval has to be taken over groups, not over patches. With the sums of
each group kept, a resample of the groups is a weighted sum of them: no image is held, and none is looked at again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Moments = npt.NDArray[np.float64]
"""(…, 6): count, Σx, Σy, Σx², Σy², Σxy."""

_LEAST_VARIANCE = 1e-12
"""Relative to the mean square; what is below is a constant and the rounding of sums."""


def moments_of(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Moments:
    """The sums of two arrays of one shape: (6), float64."""
    x, y = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    # no products of BLAS: its threads wait for each other longer than they work
    return np.array([x.size, x.sum(), y.sum(), np.square(x).sum(), np.square(y).sum(), (x * y).sum()])


def correlation(moments: Moments) -> npt.NDArray[np.float64]:
    """Pearson's correlation of x and y for each row of ``moments`` (…, 6): (…), NaN where x or y is constant."""
    count, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    count = np.maximum(count, 1)
    mean_x, mean_y = x / count, y / count
    variance_x, variance_y = xx / count - mean_x**2, yy / count - mean_y**2
    varies = (variance_x > _LEAST_VARIANCE * xx / count) & (variance_y > _LEAST_VARIANCE * yy / count)
    product = np.where(varies, variance_x * variance_y, 1.0)
    answer: npt.NDArray[np.float64] = np.where(varies, (xy / count - mean_x * mean_y) / np.sqrt(product), np.nan)
    return answer


def resampled(moments: Moments, seed: int, resamples: int) -> Moments:
    """Draw as many groups as there are, with replacement, and sum: from (groups, …) to (resamples, …).

    The same seed draws the same groups, which is what makes a comparison of two methods a paired one.
    """
    groups = len(moments)
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.tensordot(draws.astype(np.float64), moments, axes=1)


def percentile_interval(values: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    """The middle ``level`` (0 to 1) of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    if known.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
