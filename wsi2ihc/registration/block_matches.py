"""Match blocks of the fixed slide on the moving slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from ..geometry import Region
from ..slide import overview_grid, read_region
from ..system import cores
from .overview import TISSUE_DENSITY, FloatImages, RegistrationView, structure
from .transform import FloatArray, Transform
from .warped_region import read_warped

BoolArray: TypeAlias = npt.NDArray[np.bool_]

LEAST_TISSUE = 0.3
"""Smallest fraction of tissue in a block; background matches everywhere."""

LEAST_VALID = 0.8
"""Smallest fraction of a block on the moving slide."""

LEAST_CONTRAST = 0.02
"""Smallest standard deviation of the densities of a block; below, the pattern is noise."""

NEIGHBORS = 12
"""Number of neighbors whose median offset a block is compared with."""

AGREE_PX = 3.0
"""Largest distance of an offset from the median of its neighbors for agreement."""

_PIECE_PX = 768
"""Side of the regions that are read; with the margin, about 15 MB of pixels and densities per thread."""


@dataclass(frozen=True, slots=True)
class BlockSize:
    """Grid of blocks and search radius, in px of ``mpp`` µm."""

    mpp: float  # resolution at which both slides are read
    side_px: int  # of the square blocks
    step_px: int  # between neighboring blocks
    radius_px: int  # how far from the expected place they are looked for, along either axis


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Blocks and their positions on the moving slide."""

    points_um: FloatArray  # (N, 2) centers on the fixed slide
    # (N, 2): the block matches the position ``points_um + offsets_um`` of the moving slide *as seen through the
    # transform*
    offsets_um: FloatArray
    scores: FloatArray  # (N,) normalized cross-correlation there, mean of both densities, -1 to 1
    at_border: BoolArray  # (N,) whether that is as far as was looked, so that the true place may lie beyond
    agree: BoolArray  # (N,) whether the offset is that of the neighbors, and not at the border
    px_um: float  # side of a px in which was looked
    size: BlockSize  # how blocks were laid out

    @property
    def count(self) -> int:
        return len(self.points_um)

    @property
    def agreement(self) -> float:
        """Fraction of blocks that agree with their neighbors; 0 if there are too few."""
        return float(self.agree.mean()) if self.count > NEIGHBORS else 0.0


def match_blocks(
    fixed: RegistrationView, moving: RegistrationView, transform: Transform, size: BlockSize, *, workers: int = 0
) -> Matches:
    """Match all blocks of tissue of the fixed slide.

    Parameters
    ----------
    fixed, moving
        The slides.
    transform
        From fixed to moving µm, as far as it is known.
    size
        Blocks and search.
    workers
        Threads; 0 for one per core.

    Notes
    -----
    Memory: one piece of 768² px with its margin per thread, whatever the slides.
    """
    count = workers or cores()
    scale = min(fixed.mpp)
    grid = overview_grid(fixed.slide.info, max(1.0, size.mpp / scale))
    frame = Region(0, 0, grid.size.width, grid.size.height)

    def search(piece: Region) -> list[tuple[float, ...]]:
        pixels = read_region(fixed.slide, grid, piece, fixed.background)
        x, y = (
            (grid.level0_origin[axis] + (np.arange(start - size.radius_px, stop + size.radius_px) + 0.5)
             * grid.downsample[axis]) * fixed.mpp[axis]
            for axis, (start, stop) in enumerate(((piece.x, piece.right), (piece.y, piece.bottom)))
        )  # fmt: skip
        expected = structure(pixels, fixed.background, "he")
        if not (expected[..., 0] > TISSUE_DENSITY).any():
            return []
        seen = read_warped(moving.slide, transform, max(grid.mpp), x, y, moving.background)
        return _search_piece(piece, expected, structure(seen.pixels, moving.background, "ihc"), seen.valid, size)

    with ThreadPoolExecutor(count, "blocks") as pool:
        rows = [row for rows in pool.map(search, _pieces(frame, size)) for row in rows]
    found = np.array(rows, np.float64).reshape(-1, 6)
    px = np.array([grid.downsample[axis] * fixed.mpp[axis] for axis in (0, 1)])
    origin = np.array([grid.level0_origin[axis] * fixed.mpp[axis] for axis in (0, 1)])
    offsets = found[:, 2:4] * px
    points = origin + found[:, :2] * px
    at_border = found[:, 5] != 0
    agree = ~at_border & agreeing(points, offsets, AGREE_PX * float(px.max()))
    return Matches(points, offsets, found[:, 4], at_border, agree, float(px.max()), size)


