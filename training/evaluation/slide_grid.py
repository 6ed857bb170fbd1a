"""Squares of a virtual slide and its reference: which of them have tissue on both, and their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.concurrency import ordered_map
from wsi2ihc.errors import DatasetError, MissingResolutionError
from wsi2ihc.geometry import BoolImage, Region, RGBImage
from wsi2ihc.registration.transform import Transform, identity, moving_grid
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.slide import Slide, WorkingGrid, read_region, working_grid
from wsi2ihc.tissue import TissueMask, detect_tissue

from .scores import AHEAD, THREADS

SQUARE_UM = 250.0
"""Side of a square: it holds some hundred cells, and is much larger than the misalignment after registration."""

MIN_SQUARE_PX = 64

MIN_TISSUE = 0.5
"""Fraction of a square that must be tissue on both slides."""

SAMPLES = 16
"""Points along each side of a square at which the masks are sampled."""


@dataclass(frozen=True, slots=True, eq=False)
class SquareGrid:
    """The squares of a virtual slide, and which of them can be compared."""

    shape: tuple[int, int]  # rows and columns
    side_px: int  # side of a square in working px
    mpp: float  # µm per working px
    reference: npt.NDArray[np.float64]  # (rows, columns) fraction of each square that is tissue of the reference
    both: npt.NDArray[np.float64]  # fraction that is tissue on both slides
    chosen: npt.NDArray[np.intp]  # (N, 2) rows and columns of the squares that are compared, in raster order

    @property
    def missed(self) -> int:
        """Number of squares with enough tissue of the reference, of which too little is on the virtual slide."""
        return int(((self.reference >= MIN_TISSUE) & (self.both < MIN_TISSUE)).sum())

    @property
    def coverage(self) -> float:
        """Fraction of the reference tissue in the grid that is tissue on the virtual slide too; NaN without any."""
        whole = float(self.reference.sum())
        return float(self.both.sum()) / whole if whole > 0 else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class SlideComparison:
    """Two slides and the transform between them."""

    virtual: Slide
    reference: Slide
    transform: Transform  # from µm of the H&E slide, from which the virtual one was made, to µm of the reference
    offset_um: tuple[float, float] = (0.0, 0.0)  # position of the corner of the virtual slide on the H&E slide
    he: Slide | None = None  # the H&E slide, if it is given

    @property
    def grid(self) -> WorkingGrid:
        """Grid of the virtual slide at its own resolution."""
        return working_grid(self.virtual.info, None)


@dataclass(frozen=True, slots=True, eq=False)
class Square:
    """A square at (row, column), and its pixels on each slide: (side, side, 3) uint8."""

    position: tuple[int, int]
    virtual: RGBImage
    reference: RGBImage
    he: RGBImage | None


def plan_squares(pair: SlideComparison, square_um: float = SQUARE_UM) -> SquareGrid:
    """Lay out the grid and choose the squares that have tissue on both slides.

    Raises
    ------
    MissingResolutionError
        If a slide does not state its resolution.
    DatasetError
        If the virtual slide is smaller than a square, or no square has tissue on both slides.
    """
    grid = pair.grid
    if pair.virtual.info.mpp is None:
        raise MissingResolutionError(
            f"{pair.virtual.info.name}: the virtual slide does not state its resolution, which cannot be given; "
            "write it into the file"
        )
    if pair.reference.info.mpp is None:
        raise MissingResolutionError(
            f"{pair.reference.info.name}: the reference does not state its resolution; give it with --mpp"
        )
    mpp = math.sqrt(grid.mpp[0] * grid.mpp[1])
    side_px = max(MIN_SQUARE_PX, round(square_um / mpp))
    shape = (grid.size.height // side_px, grid.size.width // side_px)
    if min(shape) < 1:
        raise DatasetError(f"{pair.virtual.info.name} is smaller than one square of {side_px * mpp:.0f} µm")
    masks = detect_tissue(pair.virtual), detect_tissue(pair.reference)
    fractions = np.array(
        [
            [_tissue_fractions(pair, grid, Region(x, y, side_px, side_px), masks) for x in _starts(shape[1], side_px)]
            for y in _starts(shape[0], side_px)
        ]
    )
    reference, both = fractions[..., 0], fractions[..., 1]
    chosen = np.argwhere(both >= MIN_TISSUE)
    if not len(chosen):
        raise DatasetError(
            f"{pair.virtual.info.name} and {pair.reference.info.name} have no common tissue; register them "
            "(wsi2ihc register) and give the --transform"
        )
    return SquareGrid(shape, side_px, mpp, reference, both, chosen)


def read_squares(pair: SlideComparison, squares: SquareGrid, chosen: npt.NDArray[np.intp]) -> Iterator[Square]:
    """Read squares at these (row, column) in order. Memory bound: `AHEAD` squares."""
    grid, side_px = pair.grid, squares.side_px

    def read(position: tuple[int, int]) -> Square:
        region = Region(position[1] * side_px, position[0] * side_px, side_px, side_px)
        x_um, y_um = centers_um(pair, grid, region, (side_px, side_px))
        reference = read_warped(pair.reference, pair.transform, squares.mpp, x_um, y_um)
        he = read_he(pair, region)
        return Square(position, read_region(pair.virtual, grid, region), reference.pixels, he)

    with ThreadPoolExecutor(THREADS, "squares") as pool:
        yield from ordered_map(pool, read, [(int(row), int(column)) for row, column in chosen], AHEAD)


def _starts(count: int, side_px: int) -> range:
    return range(0, count * side_px, side_px)


def centers_um(
    pair: SlideComparison, grid: WorkingGrid, region: Region, counts: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the positions of samples, evenly spaced along x and y in a region of the grid, in µm of the H&E slide.

    There are ``counts`` of them along (x, y), at the centers of equal parts of the region.
    """
    mpp = pair.virtual.info.mpp
    assert mpp is not None

    def along(axis: int, start: int, length: int) -> npt.NDArray[np.float64]:
        on_grid = start + (np.arange(counts[axis]) + 0.5) * length / counts[axis]
        on_level0 = grid.level0_origin[axis] + on_grid * grid.downsample[axis]
        return np.asarray(on_level0 * mpp[axis] + pair.offset_um[axis], np.float64)

    return along(0, region.x, region.width), along(1, region.y, region.height)


