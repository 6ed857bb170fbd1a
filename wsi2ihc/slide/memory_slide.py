"""A picture in memory as a slide of one level."""

from __future__ import annotations

import numpy as np

from ..arrays import RGB, RGBImage
from ..geometry import Region, Size
from .pixels import fill_with
from .protocol import Level, SlideInfo
from .resolution import Mpp


class MemorySlide:
    """Pixels that are at hand, read like a slide. Thread-safe.

    Parameters
    ----------
    pixels
        (rows, columns, 3) uint8 RGB; not copied.
    name
        What messages call it.
    mpp
        µm per px along (x, y).
    """

    def __init__(self, pixels: RGBImage, name: str, mpp: Mpp) -> None:
        self._pixels = pixels
        size = Size(pixels.shape[1], pixels.shape[0])
        self.path = name
        self.info = SlideInfo(
            name=name,
            reader="memory",
            vendor="",
            levels=(Level(size, 1.0),),
            mpp=mpp,
            mpp_source="stated",
            bounds=Region(0, 0, size.width, size.height),
            quickhash="",
        )

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """As `Slide.read_level`; ``level`` is 0."""
        if level != 0:
            raise ValueError(f"a picture has one level, not {level + 1}")
        held = region.intersection(self.info.bounds)
        result = np.empty((region.height, region.width, 3), np.uint8)
        if held != region:
            fill_with(result, self.info.background if fill is None else fill)
        if not held.is_empty:
            result[held.slices_in(region)] = self._pixels[held.slices_in(self.info.bounds)]
        return result

    def is_blank(self, level: int, region: Region) -> bool:  # noqa: ARG002
        """Whether the region lies beside the picture."""
        return region.intersection(self.info.bounds).is_empty

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> MemorySlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
