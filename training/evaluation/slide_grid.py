"""Squares of two slides, seams on a grid, and the source of a virtual slide.

`read_origin` reads from the virtual slide and its report where it comes from. `plan_squares` and `read_squares` compare
it with the reference square by square, and `measure_seams` looks for steps at the borders of its tiles and cores.
"""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from wsi2ihc.concurrency import ordered_map
from wsi2ihc.errors import DatasetError, MissingResolutionError
from wsi2ihc.files import read_json
from wsi2ihc.geometry import BoolImage, Region, RGBImage, Size
from wsi2ihc.pyramid.ome_xml import NAMESPACE
from wsi2ihc.registration.transform import SlideFrame, Transform, identity, moving_grid
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.registration.warped_slide import is_comparable
from wsi2ihc.slide import Slide, SlideInfo, WorkingGrid, read_region, working_grid
from wsi2ihc.tissue import TissueMask, detect_tissue
from wsi2ihc.translation.seams import BLOCK_PX as STRIP_PX
from wsi2ihc.translation.seams import Moments, ShadeMetrics, ShadeStatistics

from .scores import AHEAD, THREADS

SQUARE_UM = 250.0
"""Side of a square: some hundred cells, and large compared to the residual misalignment after registration."""

MIN_SQUARE_PX = 64

MIN_TISSUE = 0.5
"""Fraction of a square that must be tissue on both slides."""

SAMPLES = 16
"""Points along each side of a square at which the masks are sampled."""

TILE_PX = 512
"""Tile size of the output if the report does not state it."""

WINDOWS = 64
"""Number of windows per axis, evenly spread over the borders."""

MIN_WINDOWS = 4

STRIP_LENGTH_PX = 128
"""Maximum distance from a border at which steps are measured."""

BLOCK_PX = 8
"""Block size of JPEG."""

INSIDE_PAIRS = 4
"""Pairs of strips on either side of a border with which the pair across it is compared."""

PLAIN = 2.0
"""Mean difference of neighboring pixels, in gray levels, below which a window is background or fill."""


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
        """Number of squares with reference tissue of which less than half is tissue on both slides."""
        return int(((self.reference >= MIN_TISSUE) & (self.both < MIN_TISSUE)).sum())

    @property
    def coverage(self) -> float:
        """Fraction of the reference tissue within the grid that is tissue on the virtual slide too; NaN if there is
        none.
        """
        whole = float(self.reference.sum())
        return float(self.both.sum()) / whole if whole > 0 else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class SlideComparison:
    """Two slides and the transform between them."""

    virtual: Slide
    reference: Slide
    transform: Transform  # from µm of the slide from which the virtual one was made to µm of the reference
    offset_um: tuple[float, float] = (0.0, 0.0)  # position of the corner of the virtual slide on that slide
    he: Slide | None = None  # that slide; None if it is not given


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
        If no square has tissue on both: the slides are not registered.
    """
    grid = working_grid(pair.virtual.info, None)
    if pair.virtual.info.mpp is None or pair.reference.info.mpp is None:
        lacking = pair.virtual if pair.virtual.info.mpp is None else pair.reference
        raise MissingResolutionError(
            f"{lacking.info.name}: the slide does not state its resolution; give that of the reference with --mpp"
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
    """Read the chosen squares in order. Memory bound: `AHEAD` squares."""
    grid, side_px = working_grid(pair.virtual.info, None), squares.side_px

    def read(position: tuple[int, int]) -> Square:
        region = Region(position[1] * side_px, position[0] * side_px, side_px, side_px)
        x_um, y_um = centers_um(pair, grid, region, (side_px, side_px))
        reference = read_warped(pair.reference, pair.transform, squares.mpp, x_um, y_um)
        he = read_he(pair, grid, region)
        return Square(position, read_region(pair.virtual, grid, region), reference.pixels, he)

    with ThreadPoolExecutor(THREADS, "squares") as pool:
        yield from ordered_map(pool, read, [(int(row), int(column)) for row, column in chosen], AHEAD)


def _starts(count: int, side_px: int) -> range:
    return range(0, count * side_px, side_px)


def centers_um(
    pair: SlideComparison, grid: WorkingGrid, region: Region, counts: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return ``counts`` sample positions across and down a region of the virtual slide, in µm of its source."""
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