def read_he(pair: SlideComparison, region: Region) -> RGBImage | None:
    """Read the H&E slide at a region of the virtual slide; None if it is not given."""
    if pair.he is None:
        return None
    grid = pair.grid
    x_um, y_um = centers_um(pair, grid, region, (region.width, region.height))
    return read_warped(pair.he, identity(), math.sqrt(grid.mpp[0] * grid.mpp[1]), x_um, y_um).pixels


def _tissue_fractions(
    pair: SlideComparison, grid: WorkingGrid, region: Region, masks: tuple[TissueMask, TissueMask]
) -> tuple[float, float]:
    """Return the fractions of a region that are tissue of the reference, and tissue on both slides."""
    x_um, y_um = centers_um(pair, grid, region, (SAMPLES, SAMPLES))
    # the mask of the virtual slide lies in the frame of that slide, not of the H&E slide
    on_virtual = np.stack(np.meshgrid(x_um - pair.offset_um[0], y_um - pair.offset_um[1]), axis=-1)
    on_reference = moving_grid(pair.transform, x_um, y_um)
    reference = _in_mask(masks[1], pair.reference, on_reference)
    return float(reference.mean()), float((reference & _in_mask(masks[0], pair.virtual, on_virtual)).mean())


def _in_mask(mask: TissueMask, slide: Slide, positions_um: npt.NDArray[np.float64]) -> BoolImage:
    """Return which positions lie in the mask of a slide."""
    assert slide.info.mpp is not None
    indices = np.floor((positions_um / slide.info.mpp - mask.origin) / mask.pixel_size).astype(np.intp)
    rows, columns = mask.pixels.shape
    inside = np.all((indices >= 0) & (indices < (columns, rows)), axis=-1)
    column, row = np.moveaxis(np.where(inside[..., np.newaxis], indices, 0), -1, 0)
    return np.asarray(inside & mask.pixels[row, column])
