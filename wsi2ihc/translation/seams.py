"""Seam statistics of the translated pixels.

`SeamMeter` compares differences of neighboring pixels across the borders of cores with those inside them. Blended
windows leave no edges but may differ in shade, which `ShadeMeter` compares by the mean colors of strips. Both gather
statistics, which can be added over bands, and from which the metrics are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region, RGBImage
from .stages import FinishedCore
from .windows import Plan

BLOCK_PX = 32
"""Width of a strip; half of this for small cores."""

EVERY_ROW = 4
"""Step between the rows that are read: shades vary slowly."""

Blocks: TypeAlias = npt.NDArray[np.float64]
"""Mean colors of blocks, (rows, columns, 6): result and source."""

SCATTER = 6.0
"""Smallest assumed ratio of variance to squared mean of a pair's energy: 2 for normal differences, more in tissue."""

MIN_POSITIONS = 4
"""Fewest positions inside cores for a meaningful spread."""


@dataclass(frozen=True, slots=True)
class ShadeMetrics:
    """Metrics of the mean colors of neighboring cores."""

    z: float | None  # z-score of the differences across borders relative to those inside cores, the larger of both axes
    step: float | None  # root mean square step in shade across borders, in excess of that inside cores, in gray levels


@dataclass(slots=True)
class Moments:
    """Sums over pairs of strips by position: 0 for borders, n + 1 for pairs whose first strip is the nth of a core."""

    # outer products of the differences of result and source, weighted, (positions, 6, 6)
    products: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]  # number of blocks along the strips, (positions,)
    pairs: npt.NDArray[np.float64]  # number of pairs, (positions,)

    @classmethod
    def zeros(cls, positions: int) -> Moments:
        return cls(np.zeros((positions, 6, 6)), np.zeros(positions), np.zeros(positions))

    def add(self, first: int, differences: npt.NDArray[np.float64], weight: int) -> None:
        """Add one pair for each position from ``first`` on: ``differences`` (count, 6)."""
        positions = slice(first, first + len(differences))
        self.products[positions] += weight * differences[:, :, np.newaxis] * differences[:, np.newaxis, :]
        self.weights[positions] += weight
        self.pairs[positions] += 1

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.products + other.products, self.weights + other.weights, self.pairs + other.pairs)

    def to_json(self) -> list[Any]:
        return [self.products.tolist(), self.weights.tolist(), self.pairs.tolist()]


