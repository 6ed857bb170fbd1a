"""Stages of a translation: read windows, translate them, crop them to cores, assemble tiles (`blend` has the others).

Each stage takes an iterable and returns an iterator over small records (`WindowPixels`, `TranslatedWindow`,
`FinishedCore`, `Tile`), in the order of the plan. The tiles that are requested at the end pull windows through all
stages, so that only a fixed number of them is in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from ..concurrency import ordered_map
from ..errors import UnreadableSlideError
from ..geometry import RGB, Region, RGBImage, floor_to
from ..models.model_spec import Translator
from ..pyramid import Tile
from ..slide import Slide, SlideWrapper, WorkingGrid, agreeing_levels, read_region
from .windows import Plan, Window


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
