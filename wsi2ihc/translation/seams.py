"""Seam statistics of the translated pixels.

`SeamMeter` compares differences of neighboring pixels across the borders of cores with those inside them. Blending
hides edges, but neighboring cores may still differ in shade; `ShadeMeter` measures that with the mean colors of strips
on both sides of a border. Both gather sums, which can be added over the bands of a resumed translation, and from which
the metrics are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region, RGBImage, ceil_to
from .stages import FinishedCore
from .windows import Plan

BLOCK_PX = 32
"""Side of a block; a strip is a row or column of blocks. Halved if a core is less than 16 blocks wide or high."""

EVERY_ROW = 4
"""Step between the rows of a block that are averaged: shades vary slowly."""

Blocks: TypeAlias = npt.NDArray[np.float64]
"""Mean colors of blocks, (rows, columns, 6): channels of the result, then of the source."""

SCATTER = 6.0
"""Smallest assumed ratio of variance to squared mean of the energies of pairs of strips: 2 for normal differences, more
in tissue. The energy of a pair is the sum of squares, over the channels, of its difference in shade minus the part that
the source explains.
"""

MIN_POSITIONS = 4
"""Fewest positions of pairs inside cores for a meaningful spread."""


@dataclass(frozen=True, slots=True)
class ShadeMetrics:
    """Metrics of the mean colors of neighboring cores."""

    z: float | None  # z-score of the energy across borders relative to that inside cores; the greater one of both axes
    step: float | None  # root mean square step in shade across borders, in excess of that inside cores, in gray levels


@dataclass(slots=True)
class Moments:
    """Sums over pairs of strips, by position: 0 across borders, n + 1 where the first strip has index n in its core."""

    # (positions, 6, 6), weighted: outer products of the differences between the two strips; channels as in `Blocks`
    products: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]  # number of blocks along the strips, (positions,)
    pairs: npt.NDArray[np.float64]  # number of pairs, (positions,)

    @classmethod
    def zeros(cls, positions: int) -> Moments:
        return cls(np.zeros((positions, 6, 6)), np.zeros(positions), np.zeros(positions))

    def add(self, first_position: int, differences: npt.NDArray[np.float64], weight: int) -> None:
        """Add one pair for each position from the first one on: ``differences`` (count, 6)."""
        positions = slice(first_position, first_position + len(differences))
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
        # linear regression of result differences on source differences inside cores: what the tissue itself explains
        source_weights = np.linalg.lstsq(inside[3:, 3:], inside[3:, :3], rcond=1e-6)[0]
        scores = [score for axis in axes if (score := _score(axis, source_weights)) is not None]
        if not scores:
            return ShadeMetrics(None, None)
        excess = sum(score.excess * score.weight for score in scores) / sum(score.weight for score in scores)
        return ShadeMetrics(max(score.z for score in scores), math.sqrt(max(0.0, excess) / 3))  # per channel

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`; floats stay exact."""
        return {"x": self.along_x.to_json(), "y": self.along_y.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShadeStatistics:
        """Invert `to_json`."""
        along_x, along_y = (Moments(*(np.array(part, np.float64) for part in values[axis])) for axis in ("x", "y"))
        return cls(along_x, along_y)


class _AxisScore(NamedTuple):
    z: float
    excess: float  # mean energy across borders minus that inside cores
    weight: float


def _score(axis: Moments, source_weights: npt.NDArray[np.float64]) -> _AxisScore | None:
    """Compare the energies along one axis; None if there are too few pairs."""
    residual = np.hstack([np.eye(3), -source_weights.T])
    energy = np.einsum("ij,pjk,ik->p", residual, axis.products, residual)
    usable = axis.weights > 0
    if not usable[0] or usable.sum() < 1 + MIN_POSITIONS:
        return None
    energy, weights = energy[usable] / axis.weights[usable], axis.weights[usable]
    mean, spread = float(energy[1:].mean()), float(energy[1:].std(ddof=1))
    # Borders weigh less than most positions inside cores, so that their mean energy varies more by chance.
    spread *= math.sqrt(max(1.0, float(weights[1:].mean() / weights[0])))
    # Pairs inside cores overlap, so that their mean energies can be similar by chance; the mean over a few borders
    # varies at least by its standard error. The constant prevents a division by zero without any differences.
    spread = max(spread, mean * math.sqrt(SCATTER / axis.pairs[0]), 1e-3)
    return _AxisScore(float(energy[0] - mean) / spread, float(energy[0] - mean), float(weights[0]))


@dataclass(frozen=True, slots=True)
class _StripEdge:
    """The strip of a core that is compared across its right or lower border."""

    core: int  # position of the core in its row or column of the core grid
    first_block: int  # position of the first block in the strip of a full core
    blocks: npt.NDArray[np.float64]  # mean colors, (blocks, 6)


@dataclass(slots=True)
class ShadeMeter:
    """Accumulator of shade statistics over cores in raster order.

    Memory bound: the moments (some kB), and one strip for each row and column of the core grid, 48 bytes per block.
    """

    plan: Plan
    _block_px: int = field(init=False)
    _half_gap: int = field(init=False)  # strips that are left out on each side of a border
    _along_x: Moments = field(init=False)
    _along_y: Moments = field(init=False)
    _left: dict[int, _StripEdge] = field(init=False, default_factory=dict)  # by row of the core grid
    _above: dict[int, _StripEdge] = field(init=False, default_factory=dict)  # by column of the core grid

    def __post_init__(self) -> None:
        core_size, overlap_px = self.plan.core_size, self.plan.layout.overlap_px
        self._block_px = BLOCK_PX if min(core_size.width, core_size.height) >= 16 * BLOCK_PX else BLOCK_PX // 2
        across, down = core_size.width // self._block_px, core_size.height // self._block_px
        # Half the overlap, in which one shade fades into the other, lies on each side of a border. In small cores less
        # is left out, so that pairs inside them fit.
        self._half_gap = min(-(-overlap_px // (2 * self._block_px)), min(across, down) // 8)
        self._along_x, self._along_y = Moments.zeros(across + 1), Moments.zeros(down + 1)

    def add(self, core: FinishedCore) -> None:
        """Measure one core."""
        window, side = core.window, self._block_px
        left, top = self.plan.grid_corner(window)
        region = window.core.shifted(-left, -top)  # counted from the corner of the full core
        x, y = ceil_to(region.x, side) // side, ceil_to(region.y, side) // side
        width, height = region.right // side - x, region.bottom // side - y
        if width <= 0 or height <= 0:
            return
        blocks = _mean_colors(core, Region(x * side, y * side, width * side, height * side), region, side)
        self._measure(self._along_x, self._left, (window.row, window.column), blocks, x, y)
        self._measure(self._along_y, self._above, (window.column, window.row), blocks.transpose(1, 0, 2), y, x)

    def statistics(self) -> ShadeStatistics:
        """Return the statistics gathered so far."""
        return ShadeStatistics(self._along_x, self._along_y)

    def _measure(
        self,
        moments: Moments,
        edges: dict[int, _StripEdge],
        place: tuple[int, int],
        blocks: Blocks,
        first_strip: int,
        first_block: int,
    ) -> None:
        """Add the pairs of one core along one axis.

        ``place`` is the row and column of the core along x, the column and row along y. Strips are columns of
        ``blocks``. Positions of strips, and of blocks in them, count from the corner of the full core.
        """
        lane, core = place
        half_gap, distance = self._half_gap, 2 * self._half_gap + 1
        strips_per_core, end_strip = len(moments.weights) - 1, first_strip + blocks.shape[1]
        start = max(first_strip, half_gap)
        stop = min(end_strip, strips_per_core - half_gap) - distance
        if start < stop:
            strips = blocks.mean(axis=0)[start - first_strip : stop - first_strip + distance]
            moments.add(1 + start, strips[distance:] - strips[:-distance], len(blocks))
        edge = edges.get(lane)
        if edge is not None and edge.core == core - 1 and first_strip <= half_gap < end_strip:
            low = max(edge.first_block, first_block)
            high = min(edge.first_block + len(edge.blocks), first_block + len(blocks))
            if low < high:
                here = blocks[low - first_block : high - first_block, half_gap - first_strip].mean(axis=0)
                before = edge.blocks[low - edge.first_block : high - edge.first_block].mean(axis=0)
                moments.add(0, (here - before)[np.newaxis], high - low)
        edge_strip = strips_per_core - 1 - half_gap
        if first_strip <= edge_strip < end_strip:
            edges[lane] = _StripEdge(core, first_block, blocks[:, edge_strip - first_strip].copy())


def _mean_colors(core: FinishedCore, blocks: Region, region: Region, side: int) -> Blocks:
    """Average the blocks in the area ``blocks`` of a core that covers ``region``."""
    area, size = blocks.slices_in(region), (blocks.width // side, blocks.height // side)
    reduced = [
        cv2.resize(np.ascontiguousarray(image[area][::EVERY_ROW]), size, interpolation=cv2.INTER_AREA)
        for image in (core.pixels, core.source)
    ]
    return np.concatenate(reduced, axis=2, dtype=np.float64)


GROUP_PX = 16
"""Number of adjacent rows (for differences along x) or columns (along y) that are measured, a group of lines: single
columns would touch nearly every cache line of the image."""

GROUP_EVERY_PX = 256
"""Step between groups on slides of up to `THINNED_ABOVE_PX`."""

THINNED_ABOVE_PX = 100_000_000
"""Number of px above which the step grows with the slide, so that the time does not: 6 Mpx suffice for the metrics."""

MIN_PHASES = 8
"""Fewest phases for a meaningful spread."""


@dataclass(frozen=True, slots=True)
class SeamMetrics:
    """Metrics of the differences across the borders of cores."""

    # z_x, z_y: z-scores of the ratio of result to source differences at borders between horizontal and between vertical
    # neighbors, relative to its mean and spread at all other phases
    z_x: float | None
    z_y: float | None
    # contrast_x, contrast_y: this ratio at borders over its mean at all other phases; 1 without seams
    contrast_x: float | None
    contrast_y: float | None
    borders: int  # number of groups of lines that were measured across a border
    # shade_z, shade_step: metrics of differences in shade; see `ShadeMetrics`
    shade_z: float | None = None
    shade_step: float | None = None

    @property
    def z(self) -> float | None:
        """The one of `z_x` and `z_y` that is further from zero; None without borders."""
        known = [z for z in (self.z_x, self.z_y) if z is not None]
        return max(known, key=abs, default=None)


@dataclass(slots=True)
class Phases:
    """Sums of absolute differences between neighboring px, by phase: whole numbers, stored as float64.

    The phase is the position, in the full core, of the second px of a pair; at phase 0 a border is between them.
    """

    result: npt.NDArray[np.float64]
    source: npt.NDArray[np.float64]
    count: npt.NDArray[np.float64]  # number of differences, of each channel

    @classmethod
    def zeros(cls, length: int) -> Phases:
        return cls(np.zeros(length), np.zeros(length), np.zeros(length))

    def add(self, phase: int, result: npt.NDArray[np.float64], source: npt.NDArray[np.float64], count: int) -> None:
        """Add the sums of ``count`` differences at each phase from the given one on."""
        phases = slice(phase, phase + len(result))
        self.result[phases] += result
        self.source[phases] += source
        self.count[phases] += count

    def __add__(self, other: Phases) -> Phases:
        return Phases(self.result + other.result, self.source + other.source, self.count + other.count)

    def score(self) -> tuple[float | None, float | None]:
        """Return (z-score, contrast) of phase 0."""
        usable = (self.count > 0) & (self.source > 0)
        if not usable[0] or usable.sum() < MIN_PHASES:
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


@dataclass(frozen=True, slots=True)
class _Group:
    """Adjacent rows or columns of a core."""

    first_line: int  # position of the first row or column in working px
    axis: int  # axis of the arrays along the lines: 1 for rows, 0 for columns
    result: RGBImage
    source: RGBImage


@dataclass(frozen=True, slots=True)
class _Edge:
    """End of a group of lines."""

    end: int  # position after the last px, along the lines
    result: RGBImage  # last px of each line
    source: RGBImage


@dataclass(slots=True)
class SeamMeter:
    """Accumulator of seam statistics over cores in raster order.

    Memory bound: phases of one core, the ends of all measured rows and columns of the slide (6 bytes per line), and a
    `ShadeMeter`; some hundred kilobytes on a slide of 100,000² px.
    """

    plan: Plan  # plan of the measured cores
    # pixels of all cores of the slide, if the plan covers one band only; sets the sampling density
    total_px: int | None = None
    borders: int = field(init=False, default=0)  # number of groups that were measured across a border
    _every_px: int = field(init=False)
    _along_x: Phases = field(init=False)
    _along_y: Phases = field(init=False)
    _left: dict[int, _Edge] = field(init=False, default_factory=dict)  # by the first row of a group
    _above: dict[int, _Edge] = field(init=False, default_factory=dict)  # by the first column of a group
    _shades: ShadeMeter = field(init=False)

    def __post_init__(self) -> None:
        self._shades = ShadeMeter(self.plan)
        total_px = self.plan.kept_px if self.total_px is None else self.total_px
        self._every_px = GROUP_EVERY_PX * max(1, total_px // THINNED_ABOVE_PX)
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
        region = core.window.core
        left, top = self.plan.grid_corner(core.window)
        for rows in _groups(region.y, region.bottom, self._every_px):
            lines = slice(rows.start - region.y, rows.stop - region.y)
            group = _Group(rows.start, 1, core.pixels[lines], core.source[lines])
            self._measure(self._along_x, self._left, group, region.x, region.x - left)
        for columns in _groups(region.x, region.right, self._every_px):
            lines = slice(columns.start - region.x, columns.stop - region.x)
            group = _Group(columns.start, 0, core.pixels[:, lines], core.source[:, lines])
            self._measure(self._along_y, self._above, group, region.y, region.y - top)

    def metrics(self) -> SeamMetrics:
        """Compute the metrics of all cores so far."""
        return self.statistics().metrics()

    def statistics(self) -> SeamStatistics:
        """Return the statistics gathered so far."""
        return SeamStatistics(self._along_x, self._along_y, self.borders, self._shades.statistics())

    def _measure(self, phases: Phases, edges: dict[int, _Edge], group: _Group, start: int, start_in_core: int) -> None:
        """Add one group, whose lines start at ``start`` in working px, and ``start_in_core`` in the full core."""
        axis, images = group.axis, [group.result, group.source]
        lines, phase = group.result.shape[1 - axis], start_in_core + 1
        edge = edges.get(group.first_line)
        last = [np.take(image, [-1], axis=axis) for image in images]
        edges[group.first_line] = _Edge(start + group.result.shape[axis], *last)
        # The numbers of lines differ if the two cores are trimmed to tissue differently.
        if edge is not None and edge.end == start and edge.result.shape[1 - axis] == lines:
            before = (edge.result, edge.source)
            images = [np.concatenate(parts, axis=axis) for parts in zip(before, images, strict=True)]
            phase = 0
            self.borders += 1
        result, source = (_differences(image, axis) for image in images)
        phases.add(phase, result, source, lines * 3)  # channels


def _groups(start: int, stop: int, every_px: int) -> Iterator[range]:
    """Yield the measured groups of lines between ``start`` and ``stop``, at fixed positions of the working grid."""
    first = start // every_px * every_px
    for line in range(first, stop, every_px):
        group = range(max(line, start), min(line + GROUP_PX, stop))
        if group:
            yield group


def _differences(lines: RGBImage, axis: int) -> npt.NDArray[np.float64]:
    """Sum |difference| of neighbors along an axis over lines and channels; (length - 1,)."""
    pair = (lines[:, 1:], lines[:, :-1]) if axis == 1 else (lines[1:], lines[:-1])
    difference = cv2.absdiff(*pair)
    # OpenCV adds up bytes ten times as fast as NumPy does.
    by_channel = cv2.reduce(difference, 1 - axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    total: npt.NDArray[np.float64] = by_channel.reshape(-1, 3).sum(axis=1).astype(np.float64)
    return total