@dataclass(frozen=True, slots=True)
class ShadeStatistics:
    """Sums of a `ShadeMeter` along x and y, additive over bands with the same core size."""

    along_x: Moments
    along_y: Moments

    def __add__(self, other: ShadeStatistics) -> ShadeStatistics:
        return ShadeStatistics(self.along_x + other.along_x, self.along_y + other.along_y)

    def metrics(self) -> ShadeMetrics:
        """Compute the metrics."""
        axes = (self.along_x, self.along_y)
        inside = sum((axis.products[1:].sum(axis=0) for axis in axes), start=np.zeros((6, 6)))
        explained = np.linalg.lstsq(inside[3:, 3:], inside[3:, :3], rcond=1e-6)[0]
        scores = [score for axis in axes if (score := _score(axis, explained)) is not None]
        if not scores:
            return ShadeMetrics(None, None)
        excess = sum(score[1] * score[2] for score in scores) / sum(score[2] for score in scores)
        return ShadeMetrics(max(score[0] for score in scores), math.sqrt(max(0.0, excess) / 3))

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`; floats stay exact."""
        return {"x": self.along_x.to_json(), "y": self.along_y.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShadeStatistics:
        """Invert `to_json`."""
        along_x, along_y = (Moments(*(np.array(part, np.float64) for part in values[axis])) for axis in ("x", "y"))
        return cls(along_x, along_y)


def _score(axis: Moments, explained: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Return (z-score, excess energy, weight) of the borders along one axis; None if there are too few."""
    residual = np.hstack([np.eye(3), -explained.T])
    energy = np.einsum("ij,pjk,ik->p", residual, axis.products, residual)
    usable = axis.weights > 0
    if not usable[0] or usable.sum() < 1 + MIN_POSITIONS:
        return None
    energy, weights = energy[usable] / axis.weights[usable], axis.weights[usable]
    mean, spread = float(energy[1:].mean()), float(energy[1:].std(ddof=1))
    spread *= math.sqrt(max(1.0, float(weights[1:].mean() / weights[0])))
    # Energies of few pairs scatter widely, even if those inside cores are similar by chance (pairs overlap there).
    spread = max(spread, mean * math.sqrt(SCATTER / axis.pairs[0]), 1e-3)
    return float(energy[0] - mean) / spread, float(energy[0] - mean), float(weights[0])


@dataclass(frozen=True, slots=True)
class _StripEdge:
    """Last strip of a core, kept for comparison across the border: its first block, and its colors."""

    first: int
    colors: npt.NDArray[np.float64]


@dataclass(slots=True)
class ShadeMeter:
    """Accumulator of shade statistics over cores in raster order.

    Memory bound: the moments (some kB), and one strip of each core in a row, 48 bytes per block.
    """

    plan: Plan
    _block_px: int = field(init=False)
    _gap: int = field(init=False)
    _along_x: Moments = field(init=False)
    _along_y: Moments = field(init=False)
    _left: dict[tuple[int, int], _StripEdge] = field(default_factory=dict)
    _above: dict[tuple[int, int], _StripEdge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        core_size, overlap_px = self.plan.core_size, self.plan.layout.overlap_px
        self._block_px = BLOCK_PX if min(core_size.width, core_size.height) >= 16 * BLOCK_PX else BLOCK_PX // 2
        across, down = core_size.width // self._block_px, core_size.height // self._block_px
        # Strips are separated by the overlap, in which one shade fades into the other; by less for small cores.
        self._gap = min(-(-overlap_px // self._block_px), min(across, down) // 4) // 2 * 2
        self._along_x, self._along_y = Moments.zeros(across + 1), Moments.zeros(down + 1)

    def add(self, core: FinishedCore) -> None:
        """Measure one core."""
        window, side = core.window, self._block_px
        size = self.plan.core_size
        left, top = self.plan.grid_corner(window)
        region = window.core.shifted(-left, -top)
        x, right = -(-region.x // side), min(region.right // side, size.width // side)
        y, bottom = -(-region.y // side), min(region.bottom // side, size.height // side)
        if x >= right or y >= bottom:
            return
        blocks = _blocks(core, Region(x, y, right - x, bottom - y), region, side)
        here = (window.row, window.column)
        self._measure(self._along_x, self._left, here, (window.row, window.column - 1), blocks, x, y)
        transposed = blocks.transpose(1, 0, 2)
        self._measure(self._along_y, self._above, here, (window.row - 1, window.column), transposed, y, x)

    def statistics(self) -> ShadeStatistics:
        """Return the statistics gathered so far."""
        return ShadeStatistics(self._along_x, self._along_y)

    def _measure(
        self,
        moments: Moments,
        edges: dict[tuple[int, int], _StripEdge],
        here: tuple[int, int],
        before: tuple[int, int],
        blocks: Blocks,
        first: int,
        first_along: int,
    ) -> None:
        """Add the pairs of one core along one axis; its strips are the columns of ``blocks``, from ``first`` on."""
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
            edges[here] = _StripEdge(first_along, blocks[:, closing - first].copy())


def _blocks(core: FinishedCore, blocks: Region, region: Region, side: int) -> Blocks:
    """Return the mean colors of blocks inside ``region``, which the core covers in its field of the grid."""
    rows = slice(blocks.y * side - region.y, blocks.bottom * side - region.y, EVERY_ROW)
    columns = slice(blocks.x * side - region.x, blocks.right * side - region.x)
    return np.concatenate(
        [_reduced(image[rows, columns], blocks.width, blocks.height) for image in (core.pixels, core.source)], axis=2
    )


def _reduced(image: RGBImage, width: int, height: int) -> npt.NDArray[np.float64]:
    reduced = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.float64).reshape(height, width, 3)


GROUP_PX = 16
GROUP_EVERY_PX = 256
"""The first 16 of every 256 rows (for differences along x) and columns (along y) are measured: groups, because single
columns would touch nearly every cache line of the image."""

SAMPLED_FULLY_PX = 100_000_000
"""Larger slides are sampled more thinly, so that the time does not grow with them: 6 Mpx suffice for the metrics."""


@dataclass(frozen=True, slots=True)
class SeamMetrics:
    """Metrics of the differences across the borders of cores."""

    # z_x, z_y: z-scores of the borders between horizontal and between vertical neighbors
    z_x: float | None
    z_y: float | None
    # contrast_x, contrast_y: ratio of result to source differences at borders over its mean at all other phases; 1
    # without seams
    contrast_x: float | None
    contrast_y: float | None
    borders: int  # number of measured borders
    # shade_z, shade_step: metrics of differences in shade; see `ShadeMetrics`
    shade_z: float | None = None
    shade_step: float | None = None

    @property
    def z(self) -> float | None:
        """The z-score that is further from zero; None without borders."""
        known = [z for z in (self.z_x, self.z_y) if z is not None]
        return max(known, key=abs, default=None)


@dataclass(slots=True)
class Phases:
    """Sums of absolute differences of result and source, and their number, by phase; all of them integers."""

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
        """Return (z-score, contrast) of phase 0."""
        usable = (self.count > 0) & (self.source > 0)
        if not usable[0] or usable.sum() < 8:
            return None, None
        ratio = self.result[usable] / self.source[usable]
        border, others = ratio[0], ratio[1:]
        spread, mean = float(others.std()), float(others.mean())
        if mean <= 0:
            return None, None
        # Fewer px pairs lie on borders than at any other phase, so that their ratio varies more by chance.
        count = self.count[usable]
        spread *= math.sqrt(max(1.0, float(count[1:].mean() / count[0])))
        # The spread is zero for a model that copies its input.
        return float(border - mean) / max(spread, 1e-6 * mean), float(border) / mean

    def to_json(self) -> list[list[int]]:
        return [values.astype(np.int64).tolist() for values in (self.result, self.source, self.count)]


@dataclass(frozen=True, slots=True)
class SeamStatistics:
    """Statistics of a `SeamMeter` along x and y, additive over bands with the same core size."""

    along_x: Phases
    along_y: Phases
    borders: int
    shades: ShadeStatistics

    def __add__(self, other: SeamStatistics) -> SeamStatistics:
        return SeamStatistics(
            self.along_x + other.along_x,
            self.along_y + other.along_y,
            self.borders + other.borders,
            self.shades + other.shades,
        )

    def metrics(self) -> SeamMetrics:
        """Compute the metrics."""
        (z_x, contrast_x), (z_y, contrast_y) = self.along_x.score(), self.along_y.score()
        shade = self.shades.metrics()
        return SeamMetrics(z_x, z_y, contrast_x, contrast_y, self.borders, shade.z, shade.step)

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`; sums stay exact."""
        along = {"along_x": self.along_x.to_json(), "along_y": self.along_y.to_json()}
        return {**along, "borders": self.borders, "shades": self.shades.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SeamStatistics:
        """Invert `to_json`."""
        along_x, along_y = (
            Phases(*(np.array(row, np.float64) for row in values[axis])) for axis in ("along_x", "along_y")
        )
        return cls(along_x, along_y, int(values["borders"]), ShadeStatistics.from_json(values["shades"]))


Lane = tuple[int, int]
"""Row or column of the core grid, and the first line of a group: identifies the two sides of a border."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Adjacent lines of a core: pixels of result and source, rows or columns, and the axis along them."""

    result: RGBImage
    source: RGBImage
    lines: range
    along: int


