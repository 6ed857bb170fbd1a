"""HER2 levels: cutoffs, agreement and kappa."""

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

MAX_CANDIDATES = 40
"""Candidate positions of a cutoff; all combinations of three are tried."""

Confusion = npt.NDArray[np.int64]
"""(4, 4) slides by labeled (rows) and predicted level (columns)."""


@dataclass(frozen=True, slots=True, eq=False)
class LevelPredictions:
    """Predicted HER2 levels of the slides of a method."""

    by: By  # the value that levels are predicted from
    cutoffs: tuple[float, float, float]  # ascending; a slide's level is the number of cutoffs that its value reaches
    confusion: Confusion
    slide_scores: tuple[tuple[str, str, str], ...] = ()  # slide, labeled and predicted level of each

    @property
    def slides(self) -> int:
        return int(self.confusion.sum())

    @property
    def kappa(self) -> float:
        """Quadratic weighted kappa of labeled and predicted levels."""
        return quadratic_kappa(self.confusion)

    @property
    def missed(self) -> int:
        """Slides of 3+ that are predicted negative (0 or 1+): patients who would miss a treatment."""
        return int(self.confusion[-1, : len(NEGATIVE)].sum())

    @property
    def correct(self) -> int:
        return int(np.trace(self.confusion))


def fit_cutoffs(values: Sequence[float], levels: Sequence[str]) -> tuple[float, float, float] | None:
    """Return the cutoffs that predict the labels with the greatest quadratic kappa.

    Candidates lie half-way between neighboring values (at most `MAX_CANDIDATES` of them). Among equally good choices,
    the one whose cutoffs are farthest from the values is taken. A level without slides is never predicted.

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
    if middles.size > MAX_CANDIDATES:
        chosen = np.unique(np.linspace(0, middles.size - 1, MAX_CANDIDATES).round().astype(int))
        middles, gaps = middles[chosen], gaps[chosen]
    best: tuple[float, float] = (-np.inf, 0.0)
    found: tuple[int, ...] = ()
    for choice in itertools.combinations_with_replacement(range(middles.size), len(present) - 1):
        predictions = np.array(present)[np.searchsorted(middles[list(choice)], numbers, side="right")]
        rank = (round(quadratic_kappa(_confusion(labels, predictions)), 12), float(gaps[list(choice)].sum()))
        if rank > best:
            best, found = rank, choice
    return _with_absent_levels([float(middles[index]) for index in found], present)


def predict_levels(
    values: Mapping[str, float], labels: Mapping[str, str], by: By, cutoffs: tuple[float, float, float]
) -> LevelPredictions:
    """Predict the level of every labeled slide from its value."""
    slides = [slide for slide in values if slide in labels]
    predictions = np.searchsorted(cutoffs, [values[slide] for slide in slides], side="right")
    given = np.array([LEVELS.index(labels[slide]) for slide in slides], np.intp)
    called = tuple((slide, labels[slide], LEVELS[int(call)]) for slide, call in zip(slides, predictions, strict=True))
    return LevelPredictions(by, cutoffs, _confusion(given, np.asarray(predictions, np.intp)), called)


def quadratic_kappa(confusion: Confusion) -> float:
    """Return Cohen's kappa with quadratic weights (Cohen 1968): 1 minus observed over expected squared difference.

    NaN if all labels and all predictions are one level.
    """
    total = confusion.sum()
    if total == 0:
        return float("nan")
    count = len(confusion)
    weights = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / total
    possible = float((weights * expected).sum())
    return 1 - float((weights * confusion).sum()) / possible if possible > 0 else float("nan")


def _confusion(labels: npt.NDArray[np.intp], predictions: npt.NDArray[np.intp]) -> Confusion:
    counts = np.bincount(labels * len(LEVELS) + predictions, minlength=len(LEVELS) ** 2)
    return counts.reshape(len(LEVELS), len(LEVELS))


def _with_absent_levels(cutoffs: Sequence[float], present: Sequence[int]) -> tuple[float, float, float]:
    """Return the three cutoffs between four levels. An absent level lies between two equal cutoffs, or beyond all."""
    full = []
    for level in range(1, len(LEVELS)):
        below = sum(one < level for one in present)
        full.append(-np.inf if below == 0 else np.inf if below == len(present) else cutoffs[below - 1])
    return full[0], full[1], full[2]
