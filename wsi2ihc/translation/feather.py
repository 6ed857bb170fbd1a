"""Fade the translation into the background fill outside the tissue mask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..concurrency import ordered_map
from ..geometry import RGB, Region
from .stages import FinishedCore
from .windows import TissueGrid

FEATHER_UM = 24.0
"""Width of the transition, outwards from the border of the mask."""

BLOCK_PX = 96

FINEST_UM = 8.0
"""Coarser masks are refined to about this resolution, for a smooth transition."""

DIAGONAL_PX = math.sqrt(2)
"""Weights are interpolated between the centers of mask px, so the closest px outside need the full weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Fade:
    """Weights of the translation relative to the fill.

    Attributes
    ----------
    tissue
        Refined mask on the working grid.
    weights
        Weights at the centers of the mask px and of one repeated px on each side, (rows + 2, columns + 2) uint8: 255
        for the translation, 0 for the fill.
    """

    tissue: TissueGrid
    weights: npt.NDArray[np.uint8]

    @property
    def covered(self) -> TissueGrid:
        """Area in which the translation is visible: the mask and the transition around it."""
        if self.tissue.pixels.all():
            return self.tissue
        near = cv2.dilate(np.minimum(self.weights, 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        return TissueGrid(near > 0, self.tissue.origin, self.tissue.pixel_size)


def make_fade(tissue: TissueGrid, mpp: tuple[float, float]) -> Fade:
    """Compute the weights for a mask on a working grid of ``mpp``. The border of the slide does not count as a border.

    Memory bound: 6 bytes per px of the mask (at most 16 million px if it was detected), then two.
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
        region, pixels = core.window.core, core.pixels
        for block in _blocks(region):
            weight = _weights_at(block, fade)
            if weight is None:
                continue
            if pixels is core.pixels:
                pixels = pixels.copy()
            part = pixels[block.slices_in(region)]
            part[...] = np.rint((part - color) * weight[..., np.newaxis] + color)
        return FinishedCore(core.window, core.source, pixels)

    return ordered_map(executor, feather, cores, ahead)


def _blocks(region: Region) -> Iterator[Region]:
    """Divide a core into blocks, most of which lie inside the tissue and need no weights."""
    for y in range(region.y, region.bottom, BLOCK_PX):
        for x in range(region.x, region.right, BLOCK_PX):
            yield Region(x, y, BLOCK_PX, BLOCK_PX).intersection(region)


def _refined(tissue: TissueGrid, mpp: tuple[float, float]) -> TissueGrid:
    """Refine a mask to px of about `FINEST_UM`, if it is coarser."""
    across, down = (max(1, round(size * side / FINEST_UM)) for size, side in zip(tissue.pixel_size, mpp, strict=True))
    if across == down == 1 or tissue.pixels.all():
        return tissue
    pixels = np.repeat(np.repeat(tissue.pixels, down, axis=0), across, axis=1)
    return TissueGrid(pixels, tissue.origin, (tissue.pixel_size[0] / across, tissue.pixel_size[1] / down))


def _mask_weights(tissue: TissueGrid, mpp: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Compute the weights of a `Fade`."""
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


def _weights_at(region: Region, fade: Fade) -> npt.NDArray[np.float32] | None:
    """Interpolate the weights of the px of a region, (rows, columns); None if all of them are 1."""
    first_row, rows, down = _interpolation(region.y, region.height, fade.tissue, 1)
    first_column, columns, across = _interpolation(region.x, region.width, fade.tissue, 0)
    part = fade.weights[first_row : first_row + rows.max() + 2, first_column : first_column + columns.max() + 2]
    if part.min() == 255:
        return None
    coarse = part.astype(np.float32) / 255
    fine_rows = coarse[rows] * (1 - down)[:, np.newaxis] + coarse[rows + 1] * down[:, np.newaxis]
    weights = fine_rows[:, columns] * (1 - across) + fine_rows[:, columns + 1] * across
    return np.asarray(weights, dtype=np.float32)


def _interpolation(
    start: int, count: int, tissue: TissueGrid, axis: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return, for px from ``start`` on along an axis, the first mask px, the preceding mask px of each (relative to the
    first), and the weight of the next one.
    """
    size = tissue.pixels.shape[1 - axis] + 2
    centers = np.arange(start, start + count) + 0.5
    # The padding shifts indices by one; centers of mask px lie at halves.
    position = np.clip((centers - tissue.origin[axis]) / tissue.pixel_size[axis] + 0.5, 0, size - 1.0)
    before = np.minimum(np.floor(position).astype(np.int64), size - 2)
    return int(before[0]), before - before[0], (position - before).astype(np.float32)
