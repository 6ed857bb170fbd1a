"""Plan of the windows on the working grid: cores without gaps, and the context around them.

The extent is divided into a grid of cores of one size. `plan_windows` trims each core to the tissue in it, drops empty
ones, and adds the context that the network needs. `best_core_size` searches for the core size with the least work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from ..geometry import BoolImage, Region, Size, ceil_to, floor_to
from ..slide import WorkingGrid
from ..tissue.detection import MARGIN_UM
from ..tissue.mask import TissueMask, shrunk

TRIM_PX = 64
"""Cores are trimmed to tissue in steps of this, so that windows come in few shapes and batches can be formed."""

OFF_GRID_PX = 36
"""Offset of the core grid before the extent, so that borders of cores do not coincide with those of the tiles of the
scanner (240 or 256 px), whose steps a generator can amplify: they would count as seams."""

WINDOW_OVERHEAD_PX = 20_000
"""Overhead of a window (calls, edges of storage tiles), in pixels of work."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window: the unit of translation."""

    index: int  # position in the plan, from 0
    column: int  # position in the core grid
    row: int  # position in the core grid
    core: Region  # pixels that are kept, in working px
    region: Region  # input of the network, in working px; starts on a multiple of the stride
    halo_px: int  # context on each side of ``region`` that the output of the translator lacks

    @property
    def output_region(self) -> Region:
        """Region of the output of the translator: without the halo. Contains the core."""
        return self.region.grown(-self.halo_px)


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Layout of windows for one generator on one device."""

    halo_px: int = 0  # context on each side of a window that is discarded
    overlap_px: int = 0  # overlap of neighboring windows beyond the halo, which is blended; 0 for no blending
    stride_px: int = 1  # windows start on multiples of this
    multiple_px: int = 1  # sides of windows are multiples of this
    max_window_px: int = 2048 * 2048  # largest number of pixels of a window
    tile_px: int = 0  # side of the output tiles. Without a margin, cores are whole tiles, which need no assembly.

    def __post_init__(self) -> None:
        if min(self.halo_px, self.overlap_px) < 0 or min(self.stride_px, self.multiple_px, self.max_window_px) < 1:
            raise ValueError(f"impossible layout {self}")
        if self.halo_px % self.stride_px or self.overlap_px % (2 * self.stride_px):
            raise ValueError(f"halo and half the overlap must be multiples of the stride in {self}")

    @property
    def margin_px(self) -> int:
        """Context and overlap of a window beyond its core, on each side."""
        return self.halo_px + self.overlap_px // 2


@dataclass(frozen=True, slots=True)
class TissueGrid:
    """Tissue mask in coordinates of the working grid."""

    pixels: BoolImage  # mask, (rows, columns) bool
    origin: tuple[float, float]  # top left corner of ``pixels[0, 0]`` in working px, as (x, y); may be fractional
    pixel_size: tuple[float, float]  # size of a mask px in working px, as (x, y)

    def blocks(self, origin: tuple[int, int], step_px: int, shape: tuple[int, int], extent: Region) -> BoolImage:
        """Find the squares of ``step_px``, counted from ``origin``, that overlap tissue inside ``extent``.

        ``shape`` is (rows, columns) of the result.
        """
        sums = np.zeros((self.pixels.shape[0] + 1, self.pixels.shape[1] + 1), dtype=np.int32)
        np.cumsum(self.pixels, axis=0, dtype=np.int32, out=sums[1:, 1:])
        np.cumsum(sums, axis=1, out=sums)
        top, bottom = self._overlapped(origin[1], step_px, shape[0], extent.y, extent.bottom, 1)
        left, right = self._overlapped(origin[0], step_px, shape[1], extent.x, extent.right, 0)
        counts = (
            sums[np.ix_(bottom, right)]
            - sums[np.ix_(top, right)]
            - sums[np.ix_(bottom, left)]
            + sums[np.ix_(top, left)]
        )
        occupied: BoolImage = counts > 0
        return occupied

    def area_in(self, region: Region) -> float:
        """Return the working px of tissue in ``region``; mask px partly in it count in part."""
        down = self._lengths_within(region.y, region.bottom, 1)
        across = self._lengths_within(region.x, region.right, 0)
        rows, columns = np.flatnonzero(down), np.flatnonzero(across)
        if rows.size == 0 or columns.size == 0:
            return 0.0
        # only the part of a large mask inside the region: this is called for thousands of patches
        down_in, across_in = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return float(down[down_in] @ (self.pixels[down_in, across_in] @ across[across_in]))

    def _lengths_within(self, start: int, stop: int, axis: int) -> npt.NDArray[np.float64]:
        """Return, for each mask px along an axis, its length between ``start`` and ``stop`` in working px."""
        edges = self.origin[axis] + self.pixel_size[axis] * np.arange(self.pixels.shape[1 - axis] + 1)
        inside: npt.NDArray[np.float64] = np.diff(np.clip(edges, start, stop))
        return inside

    def _overlapped(
        self, origin: int, step_px: int, count: int, first_px: int, end_px: int, axis: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return, for each step along an axis clipped to [first_px, end_px), the mask px it overlaps: [start, stop)."""
        size = self.pixels.shape[1 - axis]
        starts = origin + step_px * np.arange(count, dtype=np.int64)
        stops = np.clip(starts + step_px, first_px, end_px)
        starts = np.clip(starts, first_px, end_px)
        # Overlaps of a millionth of a mask px are rounding errors.
        start = np.floor((starts - self.origin[axis]) / self.pixel_size[axis] + 1e-6).astype(np.int64)
        stop = np.ceil((stops - self.origin[axis]) / self.pixel_size[axis] - 1e-6).astype(np.int64)
        stop = np.where(stops > starts, stop, start)
        return np.clip(start, 0, size), np.clip(stop, 0, size)


