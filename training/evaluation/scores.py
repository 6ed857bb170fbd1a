"""The scores of one method: of all images, of each level and slide, with intervals over what is independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError

from ..moments import correlation, percentile_interval
from ..reporting.document import Estimate
from .diversity import BatchVariance
from .figures import UNIT_MEANS, Values, figures_of, identical_images
from .sums import BINS, JOINT_BINS, LENGTH, PARTS, PLANES, Scale, Sums, score_pair

LEVEL = 0.95
"""Of intervals."""


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of a pair of images.

    name:   for people
    unit:   what is independent of others: its patient, else slide, region; itself where none is known
    her2:   level of its slide, as in "2+"; None where unknown
    slide:  its slide; None where unknown
    """

    name: str
    unit: str
    her2: str | None = None
    slide: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One image's own figures: PSNR in dB (infinite if equal), SSIM, stain correlation per pixel (NaN if constant)."""

    image: Image
    psnr: float
    ssim: float
    stain_r: float


class Scores:
    """Sums over images, kept by cells: images of one unit, level and slide.

    Memory bound: 17 kB a cell, some 200 bytes an image, and what `BatchVariance` holds.

    Parameters
    ----------
    images
        all that will be added
    scale
        what they are compared with
    """

    def __init__(self, images: Sequence[Image], scale: Scale) -> None:
        self.scale = scale
        self.scored: list[Scored] = []
        self.joint = np.zeros((JOINT_BINS, JOINT_BINS), np.int64)
        self._cells = sorted({_cell(image) for image in images})
        self._numbers = {cell: number for number, cell in enumerate(self._cells)}
        self._sums = np.zeros((len(self._cells), LENGTH))
        self._virtual, self._reference = (BatchVariance(len(self._cells)) for _ in range(2))

    def add(self, image: Image, virtual: RGBImage, reference: RGBImage) -> None:
        """Add a pair of images (H, W, 3) uint8 of one shape.

        Raises
        ------
        DatasetError
            If the shapes differ, or sides are shorter than 7 px.
        """
        if virtual.shape != reference.shape:
            raise DatasetError(f"{image.name}: virtual image {virtual.shape[:2]}, reference {reference.shape[:2]}")
        scores, number = score_pair(virtual, reference, self.scale), self._numbers[_cell(image)]
        self._sums[number] += scores.sums
        self.joint += scores.joint
        self._virtual.add(number, virtual)
        self._reference.add(number, reference)
        own = float(correlation(scores.sums[PARTS["pixels"]]))
        self.scored.append(Scored(image, scores.psnr, scores.ssim, own))

    @property
    def levels(self) -> tuple[str, ...]:
        """The HER2 levels that images have, sorted."""
        return tuple(sorted({level for _, level, _ in self._cells} - {""}))

    @property
    def slides(self) -> tuple[str, ...]:
        """The slides that images have, sorted; units where no slide is known."""
        return tuple(sorted({slide or unit for unit, _, slide in self._cells}))

    def subset(self, *, her2: str | None = None, slide: str | None = None) -> Subset:
        """The images of a level, or of a slide; all where neither is given."""
        chosen = [
            number
            for number, (unit, level, of_slide) in enumerate(self._cells)
            if her2 in (None, level) and slide in (None, of_slide or unit)
        ]
        return Subset(self, np.array(chosen, np.intp))

    def slide_counts(self, which: Literal["virtual", "reference"]) -> dict[str, npt.NDArray[np.float64]]:
        """Px by density of DAB, (256,), of every slide."""
        side = ("virtual", "reference").index(which)
        return {slide: self.subset(slide=slide).histograms[side, -1] for slide in self.slides}


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some cells of a method's scores."""

    scores: Scores
    cells: npt.NDArray[np.intp]

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self.pooled[PARTS["images"]][0]) if self.cells.size else 0

    @property
    def identical(self) -> int:
        """How many virtual images equal their references."""
        return identical_images(self.pooled)

    @property
    def pooled(self) -> Sums:
        """The sum over all images."""
        return np.asarray(self.scores._sums[self.cells].sum(0), np.float64)

    @property
    def histograms(self) -> npt.NDArray[np.float64]:
        """Px of virtual and reference by level of red, green and blue, and by density of DAB: (2, 4, 256)."""
        return self.pooled[PARTS["histograms"]].reshape(2, len(PLANES), BINS)

    @property
    def units(self) -> tuple[str, ...]:
        """What intervals are taken over."""
        return tuple(sorted({self.scores._cells[cell][0] for cell in self.cells}))

    def values(self) -> dict[str, float]:
        """All figures, by the names in `figures.FIGURES`; NaN where one is not defined."""
        return {name: float(value[0]) for name, value in self._figures(np.ones((1, len(self.units)))).items()}

    def estimates(self, *, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """All figures with percentile bootstrap intervals over units; without intervals if there is one unit only."""
        values = self.values()
        spread = self.resampled(seed=seed, resamples=resamples) if len(self.units) > 1 else {}
        return {
            name: _estimate(value, spread.get(name), "" if np.isfinite(value) else _why_undefined(name, self))
            for name, value in values.items()
        }

    def resampled(self, *, seed: int, resamples: int) -> dict[str, Values]:
        """All figures of resamples of the units, (resamples,) each.

        The same seed draws the same units, so that differences between methods over the same units are paired.
        """
        count = len(self.units)
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        return self._figures(draws.astype(np.float64))

    def _figures(self, draws: Values) -> dict[str, Values]:
        """Of sets of units, given by how often each unit is in them, (sets, units)."""
        units = self.units
        of_cells = np.array([self.scores._cells[cell][0] for cell in self.cells], object)
        belongs = np.equal.outer(np.array(units, object), of_cells).astype(np.float64)
        sums = self.scores._sums[self.cells]
        figures = figures_of(draws @ (belongs @ sums))
        own = figures_of(belongs @ sums)
        for name, of in UNIT_MEANS.items():
            figures[name] = _mean_over_units(draws, own[of])
        weights = np.zeros((len(draws), len(self.scores._cells)))
        weights[:, self.cells] = draws @ belongs
        virtual, reference = (one.variances(weights) for one in (self.scores._virtual, self.scores._reference))
        figures["variance_ratio"] = np.divide(
            virtual, reference, out=np.full(len(draws), np.nan), where=reference > 0
        )  # fmt: skip
        return figures


def differences(
    first: Subset, second: Subset, names: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> Mapping[str, Estimate]:
    """Figures of the first method less those of the second on the same images, with paired intervals.

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
    return Estimate(value) if spread is None else Estimate(value, *percentile_interval(spread, LEVEL))


def _cell(image: Image) -> tuple[str, str, str]:
    return image.unit, image.her2 or "", image.slide or ""


def _mean_over_units(draws: Values, values: Values) -> Values:
    """Of the units that have a value."""
    known = np.isfinite(values)
    count = draws @ known.astype(np.float64)
    total = draws @ np.where(known, values, 0.0)
    return np.asarray(np.divide(total, count, out=np.full(len(draws), np.nan), where=count > 0), np.float64)


def _why_undefined(name: str, subset: Subset) -> str:
    if not subset.images:
        return "there are no images"
    if name == "psnr":
        return "every virtual image equals its reference"
    if name.endswith("um") and subset.scores.scale.mpp is None:
        return "the resolution is unknown"
    if name.endswith("um"):
        return "the images are smaller than such a block, or the stain is the same in all"
    if name == "variance_ratio":
        return "there are fewer than two images, or their sizes differ, or the references are all the same"
    return "one side is constant, or holds no stain"
