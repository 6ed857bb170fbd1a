"""Write pyramidal OME-TIFF: level 0 in the first image, lower levels in its SubIFDs.

`TileFeed` is the bounded buffer between pipeline and writer, which brings tiles into the order of the file.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tifffile import TiffWriter

from ..atomic_files import disk_errors
from ..geometry import RGB, BoolImage, Size
from .downsample import Cascade
from .encode import PyramidOptions, TileSpool, make_encoder, tiff_compression
from .levels import PyramidLevel, Tile, plan_levels

DISORDER_PX = 16384  # largest distance, in rows of px, of a tile below the first missing one


def default_pending() -> int:
    """Return a number of tiles in flight for which no core waits for the thread that reads and writes."""
    return max(16, 2 * (os.cpu_count() or 1))


class TileFeed:
    """Consumes tiles, encodes them in the executor, and returns the encoded bytes in any order.

    Ordering contract: each occupied tile comes exactly once, no other tile comes, and none comes more than
    `DISORDER_PX` (at least two rows of tiles) below the first missing one. Otherwise `ValueError` is raised.

    Memory bound: ``max_pending`` tiles of raw pixels (16 of 0.75 MiB by default, more with more than 8 cores), and the
    encoded bytes of tiles that came early, at most those of the rows that the ordering contract spans.

    The first failure, of a job or of the source, is raised; no tile is consumed after it. The source is consumed in the
    thread that calls `encoded`, and closed by `close` if possible; ``finish`` encodes a tile in the threads of the
    executor, which may be shared.
    """

    def __init__(
        self,
        tiles: Iterable[Tile],
        level: PyramidLevel,
        finish: Callable[[Tile], bytes],
        executor: Executor,
        max_pending: int,
    ) -> None:
        self._source: Iterator[Tile] = iter(tiles)
        self._level = level
        self._finish = finish
        self._executor = executor
        self._max_pending = max_pending
        self._rows_ahead = max(2, DISORDER_PX // level.tile_px)
        self._missing = bytearray(level.occupied.tobytes())  # one byte a tile, in raster order
        self._first_missing = self._missing.find(1)
        self._jobs: dict[int, Future[bytes]] = {}
        self._pending: deque[Future[bytes]] = deque()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self.source_failure: Exception | None = None

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an occupied tile by its index in raster order, once."""
        while True:
            job = self._jobs.get(index)
            if job is not None and job.done():
                break
            while self._pending and self._pending[0].done():
                self._pending.popleft()
            if self._first_missing >= 0 and len(self._pending) < self._max_pending:
                self._submit(self._pull())
            elif job is not None:
                break
            else:
                self._result(self._pending.popleft())
        data = self._result(job)
        del self._jobs[index]
        return data

    def finish(self) -> None:
        """Run the source to its end, which may have side effects; it must not yield another tile."""
        tile = self._next()
        if tile is not None:
            raise ValueError(f"tile ({tile.column}, {tile.row}) comes after all occupied tiles have come")

    def close(self) -> None:
        """Cancel jobs that have not started, wait for the others, and close the source."""
        # cancelled jobs are not waited for: they count as done only once a thread has taken them
        wait([job for job in self._jobs.values() if not job.cancel()])
        close_source = getattr(self._source, "close", None)
        if close_source is not None:
            close_source()

    def _next(self) -> Tile | None:
        tile: Tile | None = None
        if self._failure is None:
            try:
                tile = next(self._source, None)
            except Exception as error:
                self.source_failure = error
                self._note(error)
        if self._failure is not None:
            raise self._failure
        return tile

    def _pull(self) -> Tile:
        tile = self._next()
        if tile is None:
            row, column = divmod(self._first_missing, self._level.columns)
            raise ValueError(f"the tiles end, but tile ({column}, {row}) is occupied and has not come")
        return tile

    def _submit(self, tile: Tile) -> None:
        index = self._check(tile)
        self._missing[index] = 0
        if index == self._first_missing:
            self._first_missing = self._missing.find(1, index)
        job = self._executor.submit(self._run, tile)
        self._jobs[index] = job
        self._pending.append(job)

    def _check(self, tile: Tile) -> int:
        level, name = self._level, f"tile ({tile.column}, {tile.row})"
        if not (0 <= tile.column < level.columns and 0 <= tile.row < level.rows):
            raise ValueError(f"{name} lies outside the grid of {level.columns}×{level.rows} tiles")
        if not level.occupied[tile.row, tile.column]:
            raise ValueError(f"{name} comes, but was declared blank")
        index = tile.row * level.columns + tile.column
        if not self._missing[index]:
            raise ValueError(f"{name} comes a second time")
        first_row = self._first_missing // level.columns
        if tile.row - first_row > self._rows_ahead:
            raise ValueError(f"{name} comes too early: row {first_row} is incomplete, over {self._rows_ahead} rows up")
        if tile.pixels.shape != (level.tile_px, level.tile_px, 3) or tile.pixels.dtype != "u1":
            raise ValueError(f"{name} is not uint8 RGB of {level.tile_px}² px: {tile.pixels.shape} {tile.pixels.dtype}")
        return index

    def _run(self, tile: Tile) -> bytes:
        try:
            return self._finish(tile)
        except BaseException as error:
            self._note(error)
            raise

    def _result(self, job: Future[bytes]) -> bytes:
        if job.exception() is not None and self._failure is not None:
            raise self._failure
        return job.result()

    def _note(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error


SUBIFDS_TAG = 330
HEADER = struct.Struct("<2sHHHQ")  # byte order, version (43), bytes of an offset (8), 0, offset of the first image
ENTRY = struct.Struct("<HHQQ")  # tag, type, count, value or offset of the values
OFFSET = struct.Struct("<Q")


def chain_levels(file: Path) -> None:
    """Link the first image to its first SubIFD and each SubIFD to the next, in place.

    Raises `ValueError` if the file is not a little-endian BigTIFF, or has more than one image in its chain already.
    """
    with file.open("r+b") as tiff:
        order, bigtiff, _, _, first_image = HEADER.unpack(tiff.read(HEADER.size))
        if (order, bigtiff) != (b"II", 43):
            raise ValueError(f"{file.name} is not a little-endian BigTIFF")
        entries, link = _directory(tiff, first_image)
        tiff.seek(link)
        if tiff.read(OFFSET.size) != bytes(OFFSET.size):
            raise ValueError(f"{file.name} has more than one image in its chain")
        offsets = [first_image, *_subifds(tiff, entries)]
        for image, following in pairwise((*offsets, 0)):
            _, link = _directory(tiff, image)
            tiff.seek(link)
            tiff.write(OFFSET.pack(following))


def chain_problem(file: Path, levels: Sequence[Size]) -> str:
    """Describe why OpenSlide does not read all levels of a file; "" if it does."""
    import openslide

    with openslide.OpenSlide(file) as slide:
        seen = [Size(*size) for size in slide.level_dimensions]
        if seen != list(levels):
            return f"OpenSlide sees {len(seen)} levels instead of {len(levels)}"
        for number in range(len(levels)):
            slide.read_region((0, 0), number, (1, 1))
    return ""


def _directory(tiff: BinaryIO, offset: int) -> tuple[list[tuple[int, int, int]], int]:
    """Return (tag, count, value) of each entry of an image, and the position of the offset of the next image."""
    tiff.seek(offset)
    (count,) = OFFSET.unpack(tiff.read(OFFSET.size))
    entries = [ENTRY.unpack(tiff.read(ENTRY.size)) for _ in range(count)]
    return [(tag, number, value) for tag, _, number, value in entries], tiff.tell()


def _subifds(tiff: BinaryIO, entries: Sequence[tuple[int, int, int]]) -> list[int]:
    for tag, values, value in entries:
        if tag == SUBIFDS_TAG:
            if values == 1:  # a single offset is stored in the entry itself
                return [value]
            tiff.seek(value)
            return [OFFSET.unpack(tiff.read(OFFSET.size))[0] for _ in range(values)]
    return []


UM_PER_CM = 10_000.0
CONTAINER: dict[str, Any] = {"bigtiff": True, "byteorder": "<", "ome": False, "shaped": False}


@dataclass(frozen=True, slots=True)
class PyramidReport:
    """Summary of a written pyramid."""

    levels: tuple[Size, ...]  # sizes of all levels, largest first
    file_bytes: int
    blank_tiles: int  # number of tiles that have only the fill color and share their bytes
    tiles: int  # number of tiles of all levels
    sha256: str = ""  # SHA-256 of the file or folder, once it is known (`files.sha256_of`)


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

    Memory bound: that of `TileFeed` (raw tiles in flight, encoded tiles out of order) and of `Cascade` (one row of
    tiles of each lower level), and about 150 bytes of index per tile, most of it in tifffile. Blank tiles need no
    memory for pixels.

    Parameters
    ----------
    file
        Path to write to; an existing file is replaced (`published` protects the final path). A temporary file of about
        a quarter of the result is in the same folder meanwhile.
    tiles
        The occupied tiles of level 0, each exactly once and nearly in raster order (see `TileFeed`). Consumed in the
        calling thread to the end, and closed, also after a failure.
    occupied
        (rows, columns) of tiles of level 0: False for tiles that have only the color ``fill``, which must not come.
    size, mpp
        Size of level 0 in px, and µm per px of it along (x, y).
    ome_xml
        Image description of level 0, ASCII (see `ome_xml`).
    executor
        Thread pool that encodes and halves tiles; may be shared.
    on_progress
        Called in the calling thread with the number of occupied tiles of level 0 written so far.
    max_pending
        Most raw tiles in flight; by default twice the number of cores, at least 16.

    Raises
    ------
    OutputError
        If the file cannot be written, for example because the disk is full.
    ValueError
        If the tiles differ from ``occupied``, or come too far out of order.
    Exception
        Any error of ``tiles`` or a codec, unchanged. In each case no job is left running, and ``file`` is not a valid
        image.
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
            sources: list[Callable[[int], bytes]] = [_with_progress(feed.encoded, on_progress or (lambda _: None))]
            sources += [partial(spool.get, number) for number in range(1, len(levels))]
            with contextlib.closing(feed), TiffWriter(file, **CONTAINER) as tiff:
                for number, (level, source) in enumerate(zip(levels, sources, strict=True)):
                    tags = _tags(number, level, len(levels), mpp, ome_xml, icc_profile) | tiff_compression(options)
                    tiff.write(_payloads(level.occupied, encode(blank), source), **tags)
                    if number == 0:
                        feed.finish()
                tiff.filehandle.flush()  # TiffWriter ignores an error of this on closing
        if options.openslide_compatible:
            chain_levels(file)
        file_bytes = file.stat().st_size
    tile_count = sum(level.occupied.size for level in levels)
    occupied_count = sum(int(level.occupied.sum()) for level in levels)
    return PyramidReport(tuple(level.size for level in levels), file_bytes, tile_count - occupied_count, tile_count)


def _payloads(occupied: BoolImage, blank: bytes, encoded: Callable[[int], bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield (bytes to append, byte count) for each tile of one level in raster order, as tifffile expects.

    The offset that tifffile stores for a tile is the end of the file before its bytes are appended. A blank tile that
    appends nothing thus has the offset of the next appended bytes: the last tile of each run of blank tiles appends
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


def _with_progress(encoded: Callable[[int], bytes], on_progress: Callable[[int], None]) -> Callable[[int], bytes]:
    done = count(1)

    def encoded_with_progress(index: int) -> bytes:
        data = encoded(index)
        on_progress(next(done))
        return data

    return encoded_with_progress


def _tags(
    number: int, level: PyramidLevel, level_count: int, mpp: tuple[float, float], ome_xml: str, icc: bytes | None
) -> dict[str, Any]:
    """Return the arguments of `TiffWriter.write` that describe one level."""
    tags: dict[str, Any] = {
        "shape": (level.size.height, level.size.width, 3),
        "dtype": "uint8",
        "tile": (level.tile_px, level.tile_px),
        "photometric": "rgb",
        "metadata": None,
        "software": f"wsi2ihc {version('wsi2ihc')}",
        "resolution": tuple(UM_PER_CM / (um * 2**number) for um in mpp),
        "resolutionunit": "CENTIMETER",
        "iccprofile": icc,
    }
    if number > 0:
        return tags | {"subfiletype": 1}
    if level_count > 1:  # some readers fail on an empty SubIFDs tag
        tags["subifds"] = level_count - 1
    return tags | {"description": ome_xml}
