"""Pixels of the moving slide as they lie on the fixed one: any window, the same wherever it is cut.

Each output pixel is interpolated from the moving slide's working grid, at a position that is a function of its place
on the fixed slide and of nothing else. The interpolation is Catmull-Rom's (Keys, IEEE Trans. ASSP 29(6), 1981, with
a = -1/2): it passes through the pixels, so that nothing is blurred where nothing moves.

OpenCV's own bicubic rounds positions to 1/32 px, which is up to 24 grey levels off on noise, and scipy takes 425 ms per
Mpx. Here OpenCV only fetches the 16 neighbours, at whole px, and they are weighed in float32: 110 ms per Mpx and core,
within one grey level of float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage, RGBImage
from ..geometry import Region
from ..slide import Slide, SlideInfo, WorkingGrid, known_mpp, read_region, working_grid
from .transform import FloatArray, Transform, moving_grid

BLOCK_PX = 512
"""Side of the piece of the output that is made at once."""

LARGEST_BOX_PX = 4 * BLOCK_PX * BLOCK_PX
"""Most px of the moving slide that are held for one piece: 12 MB as float32. A turn by 45° needs two per px of output;
where a transform spreads its output wider, the piece is divided until it fits."""

_FETCH_PX = 16_384
"""Output px that are weighed at once: what belongs to them stays in the cache."""

_MARGIN_PX = 8
"""Further out than this from the slide there is nothing but the fill: 3 px of the kernel, 3 of the resampling."""

_SNAP_PX = 1e-6
"""Positions this close to whole px are whole; so is what is computed there, whichever way is taken."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class WarpedPixels:
    """What the moving slide shows at a grid of places on the fixed slide.

    pixels:  (H, W, 3) uint8 RGB
    valid:   (H, W) bool; whether the place lies on the moving slide's scanned area
    """

    pixels: RGBImage
    valid: BoolImage


