"""What both readers share: the frame around reading, and the facts of a slide."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np

from ..arrays import RGB, WHITE, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region, Size
from .jpeg_tiles import MISPLACED, DirectTiles, LocalFile, TileFile, damaged, has_one_colour, prove
from .pixels import fill_with, transparent
from .protocol import SlideInfo
from .tiff_facts import TileTable
from .tile_cache import cache_bytes

logger = logging.getLogger(__name__)

_BLOCK_PX = 2048

_MOST_BLOCKS = 64
"""Blocks that are read to find a pixel that is not transparent; in all others the first has one."""

_SAMPLE_PX = 128
"""Side of the places from which something is concluded about all pixels."""


_ABSOLUTE = re.compile(r"(?:/|\b[A-Za-z]:[\\/])(?:[^\s:'\"\\/]+[\\/])+")
"""The folders of an absolute path without spaces; a URL's are none, because of the colon."""


def without_folders(text: str, path: str | Path) -> str:
    """A text in which a file, and others beside it (a DICOM slide has many), go by their base names."""
    if isinstance(path, Path):
        for folder in {str(path.parent), str(path.parent.absolute()), os.path.realpath(path.parent)}:
            if folder not in (".", os.sep):
                text = text.replace(folder + os.sep, "")
        return _ABSOLUTE.sub("", text)
    return text.replace(path, path.rpartition("/")[2].partition("?")[0])


