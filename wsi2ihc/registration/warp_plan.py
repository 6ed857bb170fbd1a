"""What is to be written of a warped slide: the fixed slide's frame, and which of its tiles show anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import BoolImage
from ..errors import TransformError
from ..geometry import Size, ceil_to
from ..slide import SlideInfo, known_mpp
from ..tissue import TissueMask
from .transform import FloatArray, SlideFrame, Transform, moving_grid
from .warping import warping_grid

TISSUE_MARGIN_UM = 64.0
"""What lies this close to tissue is written, too: the mask is coarse, and an edge of stain should not end in a step."""

LOOK_UM = 16.0
"""Distance of the places at which the tissue mask is looked up; with the margin, no tile with tissue is missed."""

MPP_TOLERANCE = 0.01
"""Share by which a slide's µm per px may differ from those that a transform was made with."""

_LOOK_ROWS = 64


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """The output: its size in px, its µm per px along (x, y), the side of its tiles, and the µm at which it is read."""

    size: Size
    mpp: tuple[float, float]
    tile_px: int
    read_mpp: float


def check_slide(frame: SlideFrame | None, info: SlideInfo, otherwise: str = "") -> None:
    """Refuse a slide that a transform was not made for.

    Parameters
    ----------
    frame
        What the transform knows of the slide on this side of it.
    info
        The slide.
    otherwise
        What else a user can do about another file, to end the message with.

    Raises
    ------
    TransformError
        If something is known, and size, identity or resolution of the slide differ.
    """
    if frame is None:
        return
    if frame.size != info.size:
        raise TransformError(
            f"{info.name}: {info.size} px, but the transform was made for {frame.name} of {frame.size} px; give that "
            f"slide, or register this one{otherwise}"
        )
    if is_comparable(frame.quickhash, info.quickhash) and frame.quickhash != info.quickhash:
        known = "the one of this name" if frame.name == info.name else f"the {frame.name}"
        raise TransformError(
            f"{info.name}: this is another file than {known} that the transform was made for (its hash differs); give "
            f"that slide, or register this one{otherwise}"
        )
    if info.mpp is not None and any(
        abs(own / known - 1) > MPP_TOLERANCE for own, known in zip(info.mpp, frame.mpp, strict=True)
    ):
        raise TransformError(
            f"{info.name}: {info.mpp[0]:.4g} µm per pixel, but the transform was made with {frame.mpp[0]:.4g}; state "
            f"that one with {info.mpp_option}, or register again"
        )


def doubt_of_slide(frame: SlideFrame | None, info: SlideInfo) -> str:
    """Why a slide that `check_slide` lets pass may yet be another one, a sentence; "" if nothing speaks for that.

    A file whose hash is the same is the same, whatever it is called by now.
    """
    if frame is None or frame.name == info.name or is_comparable(frame.quickhash, info.quickhash):
        return ""
    return (
        f"The transform was made for {frame.name}; whether {info.name} is that slide cannot be told, since there is no "
        "hash to compare."
    )


def is_comparable(one: str, other: str) -> bool:
    """Whether two hashes are there and of one kind; another reader of the same file has another kind."""
    return bool(one and other) and one.startswith("sha256:") == other.startswith("sha256:")


def output_frame(
    info: SlideInfo, transform: Transform, mpp: float, tile_px: int, *, any_slide: bool = False
) -> OutputFrame:
    """The frame of the fixed slide, at ``mpp`` µm per px, or at its own where that is 0; tiles of ``tile_px`` at most.

    ``any_slide`` takes a moving slide that the transform was not made for.

    Raises
    ------
    TransformError
        If the transform belongs to another slide, or does not say how large the fixed one is.
    MissingResolutionError
        If the resolution of the moving slide, ``info``, is unknown.
    """
    if not any_slide:
        check_slide(transform.moving, info, ", or use it all the same with --any-slide")
    own_mpp = known_mpp(info)
    fixed = transform.fixed
    if fixed is None:
        raise TransformError(
            "the transform does not say how large the fixed slide is, so there is no frame to write; register again"
        )
    size, um_per_px = fixed.size, fixed.mpp
    if mpp:
        width, height = (
            max(1, math.ceil(side * own / mpp - 1e-6))
            for side, own in zip((size.width, size.height), um_per_px, strict=True)
        )
        size, um_per_px = Size(width, height), (mpp, mpp)
    # Read no finer than the moving slide is: its own px are then interpolated directly.
    read_mpp = max(min(um_per_px), min(own_mpp))
    warping_grid(info, read_mpp)  # whether it can be read so
    # Tiles no larger than the image needs: libvips refuses much larger ones.
    tile_px = min(tile_px, ceil_to(max(size.width, size.height), 16))
    return OutputFrame(size, um_per_px, tile_px, read_mpp)


def occupied_tiles(info: SlideInfo, transform: Transform, mask: TissueMask, frame: OutputFrame) -> BoolImage:
    """Which tiles show tissue or what is close to it, (rows, columns)."""
    mpp = info.mpp or frame.mpp
    pixel_um = (mask.pixel_size[0] * mpp[0], mask.pixel_size[1] * mpp[1])
    near = _grown(mask.pixels, pixel_um)
    rows, columns = (-(-side // frame.tile_px) for side in (frame.size.height, frame.size.width))
    occupied = np.zeros((rows, columns), np.bool_)
    x, tile_x = _looks(frame.size.width, frame.mpp[0], frame.tile_px)
    y, tile_y = _looks(frame.size.height, frame.mpp[1], frame.tile_px)
    corner_um = (mask.origin[0] * mpp[0], mask.origin[1] * mpp[1])
    for start in range(0, len(y), _LOOK_ROWS):
        part = slice(start, start + _LOOK_ROWS)
        places = np.floor((moving_grid(transform, x, y[part]) - corner_um) / pixel_um)
        i, j = np.clip(places[..., 1], -1, near.shape[0]), np.clip(places[..., 0], -1, near.shape[1])
        inside = (i >= 0) & (i < near.shape[0]) & (j >= 0) & (j < near.shape[1])
        seen = np.zeros(inside.shape, np.bool_)
        seen[inside] = near[i[inside].astype(np.intp), j[inside].astype(np.intp)]
        hit_rows, hit_columns = np.nonzero(seen)
        occupied[tile_y[part][hit_rows], tile_x[hit_columns]] = True
    return occupied


def _grown(mask: BoolImage, pixel_um: tuple[float, float]) -> BoolImage:
    """The mask and what is near it; everything stays everything."""
    radius_x, radius_y = (math.ceil(TISSUE_MARGIN_UM / um) for um in pixel_um)
    if max(radius_x, radius_y) > 4096 or mask.all():
        return mask
    square = np.ones((2 * radius_y + 1, 2 * radius_x + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.view(np.uint8), square), np.bool_)


def _looks(side_px: int, mpp: float, tile_px: int) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Along one axis: the places that are looked at, µm, at least two a tile, and the tile of each."""
    per_tile = max(2, math.ceil(tile_px * mpp / LOOK_UM))
    count = -(-side_px // tile_px)
    places = (np.arange(count * per_tile, dtype=np.float64) + 0.5) * (tile_px * mpp / per_tile)
    tiles = np.repeat(np.arange(count), per_tile)
    kept = places < side_px * mpp + LOOK_UM
    return places[kept], tiles[kept]
