"""Which windows of the working grid to translate: cores without gaps, context around them, in raster order.

The extent (what the output shows) is divided into equal cells. A cell that holds tissue becomes one window: its *core*
is the tissue's bounding box inside the cell, rounded outwards, and its *region* is the core with the halo that the
network needs. Cores never overlap. All starts lie on the network's lattice, counted from the working grid's origin, so
that the plan of a part of a slide translates the same pixels as the plan of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import BoolImage
from .errors import OptionError
from .geometry import Region, Size, ceil_to, floor_to

TRIM_PX = 64
"""Cores are trimmed to tissue in steps of this, so that windows come in few shapes and batches can be formed."""

OFF_GRID_PX = 36
"""The grid of cells begins so far before the extent, so that borders between cells do not fall on those of the
scanner's own tiles (240 or 256 px), whose steps a generator can amplify: they would be counted as seams of ours."""

WINDOW_OVERHEAD_PX = 20_000
"""What one more window costs beside its pixels (calls, edges of storage tiles), expressed in pixels of work."""


@dataclass(frozen=True, slots=True)
class Window:
    """One piece of work.

    index:   position in the plan, from 0
    column:  column of its cell in the grid of cells
    row:     row of its cell
    core:    the pixels that are kept, in working px
    region:  the pixels that the network is shown, in working px; starts on the lattice
    halo_px: context on each side of ``region`` that the translator does not give back
    """

    index: int
    column: int
    row: int
    core: Region
    region: Region
    halo_px: int

    @property
    def answer(self) -> Region:
        """The pixels that the translator gives back: the region less the halo. Holds the core."""
        return self.region.grown(-self.halo_px)


@dataclass(frozen=True, slots=True)
class Layout:
    """How windows are laid out for one generator on one device.

    halo_px:        context that is thrown away on each side of a window
    overlap_px:     how many px neighbouring windows share beyond that, to be blended (0: nothing is blended)
    lattice_px:     windows start on multiples of this
    multiple_px:    sides of windows are multiples of this
    max_window_px:  most pixels that a window may have
    tile_px:        tiles of the output; where windows need no margin, cells are whole tiles, which then need not be
                    pieced together
    """

    halo_px: int = 0
    overlap_px: int = 0
    lattice_px: int = 1
    multiple_px: int = 1
    max_window_px: int = 2048 * 2048
    tile_px: int = 0

    def __post_init__(self) -> None:
        if min(self.halo_px, self.overlap_px) < 0 or min(self.lattice_px, self.multiple_px, self.max_window_px) < 1:
            raise ValueError(f"impossible layout {self}")
        if self.halo_px % self.lattice_px or self.overlap_px % (2 * self.lattice_px):
            raise ValueError(f"halo and half the overlap must be multiples of the lattice in {self}")

    @property
    def margin_px(self) -> int:
        """How far a window reaches beyond its cell on each side."""
        return self.halo_px + self.overlap_px // 2


