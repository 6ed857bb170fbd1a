"""Results of an evaluation, threshold fitting and predicted HER2 levels."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from skimage import filters  # loads its modules on first use

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import dab_density

from ..metrics.bootstrap import ImageMetadata, Scores
from ..metrics.distribution import DistributionDistances
from ..metrics.her2 import LEVELS, By, LevelPredictions, fit_cutoffs, predict_levels
from ..metrics.pair_statistics import BINS, DENSITY_PER_BIN, GRADES, density_bins
from .methods import ColorRegression, Method, fit_color_regression

Counts = npt.NDArray[np.float64]
"""(256,) pixel counts by DAB density, in bins of `DENSITY_PER_BIN`; higher densities are in the last bin."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideStain:
    """Pixel counts of a slide by DAB density, and its labeled HER2 level."""

    counts: Counts
    her2: str | None


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdFit:
    """What is fitted to the training split."""

    stained_from: float  # DAB density from which a pixel counts as stained
    source: str  # where the threshold comes from, for display
    regression: ColorRegression | None = None  # the color regression; None without a training split with H&E images
    # the stain of the references of every training slide, by slide
    slides: Mapping[str, SlideStain] = field(default_factory=dict)


def fit_threshold(
    pairs: Iterable[tuple[ImageMetadata, RGBImage, RGBImage]], stained_from: float | None = None
) -> ThresholdFit:
    """Fit the stain threshold and the color regression to training pairs.

    Parameters
    ----------
    pairs
        Metadata, H&E image and reference, (H, W, 3) uint8; read once.
    stained_from
        The threshold if the user states it; otherwise it is Otsu's threshold of the densities of all references.

    Raises
    ------
    DatasetError
        If there are no pairs, or all references have a single density.
    """
    counts: dict[str, Counts] = defaultdict(lambda: np.zeros(BINS))
    levels: dict[str, str | None] = {}

    def collect() -> Iterator[tuple[RGBImage, RGBImage]]:
        for image, he, reference in pairs:
            slide = image.slide or image.resampling_unit
            counts[slide] += density_counts(reference)
            levels[slide] = image.her2
            yield he, reference

    regression = fit_color_regression(collect())
    slides = {slide: SlideStain(stain, levels[slide]) for slide, stain in counts.items()}
    if stained_from is not None:
        return ThresholdFit(stained_from, "as stated", regression, slides)
    threshold = otsu_threshold(np.sum(list(counts.values()), axis=0))
    return ThresholdFit(threshold, "Otsu's threshold of the training references", regression, slides)


def reference_threshold(references: Iterable[RGBImage], source: str, stained_from: float | None) -> ThresholdFit:
    """Return the stated stain threshold, else Otsu's threshold of images without a training split.

    Raises
    ------
    DatasetError
        If the images have a single density.
    """
    if stained_from is not None:
        return ThresholdFit(stained_from, "as stated")
    counts = np.zeros(BINS)
    for image in references:
        counts += density_counts(image)
    return ThresholdFit(otsu_threshold(counts), f"Otsu's threshold of the {source}")


def density_counts(image: RGBImage) -> Counts:
    """Return the pixel counts of an image by DAB density."""
    return np.bincount(density_bins(dab_density(image)).ravel(), minlength=BINS).astype(np.float64)


def otsu_threshold(counts: Counts) -> float:
    """Return the density that maximizes the variance between two classes of pixels (Otsu 1979).

    Raises
    ------
    DatasetError
        If all pixels have the same density.
    """
    if np.count_nonzero(counts) < 2:
        raise DatasetError("all references have a single DAB density; state the threshold with --stained-from")
    last_below = int(filters.threshold_otsu(hist=counts))
    first_above = last_below + 1 + int(np.argmax(counts[last_below + 1 :] > 0))
    # all thresholds in an empty gap between the classes are equally good; take the middle
    return (last_below + first_above + 1) / 2 * DENSITY_PER_BIN


def stained_area(counts: Counts, stained_from: float) -> float:
    """Return the fraction of pixels at or above a density, rounded to a bin."""
    first = round(stained_from / DENSITY_PER_BIN)
    return float(counts[first:].sum() / max(1, counts.sum()))


def h_score(counts: Counts) -> float:
    """Return 100 times the sum over grades of the fraction of pixels of that grade or above: 0 to 300."""
    return 100 * sum(stained_area(counts, grade) for grade in GRADES)