def read_warped(
    slide: Slide,
    transform: Transform,
    mpp: float,
    x_um: npt.ArrayLike,
    y_um: npt.ArrayLike,
    fill: RGB | None = None,
) -> WarpedPixels:
    """The moving slide's pixels at the places ``x_um`` × ``y_um`` of the fixed slide.

    Any window of a grid equals the same part of a larger one, bit for bit. Where places fall on whole px of the moving
    slide's working grid (the identity, on the same grid), they are that grid's px, bit for bit.

    Parameters
    ----------
    slide
        The open moving slide. Thread-safe.
    transform
        From the fixed slide to it.
    mpp
        µm per px of the output, at which the moving slide is read; see `warping_grid`.
    x_um, y_um
        Centres of the output's columns (W) and rows (H) on the fixed slide, µm; in any order, usually
        ``(number + 0.5) * mpp``.
    fill
        Colour of what the moving slide does not hold; by default its background.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    OptionError
        If ``mpp`` is no resolution, or more than four times finer than the slide's.
    UnreadableSlideError
        Where the slide is damaged.

    Notes
    -----
    Memory beside the result, however large the slide and the request: 40 MB for a piece of 512² px, and what
    `read_region` needs.
    """
    x, y = np.asarray(x_um, np.float64), np.asarray(y_um, np.float64)
    source = _Source.of(slide, mpp, slide.info.background if fill is None else fill)
    pixels = np.empty((y.size, x.size, 3), np.uint8)
    valid = np.empty((y.size, x.size), np.bool_)
    pending = list(_blocks(Region(0, 0, x.size, y.size), BLOCK_PX))
    while pending:
        block = pending.pop()
        part = slice(block.y, block.bottom), slice(block.x, block.right)
        places_um = moving_grid(transform, x[part[1]], y[part[0]])
        places = source.on_grid(places_um)
        box = _box(places)
        if box.area_px > LARGEST_BOX_PX and block.area_px > 1:
            pending += _blocks(block, max(1, max(block.width, block.height) // 2))
            continue
        valid[part] = source.holds(places_um)
        _interpolate(source, places, box, pixels[part])
    return WarpedPixels(pixels, valid)


def warping_grid(info: SlideInfo, mpp: float) -> WorkingGrid:
    """The grid on which a moving slide is read for an output of ``mpp`` µm per px.

    The slide's working grid at that resolution, which is antialiased, but never finer than its level 0: interpolating
    twice would blur.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    OptionError
        If ``mpp`` is no resolution, or more than four times finer than the slide's.
    """
    grid = working_grid(info, mpp)
    return working_grid(info, None) if max(grid.downsample) <= 1 else grid


@dataclass(frozen=True, slots=True)
class _Source:
    """The moving slide as it is read: its grid, and where the slide lies on it.

    step_um:    µm per working px along (x, y)
    corner_um:  top left of working px (0, 0) on the slide
    frame:      the working px that level 0 touches
    bounds_um:  the scanned area: left, top, right, bottom
    """

    slide: Slide
    grid: WorkingGrid
    fill: RGB
    step_um: tuple[float, float]
    corner_um: tuple[float, float]
    frame: Region
    bounds_um: tuple[float, float, float, float]

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

    def on_grid(self, places_um: FloatArray) -> FloatArray:
        """Places in working px, (H, W, 2), so that 0 is the centre of px 0; not further out than there is anything."""
        places = (places_um - self.corner_um) / self.step_um - 0.5
        reach = self.frame.grown(_MARGIN_PX)
        return np.clip(places, (reach.x, reach.y), (reach.right - 1, reach.bottom - 1))

    def holds(self, places_um: FloatArray) -> BoolImage:
        left, top, right, bottom = self.bounds_um
        x, y = places_um[..., 0], places_um[..., 1]
        inside: BoolImage = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        return inside


def _blocks(region: Region, side_px: int) -> Iterator[Region]:
    for y in range(region.y, region.bottom, side_px):
        for x in range(region.x, region.right, side_px):
            yield Region(x, y, side_px, side_px).intersection(region)


def _box(places: FloatArray) -> Region:
    """The working px that the kernel looks at."""
    x, y = (int(value) for value in np.floor(places.min(axis=(0, 1))))
    right, bottom = (int(value) for value in np.floor(places.max(axis=(0, 1))))
    return Region(x - 1, y - 1, right - x + 4, bottom - y + 4)


def _interpolate(source: _Source, places: FloatArray, box: Region, out: RGBImage) -> None:
    if box.intersection(source.frame.grown(_MARGIN_PX // 2)).is_empty:
        out[...] = source.fill
        return
    region = _whole_px(places)
    if region is not None:
        out[...] = read_region(source.slide, source.grid, region, source.fill)
        return
    pixels = read_region(source.slide, source.grid, box, source.fill).astype(np.float32)
    rows = max(1, _FETCH_PX // out.shape[1])
    for start in range(0, out.shape[0], rows):
        part = slice(start, start + rows)
        out[part] = _catmull_rom(pixels, places[part] - (box.x, box.y))


def _whole_px(places: FloatArray) -> Region | None:
    """The region whose px lie at the places one by one, if there is one."""
    height, width = places.shape[:2]
    x, y = (int(value) for value in np.rint(places[0, 0]))
    if np.abs(places[..., 0] - np.arange(x, x + width)).max() > _SNAP_PX:
        return None
    if np.abs(places[..., 1] - np.arange(y, y + height)[:, None]).max() > _SNAP_PX:
        return None
    return Region(x, y, width, height)


def _catmull_rom(pixels: FloatImage, places: FloatArray) -> RGBImage:
    """The values at ``places`` (x, y) in px of ``pixels``, at least 1 px from its first and 2 px from its last ones."""
    base = np.floor(places)
    share = (places - base).astype(np.float32)
    across, down = (_weights(share[..., axis]) for axis in (0, 1))
    # In the order of px: places come plane by plane, which OpenCV would put in order again at each call.
    first = np.ascontiguousarray(base - 1, np.int16)
    total = np.zeros((*places.shape[:2], 3), np.float32)
    for row in range(4):
        line = np.zeros_like(total)
        for column in range(4):
            values = cv2.remap(pixels[row:, column:], first, None, cv2.INTER_NEAREST)  # type: ignore[call-overload]
            line += np.multiply(values, across[column], out=values)
        total += np.multiply(line, down[row], out=line)
    np.rint(total, out=total)
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


def _weights(share: FloatImage) -> list[FloatImage]:
    """What the px before, at, after and beyond weigh, each (H, W, 3): one value a channel, which saves broadcasting."""
    rest = 1 - share
    weights = (
        -0.5 * share * rest * rest,
        1 - (2.5 - 1.5 * share) * share * share,
        1 - (2.5 - 1.5 * rest) * rest * rest,
        -0.5 * rest * share * share,
    )
    return [np.asarray(cv2.merge([weight] * 3), np.float32) for weight in weights]
