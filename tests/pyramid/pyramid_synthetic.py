"""Synthetic images, the pyramid that they should become (in plain NumPy), and a short way to write one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import ImageDescription, PyramidOptions, PyramidReport, Tile, ome_xml, write_pyramid

FILL = (243, 240, 246)
MPP = (0.25, 0.2501)
PATCHES = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "DAB brown": (121, 75, 44),
}


def smooth_image(size: Size, seed: int = 0) -> np.ndarray:
    """Soft color gradients with a little texture: what JPEG keeps well."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size.height, 0 : size.width].astype(np.float32)
    waves = [128 + 100 * np.sin(x / rng.uniform(40, 90) + y / rng.uniform(40, 90) + shift) for shift in range(3)]
    return (np.stack(waves, axis=-1) + rng.normal(size=(size.height, size.width, 1)) * 2).clip(0, 255).astype(np.uint8)


def patch_image(side_px: int = 128) -> np.ndarray:
    """The six colors of `PATCHES` from left to right, in squares."""
    squares = [np.full((side_px, side_px, 3), color, np.uint8) for color in PATCHES.values()]
    return np.concatenate(squares, axis=1)


def halved(image: np.ndarray) -> np.ndarray:
    """Rounded 2×2 means; an odd last row or column counts twice."""
    even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge").astype(np.uint16)
    return ((even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2] + 2) // 4).astype(np.uint8)


def expected_levels(image: np.ndarray, tile_px: int) -> list[np.ndarray]:
    levels = [image]
    while max(levels[-1].shape[:2]) > tile_px:
        levels.append(halved(levels[-1]))
    return levels


def grid_of(image: np.ndarray, tile_px: int) -> tuple[int, int]:
    return -(-image.shape[0] // tile_px), -(-image.shape[1] // tile_px)


def blank_out(image: np.ndarray, occupied: np.ndarray, tile_px: int) -> np.ndarray:
    """The image with `FILL` where tiles are not occupied."""
    mask = np.kron(occupied, np.ones((tile_px, tile_px), bool))[: image.shape[0], : image.shape[1]]
    return np.where(mask[..., None], image, np.array(FILL, np.uint8))


def cut(image: np.ndarray, tile_px: int, occupied: np.ndarray) -> Iterator[Tile]:
    """The occupied tiles in raster order; outside the image they hold nonsense, which must never show."""
    for row, column in zip(*np.nonzero(occupied), strict=True):
        pixels = np.random.default_rng(7).integers(0, 256, (tile_px, tile_px, 3), dtype=np.uint8)
        part = image[row * tile_px : (row + 1) * tile_px, column * tile_px : (column + 1) * tile_px]
        pixels[: part.shape[0], : part.shape[1]] = part
        yield Tile(int(column), int(row), pixels)


def write(
    file: Path,
    image: np.ndarray,
    options: PyramidOptions | None = None,
    occupied: np.ndarray | None = None,
    *,
    tiles: object = None,
    threads: int = 2,
    icc_profile: bytes | None = None,
    **others: object,
) -> PyramidReport:
    """`write_pyramid` with everything filled in."""
    options = options or PyramidOptions()
    size = Size(image.shape[1], image.shape[0])
    if occupied is None:
        occupied = np.ones(grid_of(image, options.tile_px), bool)
    with ThreadPoolExecutor(threads) as executor:
        return write_pyramid(
            file,
            cut(image, options.tile_px, occupied) if tiles is None else tiles,
            occupied,
            size,
            MPP,
            FILL,
            options,
            ome_xml=ome_xml(ImageDescription(file.name, size, MPP, magnification=40)),
            icc_profile=icc_profile,
            executor=executor,
            **others,
        )
