"""The pyramidal OME-TIFF: level 0 in the first image, the lower levels as its SubIFDs, each tile encoded once.

The sink pulls. `tifffile` asks for the tiles of level 0 in raster order; to answer, the feed pulls raw tiles from the
pipeline and has them encoded and halved in the executor's threads; what is made of lower levels on the way waits in a
temporary file until level 0 is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import TiffWriter

from ..arrays import RGB, BoolImage
from ..geometry import Size
from ..storage import disk_errors
from .cascade import Cascade
from .chain import chain_levels
from .codec import make_encoder, tiff_compression
from .feed import TileFeed, default_pending
from .levels import Level, plan_levels
from .options import PyramidOptions
from .spool import TileSpool
from .tiles import Tile

UM_PER_CM = 10_000.0
CONTAINER: dict[str, Any] = {"bigtiff": True, "byteorder": "<", "ome": False, "shaped": False}


@dataclass(frozen=True, slots=True)
class PyramidReport:
    """What was written: sizes of all levels in px, largest first; bytes of the file; tiles of all levels together; and
    the SHA-256 of the file or folder, once it is known (`files.sha256_of`).

    ``blank_tiles`` of the ``tiles`` are nothing but the fill colour and share their bytes.
    """

    levels: tuple[Size, ...]
    file_bytes: int
    blank_tiles: int
    tiles: int
    sha256: str = ""


def write_pyramid(
    file: Path,
    tiles: Iterable[Tile],
    occupied: BoolImage,
    size: Size,
    mpp: tuple[float, float],
    fill: RGB,
    options: PyramidOptions,
    *,
    ome_xml: str,
    icc_profile: bytes | None,
    executor: Executor,
    on_progress: Callable[[int], None] | None = None,
    max_pending: int | None = None,
) -> PyramidReport:
    """Write a pyramidal OME-TIFF from the finished tiles of its largest level.

    Memory bound: that of `TileFeed` (raw tiles under way, encoded tiles out of order) and of `Cascade` (one row of
    tiles of each lower level), and about 150 bytes a tile of index, most of it tifffile's. Nothing grows with the
    number of px of blank tiles.

    Parameters
    ----------
    file
        Where to write; replaced without asking (`published` is what guards the final name). A temporary file of about
        a quarter of the result lies in the same folder meanwhile.
    tiles
        The occupied tiles of level 0, each exactly once and nearly in raster order (see `TileFeed`). Pulled in the
        calling thread, run to its end, and closed, also after a failure.
    occupied
        (rows, columns) of tiles of level 0; where False, the tile is nothing but ``fill`` and must not come.
    size
        Of level 0, px.
    mpp
        µm per px of level 0 along (x, y).
    fill
        Colour of blank tiles.
    options
        Tile size, compression, compatibility.
    ome_xml
        Image description of level 0, ASCII (see `ome_xml`).
    icc_profile
        Stored with each level, or None.
    executor
        Threads that encode and halve; may be shared. Not processes.
    on_progress
        Called in the calling thread with the number of occupied tiles of level 0 written so far.
    max_pending
        Raw tiles under way at once; by default twice the number of cores, at least 16.

    Raises
    ------
    OutputError
        If the file cannot be written, among others because the disk is full.
    ValueError
        If the tiles are not those that ``occupied`` declares, or come too far out of order.
    Exception
        Whatever ``tiles`` or a codec raises, unchanged. In each case no job is left running, and what lies under
        ``file`` is no valid image.
    """
    if not ome_xml.isascii():
        raise ValueError("a TIFF image description has to be ASCII")
    levels = plan_levels(size, options.tile_px, occupied)
    encode = make_encoder(options)
    blank = np.empty((options.tile_px, options.tile_px, 3), np.uint8)
    blank[:] = fill
    feed: TileFeed | None = None
    with disk_errors(file, unless=lambda error: feed is not None and error is feed.source_failure):
        with TileSpool(file.parent, levels) as spool:
            cascade = Cascade(levels, blank, encode, spool.put)
            feed = TileFeed(tiles, levels[0], cascade.finish, executor, max_pending or default_pending())
            sources: list[Callable[[int], bytes]] = [_counted(feed.encoded, on_progress)]
            sources += [partial(spool.get, number) for number in range(1, len(levels))]
            with contextlib.closing(feed), TiffWriter(file, **CONTAINER) as tiff:
                for number, (level, source) in enumerate(zip(levels, sources, strict=True)):
                    tags = _tags(number, len(levels), mpp, ome_xml, icc_profile) | tiff_compression(options)
                    tiff.write(_payloads(level.occupied, encode(blank), source), **_layout(level), **tags)
                    if number == 0:
                        feed.finish()
                tiff.filehandle.flush()  # where this fails on closing, TiffWriter says nothing
        if options.openslide_compatible:
            chain_levels(file)
        file_bytes = file.stat().st_size
    tile_count = sum(level.occupied.size for level in levels)
    occupied_count = sum(int(level.occupied.sum()) for level in levels)
    return PyramidReport(tuple(level.size for level in levels), file_bytes, tile_count - occupied_count, tile_count)


def _payloads(occupied: BoolImage, blank: bytes, encoded: Callable[[int], bytes]) -> Iterator[tuple[bytes, int]]:
    """The tiles of one level in raster order, each as (bytes to append, byte count), as tifffile takes them.

    The offset that tifffile notes for a tile is where the file ends before its bytes are appended. A blank tile that
    appends nothing thus has the offset of whatever is appended next; so the last of each run of blank tiles appends
    the encoded blank tile, and the whole run shares it. No tile has a byte count of 0.
    """
    flat = occupied.tobytes()
    last = len(flat) - 1
    for index, is_occupied in enumerate(flat):
        if is_occupied:
            data = encoded(index)
            yield data, len(data)
        else:
            ends_run = index == last or flat[index + 1]
            yield blank if ends_run else b"", len(blank)


def _counted(encoded: Callable[[int], bytes], on_progress: Callable[[int], None] | None) -> Callable[[int], bytes]:
    if on_progress is None:
        return encoded
    done = count(1)

    def encoded_and_told(index: int) -> bytes:
        data = encoded(index)
        on_progress(next(done))
        return data

    return encoded_and_told


def _layout(level: Level) -> dict[str, Any]:
    return {
        "shape": (level.size.height, level.size.width, 3),
        "dtype": "uint8",
        "tile": (level.tile_px, level.tile_px),
        "photometric": "rgb",
    }


def _tags(
    number: int, level_count: int, mpp: tuple[float, float], ome_xml: str, icc_profile: bytes | None
) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` that differ between the levels, or say what the pixels mean."""
    tags: dict[str, Any] = {
        "metadata": None,
        "software": _software(),
        "resolution": tuple(UM_PER_CM / (um * 2**number) for um in mpp),
        "resolutionunit": "CENTIMETER",
        "iccprofile": icc_profile,
    }
    if number > 0:
        return tags | {"subfiletype": 1}
    if level_count > 1:  # readers stumble over an empty SubIFDs tag
        tags["subifds"] = level_count - 1
    return tags | {"description": ome_xml}


def _software() -> str:
    try:
        return f"wsi2ihc {version('wsi2ihc')}"
    except PackageNotFoundError:
        return "wsi2ihc"
