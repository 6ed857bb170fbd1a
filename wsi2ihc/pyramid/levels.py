"""The levels of a pyramid, each cut into tiles, and which of these tiles hold anything but glass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import BoolImage
from ..geometry import Size, halved


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level, cut into square tiles.

    size:      of the level, px
    tile_px:   side of a tile, px
    occupied:  (rows, columns) of tiles: False where a tile is nothing but the fill colour
    """

    size: Size
    tile_px: int
    occupied: BoolImage

    @property
    def rows(self) -> int:
        return int(self.occupied.shape[0])

    @property
    def columns(self) -> int:
        return int(self.occupied.shape[1])

    def valid_part(self, column: int, row: int) -> Size:
        """How much of a tile lies inside the image, px from its upper left corner."""
        return Size(
            min(self.tile_px, self.size.width - column * self.tile_px),
            min(self.tile_px, self.size.height - row * self.tile_px),
        )


def tile_grid(size: Size, tile_px: int) -> tuple[int, int]:
    """(rows, columns) of tiles that cover an image of this size."""
    return -(-size.height // tile_px), -(-size.width // tile_px)


def level_sizes(size: Size, tile_px: int) -> tuple[Size, ...]:
    """Sizes of all levels, largest first: each half of the one before, rounded up, down to at most one tile."""
    sizes = [size]
    while max(sizes[-1].width, sizes[-1].height) > tile_px:
        sizes.append(halved(sizes[-1]))
    return tuple(sizes)


def plan_levels(size: Size, tile_px: int, occupied: BoolImage) -> tuple[Level, ...]:
    """All levels, largest first; ``occupied`` are the tiles of level 0, (rows, columns).

    A tile of a lower level is occupied if any of the four that it is made of is.

    Raises
    ------
    ValueError
        If ``occupied`` has not one entry for each tile of level 0.
    """
    if occupied.shape != tile_grid(size, tile_px):
        raise ValueError(f"occupied has shape {occupied.shape}, the tiles of {size} px have {tile_grid(size, tile_px)}")
    levels = []
    occupied = occupied.astype(bool)
    for level_size in level_sizes(size, tile_px):
        levels.append(Level(level_size, tile_px, occupied))
        occupied = _any_of_four(occupied)
    return tuple(levels)


def _any_of_four(occupied: BoolImage) -> BoolImage:
    rows, columns = occupied.shape
    even = np.pad(occupied, ((0, rows % 2), (0, columns % 2)))
    return np.asarray(even[0::2, 0::2] | even[0::2, 1::2] | even[1::2, 0::2] | even[1::2, 1::2])
