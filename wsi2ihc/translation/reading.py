"""First stage: windows in, their pixels out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region, floor_to
from ..ordered import ordered_map
from ..plan import Window
from ..slide import Slide, SlideWrapper, WorkingGrid, agreeing_levels, read_region
from .stages import WindowPixels

logger = logging.getLogger(__name__)


PIECE_PX = 256
"""Around a damaged place, pieces of this side are tried one by one: about a storage tile, which is lost as a whole."""


class ForgivingSlide(SlideWrapper):
    """A slide whose damaged places read as missing. Thread-safe.

    ``damaged`` holds the pieces (level, region) that could not be read. Pieces lie on a fixed lattice of the level, so
    that what is lost does not depend on the region that is read. Levels are compared before: the fill of a damaged
    place would pass for a difference.
    """

    def __init__(self, slide: Slide) -> None:
        slide = agreeing_levels(slide)
        super().__init__(slide, slide.info)
        self._lock = threading.Lock()
        self.damaged: set[tuple[int, Region]] = set()

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """As `Slide.read_level`, but damaged places are ``fill``."""
        try:
            return super().read_level(level, region, fill)
        except UnreadableSlideError as error:
            with self._lock:
                if not self.damaged:
                    logger.warning("damaged places are taken for glass; the first: %s", str(error).split(";")[0])
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        pixels[:] = self.info.background if fill is None else fill
        size = self.info.levels[level].size
        for piece in _pieces(region.intersection(Region(0, 0, size.width, size.height))):
            part = piece.intersection(Region(0, 0, size.width, size.height))
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
    """The squares of the lattice of `PIECE_PX` that a region touches."""
    for y in range(floor_to(region.y, PIECE_PX), region.bottom, PIECE_PX):
        for x in range(floor_to(region.x, PIECE_PX), region.right, PIECE_PX):
            yield Region(x, y, PIECE_PX, PIECE_PX)


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
