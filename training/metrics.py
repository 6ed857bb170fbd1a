"""How near virtual images are to their references, summed up over a validation set.

All figures are of uint8 images, with the settings that the field reports: PSNR over all channels with range 255, SSIM
of 7x7 windows, both the mean over images. Both reward blur. So the stain itself is compared too: density of DAB
(`stain.dab_density`), pooled over all pixels and over blocks, which tolerate that a pair is not aligned to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.errors import DatasetError, OptionError

from .moments import Moments, correlation, moments_of, percentile_interval, resampled
from .spectrum import grid_power
from .ssim import structural_similarity
from .stain import block_means, dab_density

BLOCK_PX = 64


@dataclass(frozen=True, slots=True)
class Figure:
    """What a validation figure is.

    label:             short, for a panel or a column
    unit:              "" for a pure number
    higher_is_better:  None where the figure should be near ``ideal``
    ideal:             of equal images; infinite for PSNR
    """

    label: str
    unit: str
    higher_is_better: bool | None
    ideal: float

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


FIGURES: dict[str, Figure] = {
    "psnr": Figure("PSNR", "dB", True, float("inf")),
    "ssim": Figure("SSIM", "", True, 1.0),
    "l1": Figure("L1", "grey levels", False, 0.0),
    "stain_r": Figure("Stain correlation per pixel", "", True, 1.0),
    "stain_r_blocks": Figure("Stain correlation in blocks", "", True, 1.0),
    "stain_bias": Figure("Stain bias", "OD", None, 0.0),
    "variance_ratio": Figure("Batch variance / reference's", "", None, 1.0),
    "checkerboard_2": Figure("Power at 2 px / reference's", "", None, 1.0),
    "checkerboard_4": Figure("Power at 4 px / reference's", "", None, 1.0),
}
"""All validation figures by name, in the order of tables."""


def is_better(figure: str, value: float, than: float) -> bool:
    """Whether ``value`` of a figure is better than another; NaN is worse than all else, and never better."""
    if np.isnan(value) or np.isnan(than):
        return bool(np.isnan(than) and not np.isnan(value))
    known = FIGURES[figure]
    if known.higher_is_better is None:
        return abs(value - known.ideal) < abs(than - known.ideal)
    return value > than if known.higher_is_better else value < than


@dataclass(frozen=True, slots=True)
class _ImageScores:
    """What one pair adds. ``sums``: as in `ValidationScores`."""

    sums: npt.NDArray[np.float64]
    pixels: Moments
    blocks: Moments


class ValidationScores:
    """Sums over a validation set; memory grows with the number of groups, not of images.

    Parameters
    ----------
    block_px
        side of the blocks of ``stain_r_blocks``. Only whole blocks count, from the upper left corner; along an axis
        that is shorter than a block, the block is as long as the image.
    """

    def __init__(self, block_px: int = BLOCK_PX) -> None:
        self.block_px = block_px
        self.images = 0
        self._sums = np.zeros(7)  # dB, SSIM, absolute difference, power of virtual and reference at 2 px, and at 4 px
        self._variances = np.zeros(2)  # virtual, reference; each a sum of variances · (N - 1)
        self._groups: dict[str, Moments] = {}  # (pixels and blocks, 6)

    def add(self, virtual: RGBBatch, reference: RGBBatch, groups: Sequence[str]) -> None:
        """Add a batch of pairs, and the group (patient, slide or region) of each.

        Raises
        ------
        DatasetError
            If the shapes differ, there is not one group for each pair, or images are smaller than 7 px.
        """
        if virtual.shape != reference.shape or len(groups) != len(virtual):
            raise DatasetError(
                f"virtual images {virtual.shape}, references {reference.shape} and {len(groups)} groups do not match"
            )
        for one, other, group in zip(virtual, reference, groups, strict=True):
            scores = _score_pair(one, other, self.block_px)
            self.images += 1
            self._sums += scores.sums
            pooled = self._groups.setdefault(group, np.zeros((2, 6)))
            pooled += np.stack([scores.pixels, scores.blocks])
        if len(virtual) > 1:
            self._variances += [_summed_variance(virtual), _summed_variance(reference)]

    def figures(self) -> dict[str, float]:
        """The figures, by the names in `FIGURES`; NaN where one is not defined.

        psnr
            mean of the images' dB. Equal images have no finite one; they count as if one channel of one pixel was off
            by one level, which is 101 dB at 256 x 256.
        ssim, l1
            means over images; l1 in grey levels of 0 to 255
        stain_r, stain_r_blocks
            Pearson's correlation of the density of DAB, over all pixels or blocks of all images together. NaN if one
            side is constant.
        stain_bias
            mean density of the virtual images less that of the references
        variance_ratio
            For each batch of N that was added: the unbiased variance over its N images, per row, column and channel,
            averaged over these, of both sides. Summed over batches with the weight N - 1; the quotient. Batches of one
            do not count. It depends on which images share a batch, so compare it under one order of images only. NaN
            if the references do not vary or no batch had two.
        checkerboard_2, checkerboard_4
            power at periods of 2 and 4 px (`spectrum.grid_power`), summed over images, over the references'. Above 1 is
            a grid, below 1 blur. NaN if the references have none.

        Raises
        ------
        DatasetError
            If nothing was added.
        """
        if self.images == 0:
            raise DatasetError("there is no validation image to score")
        decibels, similarity, absolute, *powers = (float(one) for one in self._sums)
        pixels, blocks = self._stacked().sum(0)
        return {
            "psnr": decibels / self.images,
            "ssim": similarity / self.images,
            "l1": absolute / self.images,
            "stain_r": float(correlation(pixels)),
            "stain_r_blocks": float(correlation(blocks)),
            "stain_bias": float((pixels[1] - pixels[2]) / pixels[0]),
            "variance_ratio": _quotient(*self._variances),
            "checkerboard_2": _quotient(powers[0], powers[1]),
            "checkerboard_4": _quotient(powers[2], powers[3]),
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of all groups, sorted."""
        return tuple(sorted(self._groups))

    def interval(
        self, figure: str, level: float = 0.95, *, seed: int = 0, resamples: int = 2000
    ) -> tuple[float, float]:
        """Bootstrap interval (percentiles) of ``stain_r`` or ``stain_r_blocks`` over groups; NaN for a single group."""
        return percentile_interval(self._resampled(figure, seed, resamples), level)

    def _resampled(self, figure: str, seed: int, resamples: int) -> npt.NDArray[np.float64]:
        if figure not in ("stain_r", "stain_r_blocks"):
            raise OptionError(f"there is no interval for {figure}, only for stain_r and stain_r_blocks")
        if len(self._groups) < 2:
            return np.full(resamples, np.nan)
        return correlation(resampled(self._stacked()[:, int(figure == "stain_r_blocks")], seed, resamples))

    def _stacked(self) -> Moments:
        """(groups, pixels and blocks, 6), by name, so that the order of images does not matter to the draws."""
        return np.stack([self._groups[name] for name in self.groups])


