"""Are there seams? A statistic over the translated pixels, before they fade into the fill and are encoded.

The mean absolute difference of neighbouring pixels is gathered apart for every phase of the grid of cells: how far a
pixel pair lies from the border between two cells. It is divided by the same figure of the source, since tissue itself
is rough here and smooth there. If windows leave no trace, the border's ratio (phase 0) is one of many like it; its
z-score among the ratios of all other phases says how far it stands out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGBImage
from ..plan import Plan
from .shades import ShadeMeter, ShadeSums
from .stages import FinishedCore

GROUP_PX = 16
GROUP_EVERY_PX = 256
"""Of every 256 rows (for differences along x) and columns (along y), the first 16 are looked at: groups, since single
columns would touch nearly every cache line of the image."""

SAMPLED_FULLY_PX = 100_000_000
"""Larger slides are sampled more thinly, so that the time does not grow with them: 6 Mpx settle the figure."""


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """What the differences across borders say.

    z_x, z_y:            z-score of the borders between cells side by side, and one above the other
    contrast_x, _y:      the border's ratio over the mean ratio of all other phases; 1 where there is no seam
    borders:             how many borders between two cells were looked at
    shade_z, shade_step: of differences in shade between windows, which leave no edges; see `shades.ShadeFigures`
    """

    z_x: float | None
    z_y: float | None
    contrast_x: float | None
    contrast_y: float | None
    borders: int
    shade_z: float | None = None
    shade_step: float | None = None

    @property
    def z(self) -> float | None:
        """The z-score that is further from zero, or None where there were no borders."""
        known = [z for z in (self.z_x, self.z_y) if z is not None]
        return max(known, key=abs, default=None)


@dataclass(slots=True)
class Phases:
    """Sums of absolute differences and their number, by phase, of result and source; all of them whole numbers."""

    result: npt.NDArray[np.float64]
    source: npt.NDArray[np.float64]
    count: npt.NDArray[np.float64]

    @classmethod
    def zeros(cls, length: int) -> Phases:
        return cls(np.zeros(length), np.zeros(length), np.zeros(length))

    def add(self, first: int, result: npt.NDArray[np.float64], source: npt.NDArray[np.float64], samples: int) -> None:
        span = slice(first, first + len(result))
        self.result[span] += result
        self.source[span] += source
        self.count[span] += samples

    def __add__(self, other: Phases) -> Phases:
        return Phases(self.result + other.result, self.source + other.source, self.count + other.count)

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
        # Fewer px pairs lie on borders than at any other phase, so that chance alone moves their ratio further.
        count = self.count[usable]
        spread *= math.sqrt(max(1.0, float(count[1:].mean() / count[0])))
        # An even spread of exactly nothing (a model that copies its input) must not divide by zero.
        return float(border - mean) / max(spread, 1e-6 * mean), float(border) / mean


@dataclass(frozen=True, slots=True)
class SeamSums:
    """What a `SeamMeter` has gathered, along x and y; sums of parts with cells of one size can be added up."""

    along_x: Phases
    along_y: Phases
    borders: int
    shades: ShadeSums

    def __add__(self, other: SeamSums) -> SeamSums:
        return SeamSums(
            self.along_x + other.along_x,
            self.along_y + other.along_y,
            self.borders + other.borders,
            self.shades + other.shades,
        )

    def figures(self) -> SeamFigures:
        """The figures of all that is in the sums."""
        (z_x, contrast_x), (z_y, contrast_y) = self.along_x.score(), self.along_y.score()
        shade = self.shades.figures()
        return SeamFigures(z_x, z_y, contrast_x, contrast_y, self.borders, shade.z, shade.step)


Lane = tuple[int, int]
"""Row or column of cells, and the first line of a group: where a border can have two sides."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Adjacent lines of a core: pixels of result and source, which rows or columns, and the axis along them."""

    result: RGBImage
    source: RGBImage
    lines: range
    along: int


@dataclass(frozen=True, slots=True)
class _Edge:
    """The end of a group of lines: its place along the lines, and the last px of each, of result and source."""

    end: int
    result: RGBImage
    source: RGBImage


