"""Figures of a set of images, and how far they would differ for other patients: the bootstrap over units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError

from ..moments import percentile_interval
from ..reporting.document import Estimate
from .diversity import MOST_CELLS, BatchVariance
from .figures import UNIT_MEANS, Values, figures_of, identical_images, stain_figures
from .sums import BINS, BLOCK_PX, LENGTH, PARTS, PLANES, Scale, Sums

CONFIDENCE = 0.95
"""Of intervals."""

_RESAMPLES_AT_ONCE = 250
"""With 17 kB each."""


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some cells of a method's scores.

    units_of:   the unit of each cell
    sums:       (cells, `LENGTH`)
    numbers:    of the cells among all cells, which the meters know them by
    meters:     of the batch variance, of virtual images and references
    scale:      what was compared with
    """

    units_of: tuple[str, ...]
    sums: Sums
    numbers: npt.NDArray[np.intp]
    meters: tuple[BatchVariance, BatchVariance]
    scale: Scale

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self.pooled[PARTS["images"]][0])

    @property
    def identical(self) -> int:
        """How many virtual images equal their references."""
        return identical_images(self.pooled)

    @property
    def pooled(self) -> Sums:
        """The sum over all images."""
        return np.asarray(self.sums.sum(0), np.float64)

    @property
    def histograms(self) -> npt.NDArray[np.float64]:
        """Px of virtual and reference by level of red, green and blue, and by density of DAB: (2, 4, 256)."""
        return self.pooled[PARTS["histograms"]].reshape(2, len(PLANES), BINS)

    @property
    def units(self) -> tuple[str, ...]:
        """What intervals are taken over."""
        return tuple(sorted(set(self.units_of)))

    def values(self) -> dict[str, float]:
        """All figures, by the names in `figures.FIGURES`; NaN where one is not defined."""
        everything = np.ones((1, len(self.units)))
        return {name: float(value[0]) for name, value in self._figures(everything, self._unit_sums()).items()}

    def estimates(self, *, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """All figures with percentile bootstrap intervals over units; without intervals if there is one unit only."""
        values = self.values()
        spread = self.resampled(seed=seed, resamples=resamples) if len(self.units) > 1 else {}
        return {
            name: _estimate(value, spread.get(name), "" if np.isfinite(value) else why_undefined(name, self))
            for name, value in values.items()
        }

    def resampled(self, *, seed: int, resamples: int) -> dict[str, Values]:
        """All figures of resamples of the units, (resamples,) each.

        The same seed draws the same units, so that differences between methods over the same units are paired.
        """
        count = len(self.units)
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        sums = self._unit_sums()
        parts = [
            self._figures(draws[start : start + _RESAMPLES_AT_ONCE].astype(np.float64), sums)
            for start in range(0, resamples, _RESAMPLES_AT_ONCE)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _unit_sums(self) -> Sums:
        """(units, `LENGTH`)"""
        sums = np.zeros((len(self.units), LENGTH))
        for unit, own in zip(self._unit_numbers(), self.sums, strict=True):
            sums[unit] += own
        return sums

    def _unit_numbers(self) -> npt.NDArray[np.intp]:
        """Of the unit of each cell."""
        numbers = {unit: number for number, unit in enumerate(self.units)}
        return np.array([numbers[unit] for unit in self.units_of], np.intp)

    def _figures(self, draws: Values, sums: Sums) -> dict[str, Values]:
        """Of sets of units, given by how often each unit is in them, (sets, units), and by the units' sums."""
        figures = figures_of(draws @ sums)
        own = stain_figures(sums)
        for name, of in UNIT_MEANS.items():
            figures[name] = _mean_over_units(draws, own[of])
        figures["variance_ratio"] = self._variance_ratio(draws[:, self._unit_numbers()])
        return figures

    def _variance_ratio(self, draws: Values) -> Values:
        """Of sets of cells, (sets, cells of the subset)."""
        weights = np.zeros((len(draws), self.meters[0].cells))
        if self.meters[0].cells <= MOST_CELLS:
            weights[:, self.numbers] = draws
        virtual, reference = (meter.variances(weights) for meter in self.meters)
        ratio = np.full(len(draws), np.nan)
        return np.asarray(np.divide(virtual, reference, out=ratio, where=reference > 0), np.float64)


def differences(
    first: Subset, second: Subset, names: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> Mapping[str, Estimate]:
    """Figures of the first method less those of the second on the same images, with paired intervals.

    PSNR is that of each method's own images that differ from their references.

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


def _mean_over_units(draws: Values, values: Values) -> Values:
    """Of the units that have a value."""
    known = np.isfinite(values)
    count = draws @ known.astype(np.float64)
    total = draws @ np.where(known, values, 0.0)
    return np.asarray(np.divide(total, count, out=np.full(len(draws), np.nan), where=count > 0), np.float64)


def why_undefined(name: str, subset: Subset) -> str:
    """Why a figure has no value, for people."""
    if not subset.images:
        return "there are no images"
    if name == "psnr":
        return "every virtual image equals its reference"
    if name.endswith("um") and subset.scale.mpp is None:
        return "the resolution is unknown"
    if name.startswith(f"stain_r_{BLOCK_PX}px") or name.endswith("um"):
        return "the images are smaller than such a block, or the stain is the same in all"
    if name == "variance_ratio" and subset.meters[0].cells > MOST_CELLS:
        return f"it is not computed over more than {MOST_CELLS:,} units"
    if name == "variance_ratio":
        return "there are fewer than two images, or their sizes differ, or the references are all the same"
    return "one side is constant, or holds no stain"