@dataclass(frozen=True, slots=True)
class _Edge:
    """End of a group of lines: position along the lines, and the last px of each line in result and source."""

    end: int
    result: RGBImage
    source: RGBImage


@dataclass(slots=True)
class SeamMeter:
    """Accumulator of seam statistics over cores in raster order.

    Memory bound: phases of one core, and the ends of the sampled lines (6 bytes a line) of each row and column of the
    core grid; some hundred kilobytes on a slide of 100,000² px.
    """

    plan: Plan  # plan of the measured cores
    # pixels of all cores of the slide, if the plan covers one band only; sets the sampling density
    total_px: int | None = None
    borders: int = field(init=False, default=0)  # number of borders measured so far
    _every_px: int = field(init=False)
    _along_x: Phases = field(init=False)
    _along_y: Phases = field(init=False)
    _left: dict[Lane, _Edge] = field(default_factory=dict)
    _above: dict[Lane, _Edge] = field(default_factory=dict)
    _shades: ShadeMeter = field(init=False)

    def __post_init__(self) -> None:
        self._shades = ShadeMeter(self.plan)
        total_px = self.plan.kept_px if self.total_px is None else self.total_px
        self._every_px = GROUP_EVERY_PX * max(1, total_px // SAMPLED_FULLY_PX)
        self._along_x = Phases.zeros(self.plan.core_size.width)
        self._along_y = Phases.zeros(self.plan.core_size.height)

    def watch(self, cores: Iterable[FinishedCore]) -> Iterator[FinishedCore]:
        """Pass cores on unchanged and measure them."""
        for core in cores:
            self.add(core)
            yield core

    def add(self, core: FinishedCore) -> None:
        """Measure one core."""
        self._shades.add(core)
        region, window = core.window.core, core.window
        left, top = self.plan.grid_corner(window)
        for rows in _groups(region.y, region.bottom, self._every_px):
            lines = slice(rows.start - region.y, rows.stop - region.y)
            sample = _Sample(core.pixels[lines], core.source[lines], rows, along=1)
            self._measure(self._along_x, self._left, window.row, region.x - left, region.x, sample)
        for columns in _groups(region.x, region.right, self._every_px):
            lines = slice(columns.start - region.x, columns.stop - region.x)
            sample = _Sample(core.pixels[:, lines], core.source[:, lines], columns, along=0)
            self._measure(self._along_y, self._above, window.column, region.y - top, region.y, sample)

    def metrics(self) -> SeamMetrics:
        """Compute the metrics of all cores so far."""
        return self.statistics().metrics()

    def statistics(self) -> SeamStatistics:
        """Return the statistics gathered so far."""
        return SeamStatistics(self._along_x, self._along_y, self.borders, self._shades.statistics())

    def _measure(
        self, phases: Phases, edges: dict[Lane, _Edge], lane: int, first_phase: int, start: int, sample: _Sample
    ) -> None:
        """Add one group, which starts at ``start`` along the direction of the differences."""
        samples = len(sample.lines) * 3
        phases.add(
            first_phase + 1,
            _differences(sample.result, sample.along),
            _differences(sample.source, sample.along),
            samples,
        )
        edge = edges.get((lane, sample.lines.start))
        here = [np.take(image, 0, axis=sample.along) for image in (sample.result, sample.source)]
        if edge is not None and edge.end == start and edge.result.shape == here[0].shape:
            across = [
                np.array([float(cv2.absdiff(before, after).sum())])
                for before, after in zip((edge.result, edge.source), here, strict=True)
            ]
            phases.add(0, across[0], across[1], samples)
            self.borders += 1
        last = [np.take(image, -1, axis=sample.along) for image in (sample.result, sample.source)]
        edges[lane, sample.lines.start] = _Edge(start + sample.result.shape[sample.along], last[0], last[1])


def _groups(start: int, stop: int, every_px: int) -> Iterator[range]:
    """Yield the measured groups of lines between ``start`` and ``stop``, at fixed positions of the working grid."""
    first = start // every_px * every_px
    for line in range(first, stop, every_px):
        group = range(max(line, start), min(line + GROUP_PX, stop))
        if group:
            yield group


def _differences(samples: RGBImage, along: int) -> npt.NDArray[np.float64]:
    """Sum |difference| of neighbors along an axis over lines and channels; (length - 1,)."""
    pair = (samples[:, 1:], samples[:, :-1]) if along == 1 else (samples[1:], samples[:-1])
    difference = cv2.absdiff(*pair)
    # OpenCV adds up bytes ten times as fast as NumPy does.
    by_channel = cv2.reduce(difference, 1 - along, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    total: npt.NDArray[np.float64] = by_channel.reshape(-1, 3).sum(axis=1).astype(np.float64)
    return total
