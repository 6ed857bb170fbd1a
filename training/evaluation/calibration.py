"""What is learnt from the training split before anything is scored: the stain's threshold, a floor, and HER2's cuts.

Nothing that decides about a test image may be chosen on test images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError

from ..floors import ColourRegression, fit_colour_regression
from ..stain import dab_density
from .scores import ImageFacts
from .sums import BINS, DENSITY_PER_BIN, GRADES

Counts = npt.NDArray[np.float64]
"""(256,) px by density of DAB, in bins of `DENSITY_PER_BIN`; what is denser is in the last one."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideStain:
    """The stain of a slide: px by density, and the level that it was given."""

    counts: Counts
    her2: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What the training split says.

    stained_from:  density of DAB from which a px is stained
    source:        where that comes from, for people
    regression:    the colour regression; None where there is no training split with H&E images
    slides:        the stain of every training slide's references, by slide
    """

    stained_from: float
    source: str
    regression: ColourRegression | None = None
    slides: Mapping[str, SlideStain] = field(default_factory=dict)


def calibrate(pairs: Iterable[tuple[ImageFacts, RGBImage, RGBImage]], stained_from: float | None = None) -> Calibration:
    """Learn from training pairs: what they are, their H&E and their reference; read once.

    Parameters
    ----------
    pairs
        images (H, W, 3) uint8
    stained_from
        the threshold, where the user states it; else Otsu's on the densities of all references

    Raises
    ------
    DatasetError
        If there is no pair, or the references are all of one density.
    """
    counts: dict[str, Counts] = defaultdict(lambda: np.zeros(BINS))
    levels: dict[str, str | None] = {}

    def passed_on() -> Iterator[tuple[RGBImage, RGBImage]]:
        for image, he, reference in pairs:
            slide = image.slide or image.unit
            counts[slide] += density_counts(reference)
            levels[slide] = image.her2
            yield he, reference

    regression = fit_colour_regression(passed_on())
    slides = {slide: SlideStain(own, levels[slide]) for slide, own in counts.items()}
    if stained_from is not None:
        return Calibration(stained_from, "as stated", regression, slides)
    threshold = otsu_threshold(np.sum(list(counts.values()), axis=0))
    return Calibration(threshold, "Otsu's threshold of the training references", regression, slides)


def density_counts(image: RGBImage) -> Counts:
    """Px of an image by density of DAB."""
    bins = np.minimum(dab_density(image) * np.float32(1 / DENSITY_PER_BIN), BINS - 1).astype(np.intp)
    return np.bincount(bins.ravel(), minlength=BINS).astype(np.float64)


def otsu_threshold(counts: Counts) -> float:
    """The density that parts the px best: the greatest variance between two classes (Otsu 1979).

    Raises
    ------
    DatasetError
        If all px are of one density.
    """
    shares = counts / max(1, counts.sum())
    middles = (np.arange(BINS) + 0.5) * DENSITY_PER_BIN
    below, moment = np.cumsum(shares)[:-1], np.cumsum(shares * middles)[:-1]
    mean = float(shares @ middles)
    both = (below > 0) & (below < 1 - 1e-12)
    if not both.any():
        raise DatasetError("the references are all of one density of DAB; state the threshold with --stained-from")
    product = np.where(both, below * (1 - below), 1.0)
    between = np.where(both, (mean * below - moment) ** 2 / product, -1.0)
    # an empty gap between the classes gives equal values; its middle parts them best
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((best[0] + best[-1]) / 2 + 1) * DENSITY_PER_BIN


def stained_area(counts: Counts, stained_from: float) -> float:
    """Share of px from a density on, 0 to 1; of the bins above it."""
    first = round(stained_from / DENSITY_PER_BIN)
    return float(counts[first:].sum() / max(1, counts.sum()))


def h_score(counts: Counts) -> float:
    """100 times the sum over grades of the share of px of that grade and more: 0 to 300."""
    return 100 * sum(stained_area(counts, grade) for grade in GRADES)