def agreeing(points_um: FloatArray, offsets_um: FloatArray, tolerance_um: float) -> BoolArray:
    """Return which offsets, (N, 2), agree with the median of their neighbors; none if there are too few."""
    if len(points_um) <= NEIGHBORS:
        return np.zeros(len(points_um), np.bool_)
    neighbors = np.asarray(cKDTree(points_um).query(points_um, k=NEIGHBORS + 1)[1])
    medians = np.median(offsets_um[neighbors[:, 1:]], axis=1)
    return np.asarray(np.hypot(*(offsets_um - medians).T) < tolerance_um)


def _pieces(frame: Region, size: BlockSize) -> Iterator[Region]:
    """Divide a frame into regions that overlap by less than a block and contain each block once."""
    step = max(1, _PIECE_PX // size.step_px) * size.step_px
    more = size.side_px - size.step_px
    for y in range(0, frame.height, step):
        for x in range(0, frame.width, step):
            piece = Region(x, y, step + more, step + more).intersection(frame)
            if min(piece.width, piece.height) >= size.side_px:
                yield piece


def _search_piece(
    piece: Region, expected: FloatImages, seen: FloatImages, valid: BoolArray, size: BlockSize
) -> list[tuple[float, ...]]:
    """Return (x, y, dx, dy, score, at the border) of each block in px; ``seen`` has a margin of the radius."""
    side, radius = size.side_px, size.radius_px
    rows: list[tuple[float, ...]] = []
    inner = valid[radius : valid.shape[0] - radius, radius : valid.shape[1] - radius]
    tissue = np.asarray(cv2.integral(((expected[..., 0] > TISSUE_DENSITY) & inner).astype(np.uint8)), np.int32)
    held = np.asarray(cv2.integral(inner.astype(np.uint8)), np.int32)
    expected_planes, seen_planes = (np.moveaxis(planes, -1, 0) for planes in (expected, seen))
    for y in range(0, piece.height - side + 1, size.step_px):
        for x in range(0, piece.width - side + 1, size.step_px):
            if _sum(tissue, x, y, side) < LEAST_TISSUE * side**2 or _sum(held, x, y, side) < LEAST_VALID * side**2:
                continue
            surface = _surface(expected_planes, seen_planes, x, y, side, radius)
            if surface is not None:
                rows.append((piece.x + x + side / 2, piece.y + y + side / 2, *_peak(surface)))
    return rows


def _sum(integral: npt.NDArray[np.int32], x: int, y: int, side: int) -> int:
    return int(integral[y + side, x + side] - integral[y, x + side] - integral[y + side, x] + integral[y, x])


def _surface(
    expected: npt.NDArray[np.float32],
    seen: npt.NDArray[np.float32],
    x: int,
    y: int,
    side: int,
    radius: int,
) -> npt.NDArray[np.float32] | None:
    """Compute the normalized cross-correlation at every offset, averaged over densities; None for a flat block."""
    total, counted = None, 0
    for template_plane, plane in zip(expected, seen, strict=True):
        template = np.ascontiguousarray(template_plane[y : y + side, x : x + side])
        if float(template.std()) < LEAST_CONTRAST:
            continue
        window = np.ascontiguousarray(plane[y : y + side + 2 * radius, x : x + side + 2 * radius])
        surface = np.nan_to_num(cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED))
        total, counted = (surface if total is None else total + surface), counted + 1
    return None if total is None else np.asarray(total / counted, np.float32)


def _peak(surface: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return (dx, dy, score, at the border) of the maximum, with subpixel interpolation by parabolas."""
    _, score, _, (column, row) = cv2.minMaxLoc(surface)
    last = surface.shape[0] - 1
    radius = last / 2
    if not (0 < column < last and 0 < row < last):
        return column - radius, row - radius, score, 1.0
    dx = vertex(*surface[row, column - 1 : column + 2].tolist())
    dy = vertex(*surface[row - 1 : row + 2, column].tolist())
    return column - radius + dx, row - radius + dy, score, 0.0


def vertex(before: float, at: float, after: float) -> float:
    """Return the vertex, -0.5 to 0.5, of the parabola through three values whose middle one is the largest."""
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return shift if math.isfinite(shift) else 0.0
