"""The low-frequency part of the seam metrics: differences in shade between windows.

Windows that are translated separately and blended leave no edges, but each may be a little lighter, darker or bluer
than the next. The mean colors of two strips, separated by the overlap, are compared: across the borders between cells,
and everywhere inside cells. The part that a linear map of the source explains is subtracted, since the tissue itself
varies in shade. If windows leave no trace, the residuals across borders are as large as those inside.

The sums are moments (outer products of differences), so that the map can be fitted at the end, over the whole slide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGBImage
from ..geometry import Region
from ..plan import Plan
from .stages import FinishedCore

BLOCK_PX = 32
"""Width of a strip; half of this if cells are small."""

EVERY_ROW = 4
"""Step between the rows that are used: shades vary slowly."""

Blocks: TypeAlias = npt.NDArray[np.float64]
"""Mean colors of blocks: (rows, columns, 6), result and source."""

SCATTER = 6.0
"""Smallest assumed ratio of variance to squared mean of a pair's energy: 2 for normal differences, more in tissue."""

LEAST_PLACES = 4
"""Fewest places inside cells for which their spread is meaningful."""


@dataclass(frozen=True, slots=True)
class ShadeFigures:
    """Metrics of the mean colors of neighboring cells.

    z:     z-score of the differences across borders among those inside cells, the larger of both axes
    step:  root mean square step in shade across borders in excess of that inside cells, in gray levels
    """

    z: float | None
    step: float | None


@dataclass(slots=True)
class Moments:
    """Sums over pairs of strips, by place: 0 for borders, n + 1 for pairs whose first strip is the nth of a cell.

    products: (places, 6, 6), outer products of the differences of result and source, times the pair's weight
    weights:  (places,), blocks along the strips
    pairs:    (places,)
    """

    products: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.float64]

    @classmethod
    def zeros(cls, places: int) -> Moments:
        return cls(np.zeros((places, 6, 6)), np.zeros(places), np.zeros(places))

    def add(self, first: int, differences: npt.NDArray[np.float64], weight: int) -> None:
        """Add one pair for each place from ``first`` on: ``differences`` (count, 6)."""
        places = slice(first, first + len(differences))
        self.products[places] += weight * differences[:, :, np.newaxis] * differences[:, np.newaxis, :]
        self.weights[places] += weight
        self.pairs[places] += 1

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.products + other.products, self.weights + other.weights, self.pairs + other.pairs)

    def to_json(self) -> list[Any]:
        return [self.products.tolist(), self.weights.tolist(), self.pairs.tolist()]


