"""What the TIFF tags of a slide say: where its tiles lie, which are missing, how large its pixels are.

OpenSlide hides these. They are read once, when a slide is opened, with tifffile; nothing here decodes pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..geometry import Region, Size

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

logger = logging.getLogger(__name__)

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 512
"""Slides have a dozen; a chain of IFDs longer than this is damage or a z-stack, and is not followed."""

_HEADER_BYTES = 8

_UNIT_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit to µm: inch and cm (TIFF 6.0), mm and µm (as tifffile and tiffslide read them)."""


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Where the segments (tiles, or strips as tiles of full width) of one page lie in the file.

    size:         size of the page in px
    tile:         size of one segment in px
    tiled:        the segments are tiles, of one size and padded at the edges; else they are strips
    offsets:      (rows, columns) int64, bytes from the start of the file
    byte_counts:  (rows, columns) int64; 0 where the segment is missing
    compression:  TIFF tag 259
    photometric:  TIFF tag 262
    samples:      samples per pixel
    jpeg_tables:  TIFF tag 347, shared by all tiles, or None
    predictor:    TIFF tag 317
    plain:        samples are unsigned and of 8 bits, and each segment is a stream of its own
    planes:       the tables of the single samples, where these are stored apart; else empty
    suspect:      (rows, columns) bool, segments whose place in the file cannot be right; None where all can
    shared:       (rows, columns) bool, segments that are other segments as well; None where none is
    """

    size: Size
    tile: Size
    tiled: bool
    offsets: npt.NDArray[np.int64]
    byte_counts: npt.NDArray[np.int64]
    compression: int
    photometric: int
    samples: int
    jpeg_tables: bytes | None
    predictor: int = 1
    plain: bool = True
    planes: tuple[TileTable, ...] = ()
    suspect: npt.NDArray[np.bool_] | None = None
    shared: npt.NDArray[np.bool_] | None = None

    @property
    def missing(self) -> int:
        """How many segments the file does not hold."""
        return int(self.byte_counts.size - np.count_nonzero(self.byte_counts))

    def tile_range(self, region: Region) -> tuple[range, range]:
        """Rows and columns of the segments that ``region`` (px of this page, inside it) touches."""
        return (
            range(region.y // self.tile.height, -(-region.bottom // self.tile.height)),
            range(region.x // self.tile.width, -(-region.right // self.tile.width)),
        )

    def tile_region(self, row: int, column: int) -> Region:
        """Where the segment lies, in px of this page, padding left out."""
        x, y = column * self.tile.width, row * self.tile.height
        return Region(x, y, min(self.tile.width, self.size.width - x), min(self.tile.height, self.size.height - y))

    def flagged(self, region: Region) -> list[tuple[Region, bool]]:
        """The suspect segments (True) and shared ones (False) that ``region`` touches: where they lie in the page."""
        rows, columns = self.tile_range(region)
        part = np.s_[rows.start : rows.stop, columns.start : columns.stop]
        return [
            (self.tile_region(rows[row], columns[column]), kind)
            for flags, kind in ((self.suspect, True), (self.shared, False))
            if flags is not None
            for row, column in np.argwhere(flags[part]).tolist()
        ]

    def is_blank(self, region: Region) -> bool:
        """Whether every segment that ``region`` (px of this page) touches is missing; true outside the page."""
        region = region.intersection(Region(0, 0, self.size.width, self.size.height))
        if region.is_empty:
            return True
        rows, columns = self.tile_range(region)
        return not self.byte_counts[rows.start : rows.stop, columns.start : columns.stop].any()


@dataclass(frozen=True, slots=True)
class TiffFacts:
    """What the tags of a TIFF slide say.

    tables:        of all pages, SubIFDs included; planar pages are left out
    level_sizes:   sizes of the first series' levels as tifffile sees them, SubIFDs included
    bits:          bits per sample of the first page
    samples:       samples per pixel of the first page
    photometric:   TIFF tag 262 of the first page
    has_alpha:     the first page has an alpha sample (four samples, of which TIFF may not say what the last is)
    premultiplied: its colours are already multiplied by alpha
    tag_mpp:       µm per px from the resolution tags of the first page, whatever they say; None without tags
    description:   ImageDescription of the first page, "" if there is none
    icc_profile:   tag 34675 of the first page, or None
    """

    tables: tuple[TileTable, ...]
    level_sizes: tuple[Size, ...]
    bits: int
    samples: int
    photometric: int
    has_alpha: bool
    premultiplied: bool
    tag_mpp: tuple[float, float] | None
    description: str
    icc_profile: bytes | None


def is_tiff(path: Path) -> bool:
    """Whether the file starts as a TIFF or BigTIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_tiff_facts(path: Path) -> TiffFacts | None:
    """The facts of a local file, or None where it is no TIFF or tifffile cannot follow it."""
    if not is_tiff(path):
        return None
    from tifffile import TiffFile

    with quiet_tifffile():
        try:
            with TiffFile(path) as tiff:
                return tiff_facts(tiff)
        # tifffile meets damaged headers with many kinds of exceptions; this pass is optional, the reader decides.
        except Exception as error:
            logger.debug("%s: tags not understood (%s)", path.name, error)
            return None


