"""Fading at the border of the tissue mask: the translation in full inside, the plain fill far outside.

Cores are rectangles; what of them lies outside the mask (background with its noise and shading, a pen mark) would show
as boxes. So the translation fades into the fill in a band around the mask, never inside it: a mask may be drawn right
along the tissue, and pixels that are stored right beside missing tiles have to be kept. The weights are a function of
the position alone, never of the window, so tiling stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB
from ..geometry import Region
from ..ordered import ordered_map
from ..plan import TissueGrid
from .stages import FinishedCore

FEATHER_UM = 24.0
"""Width of the transition, outwards from the mask's border."""

BLOCK_PX = 96

FINEST_UM = 8.0
"""A coarser mask is refined to about this, so that the transition is not as coarse as the mask."""

DIAGONAL_PX = math.sqrt(2)
"""Weights are interpolated between the centers of mask px, so the nearest px outside still need the full weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Fade:
    """Weights of the translation against the fill.

    tissue:   the mask on the working grid, refined
    weights:  (rows + 2, columns + 2) uint8, at the centers of the mask's px and of one repeated px all around: 255
              where the translation is shown in full, 0 where the fill is
    """

    tissue: TissueGrid
    weights: npt.NDArray[np.uint8]

    @property
    def covered(self) -> TissueGrid:
        """Where any of the translation shows: the mask and the transition around it."""
        if self.tissue.pixels.all():
            return self.tissue
        near = cv2.dilate(np.minimum(self.weights, 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        return TissueGrid(near > 0, self.tissue.origin, self.tissue.pixel_size)


def make_fade(tissue: TissueGrid, mpp: tuple[float, float]) -> Fade:
    """Compute the weights for a mask on a working grid of ``mpp``. The slide's own border is no border of the tissue.

    Memory bound: 6 bytes per px of the mask (16 million px at most where it was detected), then two.
    """
    tissue = _refined(tissue, mpp)
    return Fade(tissue, _mask_weights(tissue, mpp))


def feather_cores(
    cores: Iterable[FinishedCore], fade: Fade, fill: RGB, executor: Executor, ahead: int
) -> Iterator[FinishedCore]:
    """Blend cores into ``fill`` around the tissue, in threads. Order is kept.

    Memory bound: ``ahead`` cores.
    """
    color = np.array(fill, dtype=np.float32)

    def feather(core: FinishedCore) -> FinishedCore:
        place, pixels = core.window.core, core.pixels
        for block in _blocks(place):
            weight = _weights_at(block, fade)
            if weight is None:
                continue
            if pixels is core.pixels:
                pixels = pixels.copy()
            part = pixels[block.slices_in(place)]
            part[...] = np.rint((part - color) * weight[..., np.newaxis] + color)
        return FinishedCore(core.window, core.source, pixels)

    return ordered_map(executor, feather, cores, ahead)


def _blocks(place: Region) -> Iterator[Region]:
    """A core in small pieces: most of them lie inside the tissue and need no weights."""
    for y in range(place.y, place.bottom, BLOCK_PX):
        for x in range(place.x, place.right, BLOCK_PX):
            yield Region(x, y, BLOCK_PX, BLOCK_PX).intersection(place)


def _refined(tissue: TissueGrid, mpp: tuple[float, float]) -> TissueGrid:
    """The same tissue in px of about `FINEST_UM` at most."""
    across, down = (max(1, round(size * side / FINEST_UM)) for size, side in zip(tissue.pixel_size, mpp, strict=True))
    if across == down == 1 or tissue.pixels.all():
        return tissue
    pixels = np.repeat(np.repeat(tissue.pixels, down, axis=0), across, axis=1)
    return TissueGrid(pixels, tissue.origin, (tissue.pixel_size[0] / across, tissue.pixel_size[1] / down))


def _mask_weights(tissue: TissueGrid, mpp: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """The weights of a `Fade`."""
    if tissue.pixels.all() or not tissue.pixels.any():
        return np.pad(np.where(tissue.pixels, np.uint8(255), np.uint8(0)), 1, mode="edge")
    um_per_px = min(size * side for size, side in zip(tissue.pixel_size, mpp, strict=True))
    outside = (~tissue.pixels).view(np.uint8)
    weights: npt.NDArray[np.float32] = np.asarray(
        cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), dtype=np.float32
    )
    weights -= DIAGONAL_PX
    weights *= -255 * um_per_px / FEATHER_UM
    weights += 255
    np.clip(weights, 0, 255, out=weights)
    np.rint(weights, out=weights)
    return np.pad(weights.astype(np.uint8), 1, mode="edge")


def _weights_at(place: Region, fade: Fade) -> npt.NDArray[np.float32] | None:
    """The weights of a region's px, (rows, columns), linear between the mask's; None where all of them are 1."""
    first_row, rows, row_share = _between(place.y, place.height, fade.tissue, 1)
    first_column, columns, column_share = _between(place.x, place.width, fade.tissue, 0)
    part = fade.weights[first_row : first_row + rows.max() + 2, first_column : first_column + columns.max() + 2]
    if part.min() == 255:
        return None
    coarse = part.astype(np.float32) / 255
    down = coarse[rows] * (1 - row_share)[:, np.newaxis] + coarse[rows + 1] * row_share[:, np.newaxis]
    both = down[:, columns] * (1 - column_share) + down[:, columns + 1] * column_share
    return np.asarray(both, dtype=np.float32)


def _between(
    start: int, count: int, tissue: TissueGrid, axis: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Along one axis, for px from ``start`` on: the first mask px needed, then for each px the mask px before it
    (counted from there) and how far it is on the way to the next.
    """
    size = tissue.pixels.shape[1 - axis] + 2
    centres = np.arange(start, start + count) + 0.5
    # The padding shifts indices by one; centres of mask px lie at halves.
    position = np.clip((centres - tissue.origin[axis]) / tissue.pixel_size[axis] + 0.5, 0, size - 1.0)
    before = np.minimum(np.floor(position).astype(np.int64), size - 2)
    share = (position - before).astype(np.float32)
    return int(before[0]), before - before[0], share
