"""Write the synthetic slide as an Aperio-style JPEG pyramid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OptionError, OutputError
from ..geometry import Region, RGBImage, Size
from ..storage import published
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
WORKERS = 2
"""Two blocks of 1024×512 px in progress take about 200 MB, for slides of any size."""

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
    width, height = size
    if min(width, height) < MIN_SIDE_PX:
        raise OptionError(f"a demo slide needs at least {MIN_SIDE_PX} px each way, not {width}×{height}")
    structures = synthetic_structures(Size(width, height), seed)
    with ThreadPoolExecutor(WORKERS) as workers:
        write_slide_file(
            path, structures.layout.size, _painted(structures, workers, on_progress or silent), workers, TITLE
        )
    _log.info("wrote %s: %s×%s px, %s nuclei", path.name, width, height, len(structures.nuclei.values))


def write_slide_file(path: Path, size: Size, bands: Iterator[RGBImage], workers: Executor, title: str) -> None:
    """Write bands of pixels, at 0.5 µm/px, as a pyramid in the layout of Aperio's scanners.

    Parameters
    ----------
    path
        File to write, atomically; an existing one is replaced.
    size
        Size of all bands together.
    bands
        Bands from top to bottom, (`BAND_PX`, width, 3) each; the last one may be smaller.
    workers
        Threads that encode tiles.
    title
        Title in the description of the file, in ASCII.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with published(path, overwrite=True) as partial:
        try:
            with tifffile.TiffWriter(partial, ome=False, shaped=False) as writer:
                _write_levels(writer, bands, size, workers, title)
        except OSError as error:
            raise OutputError(f"{path}: the demo slide cannot be written ({error.strerror or error})") from error


def _painted(structures: Structures, workers: Executor, on_progress: ProgressCallback) -> Iterator[RGBImage]:
    size = structures.layout.size
    for y in range(0, size.height, BAND_PX):
        band = _paint_band(structures, y, workers)
        on_progress(Progress(STAGE, min(y + BAND_PX, size.height) * size.width, size.area_px))
        yield band


def _write_levels(
    writer: tifffile.TiffWriter, bands: Iterator[RGBImage], size: Size, workers: Executor, title: str
) -> None:
    reduced: list[RGBImage] = []

    def reduce_bands() -> Iterator[RGBImage]:
        for band in bands:
            reduced.append(_reduced(band))
            # yielded last, since tifffile stops after the last tile
            yield band

    _write_level(writer, reduce_bands(), size, 0, _description(size, 0, size, title), workers)
    levels = [np.concatenate(reduced)]
    levels.append(_reduced(levels[0]))
    _write_thumbnail(writer, levels[-1], size, title)
    for number, level in enumerate(levels, start=1):
        small = Size(level.shape[1], level.shape[0])
        _write_level(writer, iter([level]), small, number, _description(small, number, size, title), workers)


def _paint_band(structures: Structures, y: int, workers: Executor) -> RGBImage:
    """Paint all columns of the slide for up to `BAND_PX` rows from ``y``."""
    size = structures.layout.size
    height = min(BAND_PX, size.height - y)
    blocks = [Region(x, y, min(BLOCK_PX, size.width - x), height) for x in range(0, size.width, BLOCK_PX)]
    return np.concatenate(list(workers.map(lambda block: paint(structures, block), blocks)), axis=1)


def _reduced(image: RGBImage) -> RGBImage:
    """Reduce an image to a quarter of its width and height, rounded down, by averaging."""
    height, width = image.shape[0] // LEVEL_FACTOR, image.shape[1] // LEVEL_FACTOR
    if not height:
        return np.empty((0, width, 3), np.uint8)
    cropped = image[: height * LEVEL_FACTOR, : width * LEVEL_FACTOR]
    return np.asarray(cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _write_level(
    writer: tifffile.TiffWriter,
    bands: Iterator[RGBImage],
    level: Size,
    number: int,
    description: str,
    workers: Executor,
) -> None:
    per_cm = 1e4 / (MPP * LEVEL_FACTOR**number)
    writer.write(
        _encoded_tiles(bands, workers),
        shape=(level.height, level.width, 3),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression="jpeg",
        subsampling=(2, 2),
        subfiletype=0,
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        description=description,
        metadata=None,
        software="wsi2ihc",
    )


def _write_thumbnail(writer: tifffile.TiffWriter, image: RGBImage, size: Size, title: str) -> None:
    """Write the overview in strips; readers expect it as the second image of this layout."""
    small = Size(image.shape[1], image.shape[0])
    writer.write(
        image,
        photometric="rgb",
        compression="deflate",
        description=f"{_head(size, title)} -> {small.width}x{small.height} - ",
        metadata=None,
        software="wsi2ihc",
    )


def _encoded_tiles(bands: Iterator[RGBImage], workers: Executor) -> Iterator[bytes]:
    """Yield the JPEG streams of the tiles of all bands, row by row; only the last band may have partial tiles."""
    for band in bands:
        right, bottom = -band.shape[1] % TILE_PX, -band.shape[0] % TILE_PX
        padded = np.pad(band, ((0, bottom), (0, right), (0, 0)), mode="edge")
        tiles = [
            padded[y : y + TILE_PX, x : x + TILE_PX]
            for y in range(0, padded.shape[0], TILE_PX)
            for x in range(0, padded.shape[1], TILE_PX)
        ]
        yield from workers.map(_encoded, tiles)


def _encoded(tile: RGBImage) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile),
            level=JPEG_QUALITY,
            colorspace="RGB",
            outcolorspace="YCBCR",
            subsampling="420",
        )
    )


def _head(size: Size, title: str) -> str:
    # ASCII, as the TIFF specification requires
    return f"Aperio layout, {title} (no scanner, no patient)\r\n{size.width}x{size.height}"


def _description(level: Size, number: int, size: Size, title: str) -> str:
    """Return the ImageDescription; readers recognize the layout by its first word and read ``AppMag`` and ``MPP``."""
    storage = f"({TILE_PX}x{TILE_PX}) JPEG/YCC Q={JPEG_QUALITY}"
    if number == 0:
        return f"{_head(size, title)} {storage}|AppMag = {MAGNIFICATION}|MPP = {MPP:.4f}|Title = {title}"
    return f"{_head(size, title)} -> {level.width}x{level.height} {storage}"
