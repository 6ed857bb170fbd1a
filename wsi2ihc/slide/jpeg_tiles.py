"""Tiles of a TIFF, decoded straight from the file.

For slides that OpenSlide reads this is the fast path: OpenSlide decodes the same tiles, but then paints them, four
bytes a pixel, through Cairo; without that, reading is about four times as fast. On levels whose downsample is not an
integer there is a second reason: OpenSlide is asked in level-0 px and interpolates between the pixels of such a level,
which blurs them; a tile decoded here has the pixels as stored. Such a level is read this way only if `prove` found its
pixels equal to those that OpenSlide reads.

For all other TIFFs, local or remote, this is the only path: the libraries that could read them decode whatever a stream
claims to be, and pass over damage.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from ..arrays import RGB, WHITE, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region
from .pixels import composited, fill_with
from .tiff_facts import TileTable
from .tile_cache import TileCache
from .tile_codecs import Decode, check_count, tile_decoder

logger = logging.getLogger(__name__)

_SHARED_BAND_PX = 168
"""Windows overlap their neighbours by two halos, of 84 px for ResNet-9; tiles this close to an edge are held."""

_PROOF_TILES, _PROOF_CANDIDATES = 3, 12

MISPLACED = "the place in the file that is stated for it cannot be right"

_ONE_COLOUR_RANGE = 48
"""Gray levels within which a tile that is stored once for several places has to stay: only background is the same."""


class TileFile(Protocol):
    """Where the bytes of tiles come from. Thread-safe."""

    name: str

    def read_at(self, offset: int, count: int) -> bytes:
        """So many bytes from an offset; fewer at the file's end."""
        ...

    def close(self) -> None: ...

    @property
    def closed(self) -> bool: ...