def read_he(pair: SlideComparison, grid: WorkingGrid, region: Region) -> RGBImage | None:
    """Read the H&E slide at a region of the virtual slide; None if it is not given."""
    if pair.he is None:
        return None
    x_um, y_um = centers_um(pair, grid, region, (region.width, region.height))
    return read_warped(pair.he, identity(), math.sqrt(grid.mpp[0] * grid.mpp[1]), x_um, y_um).pixels


def _tissue_fractions(
    pair: SlideComparison, grid: WorkingGrid, region: Region, masks: tuple[TissueMask, TissueMask]
) -> tuple[float, float]:
    """Return the fractions of a region that are tissue of the reference, and tissue on both slides."""
    x_um, y_um = centers_um(pair, grid, region, (SAMPLES, SAMPLES))
    on_virtual = np.stack(np.meshgrid(x_um - pair.offset_um[0], y_um - pair.offset_um[1]), axis=-1)
    on_reference = moving_grid(pair.transform, x_um, y_um)
    reference = _in_mask(masks[1], pair.reference, on_reference)
    return float(reference.mean()), float((reference & _in_mask(masks[0], pair.virtual, on_virtual)).mean())


def _in_mask(mask: TissueMask, slide: Slide, positions_um: npt.NDArray[np.float64]) -> BoolImage:
    """Return which positions lie in the mask of a slide."""
    assert slide.info.mpp is not None
    at = np.floor((positions_um / slide.info.mpp - mask.origin) / mask.pixel_size).astype(np.intp)
    rows, columns = mask.pixels.shape
    inside = np.all((at >= 0) & (at < (columns, rows)), axis=-1)
    column, row = np.moveaxis(np.where(inside[..., np.newaxis], at, 0), -1, 0)
    held: BoolImage = inside & mask.pixels[row, column]
    return held


