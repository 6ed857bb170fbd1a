"""Decoded tiles that a neighbouring window will want again."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable

import numpy as np

from ..arrays import RGBImage
from ..geometry import Size

MIN_CACHE_BYTES = 32 * 2**20
MAX_CACHE_BYTES = 128 * 2**20

_SLAB_BYTES = 8 * 2**20


class TileSlot:
    """Memory for one decoded tile, on loan from a `TileCache`; it goes back when nobody holds this object."""

    __slots__ = ("_free", "pixels")

    def __init__(self, pixels: RGBImage, free: deque[RGBImage]) -> None:
        self.pixels = pixels
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.pixels)


class TileCache:
    """Decoded tiles of one size, the oldest of which make room for new ones. Thread-safe.

    A hit does not make a tile younger: windows are read row by row, so a tile is wanted by the windows to the right
    and below soon after it was decoded, and never again. (With refreshing, the cache has to be twice as large for the
    same effect.)

    Memory: ``capacity_bytes``, one slab of 8 MiB, and the tiles that threads are working on. It is taken in slabs and
    used again and again, because memory fresh from the system costs half as much time as decoding into it.

    Parameters
    ----------
    tile
        Size of the tiles in px.
    capacity_bytes
        Bound of what is held.
    samples
        Samples per px.
    """

    def __init__(self, tile: Size, capacity_bytes: int, samples: int = 3) -> None:
        self._shape = (tile.height, tile.width, samples)
        self._tile_bytes = tile.area_px * samples
        self.capacity = capacity_bytes // self._tile_bytes
        self._tiles: OrderedDict[Hashable, TileSlot] = OrderedDict()
        self._free: deque[RGBImage] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tiles)

    def get(self, key: Hashable) -> TileSlot | None:
        """The tile, not to be written to, or None."""
        return self._tiles.get(key)  # one operation of a dict: atomic

    def slot(self) -> TileSlot:
        """Memory for a tile, with anything in it."""
        try:
            pixels = self._free.pop()
        except IndexError:
            count = max(1, _SLAB_BYTES // self._tile_bytes)
            pixels, *others = np.empty((count, *self._shape), np.uint8)
            self._free.extend(others)
        return TileSlot(pixels, self._free)

    def put(self, key: Hashable, slot: TileSlot) -> None:
        """Hold a tile, which nobody writes to from here on."""
        with self._lock:
            self._tiles[key] = slot
            if len(self._tiles) > self.capacity:
                self._tiles.popitem(last=False)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._tiles.clear()
        self._free.clear()


def cache_bytes(level: Size, tile: Size, bytes_per_px: int = 3) -> int:
    """How much to hold for a level: three rows of tiles, but 32 MiB at least and 128 MiB at most.

    Windows that are read row by row share one row of tiles, or two, with the row of windows below; between the two
    uses of a tile, one row of windows passes, of which only the tiles near a window's edge are held.
    """
    columns = -(-level.width // tile.width)
    return min(max(3 * columns * tile.area_px * bytes_per_px, MIN_CACHE_BYTES), MAX_CACHE_BYTES)