@dataclass(frozen=True, slots=True)
class Plan:
    """All windows of a slide or band."""

    extent: Region  # region of the output, in working px
    core_size: Size
    core_origin: tuple[int, int]  # origin of the core grid, in working px
    layout: WindowLayout
    windows: tuple[Window, ...]  # windows in raster order of the core grid, about 100 bytes each
    tissue_px: float  # working px of tissue inside the extent

    def grid_corner(self, window: Window) -> tuple[int, int]:
        """Return the top left corner of the full core of a window, in working px."""
        return (
            self.core_origin[0] + window.column * self.core_size.width,
            self.core_origin[1] + window.row * self.core_size.height,
        )

    @property
    def kept_px(self) -> int:
        """Pixels of all cores."""
        return sum(window.core.area_px for window in self.windows)

    @property
    def window_px(self) -> int:
        """Pixels of all windows, context included."""
        return sum(window.region.area_px for window in self.windows)

    def occupied_tiles(self, tile_px: int) -> BoolImage:
        """Return which tiles of the output contain a core; (rows, columns) bool."""
        shape = (-(-self.extent.height // tile_px), -(-self.extent.width // tile_px))
        occupied = np.zeros(shape, dtype=np.bool_)
        for window in self.windows:
            core = window.core.shifted(-self.extent.x, -self.extent.y)
            occupied[core.y // tile_px : (core.bottom - 1) // tile_px + 1,
                     core.x // tile_px : (core.right - 1) // tile_px + 1] = True  # fmt: skip
        return occupied


def plan_windows(extent: Region, tissue: TissueGrid, layout: WindowLayout, core_size: Size | None = None) -> Plan:
    """Divide the tissue in ``extent`` (working px, not empty) into windows.

    The core size is in multiples of the stride; by default it is the size with the least work.

    Raises
    ------
    OptionError
        If cores are not multiples of the stride, too small for the overlap, or make windows too large.
    """
    if extent.is_empty:
        raise ValueError("an empty extent cannot be planned")
    size = core_size if core_size is not None else best_core_size([extent], tissue, layout)
    _check_core_size(size, layout)
    step = math.gcd(_step_px(layout), size.width, size.height)
    boxes = _tissue_boxes(_blocks(extent, tissue, layout, step), size.width // step, size.height // step)
    origin = _core_origin(extent, layout)
    windows = tuple(_windows(extent, boxes, step, origin, layout, size))
    return Plan(extent, size, origin, layout, windows, tissue.area_in(extent))


def best_core_size(extents: Sequence[Region], tissue: TissueGrid, layout: WindowLayout) -> Size:
    """Search for the core size with the least work over all ``extents``, each with its own core grid.

    Candidates are derived from the first extent, which is the largest.
    """
    sizes = _candidate_sizes(extents[0], layout)
    step = _step_px(layout)  # all sizes are multiples of it, so the tissue is reduced to squares of that step once
    work = dict.fromkeys(sizes, 0)
    for extent in extents:
        blocks = _blocks(extent, tissue, layout, step)
        for size in sizes:
            boxes = _tissue_boxes(blocks, size.width // step, size.height // step)
            work[size] += _work_px(boxes, step, layout, size)
    return min(sizes, key=lambda size: work[size])


def _check_core_size(size: Size, layout: WindowLayout) -> None:
    if min(size.width, size.height) < layout.overlap_px // 2:
        raise OptionError(f"cores of {size} px are too small for an overlap of {layout.overlap_px} px")
    if _window_area_px(size, layout) > layout.max_window_px:
        raise OptionError(
            f"cores of {size} px need windows of {_window_area_px(size, layout):,} px, and the memory bound allows "
            f"{layout.max_window_px:,}: raise --max-memory, lower --batch-size, --core-size or --overlap, or use "
            "--blend overlap"
        )
    if size.width % layout.stride_px or size.height % layout.stride_px:
        raise OptionError(f"core size {size} is not a multiple of the model's stride of {layout.stride_px} px")


def _blocks(extent: Region, tissue: TissueGrid, layout: WindowLayout, step: int) -> BoolImage:
    """Find the squares of ``step`` px of the core grid of an extent that overlap tissue."""
    origin = _core_origin(extent, layout)
    shape = (-(-(extent.bottom - origin[1]) // step), -(-(extent.right - origin[0]) // step))
    return tissue.blocks(origin, step, shape, extent)


def _core_origin(extent: Region, layout: WindowLayout) -> tuple[int, int]:
    """Return the origin of the core grid: a multiple of the stride, at the extent or slightly before it."""
    before = _off_grid_px(layout)
    return floor_to(extent.x - before, layout.stride_px), floor_to(extent.y - before, layout.stride_px)


def _off_grid_px(layout: WindowLayout) -> int:
    """Return the offset of the core grid before the extent; see `OFF_GRID_PX`."""
    return OFF_GRID_PX if layout.margin_px and OFF_GRID_PX % layout.stride_px == 0 else 0


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Bounding boxes of the tissue in each core that contains any, in raster order; in blocks, (cores,)."""

    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]


def _tissue_boxes(blocks: BoolImage, across: int, down: int) -> _Boxes:
    """Find the boxes of tissue in cores of ``across`` × ``down`` blocks."""
    rows, columns = -(-blocks.shape[0] // down), -(-blocks.shape[1] // across)
    padded = np.zeros((rows * down, columns * across), dtype=np.bool_)
    padded[: blocks.shape[0], : blocks.shape[1]] = blocks
    cores = padded.reshape(rows, down, columns, across)
    in_rows: BoolImage = np.swapaxes(np.any(cores, axis=3), 1, 2)  # (row, column, down)
    in_columns: BoolImage = np.any(cores, axis=1)  # (row, column, across)
    row, column = np.nonzero(in_rows.any(axis=2))
    in_rows, in_columns = in_rows[row, column], in_columns[row, column]
    first_y, first_x = in_rows.argmax(axis=1), in_columns.argmax(axis=1)
    height = down - in_rows[:, ::-1].argmax(axis=1) - first_y
    width = across - in_columns[:, ::-1].argmax(axis=1) - first_x
    return _Boxes(row, column, column * across + first_x, row * down + first_y, width, height)


def _work_px(boxes: _Boxes, step: int, layout: WindowLayout, core_size: Size) -> int:
    """Count the pixels of all windows, and their overhead."""
    if layout.overlap_px:
        return len(boxes.row) * (_window_area_px(core_size, layout) + WINDOW_OVERHEAD_PX)
    widths, heights = (
        -(-(length * step + 2 * layout.margin_px) // layout.multiple_px) * layout.multiple_px
        for length in (boxes.width, boxes.height)
    )
    return int((widths * heights).sum()) + WINDOW_OVERHEAD_PX * len(boxes.row)


def _windows(
    extent: Region, boxes: _Boxes, step: int, origin: tuple[int, int], layout: WindowLayout, size: Size
) -> Iterator[Window]:
    columns = (boxes.row, boxes.column, boxes.x, boxes.y, boxes.width, boxes.height)
    for index, (row, column, x, y, width, height) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if layout.overlap_px:
            # Blended windows have fixed borders, so that their weights add up; only others are trimmed.
            core = Region(origin[0] + column * size.width, origin[1] + row * size.height, size.width, size.height)
        else:
            core = Region(origin[0] + x * step, origin[1] + y * step, width * step, height * step)
        margin = core.grown(layout.margin_px)
        sides = (ceil_to(side, layout.multiple_px) for side in (margin.width, margin.height))
        region = Region(margin.x, margin.y, *sides)
        yield Window(index, column, row, core.intersection(extent), region, layout.halo_px)


def _step_px(layout: WindowLayout) -> int:
    return math.lcm(layout.stride_px, TRIM_PX)


def _candidate_sizes(extent: Region, layout: WindowLayout) -> list[Size]:
    """List core sizes that divide the extent into equal parts, and whose windows are small enough."""
    step = _step_px(layout)
    if layout.margin_px == 0 and layout.tile_px:
        step = math.lcm(step, layout.tile_px)
    before = _off_grid_px(layout)
    widths, heights = (_candidate_sides(side + before, step) for side in (extent.width, extent.height))
    sizes = [
        Size(width, height)
        for width in widths
        for height in heights
        if max(width, height) <= 3 * min(width, height) or min(extent.width, extent.height) <= min(width, height)
    ]
    fitting = [
        size
        for size in sizes
        if _window_area_px(size, layout) <= layout.max_window_px
        and min(size.width, size.height) >= layout.overlap_px // 2
    ]
    return fitting or [_smallest_core_size(layout)]


def _smallest_core_size(layout: WindowLayout) -> Size:
    side = ceil_to(max(1, layout.overlap_px // 2), _step_px(layout))
    return Size(side, side)


def smallest_window_px(layout: WindowLayout) -> int:
    """Return the pixels of the smallest window that `best_core_size` considers."""
    return _window_area_px(_smallest_core_size(layout), layout)


def _candidate_sides(side_px: int, step: int) -> list[int]:
    """List core sides up to 4096 px that divide ``side_px`` evenly up to one step, longest first, a fifth apart."""
    sides: list[int] = []
    for count in range(max(1, side_px // 4096), side_px // 256 + 2):
        side = ceil_to(-(-side_px // count), step)
        if side <= 4096 and (not sides or side < 0.8 * sides[-1]):
            sides.append(side)
    return sides


def _window_area_px(core_size: Size, layout: WindowLayout) -> int:
    width: int = ceil_to(core_size.width + 2 * layout.margin_px, layout.multiple_px)
    return width * ceil_to(core_size.height + 2 * layout.margin_px, layout.multiple_px)


def mask_on_grid(mask: TissueMask, grid: WorkingGrid) -> TissueGrid:
    """Convert the mask of a slide to coordinates of a working grid, without copying pixels."""
    origin = [(mask.origin[axis] - grid.level0_origin[axis]) / grid.downsample[axis] for axis in (0, 1)]
    size = [mask.pixel_size[axis] / grid.downsample[axis] for axis in (0, 1)]
    return TissueGrid(mask.pixels, (origin[0], origin[1]), (size[0], size[1]))


def without_margin(mask: TissueMask, mpp: tuple[float, float]) -> TissueMask:
    """Remove the margin of background that `detect_tissue` adds around tissue.

    The margin ensures that translation misses no tissue; it would bias fractions of tissue.

    Parameters
    ----------
    mask
        Detected mask.
    mpp
        µm per level-0 px of its slide along (x, y).
    """
    px_um = max(mask.pixel_size[0] * mpp[0], mask.pixel_size[1] * mpp[1])
    return dataclasses.replace(mask, pixels=shrunk(mask.pixels, MARGIN_UM / px_um))
