"""Are there seams? A statistic over the final pixels, taken before encoding.

The mean absolute difference of neighbouring pixels is gathered apart for every phase of the grid of cells: how far a
pixel pair lies from the border between two cells. It is divided by the same figure of the source, since tissue itself
is rough here and smooth there. If windows leave no trace, the border's ratio (phase 0) is one of many like it; its
z-score among the ratios of all other phases says how far it stands out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGBImage
from ..plan import Plan
from .stages import FinishedCore

SAMPLED_EVERY_PX = 16
"""Differences along x are taken on every 16th row, and along y on every 16th group of 16 columns: 6 % of the pixels
give phases of some thousand samples, and cost less than 2 % of the time of the fastest translation."""


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """What the differences across borders say.

    z_x, z_y:            z-score of the borders between cells side by side, and one above the other
    contrast_x, _y:      the border's ratio over the mean ratio of all other phases; 1 where there is no seam
    borders:             how many borders between two cells were looked at
    """

    z_x: float | None
    z_y: float | None
    contrast_x: float | None
    contrast_y: float | None
    borders: int

    @property
    def z(self) -> float | None:
        """The z-score that is further from zero, or None where there were no borders."""
        known = [z for z in (self.z_x, self.z_y) if z is not None]
        return max(known, key=abs, default=None)


@dataclass(slots=True)
class _Phases:
    """Sums of absolute differences and their number, by phase, of result and source."""

    result: npt.NDArray[np.float64]
    source: npt.NDArray[np.float64]
    count: npt.NDArray[np.float64]

    @classmethod
    def zeros(cls, length: int) -> _Phases:
        return cls(np.zeros(length), np.zeros(length), np.zeros(length))

    def add(self, first: int, result: npt.NDArray[np.float64], source: npt.NDArray[np.float64], samples: int) -> None:
        span = slice(first, first + len(result))
        self.result[span] += result
        self.source[span] += source
        self.count[span] += samples

    def score(self) -> tuple[float | None, float | None]:
        """(z-score, contrast) of phase 0."""
        usable = (self.count > 0) & (self.source > 0)
        if not usable[0] or usable.sum() < 8:
            return None, None
        ratio = self.result[usable] / self.source[usable]
        border, others = ratio[0], ratio[1:]
        spread, mean = float(others.std()), float(others.mean())
        if mean <= 0:
            return None, None
        # An even spread of exactly nothing (a model that copies its input) must not divide by zero.
        return float(border - mean) / max(spread, 1e-6 * mean), float(border) / mean


@dataclass(frozen=True, slots=True)
class _Edge:
    """The last samples of a core along one direction: where they lie, and the pixels of result and source."""

    end: int
    positions: npt.NDArray[np.int64]
    result: RGBImage
    source: RGBImage


@dataclass(slots=True)
class SeamMeter:
    """Gathers the figures while cores pass by.

    Memory bound: phases of one cell, the last sampled columns of one core, and the last sampled rows of one row of
    cells.
    """

    plan: Plan
    borders: int = 0
    _along_x: _Phases = field(init=False)
    _along_y: _Phases = field(init=False)
    _left: dict[int, _Edge] = field(default_factory=dict)
    _above: dict[int, _Edge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._along_x = _Phases.zeros(self.plan.cell.width)
        self._along_y = _Phases.zeros(self.plan.cell.height)

    def watch(self, cores: Iterable[FinishedCore]) -> Iterator[FinishedCore]:
        """Pass cores on unchanged and measure them."""
        for core in cores:
            self.add(core)
            yield core

    def add(self, core: FinishedCore) -> None:
        """Measure one core; cores of one row of cells must come left to right, rows top to bottom."""
        place, window = core.window.core, core.window
        rows = _sampled(place.y, place.bottom)
        columns = _sampled_groups(place.x, place.right)
        x_first = place.x - (self.plan.cell_origin[0] + window.column * self.plan.cell.width)
        y_first = place.y - (self.plan.cell_origin[1] + window.row * self.plan.cell.height)
        # Rows are sampled for differences along x; the same lines of code, on the transposed array, serve y.
        self._measure(
            self._along_x, self._left, window.row, x_first, place.x, rows,
            core.pixels[rows - place.y], core.source[rows - place.y],
        )  # fmt: skip
        self._measure(
            self._along_y, self._above, window.column, y_first, place.y, columns,
            _columns(core.pixels, columns - place.x), _columns(core.source, columns - place.x),
        )  # fmt: skip

    def figures(self) -> SeamFigures:
        """The figures of everything seen so far."""
        (z_x, contrast_x), (z_y, contrast_y) = self._along_x.score(), self._along_y.score()
        return SeamFigures(z_x, z_y, contrast_x, contrast_y, self.borders)

    def _measure(
        self,
        phases: _Phases,
        edges: dict[int, _Edge],
        lane: int,
        first_phase: int,
        start: int,
        positions: npt.NDArray[np.int64],
        result: RGBImage,
        source: RGBImage,
    ) -> None:
        """Add samples of shape (positions, length along the direction, 3)."""
        if not len(positions):
            return
        phases.add(first_phase + 1, _differences(result), _differences(source), len(positions) * 3)
        edge = edges.get(lane)
        if edge is not None and edge.end == start and first_phase == 0:
            shared, before, here = np.intersect1d(edge.positions, positions, assume_unique=True, return_indices=True)
            if len(shared):
                across = [
                    float(cv2.absdiff(old[before], np.ascontiguousarray(new[here, 0])).sum())
                    for old, new in ((edge.result, result), (edge.source, source))
                ]
                phases.add(0, np.array(across[:1]), np.array(across[1:]), len(shared) * 3)
                self.borders += 1
        edges[lane] = _Edge(start + result.shape[1], positions, result[:, -1].copy(), source[:, -1].copy())


def _sampled(start: int, stop: int) -> npt.NDArray[np.int64]:
    first = -(-start // SAMPLED_EVERY_PX) * SAMPLED_EVERY_PX
    return np.arange(first, stop, SAMPLED_EVERY_PX)


def _sampled_groups(start: int, stop: int) -> npt.NDArray[np.int64]:
    """Whole groups of adjacent columns: single columns would touch nearly every cache line of the image."""
    positions = np.arange(start, stop)
    return positions[positions // SAMPLED_EVERY_PX % SAMPLED_EVERY_PX == 0]


def _columns(image: RGBImage, indices: npt.NDArray[np.int64]) -> RGBImage:
    return np.ascontiguousarray(image[:, indices].swapaxes(0, 1))


def _differences(samples: RGBImage) -> npt.NDArray[np.float64]:
    """Sum over samples and channels of |difference| of neighbours along axis 1; (length - 1,)."""
    if samples.shape[1] < 2:
        return np.zeros(0)
    difference = cv2.absdiff(np.ascontiguousarray(samples[:, 1:]), np.ascontiguousarray(samples[:, :-1]))
    total: npt.NDArray[np.float64] = difference.sum(axis=(0, 2), dtype=np.float64)
    return total
