"""The clinical question: is a slide called the same HER2 level by its virtual stain as by its label?

A level is read from one number of a slide, its stained area or its H-score, by cuts that are fitted to the references
of the training split. So the references of the test split, read by the same cuts, say what can be reached at all. A
level belongs to a slide and not to a patch, and this is research.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

LEVELS = ("0", "1+", "2+", "3+")
NEGATIVE = ("0", "1+")

By = Literal["stained area", "H-score"]

MOST_CANDIDATES = 40
"""Places where a cut may lie: three of them are chosen in every way."""

Confusion = npt.NDArray[np.int64]
"""(4, 4) slides by level as labelled (rows) and as called (columns)."""


@dataclass(frozen=True, slots=True, eq=False)
class LevelCalls:
    """How the slides of a method are called.

    by:         the number that they are read by
    cuts:       ascending; a slide's level is the number of cuts that its number reaches
    confusion:  labels by calls
    slides_called:
                slide, label and call of each
    """

    by: By
    cuts: tuple[float, float, float]
    confusion: Confusion
    slides_called: tuple[tuple[str, str, str], ...] = ()

    @property
    def slides(self) -> int:
        return int(self.confusion.sum())

    @property
    def kappa(self) -> float:
        """Quadratic weighted kappa of labels and calls."""
        return quadratic_kappa(self.confusion)

    @property
    def missed(self) -> int:
        """Slides of 3+ that are called negative (0 or 1+): patients who would go without a treatment."""
        return int(self.confusion[-1, : len(NEGATIVE)].sum())

    @property
    def correct(self) -> int:
        return int(np.trace(self.confusion))


def fit_cuts(values: Sequence[float], levels: Sequence[str]) -> tuple[float, float, float] | None:
    """The cuts under which slides are called as they are labelled: those of the greatest quadratic kappa.

    Candidates lie half-way between neighbouring values (at most `MOST_CANDIDATES` of them). Of several choices that are
    as good, the one whose cuts stay farthest from the values is taken. A level without slides is never called.

    Parameters
    ----------
    values, levels
        of training slides

    Returns
    -------
    tuple
        None if there are fewer than two levels or two values.
    """
    numbers, labels = np.asarray(values, np.float64), np.array([LEVELS.index(level) for level in levels])
    distinct = np.unique(numbers)
    present = sorted(set(labels.tolist()))
    if len(present) < 2 or distinct.size < 2:
        return None
    middles = (distinct[1:] + distinct[:-1]) / 2
    gaps = np.diff(distinct)
    if middles.size > MOST_CANDIDATES:
        chosen = np.unique(np.linspace(0, middles.size - 1, MOST_CANDIDATES).round().astype(int))
        middles, gaps = middles[chosen], gaps[chosen]
    best: tuple[float, float] = (-np.inf, 0.0)
    found: tuple[int, ...] = ()
    for choice in itertools.combinations_with_replacement(range(middles.size), len(present) - 1):
        calls = np.array(present)[np.searchsorted(middles[list(choice)], numbers, side="right")]
        rank = (round(quadratic_kappa(_confusion(labels, calls)), 12), float(gaps[list(choice)].sum()))
        if rank > best:
            best, found = rank, choice
    return _with_absent_levels([float(middles[index]) for index in found], present)


def call_levels(
    values: Mapping[str, float], labels: Mapping[str, str], by: By, cuts: tuple[float, float, float]
) -> LevelCalls:
    """Call every labelled slide by its number."""
    slides = [slide for slide in values if slide in labels]
    calls = np.searchsorted(cuts, [values[slide] for slide in slides], side="right")
    given = np.array([LEVELS.index(labels[slide]) for slide in slides], np.intp)
    called = tuple((slide, labels[slide], LEVELS[int(call)]) for slide, call in zip(slides, calls, strict=True))
    return LevelCalls(by, cuts, _confusion(given, np.asarray(calls, np.intp)), called)


def quadratic_kappa(confusion: Confusion) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968): 1 less the observed over the expected squared difference.

    NaN where nothing else can be expected: all labels and all calls are one level.
    """
    total = confusion.sum()
    if total == 0:
        return float("nan")
    count = len(confusion)
    weights = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / total
    possible = float((weights * expected).sum())
    return 1 - float((weights * confusion).sum()) / possible if possible > 0 else float("nan")


def _confusion(labels: npt.NDArray[np.intp], calls: npt.NDArray[np.intp]) -> Confusion:
    counts = np.bincount(labels * len(LEVELS) + calls, minlength=len(LEVELS) ** 2)
    return counts.reshape(len(LEVELS), len(LEVELS))


def _with_absent_levels(cuts: Sequence[float], present: Sequence[int]) -> tuple[float, float, float]:
    """The three cuts between four levels, of which some are absent: these lie between two equal cuts, or beyond all."""
    full = []
    for level in range(1, len(LEVELS)):
        below = sum(one < level for one in present)
        full.append(-np.inf if below == 0 else np.inf if below == len(present) else cuts[below - 1])
    return full[0], full[1], full[2]
