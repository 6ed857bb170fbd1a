"""Between tiles and the shards of an OME-Zarr array: whole shards are written, and read, in threads."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..arrays import RGB, RGBImage
from ..errors import OutputError
from ..geometry import Size
from ..ordered import ordered_map
from .levels import Level
from .omezarr import open_level, shard_columns, shard_grid, shard_path
from .tiles import Tile

_NOT_THE_SHARD = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the system lacks says nothing of a file."""


class DamagedShardError(OutputError):
    """A shard cannot be read back: row and column of it among the level's shards."""

    def __init__(self, row: int, column: int, reason: str) -> None:
        super().__init__(f"shard ({row}, {column}) cannot be read back ({reason:.80})")
        self.row, self.column = row, column


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard to be written: its place among the shards, and the pixels of its occupied tiles by their column."""

    row: int
    column: int
    tiles: dict[int, RGBImage]


@dataclass(slots=True)
class ShardCollector:
    """Gathers the tiles of one level until shards are complete. Thread-safe.

    Memory bound: the tiles of shards that are not complete. For tiles in raster order, one shard; for those that a row
    of cells brings, the shards across one cell.

    Parameters
    ----------
    level
        Whose tiles come.
    rows
        The rows of tiles that come.
    """

    level: Level
    rows: range
    _across: int = field(init=False)
    _open: dict[tuple[int, int], Shard] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._across = shard_columns(self.level)

    def blank_shards(self) -> Iterator[Shard]:
        """Those of which no tile will come."""
        for row in self.rows:
            for column in range(shard_grid(self.level)[1]):
                if not self._awaited(row, column):
                    yield Shard(row, column, {})

    def add(self, tile: Tile) -> Shard | None:
        """Keep a tile; the shard that it completes, if it does."""
        place = (tile.row, tile.column // self._across)
        with self._lock:
            shard = self._open.setdefault(place, Shard(*place, {}))
            shard.tiles[tile.column] = tile.pixels
            if len(shard.tiles) < self._awaited(*place):
                return None
            return self._open.pop(place)

    def _awaited(self, row: int, column: int) -> int:
        return int(self.level.occupied[row, column * self._across : (column + 1) * self._across].sum())


def shards_ahead(level: Level, workers: int) -> int:
    """Shards of a level that are written, or read, at once: some tiles for each thread."""
    return max(2, 4 * workers // shard_columns(level))


def write_tiles(
    folder: Path, tiles: Iterable[Tile], level: Level, rows: range, fill: RGB, executor: Executor, ahead: int
) -> None:
    """Write all shards of some rows of tiles of level 0: occupied tiles as they come, nearly in raster order.

    The others are ``fill``. Memory bound: that of `ShardCollector`, and ``ahead`` shards with a copy each.

    Raises
    ------
    OSError
        If the disk is full, or the file system refuses.
    """
    collector, array = ShardCollector(level, rows), open_level(folder, 0, write=True)
    write_blank_shards(folder, 0, level, collector, fill)
    shards = (shard for tile in tiles if (shard := collector.add(tile)) is not None)
    for _ in ordered_map(executor, partial(write_shard, array, level, fill), shards, ahead):
        pass


def write_blank_shards(folder: Path, number: int, level: Level, collector: ShardCollector, fill: RGB) -> None:
    """Write the shards of a level of which no tile comes.

    Those of one size are the same file, which is encoded once: each chunk takes zarr 2 ms (measured), and most of a
    slide is glass.

    Raises
    ------
    OSError
        If the disk is full, or the file system refuses.
    """
    array, files = open_level(folder, number, write=True), dict[Size, bytes]()
    for shard in collector.blank_shards():
        size = _valid_part(level, shard.row, shard.column)
        path = folder / shard_path(number, shard.row, shard.column)
        if size not in files:
            write_shard(array, level, fill, shard)
            files[size] = path.read_bytes()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[size])


def write_shard(array: zarr.Array[Any], level: Level, fill: RGB, shard: Shard) -> None:
    """Write one shard as a whole; tiles that it lacks are ``fill``."""
    across, side = shard_columns(level), level.tile_px
    first = shard.column * across
    valid = _valid_part(level, shard.row, shard.column)
    pixels = np.empty((3, valid.height, valid.width), np.uint8)
    if len(shard.tiles) < min(across, level.columns - first):
        pixels[:] = np.array(fill, np.uint8)[:, np.newaxis, np.newaxis]
    for column, tile in shard.tiles.items():
        left = (column - first) * side
        part = pixels[:, :, left : left + side]
        part[...] = np.moveaxis(tile[: part.shape[1], : part.shape[2]], 2, 0)
    top, left = shard.row * side, first * side
    array[:, top : top + valid.height, left : left + valid.width] = pixels


def read_tiles(array: zarr.Array[Any], level: Level, executor: Executor, ahead: int) -> Iterator[Tile]:
    """The occupied tiles of a level, in raster order. What of them lies beyond the image is black.

    Memory bound: ``ahead`` shards.

    Raises
    ------
    DamagedShardError
        If a shard cannot be read.
    """
    across, (rows, columns) = shard_columns(level), shard_grid(level)
    places = [
        (row, column)
        for row in range(rows)
        for column in range(columns)
        if level.occupied[row, column * across : (column + 1) * across].any()
    ]
    for tiles in ordered_map(executor, partial(_read_shard, array, level), places, ahead):
        yield from tiles


def _read_shard(array: zarr.Array[Any], level: Level, place: tuple[int, int]) -> list[Tile]:
    (row, shard_column), side, across = place, level.tile_px, shard_columns(level)
    first, valid = shard_column * across, _valid_part(level, *place)
    top, left = row * side, first * side
    try:
        pixels = np.asarray(array[:, top : top + valid.height, left : left + valid.width])
    # zarr and its codecs say it in many ways: a checksum, a length, a frame that is none
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NOT_THE_SHARD):
            raise
        raise DamagedShardError(row, shard_column, str(error)) from error
    tiles = []
    for column in range(first, min(first + across, level.columns)):
        if not level.occupied[row, column]:
            continue
        part = pixels[:, :, (column - first) * side : (column - first + 1) * side]
        tile = np.zeros((side, side, 3), np.uint8)
        tile[: part.shape[1], : part.shape[2]] = np.moveaxis(part, 0, 2)
        tiles.append(Tile(column, row, tile))
    return tiles


def _valid_part(level: Level, row: int, shard_column: int) -> Size:
    """How much of a shard lies inside the image, px."""
    left, top = shard_column * shard_columns(level) * level.tile_px, row * level.tile_px
    width = min(shard_columns(level) * level.tile_px, level.size.width - left)
    return Size(width, min(level.tile_px, level.size.height - top))
