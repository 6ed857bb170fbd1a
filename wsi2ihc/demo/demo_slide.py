"""Write the synthetic slide as an Aperio-style JPEG pyramid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import tifffile

from ..atomic_files import published
from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OptionError, OutputError
from ..geometry import Region, RGBImage, Size
from .histology import Structures
from .render import paint, synthetic_structures

_log = logging.getLogger(__name__)

MPP = 0.5
MAGNIFICATION = 20
TITLE = "wsi2ihc synthetic H&E"

TILE_PX = 256
JPEG_QUALITY = 85
LEVEL_FACTOR = 4
BAND_PX = 512
BLOCK_PX = 1024
WORKERS = 2  # two blocks of 1024×512 px in progress take about 200 MB, for slides of any size

MIN_SIDE_PX = 256

STAGE = "making the slide"


def make_demo_slide(
    path: Path, *, size: tuple[int, int] = (8000, 6000), seed: int = 1, on_progress: ProgressCallback | None = None
) -> None:
    """Write a synthetic H&E slide: colon, a biopsy, fat, background and a pen stroke, at 0.5 µm/px.

    Memory is bounded by two blocks of 1024×512 px, one band of ``width`` × 512 px and the lower levels (3 byte per
    16 px of the slide). The same size and seed give the same file, byte for byte, with the same libraries.

    Parameters
    ----------
    path
        File to write (``.tiff`` or ``.svs``), atomically; an existing one is replaced.
    size
        Width and height in px, each at least 256. Cells keep their size; the pieces of tissue scale with the slide.
    seed
        Random seed.
    on_progress
        Called after each band, from the calling thread.

    Raises
    ------
    OptionError
        If the size is too small for a slide.
    OutputError
        If the file cannot be written.
    """
    structures = structures_of(size, seed)
    write_slide_file(path, structures.layout.size, _painted(structures, on_progress or silent), TITLE)
    _log.info("wrote %s: %s×%s px, %s nuclei", path.name, *size, len(structures.nuclei.values))


def structures_of(size: tuple[int, int], seed: int) -> Structures:
    """Draw the structures of a slide of ``size`` (width, height), or raise `OptionError` if it is too small."""
    if min(size) < MIN_SIDE_PX:
        raise OptionError(f"a demo slide needs at least {MIN_SIDE_PX} px each way, not {size[0]}×{size[1]}")
    return synthetic_structures(Size(*size), seed)


def write_slide_file(path: Path, size: Size, bands: Iterator[RGBImage], title: str) -> None:
    """Write bands of pixels, at 0.5 µm/px, as a pyramid in the layout of Aperio's scanners.

    The bands, (`BAND_PX`, width, 3) each, come from top to bottom; the last one may be lower. An existing file is
    replaced, and an `OutputError` is raised if the file cannot be written. The title is ASCII.
    """
    with published(path, overwrite=True) as partial:
        try:
            with tifffile.TiffWriter(partial, ome=False, shaped=False) as writer:
                _write_levels(writer, bands, size, title)
        except OSError as error:
            raise OutputError(f"{path}: the demo slide cannot be written ({error.strerror or error})") from error


def _painted(structures: Structures, on_progress: ProgressCallback) -> Iterator[RGBImage]:
    size = structures.layout.size
    with ThreadPoolExecutor(WORKERS) as workers:
        for y in range(0, size.height, BAND_PX):
            height = min(BAND_PX, size.height - y)
            blocks = [Region(x, y, min(BLOCK_PX, size.width - x), height) for x in range(0, size.width, BLOCK_PX)]
            band = np.concatenate(list(workers.map(lambda block: paint(structures, block), blocks)), axis=1)
            on_progress(Progress(STAGE, (y + height) * size.width, size.area_px))
            yield band


def _write_levels(writer: tifffile.TiffWriter, bands: Iterator[RGBImage], size: Size, title: str) -> None:
    """Write level 0, the thumbnail that readers expect as the second image, and two lower levels."""
    # ASCII, as the TIFF specification requires; readers recognize the layout by its first word
    head = f"Aperio layout, {title} (no scanner, no patient)\r\n{size.width}x{size.height}"
    storage = f"({TILE_PX}x{TILE_PX}) JPEG/YCC Q={JPEG_QUALITY}"
    reduced: list[RGBImage] = []

    def reduce_bands() -> Iterator[RGBImage]:
        for band in bands:
            reduced.append(_reduced(band))
            # yielded last, since tifffile stops after the last tile
            yield band

    properties = f"AppMag = {MAGNIFICATION}|MPP = {MPP:.4f}|Title = {title}"
    _write_level(writer, reduce_bands(), (size.height, size.width, 3), 0, f"{head} {storage}|{properties}")
    levels = [np.concatenate(reduced)]
    levels.append(_reduced(levels[0]))
    heads = [f"{head} -> {level.shape[1]}x{level.shape[0]}" for level in levels]
    writer.write(
        levels[-1],
        photometric="rgb",
        compression="deflate",
        description=f"{heads[-1]} - ",
        metadata=None,
        software="wsi2ihc",
    )
    for number, (level, level_head) in enumerate(zip(levels, heads, strict=True), start=1):
        _write_level(writer, iter([level]), level.shape, number, f"{level_head} {storage}")


def _reduced(image: RGBImage) -> RGBImage:
    """Reduce an image to a quarter of its width and height, rounded down, by averaging."""
    height, width = image.shape[0] // LEVEL_FACTOR, image.shape[1] // LEVEL_FACTOR
    if not height:
        return np.empty((0, width, 3), np.uint8)
    cropped = image[: height * LEVEL_FACTOR, : width * LEVEL_FACTOR]
    return np.asarray(cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _write_level(
    writer: tifffile.TiffWriter, bands: Iterator[RGBImage], shape: tuple[int, ...], number: int, description: str
) -> None:
    per_cm = 1e4 / (MPP * LEVEL_FACTOR**number)
    writer.write(
        _tiles(bands),
        shape=shape,
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": JPEG_QUALITY},
        subsampling=(2, 2),
        subfiletype=0,
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        description=description,
        metadata=None,
        software="wsi2ihc",
    )


def _tiles(bands: Iterator[RGBImage]) -> Iterator[RGBImage]:
    """Yield the tiles of all bands, row by row; only the last band may have partial tiles."""
    for band in bands:
        right, bottom = -band.shape[1] % TILE_PX, -band.shape[0] % TILE_PX
        padded = np.pad(band, ((0, bottom), (0, right), (0, 0)), mode="edge")
        for y in range(0, padded.shape[0], TILE_PX):
            for x in range(0, padded.shape[1], TILE_PX):
                yield np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX])
