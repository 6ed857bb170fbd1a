"""Two slides, cut into the squares of a grid that are compared one by one: the virtual slide, and the IHC slide as it
lies on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import BoolImage, RGBImage
from wsi2ihc.errors import DatasetError, MissingResolutionError
from wsi2ihc.geometry import Region
from wsi2ihc.ordered import ordered_map
from wsi2ihc.registration.transform import Transform, identity, moving_grid
from wsi2ihc.registration.warping import read_warped
from wsi2ihc.slide import Slide, WorkingGrid, read_region, working_grid
from wsi2ihc.tissue import TissueMask, detect_tissue

from .source import AHEAD, THREADS

SQUARE_UM = 250.0
"""Side of a square: some hundred cells, and far more than what registration leaves of misalignment."""

LEAST_SQUARE_PX = 64

LEAST_TISSUE = 0.5
"""Share of a square that has to be tissue on both slides."""

SAMPLES = 16
"""Points along each side of a square at which the masks are looked up."""


@dataclass(frozen=True, slots=True, eq=False)
class SquareGrid:
    """The squares of a virtual slide, and which of them can be compared.

    region:     of square (row, column) 0, 0 in working px; all others follow
    shape:      rows and columns
    side_px:    of a square in working px
    mpp:        µm per working px
    reference:  (rows, columns) share of each square that is tissue of the reference, 0 to 1
    both:       share that is tissue on both slides
    chosen:     (N, 2) rows and columns of the squares that are compared, in raster order
    """

    shape: tuple[int, int]
    side_px: int
    mpp: float
    reference: npt.NDArray[np.float64]
    both: npt.NDArray[np.float64]
    chosen: npt.NDArray[np.intp]

    @property
    def missed(self) -> int:
        """Squares with tissue of the reference, of which the virtual slide shows less than half."""
        return int(((self.reference >= LEAST_TISSUE) & (self.both < LEAST_TISSUE)).sum())

    @property
    def coverage(self) -> float:
        """Share of the reference's tissue within the grid on which the virtual slide has tissue, too; NaN if none."""
        whole = float(self.reference.sum())
        return float(self.both.sum()) / whole if whole > 0 else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class SlidePair:
    """Both slides, and how places on one are found on the other.

    transform:  from µm of the slide that the virtual one was made from to µm of the reference
    offset_um:  where the virtual slide's corner lies on that slide
    he:         that slide; None where it is not at hand
    """

    virtual: Slide
    reference: Slide
    transform: Transform
    offset_um: tuple[float, float] = (0.0, 0.0)
    he: Slide | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Square:
    """A place, as (row, column), and what the slides show there: (side, side, 3) uint8 each."""

    place: tuple[int, int]
    virtual: RGBImage
    reference: RGBImage
    he: RGBImage | None


