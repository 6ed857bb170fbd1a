"""Create lower levels from the tiles of level 0, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import RGBImage
from .encode import Encode
from .levels import PyramidLevel, Tile, halve_into, pad_edges

Keep = Callable[[int, int, bytes], None]  # takes (level, index in raster order, encoded tile)


@dataclass(slots=True)
class _Parent:
    """Unfinished tile of a lower level; ``missing`` of its occupied children have not been added yet."""

    pixels: RGBImage
    missing: int


class Cascade:
    """Encodes tiles of level 0, and each tile of a lower level after its last child.

    Each tile is halved into its quadrant of the parent. A 2×2 mean never crosses the edge of a tile (their sides are
    even), so no tile needs its neighbors. Blank children are never added: their quadrant has the fill color from the
    start. `finish` may run in many threads at once: children of one parent write to different quadrants, and only
    their count is locked.

    Memory bound: unfinished parents. For tiles in raster order, one row of tiles of each lower level, together as many
    px as one row of tiles of level 0; for tiles that come n rows early, up to n times as many. It does not grow with
    the height of the image. A parent is freed once encoded.

    ``blank`` is a tile (tile_px, tile_px, 3) of the fill color. ``keep`` is called with each encoded tile of a lower
    level, in the threads that call `finish`.
    """

    def __init__(self, levels: Sequence[PyramidLevel], blank: RGBImage, encode: Encode, keep: Keep) -> None:
        self._levels = levels
        self._blank = blank
        self._encode = encode
        self._keep = keep
        self._parents: dict[tuple[int, int, int], _Parent] = {}
        self._lock = threading.Lock()

    def finish(self, tile: Tile) -> bytes:
        """Encode a tile of level 0 and the tiles of lower levels that it completes; return its own bytes."""
        pixels = pad_edges(tile.pixels, self._levels[0].valid_part(tile.column, tile.row))
        encoded = self._encode(pixels)
        column, row = tile.column, tile.row
        for number in range(1, len(self._levels)):
            parent = self._completed_parent(number, column, row, pixels)
            if parent is None:
                break
            level = self._levels[number]
            column, row = column // 2, row // 2
            pixels = pad_edges(parent, level.valid_part(column, row))
            self._keep(number, row * level.columns + column, self._encode(pixels))
        return encoded

    def _completed_parent(self, number: int, column: int, row: int, pixels: RGBImage) -> RGBImage | None:
        """Halve a tile of level ``number - 1`` into its parent; return the parent's pixels after the last child."""
        key = (number, row // 2, column // 2)
        half_px = self._levels[number].tile_px // 2
        with self._lock:
            parent = self._parents.get(key)
            if parent is None:
                parent = self._parents[key] = self._new_parent(*key)
        top, left = row % 2 * half_px, column % 2 * half_px
        halve_into(pixels, parent.pixels[top : top + half_px, left : left + half_px])
        with self._lock:
            parent.missing -= 1
            if parent.missing:
                return None
            del self._parents[key]
        return parent.pixels

    def _new_parent(self, number: int, row: int, column: int) -> _Parent:
        children = self._levels[number - 1].occupied[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        missing = int(children.sum())
        # pad_edges fills quadrants beyond the edge of the image once the parent is complete
        pixels = self._blank.copy() if missing < children.size else np.empty_like(self._blank)
        return _Parent(pixels, missing)
