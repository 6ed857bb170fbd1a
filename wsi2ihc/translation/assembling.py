"""Fourth stage: cores become tiles of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..arrays import RGB, RGBImage
from ..geometry import Region
from ..plan import Plan
from ..pyramid import Tile
from .stages import FinishedCore

TileIndex = tuple[int, int]
"""(row, column) of a tile in the output."""


@dataclass(slots=True)
class _OpenTile:
    pixels: RGBImage
    missing: int


def assemble_tiles(cores: Iterable[FinishedCore], plan: Plan, tile_px: int, fill: RGB) -> Iterator[Tile]:
    """Paste cores into tiles; a tile comes out as soon as the last core that touches it has been pasted.

    Tile coordinates count from the extent's origin. What no core covers is ``fill``. Tiles that no core touches never
    come out. A tile that lies within one core is a view of its pixels. Cores may arrive in any order; the closer to
    raster order, the fewer tiles are open.

    Memory bound: for cores in raster order, the occupied tiles that one row of cells touches.
    """
    awaited, covered_px = _contributions(plan, tile_px)
    blank = np.empty((tile_px, tile_px, 3), dtype=np.uint8)
    blank[:] = fill
    open_tiles: dict[TileIndex, _OpenTile] = {}
    for core in cores:
        place = core.window.core.shifted(-plan.extent.x, -plan.extent.y)
        for index in _touched(place, tile_px):
            frame = Region(index[1] * tile_px, index[0] * tile_px, tile_px, tile_px)
            if awaited[index] == 1 and place.contains(frame):
                yield Tile(column=index[1], row=index[0], pixels=core.pixels[frame.slices_in(place)])
                continue
            tile = open_tiles.get(index)
            if tile is None:
                full = covered_px[index] == tile_px * tile_px
                tile = open_tiles[index] = _OpenTile(np.empty_like(blank) if full else blank.copy(), awaited[index])
            shared = place.intersection(frame)
            tile.pixels[shared.slices_in(frame)] = core.pixels[shared.slices_in(place)]
            tile.missing -= 1
            if not tile.missing:
                del open_tiles[index]
                yield Tile(column=index[1], row=index[0], pixels=tile.pixels)


def _touched(place: Region, tile_px: int) -> Iterator[TileIndex]:
    for row in range(place.y // tile_px, (place.bottom - 1) // tile_px + 1):
        for column in range(place.x // tile_px, (place.right - 1) // tile_px + 1):
            yield row, column


def _contributions(plan: Plan, tile_px: int) -> tuple[dict[TileIndex, int], dict[TileIndex, int]]:
    """For each tile, how many cores touch it and how many of its px they cover."""
    awaited: dict[TileIndex, int] = {}
    covered_px: dict[TileIndex, int] = {}
    for window in plan.windows:
        place = window.core.shifted(-plan.extent.x, -plan.extent.y)
        for index in _touched(place, tile_px):
            frame = Region(index[1] * tile_px, index[0] * tile_px, tile_px, tile_px)
            awaited[index] = awaited.get(index, 0) + 1
            covered_px[index] = covered_px.get(index, 0) + place.intersection(frame).area_px
    return awaited, covered_px