def tiff_facts(tiff: TiffFile) -> TiffFacts:
    """The facts of an open file.

    Raises
    ------
    Exception
        Of nearly any kind, where the file is damaged.
    """
    first = tiff.pages.first
    series = tiff.series[0]
    axes = series.axes
    sizes = tuple(Size(level.shape[axes.index("X")], level.shape[axes.index("Y")]) for level in series.levels)
    profile = first.tags.valueof(34675)
    extra = [int(kind) for kind in first.extrasamples]
    return TiffFacts(
        tables=tuple(table for page in _pages(tiff) if (table := tile_table(page)) is not None),
        level_sizes=sizes,
        bits=int(first.bitspersample),
        samples=int(first.samplesperpixel),
        photometric=int(first.photometric),
        has_alpha=bool(extra) and first.samplesperpixel == 4,
        # 2 is "unassociated"; libtiff, and so OpenSlide, takes "unspecified" for associated as well.
        premultiplied=extra[:1] not in ([], [2]),
        tag_mpp=_tag_mpp(first),
        description=first.description or "",
        icc_profile=bytes(profile) if isinstance(profile, bytes) else None,
    )


def _pages(tiff: TiffFile) -> Iterator[TiffPage]:
    """The pages of the first series' levels, SubIFDs included, then the others; each once."""
    from tifffile import TiffPage

    levels = (level.keyframe for level in tiff.series[0].levels)
    seen: set[int] = set()
    for page in itertools.chain([tiff.pages.first], levels, itertools.islice(tiff.pages, _MAX_PAGES)):
        if isinstance(page, TiffPage) and page.offset not in seen:
            seen.add(page.offset)
            yield page


def tile_table(page: TiffPage) -> TileTable | None:
    """The table of one page; None where it has depth, or not a segment for each part of its size."""
    if page.planarconfig not in (1, 2) or page.imagedepth != 1:
        return None
    size = Size(int(page.imagewidth), int(page.imagelength))
    if page.is_tiled:
        tile = Size(int(page.tilewidth), int(page.tilelength))
    else:
        tile = Size(size.width, min(size.height, max(1, int(page.rowsperstrip))))
    if tile.width < 1 or tile.height < 1:
        return None
    rows, columns = -(-size.height // tile.height), -(-size.width // tile.width)
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    count = rows * columns * planes
    if len(page.dataoffsets) < count or len(page.databytecounts) < count:
        return None
    offsets = np.asarray(page.dataoffsets[:count], np.int64).reshape(planes, rows, columns)
    byte_counts = np.asarray(page.databytecounts[:count], np.int64).reshape(planes, rows, columns)
    flags = _misplaced(offsets.ravel(), byte_counts.ravel(), int(page.parent.filehandle.size))
    suspect, shared = (np.any(flag.reshape(planes, rows, columns), axis=0) for flag in flags)
    whole = TileTable(
        size=size,
        tile=tile,
        tiled=bool(page.is_tiled),
        offsets=offsets[0],
        byte_counts=byte_counts.min(0),
        compression=int(page.compression),
        photometric=int(page.photometric),
        samples=int(page.samplesperpixel),
        jpeg_tables=page.jpegtables,
        predictor=int(page.predictor),
        plain=_is_plain(page),
        suspect=suspect if np.any(suspect) else None,
        shared=shared if np.any(shared) else None,
    )
    if planes == 1:
        return whole
    single = (
        dataclasses.replace(whole, offsets=offsets[plane], byte_counts=byte_counts[plane], samples=1)
        for plane in range(planes)
    )
    return dataclasses.replace(whole, planes=tuple(single))


def _is_plain(page: TiffPage) -> bool:
    # NDPI has the JPEG header apart from the tiles, of which tifffile makes up the table.
    return page.bitspersample == 8 and page.sampleformat == 1 and page.fillorder == 1 and not page.jpegheader


def _misplaced(
    offsets: npt.NDArray[np.int64], byte_counts: npt.NDArray[np.int64], file_bytes: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which segments lie in the file's header, beyond its end or partly over the next one, and which are the same.

    A tile of background may be stored once and named wherever it occurs, so that the same place twice is no proof of
    damage. A segment without offset but with bytes is damage; one without bytes is missing.
    """
    stored = byte_counts > 0
    suspect = (byte_counts < 0) | (stored & ((offsets < _HEADER_BYTES) | (offsets > file_bytes - byte_counts)))
    shared = np.zeros_like(suspect)
    order = np.flatnonzero(stored & ~suspect)
    order = order[np.lexsort((byte_counts[order], offsets[order]))]
    starts, ends = offsets[order], offsets[order] + byte_counts[order]
    same = (starts[1:] == starts[:-1]) & (ends[1:] == ends[:-1])
    overlap = (starts[1:] < ends[:-1]) & ~same
    for flags, pairs in ((suspect, overlap), (shared, same)):
        flags[order[1:][pairs]] = True
        flags[order[:-1][pairs]] = True
    return suspect, shared


def _tag_mpp(page: TiffPage) -> tuple[float, float] | None:
    unit_um = _UNIT_UM.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if unit_um is None or x is None or y is None:
        return None
    values = tuple(_rational(value) for value in (x, y))
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return unit_um / values[0], unit_um / values[1]


def _rational(value: Any) -> float:
    if isinstance(value, tuple):
        return value[0] / value[1] if value[1] else math.nan
    return float(value)


class _ToDebug(logging.Filter):
    """Passes tifffile's complaints on at debug level, and stops them there."""

    def filter(self, record: logging.LogRecord) -> bool:
        logger.debug("tifffile: %s", record.getMessage())
        return False


_filter = _ToDebug()
_filter_lock = threading.Lock()
_filter_users = 0


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[None]:
    """While any thread is inside, tifffile's log records go to this module's logger at debug level only.

    tifffile logs damage that it survives as warnings or errors, which Python prints where logging is not set up.
    """
    global _filter_users
    target = logging.getLogger("tifffile")
    with _filter_lock:
        _filter_users += 1
        target.addFilter(_filter)
    try:
        yield
    finally:
        with _filter_lock:
            _filter_users -= 1
            if _filter_users == 0:
                target.removeFilter(_filter)