@dataclass(frozen=True, slots=True)
class TissueGrid:
    """The tissue mask, placed on the working grid.

    pixels:      (rows, columns) bool
    origin:      working px of the top left corner of ``pixels[0, 0]``, as (x, y); may be fractional
    pixel_size:  working px that one mask px spans, as (x, y)
    """

    pixels: BoolImage
    origin: tuple[float, float]
    pixel_size: tuple[float, float]

    def blocks(self, origin: tuple[int, int], step_px: int, shape: tuple[int, int], extent: Region) -> BoolImage:
        """Which squares of ``step_px``, counted from ``origin``, hold any tissue that lies in ``extent``.

        A square counts if a mask px overlaps it even partly. ``shape`` is (rows, columns) of the answer.
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
        """Working px of tissue in ``region``; mask px that lie partly in it count in part."""
        down = self._lengths_within(region.y, region.bottom, 1)
        across = self._lengths_within(region.x, region.right, 0)
        rows, columns = np.flatnonzero(down), np.flatnonzero(across)
        if rows.size == 0 or columns.size == 0:
            return 0.0
        # of a large mask, only what lies in the region: patches are asked for by the thousand
        down_in, across_in = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return float(down[down_in] @ (self.pixels[down_in, across_in] @ across[across_in]))

    def _lengths_within(self, start: int, stop: int, axis: int) -> npt.NDArray[np.float64]:
        """For each mask px along an axis, how many working px of it lie between ``start`` and ``stop``."""
        edges = self.origin[axis] + self.pixel_size[axis] * np.arange(self.pixels.shape[1 - axis] + 1)
        inside: npt.NDArray[np.float64] = np.diff(np.clip(edges, start, stop))
        return inside

    def _overlapped(
        self, origin: int, step_px: int, count: int, first_px: int, end_px: int, axis: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each step along an axis, clipped to [first_px, end_px), the mask px it overlaps: [start, stop)."""
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
    """All work on one slide.

    extent:     what the output shows, in working px
    cell:       size of a full cell; the grid of cells starts at ``cell_origin``
    windows:    in raster order of their cells; bounded by the slide's area over the cell's, some 100 bytes each
    tissue_px:  working px of the mask inside the extent
    """

    extent: Region
    cell: Size
    cell_origin: tuple[int, int]
    layout: Layout
    windows: tuple[Window, ...]
    tissue_px: float

    @property
    def kept_px(self) -> int:
        """Pixels of all cores."""
        return sum(window.core.area_px for window in self.windows)

    @property
    def window_px(self) -> int:
        """Pixels that the network is shown, context included."""
        return sum(window.region.area_px for window in self.windows)

    def occupied_tiles(self, tile_px: int) -> BoolImage:
        """Which tiles of the output, counted from the extent's origin, hold any core; (rows, columns) bool."""
        shape = (-(-self.extent.height // tile_px), -(-self.extent.width // tile_px))
        occupied = np.zeros(shape, dtype=np.bool_)
        for window in self.windows:
            core = window.core.shifted(-self.extent.x, -self.extent.y)
            occupied[core.y // tile_px : (core.bottom - 1) // tile_px + 1,
                     core.x // tile_px : (core.right - 1) // tile_px + 1] = True  # fmt: skip
        return occupied


def plan_windows(extent: Region, tissue: TissueGrid, layout: Layout, cell: Size | None = None) -> Plan:
    """Divide the tissue in ``extent`` into windows.

    Parameters
    ----------
    extent
        What the output shows, in working px; not empty.
    tissue
        Where there is something to translate.
    layout
        What the generator demands of windows.
    cell
        Size of the cells; multiples of the lattice. By default the size with the least work is searched for.

    Raises
    ------
    OptionError
        If the cells are off the lattice, too small for the overlap, or make windows larger than the layout allows.
    """
    if extent.is_empty:
        raise ValueError("an empty extent cannot be planned")
    size = cell if cell is not None else best_cell([extent], tissue, layout)
    _check_cell(size, layout)
    step = math.gcd(_step_px(layout), size.width, size.height)
    boxes = _tissue_boxes(_blocks(extent, tissue, layout, step), size.width // step, size.height // step)
    origin = _cell_origin(extent, layout)
    windows = tuple(_windows(extent, boxes, step, origin, layout, size))
    return Plan(extent, size, origin, layout, windows, tissue.area_in(extent))


def best_cell(extents: Sequence[Region], tissue: TissueGrid, layout: Layout) -> Size:
    """The size of cells with the least work over all of ``extents``, each of which has a grid of cells of its own.

    The first extent is the largest; which sizes are tried follows from it.
    """
    sizes = _candidate_cells(extents[0], layout)
    step = _step_px(layout)  # all of them are multiples of it, so the tissue is looked at once, in squares of that step
    work = dict.fromkeys(sizes, 0)
    for extent in extents:
        blocks = _blocks(extent, tissue, layout, step)
        for size in sizes:
            boxes = _tissue_boxes(blocks, size.width // step, size.height // step)
            work[size] += _work_px(boxes, step, layout, size)
    return min(sizes, key=lambda size: work[size])


def _check_cell(size: Size, layout: Layout) -> None:
    if min(size.width, size.height) < layout.overlap_px // 2:
        raise OptionError(f"cells of {size} px are too small for an overlap of {layout.overlap_px} px")
    if _window_area_px(size, layout) > layout.max_window_px:
        raise OptionError(
            f"cells of {size} px make windows of {_window_area_px(size, layout):,} px, and the memory bound allows "
            f"{layout.max_window_px:,}: raise --max-memory, lower --batch-size, --core-size or --overlap, or use "
            "--blend overlap"
        )
    if size.width % layout.lattice_px or size.height % layout.lattice_px:
        raise OptionError(f"core size {size} is not a multiple of the model's lattice of {layout.lattice_px} px")


def _blocks(extent: Region, tissue: TissueGrid, layout: Layout, step: int) -> BoolImage:
    """Which squares of ``step`` px of an extent's grid hold tissue."""
    origin = _cell_origin(extent, layout)
    shape = (-(-(extent.bottom - origin[1]) // step), -(-(extent.right - origin[0]) // step))
    return tissue.blocks(origin, step, shape, extent)


def _cell_origin(extent: Region, layout: Layout) -> tuple[int, int]:
    """Where the grid of cells begins: on the lattice, at the extent or somewhat before it."""
    before = _off_grid_px(layout)
    return floor_to(extent.x - before, layout.lattice_px), floor_to(extent.y - before, layout.lattice_px)


def _off_grid_px(layout: Layout) -> int:
    """How far before the extent the grid of cells begins; see `OFF_GRID_PX`."""
    return OFF_GRID_PX if layout.margin_px and OFF_GRID_PX % layout.lattice_px == 0 else 0


@dataclass(frozen=True, slots=True)
class _Boxes:
    """The cells that hold tissue, in raster order, and the box of tissue in each; all counted in blocks, (cells,)."""

    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]


def _tissue_boxes(blocks: BoolImage, across: int, down: int) -> _Boxes:
    """Boxes of tissue in cells of ``across`` × ``down`` blocks."""
    rows, columns = -(-blocks.shape[0] // down), -(-blocks.shape[1] // across)
    padded = np.zeros((rows * down, columns * across), dtype=np.bool_)
    padded[: blocks.shape[0], : blocks.shape[1]] = blocks
    cells = padded.reshape(rows, down, columns, across)
    in_rows: BoolImage = np.swapaxes(np.any(cells, axis=3), 1, 2)  # (row, column, down)
    in_columns: BoolImage = np.any(cells, axis=1)  # (row, column, across)
    row, column = np.nonzero(in_rows.any(axis=2))
    in_rows, in_columns = in_rows[row, column], in_columns[row, column]
    first_y, first_x = in_rows.argmax(axis=1), in_columns.argmax(axis=1)
    height = down - in_rows[:, ::-1].argmax(axis=1) - first_y
    width = across - in_columns[:, ::-1].argmax(axis=1) - first_x
    return _Boxes(row, column, column * across + first_x, row * down + first_y, width, height)


def _work_px(boxes: _Boxes, step: int, layout: Layout, cell: Size) -> int:
    """Pixels that the network would be shown, and the overhead of each window."""
    if layout.overlap_px:
        return len(boxes.row) * (_window_area_px(cell, layout) + WINDOW_OVERHEAD_PX)
    widths, heights = (
        -(-(length * step + 2 * layout.margin_px) // layout.multiple_px) * layout.multiple_px
        for length in (boxes.width, boxes.height)
    )
    return int((widths * heights).sum()) + WINDOW_OVERHEAD_PX * len(boxes.row)


def _windows(
    extent: Region, boxes: _Boxes, step: int, origin: tuple[int, int], layout: Layout, cell: Size
) -> Iterator[Window]:
    columns = (boxes.row, boxes.column, boxes.x, boxes.y, boxes.width, boxes.height)
    for index, (row, column, x, y, width, height) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if layout.overlap_px:
            # Blended windows share fixed borders, so that their weights add up; only unblended ones may shrink.
            core = Region(origin[0] + column * cell.width, origin[1] + row * cell.height, cell.width, cell.height)
        else:
            core = Region(origin[0] + x * step, origin[1] + y * step, width * step, height * step)
        margin = core.grown(layout.margin_px)
        shown = (ceil_to(side, layout.multiple_px) for side in (margin.width, margin.height))
        region = Region(margin.x, margin.y, *shown)
        yield Window(index, column, row, core.intersection(extent), region, layout.halo_px)


def _step_px(layout: Layout) -> int:
    return math.lcm(layout.lattice_px, TRIM_PX)


def _candidate_cells(extent: Region, layout: Layout) -> list[Size]:
    """Sizes of cells that divide the extent into equal parts and whose windows are within the layout's bound."""
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
    return fitting or [_smallest_cell(layout)]


def _smallest_cell(layout: Layout) -> Size:
    side = ceil_to(max(1, layout.overlap_px // 2), _step_px(layout))
    return Size(side, side)


def smallest_window_px(layout: Layout) -> int:
    """Pixels of the smallest window that the search for cells would take."""
    return _window_area_px(_smallest_cell(layout), layout)


def _candidate_sides(side_px: int, step: int) -> list[int]:
    """Cell sides up to 4096 px that divide ``side_px`` evenly up to one step, the longest first, a fifth apart."""
    sides: list[int] = []
    for count in range(max(1, side_px // 4096), side_px // 256 + 2):
        side = ceil_to(-(-side_px // count), step)
        if side <= 4096 and (not sides or side < 0.8 * sides[-1]):
            sides.append(side)
    return sides


def _window_area_px(cell: Size, layout: Layout) -> int:
    width: int = ceil_to(cell.width + 2 * layout.margin_px, layout.multiple_px)
    return width * ceil_to(cell.height + 2 * layout.margin_px, layout.multiple_px)