@dataclass(frozen=True, slots=True)
class ShadeSums:
    """Sums of a `ShadeMeter` along x and y; those of parts with cells of the same size can be added."""

    along_x: Moments
    along_y: Moments

    def __add__(self, other: ShadeSums) -> ShadeSums:
        return ShadeSums(self.along_x + other.along_x, self.along_y + other.along_y)

    def figures(self) -> ShadeFigures:
        """Compute the metrics from the sums."""
        axes = (self.along_x, self.along_y)
        inside = sum((axis.products[1:].sum(axis=0) for axis in axes), start=np.zeros((6, 6)))
        explained = np.linalg.lstsq(inside[3:, 3:], inside[3:, :3], rcond=1e-6)[0]
        scores = [score for axis in axes if (score := _score(axis, explained)) is not None]
        if not scores:
            return ShadeFigures(None, None)
        excess = sum(score[1] * score[2] for score in scores) / sum(score[2] for score in scores)
        return ShadeFigures(max(score[0] for score in scores), math.sqrt(max(0.0, excess) / 3))

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`; floats stay exact."""
        return {"x": self.along_x.to_json(), "y": self.along_y.to_json()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ShadeSums:
        """The inverse of `to_json`."""
        along_x, along_y = (Moments(*(np.array(part, np.float64) for part in facts[axis])) for axis in ("x", "y"))
        return cls(along_x, along_y)


def _score(axis: Moments, explained: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """(z-score, excess energy, weight) of the borders along one axis; None if there are too few."""
    residual = np.hstack([np.eye(3), -explained.T])
    energy = np.einsum("ij,pjk,ik->p", residual, axis.products, residual)
    usable = axis.weights > 0
    if not usable[0] or usable.sum() < 1 + LEAST_PLACES:
        return None
    energy, weights = energy[usable] / axis.weights[usable], axis.weights[usable]
    mean, spread = float(energy[1:].mean()), float(energy[1:].std(ddof=1))
    spread *= math.sqrt(max(1.0, float(weights[1:].mean() / weights[0])))
    # Energies of few pairs scatter widely, even if those inside happen to be alike (pairs overlap there).
    spread = max(spread, mean * math.sqrt(SCATTER / axis.pairs[0]), 1e-3)
    return float(energy[0] - mean) / spread, float(energy[0] - mean), float(weights[0])


@dataclass(frozen=True, slots=True)
class _Edge:
    """The last strip of a core, kept for comparison across the border: first block along it, and the colors."""

    first: int
    colors: npt.NDArray[np.float64]


@dataclass(slots=True)
class ShadeMeter:
    """Accumulator of the sums over cores: those of a row of cells from left to right, rows from top to bottom.

    Memory bound: the moments (some kB), and one strip of each core in a row of cells, 48 bytes per block.
    """

    plan: Plan
    _block_px: int = field(init=False)
    _gap: int = field(init=False)
    _along_x: Moments = field(init=False)
    _along_y: Moments = field(init=False)
    _left: dict[tuple[int, int], _Edge] = field(default_factory=dict)
    _above: dict[tuple[int, int], _Edge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cell, overlap_px = self.plan.cell, self.plan.layout.overlap_px
        self._block_px = BLOCK_PX if min(cell.width, cell.height) >= 16 * BLOCK_PX else BLOCK_PX // 2
        across, down = cell.width // self._block_px, cell.height // self._block_px
        # Strips are separated by the overlap, in which one shade fades into the other; by less if cells are small.
        self._gap = min(-(-overlap_px // self._block_px), min(across, down) // 4) // 2 * 2
        self._along_x, self._along_y = Moments.zeros(across + 1), Moments.zeros(down + 1)

    def add(self, core: FinishedCore) -> None:
        """Measure one core."""
        window, side = core.window, self._block_px
        cell = self.plan.cell
        left = self.plan.cell_origin[0] + window.column * cell.width
        top = self.plan.cell_origin[1] + window.row * cell.height
        place = window.core.shifted(-left, -top)
        x, right = -(-place.x // side), min(place.right // side, cell.width // side)
        y, bottom = -(-place.y // side), min(place.bottom // side, cell.height // side)
        if x >= right or y >= bottom:
            return
        blocks = _blocks(core, Region(x, y, right - x, bottom - y), place, side)
        here = (window.row, window.column)
        self._measure(self._along_x, self._left, here, (window.row, window.column - 1), blocks, x, y)
        turned = blocks.transpose(1, 0, 2)
        self._measure(self._along_y, self._above, here, (window.row - 1, window.column), turned, y, x)

    def sums(self) -> ShadeSums:
        """The sums so far."""
        return ShadeSums(self._along_x, self._along_y)

    def _measure(
        self,
        moments: Moments,
        edges: dict[tuple[int, int], _Edge],
        here: tuple[int, int],
        before: tuple[int, int],
        blocks: Blocks,
        first: int,
        first_along: int,
    ) -> None:
        """Add the pairs of one core along one axis: its strips are the columns of ``blocks``, from ``first`` on."""
        count, half, apart = len(moments.weights) - 1, self._gap // 2, 1 + self._gap
        strips, last = blocks.mean(axis=0), first + blocks.shape[1]
        start, stop = max(first, half), min(last, count - half) - apart
        if start < stop:
            inside = strips[start - first : stop - first]
            moments.add(1 + start, strips[start - first + apart : stop - first + apart] - inside, len(blocks))
        edge = edges.pop(before, None)
        if edge is not None and first <= half < last:
            low, high = max(edge.first, first_along), min(edge.first + len(edge.colors), first_along + len(blocks))
            if low < high:
                own = blocks[low - first_along : high - first_along, half - first].mean(axis=0)
                other = edge.colors[low - edge.first : high - edge.first].mean(axis=0)
                moments.add(0, (own - other)[np.newaxis], high - low)
        closing = count - 1 - half
        if first <= closing < last:
            edges[here] = _Edge(first_along, blocks[:, closing - first].copy())


def _blocks(core: FinishedCore, blocks: Region, place: Region, side: int) -> Blocks:
    """Mean colors of blocks of a cell, all of them inside the core's ``place`` in it."""
    rows = slice(blocks.y * side - place.y, blocks.bottom * side - place.y, EVERY_ROW)
    columns = slice(blocks.x * side - place.x, blocks.right * side - place.x)
    return np.concatenate(
        [_reduced(image[rows, columns], blocks.width, blocks.height) for image in (core.pixels, core.source)], axis=2
    )


def _reduced(image: RGBImage, width: int, height: int) -> npt.NDArray[np.float64]:
    reduced = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.float64).reshape(height, width, 3)