class LocalFile:
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read_at(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(count)

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    table: TileTable
    decode: Decode
    downsample: float
    cache: TileCache


class DirectTiles:
    """Reads levels of a TIFF tile by tile. Thread-safe.

    Memory: a cache per level of one tile size, together bounded, and one decoded tile per reading thread.

    Parameters
    ----------
    file
        The file.
    tables
        For each level that may be read this way, its tiles and how many level-0 px one of its px spans.
    cache_bytes
        Bound of the cache of decoded tiles, per size of tile (a slide has one, rarely two).
    premultiplied
        Whether colours are already multiplied by the fourth sample, alpha, where there is one.
    """

    def __init__(
        self,
        file: TileFile,
        tables: Mapping[int, tuple[TileTable, float]],
        cache_bytes: int,
        *,
        premultiplied: bool = False,
    ) -> None:
        self._file = file
        self.alpha: Literal["", "straight", "premultiplied"] = "premultiplied" if premultiplied else "straight"
        caches = {
            (table.tile, table.samples): TileCache(table.tile, cache_bytes, table.samples)
            for table, _ in tables.values()
        }
        self._sources = {
            level: _Source(table, decode, downsample, caches[table.tile, table.samples])
            for level, (table, downsample) in tables.items()
            if table.samples in (3, 4) and (decode := tile_decoder(table)) is not None
        }
        self._local = threading.local()

    @property
    def levels(self) -> frozenset[int]:
        """The levels that can be read."""
        return frozenset(self._sources)

    def table(self, level: int) -> TileTable:
        """Where the tiles of one of these levels lie."""
        return self._sources[level].table

    def drop(self, level: int) -> None:
        """Read this level no more."""
        del self._sources[level]

    def close(self) -> None:
        """Close the file and let go of the cache."""
        self._file.close()
        for source in self._sources.values():
            source.cache.clear()

    def read(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        """Put the pixels of ``region`` (px of the level, inside it) into ``out``; ``fill`` where tiles are missing.

        Raises
        ------
        UnreadableSlideError
            Where a tile is damaged.
        """
        source = self._sources[level]
        table, tile = source.table, source.table.tile
        rows, columns = table.tile_range(region)
        passing_rows, passing_columns = _passing(table, region)
        span = slice(columns.start, columns.stop)
        for row in rows:
            top = row * tile.height - region.y
            band = out[max(top, 0) : top + tile.height]
            rows_of_tile = slice(max(-top, 0), max(-top, 0) + band.shape[0])
            counts = table.byte_counts[row, span].tolist()
            for column, count in zip(columns, counts, strict=True):
                left = column * tile.width - region.x
                target = band[:, max(left, 0) : left + tile.width]
                if count == 0:
                    fill_with(target, fill)
                    continue
                held = source.cache.get((level, row, column))
                if held is not None:
                    pixels = held.pixels
                elif row in passing_rows and column in passing_columns:
                    pixels = self._scratch(table)
                    self._decode(source, row, column, pixels)
                else:
                    held = source.cache.slot()
                    pixels = held.pixels
                    self._decode(source, row, column, pixels)
                    source.cache.put((level, row, column), held)
                skip = max(-left, 0)
                piece = pixels[rows_of_tile, skip : skip + target.shape[1]]
                target[...] = piece if table.samples == 3 else self._composited(piece, fill)

    def _composited(self, piece: RGBImage, fill: RGB) -> RGBImage:
        if not self.alpha:
            return piece[..., :3]
        size = (piece.shape[1], piece.shape[0])
        mode = "RGBa" if self.alpha == "premultiplied" else "RGBA"
        image = Image.frombytes(mode, size, np.ascontiguousarray(piece).tobytes())
        return composited(image.convert("RGBA"), fill)

    def _decode(self, source: _Source, row: int, column: int, out: RGBImage) -> None:
        """Read and decode one tile."""
        table = source.table
        region = table.tile_region(row, column)
        if not table.tiled:  # the last strip is as high as the image
            out = out[: region.height]
        try:
            if table.suspect is not None and table.suspect[row, column]:
                raise ValueError(MISPLACED)
            if not table.planes:
                source.decode(self._stored(table, row, column), out)
            for number, plane in enumerate(table.planes):
                single = np.empty((*out.shape[:2], 1), np.uint8)
                source.decode(self._stored(plane, row, column), single)
                out[..., number] = single[..., 0]
            if table.shared is not None and table.shared[row, column] and not has_one_colour(out):
                raise ValueError(MISPLACED)
        # What the codecs raise is derived from these.
        except (OSError, ValueError, RuntimeError) as error:
            if self._file.closed:
                raise ValueError(f"{self._file.name} is closed") from None
            raise damaged(self._file.name, region, source.downsample, error) from error

    def samples(self, level: int, row: int, column: int) -> RGBImage:
        """All samples of one tile, its padding left out: (height, width, samples).

        Raises
        ------
        UnreadableSlideError
            If the tile is damaged.
        """
        source = self._sources[level]
        table = source.table
        pixels = np.empty((table.tile.height, table.tile.width, table.samples), np.uint8)
        self._decode(source, row, column, pixels)
        region = table.tile_region(row, column)
        return pixels[: region.height, : region.width]

    def _stored(self, table: TileTable, row: int, column: int) -> bytes:
        """The bytes of one tile."""
        offset, count = int(table.offsets[row, column]), int(table.byte_counts[row, column])
        check_count(table, count)
        data = self._file.read_at(offset, count)
        if len(data) < count:
            raise ValueError("the file ends before it")
        return data

    def _scratch(self, table: TileTable) -> RGBImage:
        """Memory for one tile, of this thread, which stays in the CPU's cache."""
        shape = (table.tile.height, table.tile.width, table.samples)
        scratch: RGBImage | None = getattr(self._local, "scratch", None)
        if scratch is None or scratch.shape != shape:
            scratch = self._local.scratch = np.empty(shape, np.uint8)
        return scratch


def has_one_colour(pixels: RGBImage) -> bool:
    """Whether pixels can be background, of which a file may hold one tile for several places."""
    sparse = pixels[::4, ::4]
    return bool((sparse.max((0, 1)).astype(int) - sparse.min((0, 1)) <= _ONE_COLOUR_RANGE).all())


def damaged(name: str, region: Region, downsample: float, reason: object) -> UnreadableSlideError:
    """The error for a place, given in px of a level, that cannot be read."""
    x, y, width, height = (round(side * downsample) for side in (region.x, region.y, region.width, region.height))
    return UnreadableSlideError(
        f"{name}: damaged at level-0 px x {x}, y {y} (within {width}×{height} px): {reason}; "
        "copy the file again from its source, or go on without such places (--on-read-error glass)"
    )


def prove(direct: DirectTiles, level: int, library: Callable[[int, Region], RGBImage | None], name: str) -> bool:
    """Whether the tiles of a level, decoded here, equal what the slide's library reads.

    Compares three tiles (first, middle and last of those that exist), or others where these are damaged. ``library``
    gives None for a region that it cannot read without interpolating; at least one tile has to be compared.
    """
    table = direct.table(level)
    existing = np.argwhere(table.byte_counts > 0)
    proofs = 0
    for row, column in existing[_picks(len(existing))].tolist():
        if proofs == _PROOF_TILES:
            break
        region = table.tile_region(row, column)
        try:
            expected = library(level, region)
            if expected is None:
                continue
            pixels = np.empty(expected.shape, np.uint8)
            direct.read(level, region, pixels, WHITE)
        except UnreadableSlideError as error:
            logger.debug("%s, level %d: a tile could not be compared (%s)", name, level, error)
            continue
        if not np.array_equal(pixels, expected):
            logger.debug("%s, level %d: tile (%d, %d) differs from the library's pixels", name, level, row, column)
            return False
        proofs += 1
    return proofs > 0


def _picks(count: int) -> list[int]:
    """Which of so many tiles to compare, each once: the first, the middle, the last, then some in between."""
    if count == 0:
        return []
    spread = np.linspace(0, count - 1, _PROOF_CANDIDATES).astype(int).tolist()
    return list(dict.fromkeys([0, count // 2, count - 1, *spread]))


def _passing(table: TileTable, region: Region) -> tuple[range, range]:
    """Rows and columns of the tiles that no neighbouring region will want, so that they need not be held.

    These are all but those within `_SHARED_BAND_PX` of an edge. Of a region whose edges all lie on borders between
    tiles, or at the level's end, neighbours want none: windows with a halo hardly ever lie so.
    """
    size, tile = table.size, table.tile
    fits = (region.x % tile.width, region.y % tile.height) == (0, 0)
    if fits and all(
        stop % side == 0 or stop == end
        for stop, side, end in ((region.right, tile.width, size.width), (region.bottom, tile.height, size.height))
    ):
        return table.tile_range(region)
    return (
        _inner(region.y, region.bottom, tile.height, size.height),
        _inner(region.x, region.right, tile.width, size.width),
    )


def _inner(start: int, stop: int, tile_px: int, level_px: int) -> range:
    """Along one axis, the tiles that lie wholly inside, and not near an edge beyond which the level goes on."""
    first = start + (_SHARED_BAND_PX if start > 0 else 0)
    last = stop - _SHARED_BAND_PX if stop < level_px else stop + tile_px - 1
    return range(-(-first // tile_px), last // tile_px)
