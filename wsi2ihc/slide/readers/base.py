"""Base class of the readers, and the metadata that they share."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from ...errors import UnreadableSlideError
from ...geometry import RGB, WHITE, Region, RGBImage, Size
from ..icc import is_usable_profile, srgb_profile, without_texts
from ..image_choice import Choice
from ..jpeg_tiles import MISPLACED, DirectTiles, LocalFile, TileFile, cache_bytes, damaged, has_one_color, prove
from ..level_factors import is_divided_by
from ..metadata import Mpp
from ..protocol import Level, SlideInfo, fill_with, transparent
from ..tiff_metadata import TiffMetadata, TileTable

logger = logging.getLogger(__name__)

_BLOCK_PX = 2048

_MOST_BLOCKS = 64  # blocks that are read to find a pixel that is not transparent; in all others the first has one
_SAMPLE_PX = 128  # side of the places from which something is concluded about all pixels


_ABSOLUTE = re.compile(r"(?:/|\b[A-Za-z]:[\\/])(?:[^\s:'\"\\/]+[\\/])+")
"""The folders of an absolute path without spaces; a URL's are none, because of the colon."""


def without_folders(text: str, path: str | Path) -> str:
    """Replace the path of a file, and of others beside it (a DICOM slide has many), by base names."""
    if isinstance(path, Path):
        for folder in {str(path.parent), str(path.parent.absolute()), os.path.realpath(path.parent)}:
            if folder not in (".", os.sep):
                text = text.replace(folder + os.sep, "")
        return _ABSOLUTE.sub("", text)
    return text.replace(path, path.rpartition("/")[2].partition("?")[0])


