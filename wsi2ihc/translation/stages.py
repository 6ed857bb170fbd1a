"""Stages of a translation: read windows, translate them, crop or blend them to cores, feather, assemble tiles.

Each stage takes an iterable and returns an iterator over small records (`WindowPixels`, `TranslatedWindow`,
`FinishedCore`, `Tile`), in the order of the plan. The tiles that are requested at the end pull windows through all
stages, so that only a fixed number of them is in memory.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue

import cv2
import numpy as np
import numpy.typing as npt

from ..concurrency import ordered_map
from ..errors import UnreadableSlideError
from ..geometry import RGB, Region, RGBImage, floor_to
from ..models.model_spec import Translator
from ..pyramid import Tile
from ..slide import Slide, SlideWrapper, WorkingGrid, agreeing_levels, read_region
from .windows import Plan, TissueGrid, Window


@dataclass(frozen=True, slots=True)
class WindowPixels:
    """A window that was read; ``pixels`` cover ``window.region``, context included."""

    window: Window
    pixels: RGBImage


@dataclass(frozen=True, slots=True)
class TranslatedWindow:
    """Output of the model: ``pixels`` cover ``window.output_region``; ``source`` is the H&E of ``window.core``."""

    window: Window
    source: RGBImage
    pixels: RGBImage


@dataclass(frozen=True, slots=True)
class FinishedCore:
    """Final pixels; ``pixels`` and ``source`` cover ``window.core``. Cores do not overlap."""

    window: Window
    source: RGBImage
    pixels: RGBImage


_log = logging.getLogger(__name__)

PIECE_PX = 256
"""Side of the pieces that are read one by one around damage: about a storage tile, which is lost as a whole."""


class FaultTolerantSlide(SlideWrapper):
    """A slide whose damaged areas read as missing. Thread-safe.

    Pieces lie on a fixed grid of each level, so that the lost area does not depend on the region that is read. The
    levels are compared first, since filled areas would count as differences.

    Attributes
    ----------
    damaged
        Pieces that could not be read, as (level, region).
    """

    def __init__(self, slide: Slide) -> None:
        slide = agreeing_levels(slide)
        super().__init__(slide, slide.info)
        self._lock = threading.Lock()
        self.damaged: set[tuple[int, Region]] = set()

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """Read as `Slide.read_level` does, with ``fill`` in damaged areas."""
        try:
            return super().read_level(level, region, fill)
        except UnreadableSlideError as error:
            with self._lock:
                if not self.damaged:
                    _log.warning("damaged areas are filled with background; the first: %s", str(error).split(";")[0])
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        pixels[:] = self.info.background if fill is None else fill
        size = self.info.levels[level].size
        frame = Region(0, 0, size.width, size.height)
        for piece in _pieces(region.intersection(frame)):
            part = piece.intersection(frame)
            shared = part.intersection(region)
            if (level, part) in self.damaged:
                continue
            try:
                read = super().read_level(level, part, fill)
            except UnreadableSlideError:
                with self._lock:
                    self.damaged.add((level, part))
            else:
                pixels[shared.slices_in(region)] = read[shared.slices_in(part)]
        return pixels


def _pieces(region: Region) -> Iterator[Region]:
    """Yield the squares of a grid of `PIECE_PX` that overlap a region."""
    for y in range(floor_to(region.y, PIECE_PX), region.bottom, PIECE_PX):
        for x in range(floor_to(region.x, PIECE_PX), region.right, PIECE_PX):
            yield Region(x, y, PIECE_PX, PIECE_PX)


@dataclass(frozen=True, slots=True)
class RegionReader:
    """Reader for regions of the working grid of a slide. Thread-safe."""

    slide: Slide
    grid: WorkingGrid
    background: RGB  # color beyond the slide
    color: Callable[[RGBImage], RGBImage] | None = None  # color conversion, if any

    def __call__(self, region: Region) -> RGBImage:
        """Read the pixels of ``region``, in working px; it may extend beyond the slide."""
        pixels = read_region(self.slide, self.grid, region, self.background)
        return pixels if self.color is None else self.color(pixels)


def read_windows(
    windows: Iterable[Window], read: Callable[[Region], RGBImage], executor: Executor, ahead: int
) -> Iterator[WindowPixels]:
    """Read windows in threads, at most ``ahead`` of their use; order is kept."""

    def read_one(window: Window) -> WindowPixels:
        return WindowPixels(window, read(window.region))

    return ordered_map(executor, read_one, windows, ahead)


BATCHES_AHEAD = 3
"""Batches per device that are in flight, so that no device waits for Python."""


@dataclass(slots=True)
class DeviceClock:
    """Seconds spent in the translators, summed over devices."""

    busy_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.busy_s += seconds


def batched(patches: Iterable[WindowPixels], size: int) -> Iterator[list[WindowPixels]]:
    """Group up to ``size`` successive windows of equal shape; order is kept."""
    batch: list[WindowPixels] = []
    for patch in patches:
        if batch and (len(batch) == size or patch.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(patch)
    if batch:
        yield batch


def translate_windows(
    patches: Iterable[WindowPixels], translators: Sequence[Translator], batch_size: int, clock: DeviceClock
) -> Iterator[TranslatedWindow]:
    """Translate windows in batches on one or several devices; order is kept.

    Each translator is used by one thread at a time. Memory bound: `BATCHES_AHEAD` batches per device.
    """
    idle: SimpleQueue[Translator] = SimpleQueue()
    for translator in translators:
        idle.put(translator)

    def translate_one(batch: list[WindowPixels]) -> list[TranslatedWindow]:
        translator = idle.get()
        started = time.perf_counter()
        try:
            return _translate_batch(batch, translator)
        finally:
            clock.add(time.perf_counter() - started)
            idle.put(translator)

    ahead = BATCHES_AHEAD * len(translators)
    with (
        ThreadPoolExecutor(len(translators), thread_name_prefix="device") as executor,
        closing(ordered_map(executor, translate_one, batched(patches, batch_size), ahead)) as results,
    ):
        for batch in results:
            yield from batch


def _translate_batch(batch: list[WindowPixels], translator: Translator) -> list[TranslatedWindow]:
    windows = batch[0].pixels[np.newaxis] if len(batch) == 1 else np.stack([patch.pixels for patch in batch])
    translated = []
    for patch, output in zip(batch, translator(windows), strict=True):
        window = patch.window
        source = patch.pixels[window.core.slices_in(window.region)]
        translated.append(TranslatedWindow(window, source, output))
    return translated


def crop_cores(outputs: Iterable[TranslatedWindow]) -> Iterator[FinishedCore]:
    """Crop each window to its core; order is kept."""
    for output in outputs:
        window = output.window
        yield FinishedCore(window, output.source, output.pixels[window.core.slices_in(window.output_region)])


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


TileIndex = tuple[int, int]
"""(row, column) of a tile in the output."""


@dataclass(slots=True)
class _OpenTile:
    pixels: RGBImage
    missing: int


def assemble_tiles(cores: Iterable[FinishedCore], plan: Plan, tile_px: int, fill: RGB) -> Iterator[Tile]:
    """Paste cores into tiles, and yield each tile when the last core that overlaps it has been pasted.

    Tiles are counted from the origin of the extent. Uncovered pixels are ``fill``; tiles without cores are not yielded.
    A tile inside one core is a view of its pixels. Cores may arrive in any order; the closer to raster order, the fewer
    tiles are open.

    Memory bound: for cores in raster order, the occupied tiles that one row of cores overlaps.
    """
    awaited, covered_px = _contributions(plan, tile_px)
    blank = np.empty((tile_px, tile_px, 3), dtype=np.uint8)
    blank[:] = fill
    open_tiles: dict[TileIndex, _OpenTile] = {}
    for finished in cores:
        core = finished.window.core.shifted(-plan.extent.x, -plan.extent.y)
        for index in _overlapped_tiles(core, tile_px):
            frame = Region(index[1] * tile_px, index[0] * tile_px, tile_px, tile_px)
            if awaited[index] == 1 and core.contains(frame):
                yield Tile(column=index[1], row=index[0], pixels=finished.pixels[frame.slices_in(core)])
                continue
            tile = open_tiles.get(index)
            if tile is None:
                full = covered_px[index] == tile_px * tile_px
                tile = open_tiles[index] = _OpenTile(np.empty_like(blank) if full else blank.copy(), awaited[index])
            shared = core.intersection(frame)
            tile.pixels[shared.slices_in(frame)] = finished.pixels[shared.slices_in(core)]
            tile.missing -= 1
            if not tile.missing:
                del open_tiles[index]
                yield Tile(column=index[1], row=index[0], pixels=tile.pixels)


def _overlapped_tiles(core: Region, tile_px: int) -> Iterator[TileIndex]:
    for row in range(core.y // tile_px, (core.bottom - 1) // tile_px + 1):
        for column in range(core.x // tile_px, (core.right - 1) // tile_px + 1):
            yield row, column


def _contributions(plan: Plan, tile_px: int) -> tuple[dict[TileIndex, int], dict[TileIndex, int]]:
    """Count, for each tile, the cores that overlap it and the px that they cover."""
    awaited: dict[TileIndex, int] = {}
    covered_px: dict[TileIndex, int] = {}
    for window in plan.windows:
        core = window.core.shifted(-plan.extent.x, -plan.extent.y)
        for index in _overlapped_tiles(core, tile_px):
            frame = Region(index[1] * tile_px, index[0] * tile_px, tile_px, tile_px)
            awaited[index] = awaited.get(index, 0) + 1
            covered_px[index] = covered_px.get(index, 0) + core.intersection(frame).area_px
    return awaited, covered_px