@dataclass(slots=True)
class SeamMeter:
    """Gathers the figures while cores pass by.

    Memory bound: phases of one cell, and the ends of the sampled lines (6 bytes a line) of each row and column of
    cells; some hundred kilobytes on a slide of 100,000² px.

    Parameters
    ----------
    plan
        Whose cores are measured.
    of_px
        Pixels of all cores, where the plan is a part of more; decides how thinly is sampled.
    """

    plan: Plan
    of_px: int | None = None
    borders: int = field(init=False, default=0)
    _every_px: int = field(init=False)
    _along_x: Phases = field(init=False)
    _along_y: Phases = field(init=False)
    _left: dict[Lane, _Edge] = field(default_factory=dict)
    _above: dict[Lane, _Edge] = field(default_factory=dict)
    _shades: ShadeMeter = field(init=False)

    def __post_init__(self) -> None:
        self._shades = ShadeMeter(self.plan)
        of_px = self.plan.kept_px if self.of_px is None else self.of_px
        self._every_px = GROUP_EVERY_PX * max(1, of_px // SAMPLED_FULLY_PX)
        self._along_x = Phases.zeros(self.plan.cell.width)
        self._along_y = Phases.zeros(self.plan.cell.height)

    def watch(self, cores: Iterable[FinishedCore]) -> Iterator[FinishedCore]:
        """Pass cores on unchanged and measure them."""
        for core in cores:
            self.add(core)
            yield core

    def add(self, core: FinishedCore) -> None:
        """Measure one core; cores of one row of cells must come left to right, rows top to bottom."""
        self._shades.add(core)
        place, window = core.window.core, core.window
        x_first = place.x - (self.plan.cell_origin[0] + window.column * self.plan.cell.width)
        y_first = place.y - (self.plan.cell_origin[1] + window.row * self.plan.cell.height)
        for rows in _groups(place.y, place.bottom, self._every_px):
            band = slice(rows.start - place.y, rows.stop - place.y)
            sample = _Sample(core.pixels[band], core.source[band], rows, along=1)
            self._measure(self._along_x, self._left, window.row, x_first, place.x, sample)
        for columns in _groups(place.x, place.right, self._every_px):
            band = slice(columns.start - place.x, columns.stop - place.x)
            sample = _Sample(core.pixels[:, band], core.source[:, band], columns, along=0)
            self._measure(self._along_y, self._above, window.column, y_first, place.y, sample)

    def figures(self) -> SeamFigures:
        """The figures of everything seen so far."""
        return self.sums().figures()

    def sums(self) -> SeamSums:
        """All that was gathered so far."""
        return SeamSums(self._along_x, self._along_y, self.borders, self._shades.sums())

    def _measure(
        self, phases: Phases, edges: dict[Lane, _Edge], cells: int, first_phase: int, start: int, sample: _Sample
    ) -> None:
        """Add one group, which begins at ``start`` along the direction of the differences."""
        samples = len(sample.lines) * 3
        phases.add(
            first_phase + 1,
            _differences(sample.result, sample.along),
            _differences(sample.source, sample.along),
            samples,
        )
        edge = edges.get((cells, sample.lines.start))
        here = [np.take(image, 0, axis=sample.along) for image in (sample.result, sample.source)]
        if edge is not None and edge.end == start and edge.result.shape == here[0].shape:
            across = [
                np.array([float(cv2.absdiff(before, after).sum())])
                for before, after in zip((edge.result, edge.source), here, strict=True)
            ]
            phases.add(0, across[0], across[1], samples)
            self.borders += 1
        last = [np.take(image, -1, axis=sample.along) for image in (sample.result, sample.source)]
        edges[cells, sample.lines.start] = _Edge(start + sample.result.shape[sample.along], last[0], last[1])


def _groups(start: int, stop: int, every_px: int) -> Iterator[range]:
    """The groups of lines that are looked at between ``start`` and ``stop``: places of the grid, not of the core."""
    first = start // every_px * every_px
    for line in range(first, stop, every_px):
        group = range(max(line, start), min(line + GROUP_PX, stop))
        if group:
            yield group


def _differences(samples: RGBImage, along: int) -> npt.NDArray[np.float64]:
    """Sum over lines and channels of |difference| of neighbours along an axis; (length - 1,)."""
    pair = (samples[:, 1:], samples[:, :-1]) if along == 1 else (samples[1:], samples[:-1])
    difference = cv2.absdiff(*pair)
    # OpenCV adds up bytes ten times as fast as NumPy does.
    by_channel = cv2.reduce(difference, 1 - along, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    total: npt.NDArray[np.float64] = by_channel.reshape(-1, 3).sum(axis=1).astype(np.float64)
    return total