class SlideReader(ABC):
    """An open slide; the part of the `Slide` protocol that does not depend on the library that reads.

    A subclass opens the file, sets ``_info``, says how to read a region that lies inside a level, and closes.
    ``_direct`` takes over for the levels that it knows; ``_tables`` say what is missing, for levels where that is
    known.

    What is stored otherwise than it is shown is left to `slide_view`: ``orientation`` (TIFF tag 274), and levels that
    may be padded, for which ``tile_sizes`` is given, and in ``tag_factors`` what their resolution tags say.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self._path = path
        self._name = name
        self._direct: DirectTiles | None = None
        self._tables: Mapping[int, TileTable] = {}
        self._process = os.getpid()
        self._closed = False
        self._info: SlideInfo
        self.orientation = 1
        self.tile_sizes: tuple[Size, ...] | None = None
        self.tag_factors: tuple[float | None, ...] = ()

    @property
    def path(self) -> str | Path:
        """Path or URL that it was opened from."""
        return self._path

    @property
    def info(self) -> SlideInfo:
        """The facts of the slide."""
        return self._info

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """See `Slide.read_level`.

        Raises
        ------
        UnreadableSlideError
            Where the file is damaged there. Reading elsewhere goes on to work.
        IndexError
            If there is no such level.
        ValueError
            If the slide is closed.
        """
        self._check_usable()
        if not 0 <= level < len(self._info.levels):
            raise IndexError(f"{self._name} has levels 0 to {len(self._info.levels) - 1}, not {level}")
        fill = self._info.background if fill is None else fill
        size = self._info.levels[level].size
        inside = region.intersection(Region(0, 0, size.width, size.height))
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        if inside.is_empty or self.is_blank(level, inside):
            fill_with(pixels, fill)
            return pixels
        if inside != region:
            fill_with(pixels, fill)
        target = pixels[inside.slices_in(region)]
        if self._direct is not None and level in self._direct.levels:
            self._direct.read(level, inside, target, fill)
        else:
            self._read_checked(level, inside, target, fill)
        return pixels

    def _read_checked(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        """Read with the library, which believes any place in the file that is stated for a tile."""
        table = self._tables.get(level)
        flagged = [] if table is None else table.flagged(region)
        downsample = self._info.levels[level].downsample
        for tile, suspect in flagged:
            if suspect:
                raise damaged(self._name, tile, downsample, MISPLACED)
        self._read_into(level, region, out, fill)
        for tile, _ in flagged:
            if not has_one_colour(out[tile.intersection(region).slices_in(region)]):
                raise damaged(self._name, tile, downsample, MISPLACED)

    def is_blank(self, level: int, region: Region) -> bool:
        """Whether it is known, without reading, that ``region`` (px of the level) has no pixels: all is ``fill``."""
        table = self._tables.get(level)
        return table is not None and table.is_blank(region)

    @abstractmethod
    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        """Read a region that lies inside the level, and is not empty, with the library."""

    @abstractmethod
    def _release(self) -> None:
        """Close what the subclass opened."""

    def close(self) -> None:
        """Close the file. Reading afterwards is an error; closing twice is not."""
        if not self._closed:
            self._closed = True
            if self._direct is not None:
                self._direct.close()
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half-built, or at the interpreter's end
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open slide cannot be pickled: send its path, and open it again there")

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError(f"{self._name} is closed")
        if os.getpid() != self._process:
            raise RuntimeError(f"{self._name} was opened before a fork: open it again in the new process")

    def _reason(self, error: object) -> str:
        """What a library says, on one line, without folders: OpenSlide repeats paths, and folders name patients."""
        return " ".join(without_folders(str(error), self._path).split()).rstrip(".")[:300]

    def _probe(self) -> None:
        """Read one pixel, so that a file without readable pixels is refused when it is opened, not much later.

        One of three places is enough: a slide with a damaged corner is still a slide.
        """
        size = self._info.size
        bounds = self._info.bounds
        places = [
            (bounds.x + bounds.width // 2, bounds.y + bounds.height // 2),
            (0, 0),
            (size.width - 1, size.height - 1),
        ]
        table = self._tables.get(0)
        if table is not None and not table.byte_counts.any():
            raise UnreadableSlideError(f"{self._name}: the file holds none of its tiles; copy it again from its source")
        failure = None
        for x, y in places:
            try:
                self.read_level(0, Region(x, y, 1, 1))
            except UnreadableSlideError as error:
                failure = error
            else:
                return
        cause = None if failure is None else failure.__cause__
        reason = self._reason(cause or failure)
        raise UnreadableSlideError(
            f"{self._name}: its header can be read, but its pixels cannot ({reason}); copy it again from its source"
        ) from failure

    def _check_visible(self) -> None:
        """Refuse a slide whose alpha channel hides all of it: the channel is wrong, or there is nothing to translate.

        Raises
        ------
        UnreadableSlideError
            If everything is transparent.
        """
        level = len(self._info.levels) - 1
        size = self._info.levels[level].size
        blocks = [
            Region(x, y, min(_BLOCK_PX, size.width - x), min(_BLOCK_PX, size.height - y))
            for y in range(0, size.height, _BLOCK_PX)
            for x in range(0, size.width, _BLOCK_PX)
        ]
        for place, block in (*self._sample_places(), *((level, block) for block in blocks[:_MOST_BLOCKS])):
            on_black, on_white = (self.read_level(place, block, (shade, shade, shade)) for shade in (0, 255))
            # What is transparent is black on black and white on white.
            if ((on_black != 0) | (on_white != 255)).any():
                return
        raise UnreadableSlideError(transparent(self._name))

    def _sample_places(self) -> list[tuple[int, Region]]:
        """Level and block of up to 25 places that are spread over the smallest level, for questions to the pixels."""
        level = len(self._info.levels) - 1
        size = self._info.levels[level].size
        side = _SAMPLE_PX
        if size.width <= 5 * side and size.height <= 5 * side:
            return [(level, Region(0, 0, size.width, size.height))]
        xs = {round(share * max(0, size.width - side) / 4) for share in range(5)}
        ys = {round(share * max(0, size.height - side) / 4) for share in range(5)}
        whole = Region(0, 0, size.width, size.height)
        return [(level, Region(x, y, side, side).intersection(whole)) for y in sorted(ys) for x in sorted(xs)]

    def _direct_tiles(self, file: TileFile, tables: Mapping[int, TileTable], premultiplied: bool) -> DirectTiles:
        levels = self._info.levels
        return DirectTiles(
            file,
            {level: (table, levels[level].downsample) for level, table in tables.items()},
            cache_bytes(levels[0].size, tables[0].tile if 0 in tables else Size(256, 256)),
            premultiplied=premultiplied,
        )

    def _go_direct(self, path: Path, tables: Mapping[int, TileTable], premultiplied: bool) -> None:
        """Take the fast path for every level of ``tables`` that proves to have the library's pixels."""
        direct = self._direct_tiles(LocalFile(path), tables, premultiplied)
        for level in direct.levels:
            if not prove(direct, level, self._exact, self._name):
                direct.drop(level)
        logger.debug("%s: levels %s are decoded directly", self._name, sorted(direct.levels))
        if direct.levels:
            self._direct = direct
        else:
            direct.close()

    def _exact(self, level: int, region: Region) -> RGBImage | None:
        """The library's pixels of a region inside a level; None where it would interpolate. Subclasses may refuse."""
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        self._read_into(level, region, pixels, WHITE)
        return pixels
