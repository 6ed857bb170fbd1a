"""Verify a finished output before it is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tifffile import TiffFile, TiffPage

from ..errors import OutputError
from ..geometry import RGBImage, Size
from .levels import tile_grid
from .ome_tiff import chain_problem


def read_level(file: Path, level: int) -> RGBImage:
    """Read one level into memory, (height, width, 3) uint8 RGB."""
    if file.is_dir():
        from .ome_zarr import open_level

        return np.ascontiguousarray(np.moveaxis(np.asarray(open_level(file, level)[:], np.uint8), 0, 2))
    with TiffFile(file) as tiff:
        return np.asarray(tiff.series[0].levels[level].asarray(), np.uint8)


def read_overview(file: Path, max_px: int) -> RGBImage:
    """Read the whole image with no side longer than ``max_px``, (height, width, 3) uint8 RGB.

    The smallest level that is at least as large is resized, so that at most twice ``max_px`` of each side is in
    memory. A smaller image is not resized.
    """
    sizes = _longest_sides(file)
    level = max((number for number, side in enumerate(sizes) if side >= max_px), default=0)
    pixels = read_level(file, level)
    scale = max_px / sizes[level]
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _longest_sides(file: Path) -> list[int]:
    if file.is_dir():
        from .ome_zarr import count_levels, open_level

        return [max(open_level(file, number).shape[1:]) for number in range(count_levels(file))]
    with TiffFile(file) as tiff:
        return [max(level.shape[:2]) for level in tiff.series[0].levels]


def validate(file: Path, levels: Sequence[Size], *, openslide_compatible: bool = False) -> None:
    """Reopen a pyramid and check that it is complete.

    The levels must have the given sizes, every tile must have bytes inside the file, and the last tile of each level
    must be decodable. With ``openslide_compatible``, OpenSlide must see the same levels.

    Raises
    ------
    OutputError
        If a check fails.
    """
    try:
        with TiffFile(file) as tiff:
            problem = _first_problem(tiff, levels)
        if not problem and openslide_compatible:
            problem = chain_problem(file, levels)
    # any error of a TIFF reader or codec means that the file cannot be read
    except Exception as error:
        raise OutputError(f"{file.name} cannot be read back after writing ({error}): run again") from error
    if problem:
        raise OutputError(f"{file.name} did not read back as it was written ({problem}): run again")


def _first_problem(tiff: TiffFile, levels: Sequence[Size]) -> str:
    pages = [tiff.pages.first, *(tiff.pages.first.pages or ())]
    if len(pages) != len(levels):
        return f"{len(pages)} levels instead of {len(levels)}"
    for number, (page, size) in enumerate(zip(pages, levels, strict=True)):
        assert isinstance(page, TiffPage)
        if page.shape != (size.height, size.width, 3):
            return f"level {number} has shape {page.shape}"
        rows, columns = tile_grid(size, page.tilewidth)
        starts, lengths = np.asarray(page.dataoffsets), np.asarray(page.databytecounts)
        if not starts.size == lengths.size == rows * columns:
            return f"level {number} has {starts.size} tiles instead of {rows * columns}"
        if lengths.min() < 1 or (starts + lengths).max() > tiff.filehandle.size:
            return f"level {number} has tiles without bytes"
        last = rows * columns - 1
        tiff.filehandle.seek(int(starts[last]))
        data = tiff.filehandle.read(int(lengths[last]))
        pixels, _, _ = page.decode(data, last)  # looking up page.decode may move the file position, so not earlier
        if pixels is None:
            return f"the last tile of level {number} is empty"
    return ""
