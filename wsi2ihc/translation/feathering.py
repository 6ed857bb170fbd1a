"""No box around the tissue: outside the mask there is the plain fill, and at its border the translation fades into it.

Cores are rectangles; what of them lies outside the mask (glass with its noise and shading, a pen mark) would show as
boxes. The mask has a margin of glass around the tissue, and the transition lies within it. The weights are a function
of the place alone, never of the window, so tiling stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB
from ..geometry import Region
from ..ordered import ordered_map
from ..plan import TissueGrid
from .stages import FinishedCore

FEATHER_UM = 24.0
"""Width of the transition, inwards from the mask's border: half of the margin that detection adds."""

BLOCK_PX = 96

FINEST_UM = 8.0
"""A coarser mask is refined to this, so that a single px of it keeps its middle."""


def feather_cores(
    cores: Iterable[FinishedCore],
    tissue: TissueGrid,
    mpp: tuple[float, float],
    fill: RGB,
    executor: Executor,
    ahead: int,
) -> Iterator[FinishedCore]:
    """Blend cores into ``fill`` towards and beyond the border of the tissue, in threads. Order is kept.

    The slide's own border is no border of the tissue.

    Memory bound: while the weights are made, 8 bytes per px of the mask (16 million px at most where it was
    detected), then two; and ``ahead`` cores.
    """
    tissue = _refined(tissue, mpp)
    weights = _mask_weights(tissue, mpp)
    colour = np.array(fill, dtype=np.float32)

    def feather(core: FinishedCore) -> FinishedCore:
        place, pixels = core.window.core, core.pixels
        for block in _blocks(place):
            weight = _weights_at(block, tissue, weights)
            if weight is None:
                continue
            if pixels is core.pixels:
                pixels = pixels.copy()
            part = pixels[block.slices_in(place)]
            part[...] = np.rint((part - colour) * weight[..., np.newaxis] + colour)
        return FinishedCore(core.window, core.source, pixels)

    return ordered_map(executor, feather, cores, ahead)


def _blocks(place: Region) -> Iterator[Region]:
    """A core in small pieces: most of them lie inside the tissue and need no weights."""
    for y in range(place.y, place.bottom, BLOCK_PX):
        for x in range(place.x, place.right, BLOCK_PX):
            yield Region(x, y, BLOCK_PX, BLOCK_PX).intersection(place)


def _refined(tissue: TissueGrid, mpp: tuple[float, float]) -> TissueGrid:
    """The same tissue in px of at most `FINEST_UM`."""
    across, down = (
        max(1, math.ceil(size * side / FINEST_UM)) for size, side in zip(tissue.pixel_size, mpp, strict=True)
    )
    if across == down == 1 or tissue.pixels.all():
        return tissue
    pixels = np.repeat(np.repeat(tissue.pixels, down, axis=0), across, axis=1)
    return TissueGrid(pixels, tissue.origin, (tissue.pixel_size[0] / across, tissue.pixel_size[1] / down))


def _mask_weights(tissue: TissueGrid, mpp: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Weight of the translation at the centre of each mask px, 0 to 255, with one repeated px all around."""
    padded = np.pad(tissue.pixels.astype(np.uint8), 1, mode="edge")
    if padded.all():
        return np.full_like(padded, 255)
    um_per_px = min(size * side for size, side in zip(tissue.pixel_size, mpp, strict=True))
    share: npt.NDArray[np.float32] = np.asarray(
        cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), dtype=np.float32
    )
    # Zero at the centres of the outermost px: interpolated, it is zero outside, which some cells hold and some do not.
    share -= 1
    share *= 255 * um_per_px / FEATHER_UM
    np.clip(share, 0, 255, out=share)
    np.rint(share, out=share)
    return np.asarray(share, dtype=np.uint8)


def _weights_at(place: Region, tissue: TissueGrid, weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
    """The weights of a region's px, (rows, columns), linear between the mask's; None where all of them are 1."""
    first_row, rows, row_share = _between(place.y, place.height, tissue, 1)
    first_column, columns, column_share = _between(place.x, place.width, tissue, 0)
    part = weights[first_row : first_row + rows.max() + 2, first_column : first_column + columns.max() + 2]
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
