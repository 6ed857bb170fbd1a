"""Read pixels of the moving slide in the frame of the fixed slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGB, BoolImage, Region, RGBImage
from ..slide import Slide, SlideInfo, WorkingGrid, known_mpp, read_region, working_grid
from .transform import FloatArray, Transform, moving_grid

BLOCK_PX = 512
"""Side of the output blocks."""

LARGEST_BOX_PX = 4 * BLOCK_PX * BLOCK_PX
"""Largest part of the moving slide for one block: 12 MB as float32. A rotation by 45° needs two px per px of output;
a block that needs more is divided."""

_FETCH_PX = 16_384
"""Output px that are interpolated at once, so that they fit the cache."""

_MARGIN_PX = 8
"""Distance from the slide beyond which all px have the fill color: 3 px of the kernel, 3 of the resampling."""

_SNAP_PX = 1e-6
"""Positions this close to integers are integers."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class WarpedPixels:
    """Pixels of the moving slide on a grid of the fixed slide."""

    pixels: RGBImage  # (H, W, 3) uint8 RGB
    valid: BoolImage  # (H, W) bool; whether a position lies in the scanned area of the moving slide


def read_warped(
    slide: Slide,
    transform: Transform,
    mpp: float,
    x_um: npt.ArrayLike,
    y_um: npt.ArrayLike,
    fill: RGB | None = None,
) -> WarpedPixels:
    """Read pixels of the moving slide at the positions ``x_um`` × ``y_um`` of the fixed slide.

    Any window of a grid equals the same part of a larger one, bit for bit. Positions on integer px of the working grid
    of the moving slide (the identity, on the same grid) give the px of that grid, bit for bit.

    Parameters
    ----------
    slide
        Open moving slide. Thread-safe.
    transform
        Transform from the fixed slide to it.
    mpp
        Resolution of the output, see `warping_grid`.
    x_um, y_um
        Centers of the columns (W) and rows (H) of the output on the fixed slide, in any order; usually
        ``(number + 0.5) * mpp``.
    fill
        Color outside the moving slide; by default its background.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    OptionError
        If ``mpp`` is invalid, or more than four times finer than the slide.
    UnreadableSlideError
        If the slide is damaged.

    Notes
    -----
    Memory in addition to the result: 40 MB for a block of 512² px, and the memory of `read_region`.
    """
    x, y = np.asarray(x_um, np.float64), np.asarray(y_um, np.float64)
    source = _Source.of(slide, mpp, slide.info.background if fill is None else fill)
    pixels = np.empty((y.size, x.size, 3), np.uint8)
    valid = np.empty((y.size, x.size), np.bool_)
    pending = list(_blocks(Region(0, 0, x.size, y.size), BLOCK_PX))
    while pending:
        block = pending.pop()
        part = slice(block.y, block.bottom), slice(block.x, block.right)
        positions_um = moving_grid(transform, x[part[1]], y[part[0]])
        positions = source.on_grid(positions_um)
        box = _box(positions)
        if box.area_px > LARGEST_BOX_PX and block.area_px > 1:
            pending += _blocks(block, max(1, max(block.width, block.height) // 2))
            continue
        valid[part] = source.holds(positions_um)
        _interpolate(source, positions, box, pixels[part])
    return WarpedPixels(pixels, valid)


def warping_grid(info: SlideInfo, mpp: float) -> WorkingGrid:
    """Return the grid on which a moving slide is read for an output of ``mpp`` µm per px.

    It is the antialiased working grid at that resolution, but not finer than level 0, since interpolating twice blurs.
    """
    grid = working_grid(info, mpp)
    return working_grid(info, None) if max(grid.downsample) <= 1 else grid


@dataclass(frozen=True, slots=True)
class _Source:
    """Moving slide with its working grid."""

    slide: Slide
    grid: WorkingGrid
    fill: RGB
    step_um: tuple[float, float]  # µm per working px along (x, y)
    corner_um: tuple[float, float]  # top left corner of working px (0, 0) on the slide
    frame: Region  # working px that overlap level 0
    bounds_um: tuple[float, float, float, float]  # scanned area: left, top, right, bottom

    @classmethod
    def of(cls, slide: Slide, mpp: float, fill: RGB) -> _Source:
        info = slide.info
        grid = warping_grid(info, mpp)
        mpp_x, mpp_y = known_mpp(info)
        step_um = (grid.downsample[0] * mpp_x, grid.downsample[1] * mpp_y)
        corner_um = (grid.level0_origin[0] * mpp_x, grid.level0_origin[1] * mpp_y)
        left, top = (
            math.floor(-origin / span) for origin, span in zip(grid.level0_origin, grid.downsample, strict=True)
        )
        right, bottom = (
            math.ceil((side - origin) / span)
            for side, origin, span in zip(
                (info.size.width, info.size.height), grid.level0_origin, grid.downsample, strict=True
            )
        )
        area = info.bounds
        bounds_um = (area.x * mpp_x, area.y * mpp_y, area.right * mpp_x, area.bottom * mpp_y)
        return cls(slide, grid, fill, step_um, corner_um, Region(left, top, right - left, bottom - top), bounds_um)

    def on_grid(self, positions_um: FloatArray) -> FloatArray:
        """Convert positions to working px, (H, W, 2), clipped to a margin around the slide; 0 is the center of px 0."""
        positions = (positions_um - self.corner_um) / self.step_um - 0.5
        frame = self.frame.grown(_MARGIN_PX)
        return np.clip(positions, (frame.x, frame.y), (frame.right - 1, frame.bottom - 1))

    def holds(self, positions_um: FloatArray) -> BoolImage:
        left, top, right, bottom = self.bounds_um
        x, y = positions_um[..., 0], positions_um[..., 1]
        inside: BoolImage = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        return inside


def _blocks(region: Region, side_px: int) -> Iterator[Region]:
    for y in range(region.y, region.bottom, side_px):
        for x in range(region.x, region.right, side_px):
            yield Region(x, y, side_px, side_px).intersection(region)


def _box(positions: FloatArray) -> Region:
    """Return the working px in the support of the kernel."""
    x, y = (int(value) for value in np.floor(positions.min(axis=(0, 1))))
    right, bottom = (int(value) for value in np.floor(positions.max(axis=(0, 1))))
    return Region(x - 1, y - 1, right - x + 4, bottom - y + 4)


def _interpolate(source: _Source, positions: FloatArray, box: Region, out: RGBImage) -> None:
    if box.intersection(source.frame.grown(_MARGIN_PX // 2)).is_empty:
        out[...] = source.fill
        return
    region = _whole_px(positions)
    if region is not None:
        out[...] = read_region(source.slide, source.grid, region, source.fill)
        return
    pixels = read_region(source.slide, source.grid, box, source.fill).astype(np.float32)
    rows = max(1, _FETCH_PX // out.shape[1])
    for start in range(0, out.shape[0], rows):
        part = slice(start, start + rows)
        out[part] = _catmull_rom(pixels, positions[part] - (box.x, box.y))


def _whole_px(positions: FloatArray) -> Region | None:
    """Return the region whose px are exactly at the positions, if any."""
    height, width = positions.shape[:2]
    x, y = (int(value) for value in np.rint(positions[0, 0]))
    if np.abs(positions[..., 0] - np.arange(x, x + width)).max() > _SNAP_PX:
        return None
    if np.abs(positions[..., 1] - np.arange(y, y + height)[:, None]).max() > _SNAP_PX:
        return None
    return Region(x, y, width, height)


def _catmull_rom(pixels: FloatImage, positions: FloatArray) -> RGBImage:
    """Interpolate ``pixels`` at positions (x, y), at least 1 px from the first and 2 px from the last px."""
    base = np.floor(positions)
    share = (positions - base).astype(np.float32)
    across, down = (_weights(share[..., axis]) for axis in (0, 1))
    # contiguous per px; OpenCV would otherwise copy it at each call
    first = np.ascontiguousarray(base - 1, np.int16)
    total = np.zeros((*positions.shape[:2], 3), np.float32)
    for row in range(4):
        line = np.zeros_like(total)
        for column in range(4):
            values = cv2.remap(pixels[row:, column:], first, None, cv2.INTER_NEAREST)  # type: ignore[call-overload]
            line += np.multiply(values, across[column], out=values)
        total += np.multiply(line, down[row], out=line)
    np.rint(total, out=total)
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


def _weights(share: FloatImage) -> list[FloatImage]:
    """Return the weights of the four px of the kernel, each (H, W, 3) to avoid broadcasting."""
    rest = 1 - share
    weights = (
        -0.5 * share * rest * rest,
        1 - (2.5 - 1.5 * share) * share * share,
        1 - (2.5 - 1.5 * rest) * rest * rest,
        -0.5 * rest * share * share,
    )
    return [np.asarray(cv2.merge([weight] * 3), np.float32) for weight in weights]
