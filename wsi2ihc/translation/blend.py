"""Blend overlapping windows, and cores into the background fill around the tissue."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..concurrency import ordered_map
from ..geometry import RGB, Region, RGBImage
from .stages import FinishedCore, TranslatedWindow
from .windows import Plan, TissueGrid, Window

GridPosition = tuple[int, int]
"""(row, column) in the core grid, which sorts in raster order."""


@dataclass(slots=True)
class _PendingOutput:
    """Output of a window, and the number of unfinished cores it contributes to, its own included."""

    window: Window
    pixels: RGBImage
    needed_by: int


def blend_overlaps(outputs: Iterable[TranslatedWindow], plan: Plan) -> Iterator[FinishedCore]:
    """Average overlapping windows, and yield each core when the last window around it has arrived.

    The weight of a window is the product of two ramps (along x and y) that rise linearly from 0 at the border of the
    window over the whole overlap. The ramps of two neighbors add up to one; next to missing neighbors (background, or
    the border of the slide), the weighted sum is divided by the sum of weights.

    Expects windows in raster order. Cores are yielded as they are completed, which is raster order within a row of
    the core grid. Memory bound: the outputs of two rows and about three windows more, 3 bytes a px; the sources of
    unfinished cores among them; and one core in float32.

    Raises
    ------
    ValueError
        If windows extend beyond the adjacent cores.
    """
    if plan.layout.overlap_px // 2 > min(plan.core_size.width, plan.core_size.height):
        raise ValueError(f"cores of {plan.core_size} px are too small for an overlap of {plan.layout.overlap_px} px")
    return _blended_cores(outputs, plan)


def _blended_cores(outputs: Iterable[TranslatedWindow], plan: Plan) -> Iterator[FinishedCore]:
    present = {(window.row, window.column) for window in plan.windows}
    pending: dict[GridPosition, _PendingOutput] = {}
    sources: dict[GridPosition, RGBImage] = {}
    for output in outputs:
        arrived = (output.window.row, output.window.column)
        around = _neighborhood(arrived, present)
        pending[arrived] = _PendingOutput(output.window, output.pixels, len(around))
        # A copy, since the source is a view of the pixels of the complete window.
        sources[arrived] = output.source.copy()
        for position in around:
            contributors = _neighborhood(position, present)
            # Contributors to an unfinished core stay pending, so this is true once: when the last of them arrives.
            if all(other in pending for other in contributors):
                window = pending[position].window
                pixels = _blend(window.core, [pending[other] for other in contributors], plan.layout.overlap_px)
                _release(contributors, pending)
                yield FinishedCore(window, sources.pop(position), pixels)


def _neighborhood(position: GridPosition, present: Container[GridPosition]) -> list[GridPosition]:
    """List the positions of the plan among a position and the eight around it, in raster order."""
    row, column = position
    around = ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return [other for other in around if other in present]


def _release(positions: Iterable[GridPosition], pending: dict[GridPosition, _PendingOutput]) -> None:
    """Count down the unfinished cores of outputs, and drop those that no core needs any more."""
    for position in positions:
        pending[position].needed_by -= 1
        if not pending[position].needed_by:
            del pending[position]


def _blend(core: Region, outputs: Iterable[_PendingOutput], overlap_px: int) -> RGBImage:
    """Return the weighted mean of the outputs over a core: (rows, columns, 3) uint8."""
    weighted = np.zeros((core.height, core.width, 3), dtype=np.float32)
    total = np.zeros((core.height, core.width, 1), dtype=np.float32)
    for output in outputs:
        region = output.window.output_region
        shared = core.intersection(region)
        if shared.is_empty:
            continue
        in_core, in_output = shared.slices_in(core), shared.slices_in(region)
        rows, columns = _ramp(region.height, overlap_px)[in_output[0]], _ramp(region.width, overlap_px)[in_output[1]]
        weight = (rows[:, np.newaxis] * columns[np.newaxis, :])[..., np.newaxis]
        weighted[in_core] += weight * output.pixels[in_output]
        total[in_core] += weight
    weighted /= total
    np.rint(weighted, out=weighted)
    return weighted.astype(np.uint8)


def _ramp(side_px: int, overlap_px: int) -> npt.NDArray[np.float32]:
    """Return the weights along one side: (i + ½) / overlap from the border inwards, at most 1."""
    distance = np.arange(side_px, dtype=np.float32) + 0.5
    nearest = np.minimum(distance, distance[::-1])
    ramp: npt.NDArray[np.float32] = np.minimum(nearest / max(overlap_px, 1), 1.0).astype(np.float32)
    return ramp


FEATHER_UM = 24.0
"""Width of the transition, outwards from the border of the mask."""

BLOCK_PX = 96

FINEST_UM = 8.0
"""Coarser masks are refined to about this resolution, for a smooth transition."""

DIAGONAL_PX = math.sqrt(2)
"""Weights are interpolated between the centers of mask px, so the closest px outside need the full weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Fade:
    """Weights of the translation relative to the fill."""

    tissue: TissueGrid  # refined mask on the working grid
    # weights at the centers of the mask px and of one repeated px on each side, (rows + 2, columns + 2) uint8: 255 for
    # the translation, 0 for the fill
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
