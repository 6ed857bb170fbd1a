"""Metrics of a validation set, from the sums and formulas of an evaluation.

`ValidationScores` keeps the core sums of each group, over which the stain correlations have bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.geometry import RGBBatch
from wsi2ihc.stains import block_means

from .formulas import METRICS, core_metrics
from .pair_statistics import (
    BLOCK_PX,
    CORE_LENGTH,
    SufficientStatistics,
    bootstrap_weights,
    core_statistics,
    measure_pair,
    moments_of,
    percentile_interval,
    quotient,
)

_BLOCKS = f"{BLOCK_PX}px"
"""How an evaluation names what is ``blocks`` here."""

VALIDATION_METRICS = {
    name: METRICS[name.replace("blocks", _BLOCKS)]
    for name in (
        "psnr", "ssim", "l1", "stain_r", "stain_r_blocks", "stain_bias", "variance_ratio", "checkerboard_2",
        "checkerboard_4",
    )
}  # fmt: skip
"""Validation metrics by name, in the order of tables."""


def is_better(name: str, value: float, than: float) -> bool:
    """Return whether a value of a metric is better than another: nearer to its ideal. NaN is the worst value."""
    if np.isnan(value) or np.isnan(than):
        return bool(np.isnan(than) and not np.isnan(value))
    ideal = VALIDATION_METRICS[name].ideal
    assert ideal is not None
    return value > than if np.isinf(ideal) else abs(value - ideal) < abs(than - ideal)


class ValidationScores:
    """Metrics of a validation set, accumulated batch by batch. Memory grows with the number of groups, not of images.

    Parameters
    ----------
    block_px
        Side of the blocks of ``stain_r_blocks``. Incomplete blocks at the right and bottom are ignored; along an axis
        shorter than a block, the block is as long as the image.
    """

    def __init__(self, block_px: int = BLOCK_PX) -> None:
        self.block_px = block_px
        self._variances = np.zeros(2)  # virtual, reference; each a sum of variances · (N - 1)
        self._groups: dict[str, SufficientStatistics] = {}

    def add(self, virtual: RGBBatch, reference: RGBBatch, groups: Sequence[str]) -> None:
        """Add a batch of pairs and the group (patient, slide or region) of each.

        Raises
        ------
        DatasetError
            If the shapes differ, the number of groups differs, or images are smaller than 7 px.
        """
        if virtual.shape != reference.shape or len(groups) != len(virtual):
            raise DatasetError(
                f"virtual images {virtual.shape}, references {reference.shape} and {len(groups)} groups do not match"
            )
        for one, other, group in zip(virtual, reference, groups, strict=True):
            pair = measure_pair(one, other)
            # the error of identical images is that of one channel of one pixel being off by one
            pair = pair._replace(squared_error=max(pair.squared_error, 1 / one.size))
            blocks = moments_of(*(block_means(density, self.block_px) for density in pair.densities))
            self._groups.setdefault(group, np.zeros(CORE_LENGTH))
            self._groups[group] += core_statistics(pair, blocks)
        if len(virtual) > 1:
            self._variances += _summed_variance(virtual), _summed_variance(reference)

    def compute(self) -> dict[str, float]:
        """Return the metrics by their names in `VALIDATION_METRICS`; NaN where one is not defined.

        They are those of an evaluation (`metrics_of`), except for:

        psnr
            An image identical to its reference counts as if one channel of one pixel differed by one level: 101 dB at
            256 x 256.
        variance_ratio
            For each batch of N images, the unbiased variance over the images, averaged over rows, columns and
            channels; summed over batches with the weight N - 1; virtual over reference. It depends on which images
            share a batch. NaN if the references do not vary or no batch has two images.

        Raises
        ------
        DatasetError
            If nothing was added.
        """
        if not self._groups:
            raise DatasetError("there is no validation image to score")
        metrics = core_metrics(self._stacked().sum(0)) | {"variance_ratio": quotient(*self._variances)}
        return {name: float(metrics[name.replace("blocks", _BLOCKS)]) for name in VALIDATION_METRICS}

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of all groups, sorted."""
        return tuple(sorted(self._groups))

    def interval(self, name: str, level: float = 0.95, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """Return a percentile bootstrap interval of a stain correlation over groups; NaN for a single group.

        Raises
        ------
        OptionError
            If the metric is neither ``stain_r`` nor ``stain_r_blocks``.
        """
        return percentile_interval(self._resample(name, seed, resamples), level)

    def _resample(self, name: str, seed: int, resamples: int) -> npt.NDArray[np.float64]:
        if name not in ("stain_r", "stain_r_blocks"):
            raise OptionError(f"there is no interval for {name}, only for stain_r and stain_r_blocks")
        if len(self._groups) < 2:
            return np.full(resamples, np.nan)
        sums = bootstrap_weights(len(self._groups), seed, resamples) @ self._stacked()
        return core_metrics(sums)[name.replace("blocks", _BLOCKS)]

    def _stacked(self) -> SufficientStatistics:
        """Return the sums (groups, `CORE_LENGTH`) by name, so that resamples do not depend on the order of images."""
        return np.stack([self._groups[name] for name in self.groups])


def difference_interval(
    a: ValidationScores,
    b: ValidationScores,
    name: str,
    level: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Return a paired bootstrap interval of the difference of a metric, a minus b; see `ValidationScores.interval`.

    Raises
    ------
    DatasetError
        If the groups differ.
    """
    if a.groups != b.groups:
        raise DatasetError("the two sets of scores are not over the same groups, so they cannot be compared in pairs")
    first, second = (scores._resample(name, seed, resamples) for scores in (a, b))
    return percentile_interval(first - second, level)


def _summed_variance(batch: RGBBatch) -> float:
    """Return the unbiased variance over the batch, averaged over pixels and channels, times (N - 1)."""
    values = batch.astype(np.float32)
    return float(np.square(values - values.mean(0)).sum(0).mean(dtype=np.float64))
