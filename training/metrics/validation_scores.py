"""Metrics of a validation set, from sufficient statistics (`pair_statistics`)."""

from __future__ import annotations

import numpy as np

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBBatch
from wsi2ihc.stains import block_means

from .pair_statistics import (
    BLOCK_PX,
    CORE_LENGTH,
    METRICS,
    core_metrics,
    core_statistics,
    measure_pair,
    moments_of,
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
    """Metrics of a validation set, accumulated batch by batch. Memory does not grow with the number of images.

    Parameters
    ----------
    block_px
        Side of the blocks of ``stain_r_blocks``. Incomplete blocks at the right and bottom are ignored; along an axis
        shorter than a block, the block is as long as the image.
    """

    def __init__(self, block_px: int = BLOCK_PX) -> None:
        self.block_px = block_px
        self._variances = np.zeros(2)  # virtual, reference; each a sum of variances · (N - 1)
        self._sums = np.zeros(CORE_LENGTH)

    def add(self, virtual: RGBBatch, reference: RGBBatch) -> None:
        """Add a batch of pairs.

        Raises
        ------
        DatasetError
            If the shapes differ, or images are smaller than 7 px.
        """
        if virtual.shape != reference.shape:
            raise DatasetError(f"virtual images {virtual.shape} and references {reference.shape} do not match")
        for one, other in zip(virtual, reference, strict=True):
            pair = measure_pair(one, other)
            # the error of identical images is that of one channel of one pixel being off by one
            pair = pair._replace(squared_error=max(pair.squared_error, 1 / one.size))
            blocks = moments_of(*(block_means(density, self.block_px) for density in pair.densities))
            self._sums += core_statistics(pair, blocks)
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
        if not self._sums.any():
            raise DatasetError("there is no validation image to score")
        metrics = core_metrics(self._sums) | {"variance_ratio": quotient(*self._variances)}
        return {name: float(metrics[name.replace("blocks", _BLOCKS)]) for name in VALIDATION_METRICS}


def _summed_variance(batch: RGBBatch) -> float:
    """Return the unbiased variance over the batch, averaged over pixels and channels, times (N - 1)."""
    values = batch.astype(np.float32)
    return float(np.square(values - values.mean(0)).sum(0).mean(dtype=np.float64))
