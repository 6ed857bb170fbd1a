"""Metrics of a set of images, with bootstrap confidence intervals.

`Scores` adds up the sufficient statistics of one method by groups: images of one resampling unit, HER2 level and slide.
`Scores.subset` selects the groups of a level or a slide; the resulting `Subset` computes all metrics and resamples its
units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBImage

from ..reports.document import Estimate
from .pair_statistics import (
    BINS,
    BLOCK_PX,
    JOINT_BINS,
    LENGTH,
    MAX_GROUPS,
    MAX_SUM_BYTES,
    PARTS,
    PLANES,
    UNIT_MEANS,
    BatchVariance,
    Scale,
    SufficientStatistics,
    Values,
    bootstrap_weights,
    correlation,
    identical_images,
    metrics_of,
    percentile_interval,
    quotient,
    score_pair,
    stain_metrics,
)

CONFIDENCE = 0.95
"""Level of intervals."""

_RESAMPLES_AT_ONCE = 250
"""Each takes 17 kB."""

Group = tuple[str, str, str]
"""Resampling unit, HER2 level and slide; "" where unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some groups of a method's scores."""

    units_of: tuple[str, ...]  # the resampling unit of each group
    sums: SufficientStatistics  # (groups, `LENGTH`)
    numbers: npt.NDArray[np.intp]  # indices of the groups among all groups of `batch_variances`
    batch_variances: tuple[BatchVariance, BatchVariance]  # of virtual images and references
    scale: Scale

    @property
    def images(self) -> int:
        return int(self.pooled[PARTS["images"]][0])

    @property
    def identical(self) -> int:
        return identical_images(self.pooled)

    @property
    def pooled(self) -> SufficientStatistics:
        """The sum over all images."""
        return np.asarray(self.sums.sum(0), np.float64)

    @property
    def histograms(self) -> npt.NDArray[np.float64]:
        """Pixel counts of virtual and reference by level of red, green and blue, and by DAB density: (2, 4, 256)."""
        return self.pooled[PARTS["histograms"]].reshape(2, len(PLANES), BINS)

    @property
    def units(self) -> tuple[str, ...]:
        """The resampling units, sorted."""
        return tuple(sorted(set(self.units_of)))

    def values(self) -> dict[str, float]:
        """Return all metrics, by the names in `pair_statistics.METRICS`; NaN where one is not defined."""
        everything = np.ones((1, len(self.units)))
        return {name: float(value[0]) for name, value in self._metrics(everything, self._unit_sums()).items()}

    def estimates(self, *, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """Return all metrics with percentile bootstrap intervals over units; a single unit has no intervals."""
        values = self.values()
        spread = self.resampled(seed=seed, resamples=resamples) if len(self.units) > 1 else {}
        return {
            name: _estimate(value, spread.get(name), "" if np.isfinite(value) else undefined_reason(name, self))
            for name, value in values.items()
        }

    def resampled(self, *, seed: int, resamples: int) -> dict[str, Values]:
        """Return all metrics of resamples of the units, (resamples,) each; see `bootstrap_weights`."""
        weights = bootstrap_weights(len(self.units), seed, resamples)
        sums = self._unit_sums()
        parts = [
            self._metrics(weights[start : start + _RESAMPLES_AT_ONCE], sums)
            for start in range(0, resamples, _RESAMPLES_AT_ONCE)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _unit_sums(self) -> SufficientStatistics:
        sums = np.zeros((len(self.units), LENGTH))
        for unit, group_sums in zip(self._unit_numbers(), self.sums, strict=True):
            sums[unit] += group_sums
        return sums

    def _unit_numbers(self) -> npt.NDArray[np.intp]:
        numbers = {unit: number for number, unit in enumerate(self.units)}
        return np.array([numbers[unit] for unit in self.units_of], np.intp)

    def _metrics(self, weights: Values, sums: SufficientStatistics) -> dict[str, Values]:
        """Return the metrics of sets of units.

        Parameters
        ----------
        weights
            (sets, units): how often each unit is in each set.
        sums
            (units, `LENGTH`).
        """
        metrics = metrics_of(weights @ sums)
        of_units = stain_metrics(sums)
        for name, of in UNIT_MEANS.items():
            known = np.isfinite(of_units[of])
            metrics[name] = quotient(weights @ np.where(known, of_units[of], 0.0), weights @ known.astype(np.float64))
        of_groups = np.zeros((len(weights), self.batch_variances[0].groups))
        of_groups[:, self.numbers] = weights[:, self._unit_numbers()]
        metrics["variance_ratio"] = quotient(*(variance.variances(of_groups) for variance in self.batch_variances))
        return metrics


def differences(
    first: Subset, second: Subset, names: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> Mapping[str, Estimate]:
    """Return the metrics of the first method minus those of the second on the same images, with paired intervals.

    PSNR is the mean over each method's own images that differ from their references.

    Raises
    ------
    DatasetError
        If the units differ.
    """
    if first.units != second.units:
        raise DatasetError("two methods were not scored on the same images, so they cannot be compared in pairs")
    values = first.values(), second.values()
    enough = len(first.units) > 1
    spreads = [one.resampled(seed=seed, resamples=resamples) for one in (first, second)] if enough else []
    return {
        name: _estimate(
            values[0][name] - values[1][name], spreads[0][name] - spreads[1][name] if enough else None, "not defined"
        )
        for name in names
    }


def _estimate(value: float, spread: Values | None, reason: str) -> Estimate:
    if not np.isfinite(value):
        return Estimate(None, reason=reason)
    return Estimate(value) if spread is None else Estimate(value, *percentile_interval(spread, CONFIDENCE))


def undefined_reason(name: str, subset: Subset) -> str:
    """Return why a metric has no value, for display."""
    if not subset.images:
        return "there are no images"
    if name == "psnr":
        return "every virtual image equals its reference"
    if name.endswith("um") and subset.scale.mpp is None:
        return "the resolution is unknown"
    if name.startswith(f"stain_r_{BLOCK_PX}px") or name.endswith("um"):
        return "the images are smaller than such a block, or the stain is the same in all"
    if name == "variance_ratio" and subset.batch_variances[0].groups > MAX_GROUPS:
        return f"it is not computed over more than {MAX_GROUPS:,} units"
    if name == "variance_ratio":
        return "there are fewer than two images, or their sizes differ, or the references are all the same"
    return "one side is constant, or holds no stain"


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """Metadata of an image pair; None if unknown."""

    name: str  # for display
    # what is independent of others: the patient, else the slide or region; the image itself if none is known
    resampling_unit: str
    her2: str | None = None  # HER2 level of its slide, as in "2+"
    slide: str | None = None

    @property
    def group(self) -> Group:
        return self.resampling_unit, self.her2 or "", self.slide or ""


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """Metrics of a single image: PSNR is infinite if it equals its reference, areas are fractions of stained pixels."""

    image: ImageMetadata
    psnr: float
    ssim: float
    stain_r: float
    area_virtual: float
    area_reference: float


class Scores:
    """Sums over the images of one method, by groups: images of one resampling unit, level and slide.

    Memory bound: 17 kB per group, some 200 bytes per image, and that of `BatchVariance`.

    Parameters
    ----------
    images
        All images that will be added.
    scale
        Scale of the comparison.
    like
        Scores of another method on the same images. The batch variance of the references is shared with it; every image
        must be added to it, too.
    max_bytes
        Memory for the batch variance of the virtual images.
    """

    def __init__(
        self,
        images: Sequence[ImageMetadata],
        scale: Scale,
        like: Scores | None = None,
        max_bytes: int = MAX_SUM_BYTES // 2,
    ) -> None:
        self.scale = scale
        self.per_image: list[ImageMetrics] = []
        self.joint = np.zeros((JOINT_BINS, JOINT_BINS), np.int64)
        self.groups: tuple[Group, ...] = tuple(sorted({image.group for image in images}))
        self.sums: SufficientStatistics = np.zeros((len(self.groups), LENGTH))
        self.virtual = BatchVariance(len(self.groups), max_bytes)
        self.reference: BatchVariance = BatchVariance(len(self.groups), max_bytes) if like is None else like.reference
        self._keeps_references = like is None
        self._numbers = {group: number for number, group in enumerate(self.groups)}

    def add(self, image: ImageMetadata, virtual: RGBImage, reference: RGBImage) -> None:
        """Add a pair of images (H, W, 3) uint8 of one shape.

        Raises
        ------
        DatasetError
            If the shapes differ, or a side is shorter than 7 px.
        """
        if virtual.shape != reference.shape:
            raise DatasetError(f"{image.name}: virtual image {virtual.shape[:2]}, reference {reference.shape[:2]}")
        scores, number = score_pair(virtual, reference, self.scale), self._numbers[image.group]
        self.sums[number] += scores.sums
        self.joint += scores.joint
        self.virtual.add(number, virtual)
        if self._keeps_references:
            self.reference.add(number, reference)
        both, virtual_only, reference_only, neither = scores.sums[PARTS["confusion"]].tolist()
        count = both + virtual_only + reference_only + neither
        stain_r = float(correlation(scores.sums[PARTS["pixels"]]))
        areas = (both + virtual_only) / count, (both + reference_only) / count
        self.per_image.append(ImageMetrics(image, scores.psnr, scores.ssim, stain_r, *areas))

    @property
    def levels(self) -> tuple[str, ...]:
        """The HER2 levels of the images, sorted."""
        return tuple(sorted({level for _, level, _ in self.groups} - {""}))

    @property
    def slides(self) -> tuple[str, ...]:
        """The slides of the images, sorted; the resampling unit where no slide is known."""
        return tuple(sorted({slide or unit for unit, _, slide in self.groups}))

    def subset(self, *, her2: str | None = None, slide: str | None = None) -> Subset:
        """Return the scores of a level or a slide; of all images if neither is given."""
        chosen = [
            number
            for number, (unit, level, group_slide) in enumerate(self.groups)
            if her2 in (None, level) and slide in (None, group_slide or unit)
        ]
        return Subset(
            tuple(self.groups[number][0] for number in chosen), self.sums[chosen], np.array(chosen, np.intp),
            (self.virtual, self.reference), self.scale,
        )  # fmt: skip

    def slide_counts(self, which: Literal["virtual", "reference"]) -> dict[str, SufficientStatistics]:
        """Return pixel counts by DAB density, (256,), of every slide."""
        side = ("virtual", "reference").index(which)
        return {slide: self.subset(slide=slide).histograms[side, -1] for slide in self.slides}
