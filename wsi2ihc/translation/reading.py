"""First stage: windows in, their pixels out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region, ceil_to
from ..plan import Window
from ..slide import Slide, WorkingGrid, read_region
from .stages import WindowPixels, ordered_map

logger = logging.getLogger(__name__)


SMALLEST_PIECE_PX = 256
"""Around a damaged place, pieces down to this side are tried: about a storage tile, which is lost as a whole."""


class ForgivingSlide:
    """A slide whose damaged places read as missing; each is counted once.

    Where a region cannot be read, its quarters are tried, and so on, so that no more is lost than is damaged.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._lock = threading.Lock()
        self.path = slide.path
        self.info = slide.info
        self.is_blank = slide.is_blank
        self.close = slide.close
        self.damaged: set[tuple[int, Region]] = set()

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """As `Slide.read_level`, but damaged places are ``fill``."""
        try:
            return self._slide.read_level(level, region, fill)
        except UnreadableSlideError as error:
            if max(region.width, region.height) <= SMALLEST_PIECE_PX:
                return self._lost(level, region, fill, error)
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        for piece in _quarters(region):
            pixels[piece.slices_in(region)] = self.read_level(level, piece, fill)
        return pixels

    def _lost(self, level: int, region: Region, fill: RGB | None, error: UnreadableSlideError) -> RGBImage:
        with self._lock:
            if not self.damaged:
                logger.warning("damaged places are taken for glass; the first: %s", error)
            self.damaged.add((level, region))
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        pixels[:] = self.info.background if fill is None else fill
        return pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _quarters(region: Region) -> Iterator[Region]:
    """The region in two or four parts, cut at multiples of `SMALLEST_PIECE_PX`, on which storage tiles often begin."""
    columns, rows = _cut(region.x, region.right), _cut(region.y, region.bottom)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield Region(left, top, right - left, bottom - top)


def _cut(start: int, stop: int) -> list[int]:
    if stop - start <= SMALLEST_PIECE_PX:
        return [start, stop]
    middle = ceil_to((start + stop) // 2, SMALLEST_PIECE_PX)
    return [start, middle if middle < stop else (start + stop) // 2, stop]


@dataclass(frozen=True, slots=True)
class RegionReader:
    """Reads regions of one slide's working grid, with its colours as they were asked for. Thread-safe."""

    slide: Slide
    grid: WorkingGrid
    glass: RGB
    colour: Callable[[RGBImage], RGBImage] | None = None

    def __call__(self, region: Region) -> RGBImage:
        """The pixels of ``region`` (working px; may reach beyond the slide, where there is glass).

        Raises
        ------
        UnreadableSlideError
            Where the slide is damaged.
        """
        pixels = read_region(self.slide, self.grid, region, self.glass)
        return pixels if self.colour is None else self.colour(pixels)


def read_windows(
    windows: Iterable[Window], read: Callable[[Region], RGBImage], executor: Executor, ahead: int
) -> Iterator[WindowPixels]:
    """Read windows in threads, ``ahead`` of their use at most; results keep the order of the plan."""

    def read_one(window: Window) -> WindowPixels:
        return WindowPixels(window, read(window.region))

    return ordered_map(executor, read_one, windows, ahead)
