"""First stage: windows in, their pixels out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region
from ..plan import Window
from ..slide import Slide, WorkingGrid, read_region
from .stages import WindowPixels, ordered_map

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RegionReader:
    """Reads working-grid regions of one slide, with its policies for colour and for damaged places.

    Thread-safe. ``unreadable`` counts the regions that could not be read and were taken for glass.
    """

    slide: Slide
    grid: WorkingGrid
    glass: RGB
    colour: Callable[[RGBImage], RGBImage] | None = None
    errors_as_glass: bool = False
    unreadable: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, region: Region) -> RGBImage:
        """The pixels of ``region`` (working px; may reach beyond the slide, where there is glass).

        Raises
        ------
        UnreadableSlideError
            Where the slide is damaged, unless damaged places count as glass.
        """
        try:
            pixels = read_region(self.slide, self.grid, region, self.glass)
        except UnreadableSlideError as error:
            if not self.errors_as_glass:
                raise
            with self._lock:
                self.unreadable += 1
            logger.warning("taken for glass: %s", error)
            pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
            pixels[:] = self.glass
        return pixels if self.colour is None else self.colour(pixels)


def read_windows(
    windows: Iterable[Window], read: Callable[[Region], RGBImage], executor: Executor, ahead: int
) -> Iterator[WindowPixels]:
    """Read windows in threads, ``ahead`` of their use at most; results keep the order of the plan."""

    def read_one(window: Window) -> WindowPixels:
        return WindowPixels(window, read(window.region))

    return ordered_map(executor, read_one, windows, ahead)
