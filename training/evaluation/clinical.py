"""HER2 levels of slides, as every method's virtual stain and as the references show them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from .calibration import Calibration, Counts, h_score, stained_area
from .levels import LEVELS, By, LevelCalls, call_levels, fit_cuts
from .results import MethodResult
from .scores import ImageFacts


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """How a slide's stain becomes a number and then a level."""

    by: By
    cuts: tuple[float, float, float]
    stained_from: float

    def number(self, counts: Counts) -> float:
        """Of px by density, (256,)."""
        return stained_area(counts, self.stained_from) if self.by == "stained area" else h_score(counts)


def fit_readers(calibration: Calibration) -> tuple[Reader, ...]:
    """By stained area and by H-score; none where the training slides do not have two levels."""
    labelled = [slide for slide in calibration.slides.values() if slide.her2 in LEVELS]
    readers = []
    for by in get_args(By):
        blank = Reader(by, (0.0, 0.0, 0.0), calibration.stained_from)
        cuts = fit_cuts([blank.number(slide.counts) for slide in labelled], [str(slide.her2) for slide in labelled])
        if cuts is not None:
            readers.append(dataclasses.replace(blank, cuts=cuts))
    return tuple(readers)


def doubts(calibration: Calibration, images: Sequence[ImageFacts]) -> Iterator[str]:
    """What makes calls of levels doubtful, a sentence each."""
    trained = {slide.her2 for slide in calibration.slides.values()} & set(LEVELS)
    absent = [level for level in LEVELS if level not in trained]
    if trained and absent:
        yield f"no training slide has the level {' or '.join(absent)}, so that none is ever called that"
    labels: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image.her2 is not None:
            labels[image.slide or image.unit].add(image.her2)
    if both := sorted(slide for slide, of in labels.items() if len(of) > 1):
        yield f"slides have patches of several levels, and are called by the last one: {', '.join(both[:5])}"


def call_slides(
    results: Sequence[MethodResult], images: Sequence[ImageFacts], readers: Sequence[Reader]
) -> tuple[list[MethodResult], tuple[LevelCalls, ...]]:
    """The results with their calls, and the calls of the references; as they are where there is nothing to call."""
    labels = {image.slide or image.unit: image.her2 for image in images if image.her2 in LEVELS}
    if not readers or not labels or not results:
        return list(results), ()
    given = {slide: str(level) for slide, level in labels.items()}
    called = [
        dataclasses.replace(result, calls=_calls(result.scores.slide_counts("virtual"), given, readers))
        for result in results
    ]
    return called, _calls(results[0].scores.slide_counts("reference"), given, readers)


def _calls(
    counts: Mapping[str, Counts], labels: Mapping[str, str], readers: Sequence[Reader]
) -> tuple[LevelCalls, ...]:
    return tuple(
        call_levels({slide: reader.number(own) for slide, own in counts.items()}, labels, reader.by, reader.cuts)
        for reader in readers
    )