def plan_squares(pair: SlidePair, square_um: float = SQUARE_UM) -> SquareGrid:
    """Lay the grid, and choose the squares that hold tissue on both slides.

    Raises
    ------
    MissingResolutionError
        If a slide does not state its resolution.
    DatasetError
        If no square has tissue on both: the slides do not lie upon each other.
    """
    grid = working_grid(pair.virtual.info, None)
    if pair.virtual.info.mpp is None or pair.reference.info.mpp is None:
        lacking = pair.virtual if pair.virtual.info.mpp is None else pair.reference
        raise MissingResolutionError(
            f"{lacking.info.name}: the slide does not state its resolution; give that of the reference with --mpp"
        )
    mpp = math.sqrt(grid.mpp[0] * grid.mpp[1])
    side_px = max(LEAST_SQUARE_PX, round(square_um / mpp))
    shape = (grid.size.height // side_px, grid.size.width // side_px)
    if min(shape) < 1:
        raise DatasetError(f"{pair.virtual.info.name} is smaller than one square of {side_px * mpp:.0f} µm")
    masks = detect_tissue(pair.virtual), detect_tissue(pair.reference)
    shares = np.array(
        [
            [_tissue_shares(pair, grid, Region(x, y, side_px, side_px), masks) for x in _starts(shape[1], side_px)]
            for y in _starts(shape[0], side_px)
        ]
    )
    reference, both = shares[..., 0], shares[..., 1]
    chosen = np.argwhere(both >= LEAST_TISSUE)
    if not len(chosen):
        raise DatasetError(
            f"{pair.virtual.info.name} and {pair.reference.info.name} have no tissue in the same place; register them "
            "(wsi2ihc register) and name the --transform"
        )
    return SquareGrid(shape, side_px, mpp, reference, both, chosen)


def read_squares(pair: SlidePair, squares: SquareGrid, chosen: npt.NDArray[np.intp]) -> Iterator[Square]:
    """The chosen squares, in order.

    Memory bound: `AHEAD` squares.
    """
    grid, side_px = working_grid(pair.virtual.info, None), squares.side_px

    def read(place: tuple[int, int]) -> Square:
        region = Region(place[1] * side_px, place[0] * side_px, side_px, side_px)
        x_um, y_um = centres_um(pair, grid, region, (side_px, side_px))
        reference = read_warped(pair.reference, pair.transform, squares.mpp, x_um, y_um)
        he = read_he(pair, grid, region)
        return Square(place, read_region(pair.virtual, grid, region), reference.pixels, he)

    with ThreadPoolExecutor(THREADS, "squares") as pool:
        yield from ordered_map(pool, read, [(int(row), int(column)) for row, column in chosen], AHEAD)


def _starts(count: int, side_px: int) -> range:
    return range(0, count * side_px, side_px)


def centres_um(
    pair: SlidePair, grid: WorkingGrid, region: Region, counts: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """So many centres across and down a region of the virtual slide, as places on its source, in µm."""
    mpp = pair.virtual.info.mpp
    assert mpp is not None
    x, y = (
        (
            (grid.level0_origin[axis] + (start + (np.arange(count) + 0.5) * length / count) * grid.downsample[axis])
            * mpp[axis]
            + pair.offset_um[axis]
        )
        for axis, (start, length, count) in enumerate(
            zip((region.x, region.y), (region.width, region.height), counts, strict=True)
        )
    )
    return x, y


def read_he(pair: SlidePair, grid: WorkingGrid, region: Region) -> RGBImage | None:
    """The H&E slide where a region of the virtual slide lies; None where it is not at hand."""
    if pair.he is None:
        return None
    x_um, y_um = centres_um(pair, grid, region, (region.width, region.height))
    return read_warped(pair.he, identity(), math.sqrt(grid.mpp[0] * grid.mpp[1]), x_um, y_um).pixels


def _tissue_shares(
    pair: SlidePair, grid: WorkingGrid, region: Region, masks: tuple[TissueMask, TissueMask]
) -> tuple[float, float]:
    x_um, y_um = centres_um(pair, grid, region, (SAMPLES, SAMPLES))
    """Of a region: tissue of the reference, and tissue on both."""
    own = np.stack(np.meshgrid(x_um - pair.offset_um[0], y_um - pair.offset_um[1]), axis=-1)
    theirs = moving_grid(pair.transform, x_um, y_um)
    reference = _holds(masks[1], pair.reference, theirs)
    return float(reference.mean()), float((reference & _holds(masks[0], pair.virtual, own)).mean())


def _holds(mask: TissueMask, slide: Slide, places_um: npt.NDArray[np.float64]) -> BoolImage:
    """Which places lie in a slide's mask."""
    assert slide.info.mpp is not None
    at = np.floor((places_um / slide.info.mpp - mask.origin) / mask.pixel_size).astype(np.intp)
    rows, columns = mask.pixels.shape
    inside = np.all((at >= 0) & (at < (columns, rows)), axis=-1)
    column, row = np.moveaxis(np.where(inside[..., np.newaxis], at, 0), -1, 0)
    held: BoolImage = inside & mask.pixels[row, column]
    return held