@dataclass(frozen=True, slots=True)
class BorderGrid:
    """A grid on whose lines seams may lie."""

    borders_of: str  # what the grid divides the slide into
    spacing_px: tuple[int, int]
    origin_px: tuple[int, int] = (0, 0)
    overlap_px: int = 0  # width over which neighbors are blended


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of a virtual slide, as far as it is known."""

    position_um: tuple[float, float] = (0.0, 0.0)  # of its corner on its source, from the corner of level 0
    source: str = ""  # base name of the slide from which it was made; "" if unknown
    quickhash: str = ""  # of that slide; "" if unknown
    # on which seams may lie
    grids: tuple[BorderGrid, ...] = (BorderGrid(f"tiles of {TILE_PX} px", (TILE_PX, TILE_PX)),)
    # seam metrics in the translation report; None if there are none
    seams: Mapping[str, Any] | None = field(default=None, hash=False)
    is_reported: bool = False  # whether there is a report next to it


def read_origin(virtual: str, size: Size) -> Origin:
    """Read the source of a virtual slide of this size (level-0 px) from its report or its OME-XML."""
    if (report := _report_beside(virtual, size)) is not None:
        return Origin(
            position_um=_position(report),
            source=str(report["source"].get("name", "")),
            quickhash=str(report["source"].get("quickhash", "")),
            grids=tuple(_grids(report)),
            seams=report.get("seams"),
            is_reported=True,
        )
    return _from_file(virtual)


def check_source(origin: Origin, fixed: SlideFrame | None, he: SlideInfo | None, virtual: str) -> None:
    """Check that the virtual slide was made from this H&E slide, or from the fixed slide of the transform.

    Raises
    ------
    DatasetError
        If the hashes of both are known and differ.
    """
    others = [] if fixed is None else [("the transform was made for", fixed.name, fixed.quickhash)]
    others += [] if he is None else [("--he names", he.name, he.quickhash)]
    for what, name, quickhash in others:
        if is_comparable(origin.quickhash, quickhash) and origin.quickhash != quickhash:
            raise DatasetError(
                f"{virtual} was made from {origin.source}, but {what} {name}, which is another file; give matching "
                "files"
            )


def _report_beside(virtual: str, size: Size) -> dict[str, Any] | None:
    """Read the translation report; None if there is none, or if it is that of another file."""
    try:
        report = read_json(Path(f"{virtual}.json"))
        stated = report["output_size"]
        is_own = (stated["width"], stated["height"]) == (size.width, size.height) and isinstance(report["source"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_own else None


def _position(report: Mapping[str, Any]) -> tuple[float, float]:
    try:
        x, y = report["position_um"]
        return float(x), float(y)
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0


def _grids(report: Mapping[str, Any]) -> Iterator[BorderGrid]:
    """Yield the grid of tiles, and that of the translated cores unless single pixels were translated."""
    try:
        tile_px = int(report["options"]["pyramid"]["tile_px"])
    except (KeyError, TypeError, ValueError):
        tile_px = TILE_PX
    yield BorderGrid(f"tiles of {tile_px} px", (tile_px, tile_px))
    try:
        plan = report["plan"]
        (width, height), (x, y) = plan["core_size"], plan["core_origin"]
        overlap_px = int(plan["overlap_px"])
        if overlap_px > 0 or plan["halo_px"] > 0:
            kind = "blended windows" if overlap_px else "cores"
            yield BorderGrid(f"{kind} of {width}×{height} px", (int(width), int(height)), (int(x), int(y)), overlap_px)
    except (KeyError, TypeError, ValueError):
        return


def _from_file(virtual: str) -> Origin:
    """Read position, source and its hash from the OME-XML of the file."""
    try:
        with tifffile.TiffFile(virtual) as file:
            root = ET.fromstring(file.ome_metadata or "")
    except (OSError, ValueError, ET.ParseError, tifffile.TiffFileError):
        return Origin()
    annotations = {entry.get("K", ""): entry.text or "" for entry in root.iter(f"{{{NAMESPACE}}}M")}
    plane = next(root.iter(f"{{{NAMESPACE}}}Plane"), None)
    try:
        attributes = {} if plane is None else plane.attrib
        position = float(attributes.get("PositionX", 0)), float(attributes.get("PositionY", 0))
    except ValueError:
        position = 0.0, 0.0
    return Origin(position, annotations.get("source", ""), annotations.get("source quickhash", ""))


@dataclass(frozen=True, slots=True)
class GridSeams:
    """Steps at the borders of a grid, along the axis where they are larger."""

    borders_of: str  # what the grid divides the slide into
    # mean difference across borders over that at the other phases; None if too few borders have tissue
    contrast: float | None
    z: float | None  # its deviation in standard deviations of the other phases
    borders: int  # number of windows with tissue at a border that were measured
    is_relative: bool = False  # whether steps of the source were divided out
    # differences in shade, see `ShadeMetrics`; None without the source
    shade_z: float | None = None
    shade_step: float | None = None


def measure_seams(pair: SlideComparison, grid: BorderGrid) -> GridSeams:
    """Measure the virtual slide at the borders of a grid, relative to its source if that is given.

    Borders are only compared with positions at multiples of 8 px from them: if JPEG block borders coincide with grid
    borders, they coincide with all of these, so compression affects all of them alike. Steps that the source has at the
    same positions (at its own tile borders) are divided out.
    """
    found = [
        _measure_axis(pair, axis, period, origin % period)
        for axis, (period, origin) in enumerate(zip(grid.spacing_px, grid.origin_px, strict=True))
    ]
    borders = sum(count for _, _, count in found)
    known = [(contrast, z) for contrast, z, _ in found if contrast is not None and z is not None]
    contrast, z = max(known, key=lambda one: abs(one[1]), default=(None, None))
    # without the source, shades of the tissue itself cannot be distinguished from those of windows
    shades = ShadeMetrics(None, None) if pair.he is None else _measure_shades(pair, grid)
    return GridSeams(grid.borders_of, contrast, z, borders, pair.he is not None, shades.z, shades.step)


def _measure_axis(pair: SlideComparison, axis: int, period: int, origin: int) -> tuple[float | None, float | None, int]:
    """Return contrast, z and number of windows of the borders that are crossed along x (0) or y (1)."""
    grid = working_grid(pair.virtual.info, None)
    reach = min(STRIP_LENGTH_PX, period // 2 // BLOCK_PX * BLOCK_PX)
    profiles, sources = [], []
    for region in _windows(grid.size.width, grid.size.height, axis, range(origin, 10**7, period), reach):
        steps = _steps(read_region(pair.virtual, grid, region), axis)[BLOCK_PX - 1 :: BLOCK_PX]
        if steps.mean() > PLAIN:
            profiles.append(steps)
            if (he := read_he(pair, grid, region)) is not None:
                sources.append(_steps(he, axis)[BLOCK_PX - 1 :: BLOCK_PX])
    if len(profiles) < MIN_WINDOWS:
        return None, None, len(profiles)
    profile = np.mean([one / one.mean() for one in profiles], axis=0)
    if sources:
        profile /= np.mean([one / max(one.mean(), 1e-6) for one in sources], axis=0)
    middle = reach // BLOCK_PX - 1
    others = np.delete(profile, middle)
    contrast = float(profile[middle] / others.mean())
    return contrast, float((profile[middle] - others.mean()) / max(float(others.std()), 1e-6)), len(profiles)


def _measure_shades(pair: SlideComparison, grid: BorderGrid) -> ShadeMetrics:
    sums = (
        _sum_shades(pair, axis, period, origin % period, grid.overlap_px)
        for axis, (period, origin) in enumerate(zip(grid.spacing_px, grid.origin_px, strict=True))
    )
    return ShadeStatistics(*sums).metrics()


def _sum_shades(pair: SlideComparison, axis: int, period: int, origin: int, overlap_px: int) -> Moments:
    """Sum the differences between strips at the distance of the overlap, across borders and on either side of them."""
    grid, moments = working_grid(pair.virtual.info, None), Moments.zeros(1 + 2 * INSIDE_PAIRS)
    side = STRIP_PX if period >= 16 * STRIP_PX else STRIP_PX // 2
    half = min(-(-overlap_px // (2 * side)), period // side // 8)  # strips left out on each side: see `ShadeMeter`
    count = INSIDE_PAIRS + half + (apart := 1 + 2 * half)  # strips on either side
    if count + half > period // side:
        return moments
    for region in _windows(grid.size.width, grid.size.height, axis, range(origin, 10**7, period), count * side):
        pixels = read_region(pair.virtual, grid, region)
        he = read_he(pair, grid, region)
        if he is None or _steps(pixels, axis).mean() <= PLAIN:
            continue
        strips = np.hstack([image.mean(axis=axis).reshape(2 * count, side, 3).mean(axis=1) for image in (pixels, he)])
        differences = strips[apart:] - strips[:-apart]
        moments.add(0, differences[[count - 1 - half]], count)
        moments.add(1, differences[:INSIDE_PAIRS], count)
        moments.add(1 + INSIDE_PAIRS, differences[-INSIDE_PAIRS:], count)
    return moments


def _windows(width: int, height: int, axis: int, borders: range, reach: int) -> list[Region]:
    """Return windows of twice the reach across a border, half as long along it, evenly spread."""
    along, across = (height, width) if axis == 0 else (width, height)
    positions = [
        (border, start)
        for border in itertools.takewhile(lambda border: border <= across - reach, borders)
        if border >= reach
        for start in range(0, along - reach + 1, reach)
    ]
    chosen = positions[:: max(1, -(-len(positions) // WINDOWS))]
    if axis == 0:
        return [Region(border - reach, start, 2 * reach, reach) for border, start in chosen]
    return [Region(start, border - reach, reach, 2 * reach) for border, start in chosen]


def _steps(pixels: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.float64]:
    """Return the mean absolute difference between each line of pixels and the next, along x (0) or y (1)."""
    values = pixels.astype(np.int16)
    steps = np.abs(np.diff(values, axis=1 - axis))
    return np.asarray(steps.mean(axis=(axis, 2)), np.float64)