@dataclass(frozen=True, slots=True, eq=False)
class MethodResult:
    """Results of one method."""

    method: Method
    scores: Scores  # over complete images
    interior: Scores | None = None  # without a margin at every border; None if images are too small to have an interior
    # FID and KID by HER2 level, and of all images under ""; empty without Inception weights
    distances: Mapping[str, DistributionDistances] = field(default_factory=dict)
    # HER2 levels of slides predicted from their stained area and their H-score; empty if nothing could be fitted
    predictions: tuple[LevelPredictions, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image pair with the outputs of all methods by name, and why it was chosen, as in "best" or "level 2+"."""

    reason: str
    image: ImageMetadata
    he: RGBImage | None
    reference: RGBImage
    virtual: Mapping[str, RGBImage]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All results of an evaluation.

    Attributes
    ----------
    subject
        What was evaluated, in one line: the dataset and its split, or two folders.
    resampling_unit
        What intervals are taken over, in the plural: "patients", "slides", "groups", "patches".
    levels
        HER2 levels to report, including those without images.
    methods
        Models or given images first, then baselines.
    threshold_fit
        Thresholds and their sources.
    reference_predictions
        HER2 levels predicted from the references themselves: the best that can be reached.
    interior_px
        The margin of the interior.
    inception
        Metadata of the Inception weights; or why there are none, under "reason".
    examples
        Images to show.
    notes
        Remarks for the reader, one sentence each.
    metadata
        JSON values: the dataset, the options, versions.
    """

    subject: str
    resampling_unit: str
    levels: tuple[str, ...]
    methods: tuple[MethodResult, ...]
    threshold_fit: ThresholdFit
    reference_predictions: tuple[LevelPredictions, ...] = ()
    interior_px: int = 0
    inception: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LevelClassifier:
    """Prediction of a HER2 level from the stain of a slide."""

    by: By
    cutoffs: tuple[float, float, float]
    stained_from: float

    def value(self, counts: Counts) -> float:
        """Return the value that is compared with the cutoffs, from pixel counts by density (256,)."""
        return stained_area(counts, self.stained_from) if self.by == "stained area" else h_score(counts)


def fit_classifiers(threshold_fit: ThresholdFit) -> tuple[LevelClassifier, ...]:
    """Fit classifiers by stained area and by H-score; none if the training slides do not have two levels."""
    labeled = [slide for slide in threshold_fit.slides.values() if slide.her2 in LEVELS]
    classifiers = []
    for by in get_args(By):
        blank = LevelClassifier(by, (0.0, 0.0, 0.0), threshold_fit.stained_from)
        cutoffs = fit_cutoffs([blank.value(slide.counts) for slide in labeled], [str(slide.her2) for slide in labeled])
        if cutoffs is not None:
            classifiers.append(dataclasses.replace(blank, cutoffs=cutoffs))
    return tuple(classifiers)


def prediction_warnings(threshold_fit: ThresholdFit, images: Sequence[ImageMetadata]) -> Iterator[str]:
    """Yield what makes predictions of levels unreliable, one sentence each."""
    trained = {slide.her2 for slide in threshold_fit.slides.values()} & set(LEVELS)
    absent = [level for level in LEVELS if level not in trained]
    if trained and absent:
        yield f"no training slide has the level {' or '.join(absent)}, so it is never predicted"
    labels: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image.her2 is not None:
            labels[image.slide or image.resampling_unit].add(image.her2)
    if both := sorted(slide for slide, own in labels.items() if len(own) > 1):
        yield f"slides have patches of several levels; the last one is taken as their label:  {', '.join(both[:5])}"


def predict_slides(
    results: Sequence[MethodResult], images: Sequence[ImageMetadata], classifiers: Sequence[LevelClassifier]
) -> tuple[list[MethodResult], tuple[LevelPredictions, ...]]:
    """Return the results with predicted HER2 levels, and the predictions from the references.

    Without classifiers or labeled slides nothing is predicted.
    """
    labels = {image.slide or image.resampling_unit: image.her2 for image in images if image.her2 in LEVELS}
    if not classifiers or not labels or not results:
        return list(results), ()
    given = {slide: str(level) for slide, level in labels.items()}

    def predicted(counts: Mapping[str, Counts]) -> tuple[LevelPredictions, ...]:
        return tuple(
            predict_levels({slide: one.value(stain) for slide, stain in counts.items()}, given, one.by, one.cutoffs)
            for one in classifiers
        )

    new = [dataclasses.replace(one, predictions=predicted(one.scores.slide_counts("virtual"))) for one in results]
    return new, predicted(results[0].scores.slide_counts("reference"))