class SlideReader(ABC):
    """Base class of the readers: the part of the `Slide` protocol that does not depend on the library.

    A subclass opens the file, sets ``_info``, reads a region that lies inside a level, and closes. ``_direct`` reads
    the levels that it knows; ``_tables`` has the missing tiles of the levels for which they are known.

    Pixels are returned as stored, and `slide_view` applies ``orientation`` (TIFF tag 274) and crops levels that may be
    padded: for these, ``tile_sizes`` is given, and ``tag_factors`` has the factors by their resolution tags.
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
        return self._path

    @property
    def info(self) -> SlideInfo:
        return self._info

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """See `Slide.read_level`; reading elsewhere continues to work after a failure.

        Raises `IndexError` if the level does not exist, and `ValueError` if the slide is closed.
        """
        self._check_usable()
        if not 0 <= level < len(self._info.levels):
            raise IndexError(f"{self._name} has levels 0 to {len(self._info.levels) - 1}, not {level}")
        fill = self._info.background if fill is None else fill
        inside = region.intersection(self._info.levels[level].size.frame)
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
            if not has_one_color(out[tile.intersection(region).slices_in(region)]):
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
        """Return a library's message on one line, without folders, which may name patients."""
        return " ".join(without_folders(str(error), self._path).split()).rstrip(".")[:300]

    def _probe(self) -> None:
        """Read a pixel at one of three places (a corner may be damaged), to refuse files without readable pixels."""
        size, bounds = self._info.size, self._info.bounds
        middle = (bounds.x + bounds.width // 2, bounds.y + bounds.height // 2)
        table = self._tables.get(0)
        if table is not None and not table.byte_counts.any():
            raise UnreadableSlideError(f"{self._name}: the file holds none of its tiles; copy it again from its source")
        failure = None
        for x, y in (middle, (0, 0), (size.width - 1, size.height - 1)):
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
        """Refuse a slide whose alpha channel hides all of it: the channel is wrong, or the slide is empty."""
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
        """Return up to 25 places spread over the smallest level: the level and a region of it."""
        level = len(self._info.levels) - 1
        size = self._info.levels[level].size
        side, whole = _SAMPLE_PX, size.frame
        if size.width <= 5 * side and size.height <= 5 * side:
            return [(level, whole)]
        xs = {round(share * max(0, size.width - side) / 4) for share in range(5)}
        ys = {round(share * max(0, size.height - side) / 4) for share in range(5)}
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
        """Read a region inside a level with the library; None if it would interpolate."""
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        self._read_into(level, region, pixels, WHITE)
        return pixels


MAX_SIDE_PX = 4_000_000
"""A slide is 75 mm long: 750,000 px at 0.1 µm/px. A header that claims more than five times that is damaged."""

MAX_AREA_PX = 5 * 10**11  # a whole slide of 75 × 25 mm at 0.1 µm/px has 1.9 · 10¹¹ px

LARGE_PX = 10_000 * 10_000
"""From this size on, a slide without lower levels deserves a remark: an overview has to read all of it."""

UNCOMPRESSED = "Its pixels are not compressed, so that damage to them cannot be noticed."

_HASHED_BYTES = 2**20


def checked_levels(name: str, sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> tuple[Level, ...]:
    """Return the levels of a slide, largest first.

    Raises `UnreadableSlideError` if the header claims sizes that no slide has.
    """
    for width, height in sizes:
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX and width * height <= MAX_AREA_PX):
            raise UnreadableSlideError(
                f"{name}: the header claims a level of {width}×{height} px, which is implausible; "
                "the file is damaged: copy it again from its source"
            )
    full = Size(*sizes[0])
    return tuple(
        Level(Size(*size), true_downsample(full, Size(*size), downsample))
        for size, downsample in zip(sizes, downsamples, strict=True)
    )


def true_downsample(full: Size, level: Size, reported: float) -> float:
    """Return how many level-0 px one px of a level spans.

    Readers divide the sizes, so a level made by dropping the odd last column of a factor 4 is reported as 4.00017,
    which is 17 px off at the far end of 100,000. If both sizes are those of a whole factor, rounded up or down, it is
    that factor.
    """
    whole = round(reported)
    return float(whole) if whole >= 1 and is_divided_by(full, level, whole) else reported


def checked_bounds(values: Sequence[Any], size: Size) -> Region:
    """Parse the scanned area (x, y, width, height), texts or None; the whole slide if they are invalid."""
    whole = size.frame
    try:
        x, y, width, height = (int(value) for value in values)
    except (TypeError, ValueError):
        return whole
    if width < 1 or height < 1:
        return whole
    bounds = Region(x, y, width, height).intersection(whole)
    return whole if bounds.is_empty else bounds


def remarks_on_bounds(bounds: Region, size: Size) -> tuple[str, ...]:
    """Describe where an output begins that does not cover the whole slide, by which overlays must be moved."""
    if (bounds.width, bounds.height) == (size.width, size.height):
        return ()
    return (
        f"Only {bounds.width}×{bounds.height} px at ({bounds.x}, {bounds.y}) of it are scanned; outputs cover this "
        "area, as they do in QuPath.",
    )


def color_from_hex(text: str | None) -> RGB:
    """Parse a background color such as "FFFFFF"; white if there is none."""
    try:
        red, green, blue = bytes.fromhex((text or "").lstrip("#"))
    except ValueError:
        return WHITE
    return red, green, blue


def checked_profile(profile: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the color profile without texts if it can be used, otherwise a remark."""
    if profile is None or profile == srgb_profile():
        return profile, ()
    try:
        plain = without_texts(profile)
    except ValueError:
        plain = b""
    if is_usable_profile(plain):
        return plain, ()
    return None, ("Its color profile is damaged, or not one for RGB; it is ignored.",)


def remarks(levels: Sequence[Level], magnification: float | None, facts: TiffMetadata | None) -> tuple[str, ...]:
    """Describe what is doubtful about a slide beside its resolution and profile, one sentence each."""
    notes = []
    size = levels[0].size
    if magnification is None:
        notes.append("The file does not state the magnification of the objective.")
    if len(levels) == 1 and size.area_px > LARGE_PX:
        notes.append("It has no lower levels, so that finding the tissue has to read all of it.")
    if facts is not None and facts.has_alpha:
        notes.append("It has an alpha channel; transparent places are taken for background.")
    if facts is not None:
        notes.extend(filter(None, (facts.kind.note, *facts.problems)))
    table = None if facts is None else table_of_size(facts.tables, size)
    if table is not None and table.missing:
        notes.append(f"Missing tiles: {table.missing:,} of {table.byte_counts.size:,}; they are taken for background.")
    if table is not None and table.suspect is not None:
        damaged = np.count_nonzero(table.suspect)
        notes.append(
            f"Damaged tiles: {damaged:,} of {table.suspect.size:,} cannot lie where the file says, or lie beyond its "
            "end; copy it again from its source."
        )
    if table is not None and table.compression == 1:
        notes.append(UNCOMPRESSED)
    return tuple(notes)


def table_of_size(tables: Sequence[TileTable], size: Size) -> TileTable | None:
    """Return the only table of a level's size, or None; a tiled page precedes one of strips, which is a thumbnail."""
    matching = [table for table in tables if table.size == size]
    matching = [table for table in matching if table.tiled] or matching
    return matching[0] if len(matching) == 1 else None


def own_hash(read_at: Callable[[int, int], bytes], size_bytes: int) -> str:
    """Return the identity of a file whose reader has none: SHA-256 of its size, its first and its last MiB.

    ``read_at`` reads so many bytes (second argument) from an offset (first argument).
    """
    digest = hashlib.sha256(str(size_bytes).encode())
    digest.update(read_at(0, min(_HASHED_BYTES, size_bytes)))
    digest.update(read_at(max(0, size_bytes - _HASHED_BYTES), min(_HASHED_BYTES, size_bytes)))
    return f"sha256:{digest.hexdigest()}"


def hash_of_file(path: Path) -> str:
    """Return the `own_hash` of a local file."""
    with contextlib.closing(LocalFile(path)) as file:
        return own_hash(file.read_at, path.stat().st_size)


def identity(quickhash: str, facts: TiffMetadata | None) -> str:
    """Return a hash that also distinguishes the image of the file that the caller chose."""
    return quickhash if facts is None else fingerprint_of_choice(quickhash, facts.choice)


def fingerprint_of_choice(quickhash: str, choice: Choice) -> str:
    """Append the image that the caller chose to the hash of a file."""
    parts = (("series", choice.series), ("page", choice.page))
    return quickhash + "".join(f"-{name}{number}" for name, number in parts if number is not None)


def changed_at(path: str | Path) -> int | None:
    """Return when a local file was changed, in whole s since 1970; None for a URL."""
    return int(Path(path).stat().st_mtime) if "://" not in str(path) else None


def both(x: float | None, y: float | None) -> Mpp | None:
    """Return a pair; None unless both are known."""
    return None if x is None or y is None else (x, y)