def difference_interval(
    a: ValidationScores,
    b: ValidationScores,
    figure: str,
    level: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Paired bootstrap interval of ``figure`` of a less that of b, over the same groups; see `interval`.

    Raises
    ------
    DatasetError
        If the groups differ.
    """
    if a.groups != b.groups:
        raise DatasetError("the two sets of scores are not over the same groups, so they cannot be compared in pairs")
    first, second = (scores._resampled(figure, seed, resamples) for scores in (a, b))
    return percentile_interval(first - second, level)


def _score_pair(virtual: RGBImage, reference: RGBImage, block_px: int) -> _ImageScores:
    difference = cv2.absdiff(virtual, reference)
    squared = max(float(cv2.norm(difference, cv2.NORM_L2SQR)), 1.0) / difference.size
    powers = zip(grid_power(virtual), grid_power(reference), strict=True)
    sums = np.array(
        [
            10 * np.log10(255**2 / squared),
            structural_similarity(virtual, reference),
            float(cv2.norm(difference, cv2.NORM_L1)) / difference.size,
            *(one for pair in powers for one in pair),
        ]
    )
    densities = dab_density(virtual), dab_density(reference)
    blocks = (block_means(density, block_px) for density in densities)
    return _ImageScores(sums, moments_of(*densities), moments_of(*blocks))


def _summed_variance(batch: RGBBatch) -> float:
    """The unbiased variance over the batch, averaged over all else, times (N - 1)."""
    values = batch.astype(np.float32)
    return float(np.square(values - values.mean(0)).sum(0).mean(dtype=np.float64))


def _quotient(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")
