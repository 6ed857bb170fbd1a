"""Metadata in TIFF tags: tile offsets, missing tiles, images and their limits."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import OptionError, UnreadableSlideError, Wsi2IhcError
from ..geometry import Region, Size
from ..text import pluralize
from .image_choice import NO_CHOICE, Choice
from .metadata import imagej_image_count, tag_factors, tag_mpp, unit_problems
from .protocol import ImageEntry, PixelKind, pixel_kind
from .slide_xml import MAX_TEXT, OmeImage, OmeXml, XmlError, is_ome_xml, parse_ome_xml
from .tiff_images import (
    MAX_DESCRIPTION,
    MAX_PAGES,
    MAX_PHILIPS_DESCRIPTION,
    TiffImage,
    check_description,
    choose,
    images_of,
    remarks_on_choice,
    size_of,
    top_pages,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

logger = logging.getLogger(__name__)


class _ToDebug(logging.Filter):
    """Filter that forwards tifffile's records at debug level, and drops the originals."""

    def filter(self, record: logging.LogRecord) -> bool:
        logger.debug("tifffile: %s", record.getMessage())
        return False


_filter = _ToDebug()
_filter_lock = threading.Lock()
_filter_users = 0


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Forward tifffile's log records to this module's logger at debug level, while any thread is in the body.

    tifffile logs recoverable damage as warnings or errors, which Python prints if logging is not set up.
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


_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Where the segments (tiles, or strips as tiles of full width) of one page lie in the file."""

    size: Size  # size of the page in px
    tile: Size  # size of one segment in px
    tiled: bool  # the segments are tiles, of one size and padded at the edges; else they are strips
    offsets: npt.NDArray[np.int64]  # (rows, columns) int64, bytes from the start of the file
    byte_counts: npt.NDArray[np.int64]  # (rows, columns) int64; 0 where the segment is missing
    compression: int  # TIFF tag 259
    photometric: int  # TIFF tag 262
    samples: int  # samples per pixel
    jpeg_tables: bytes | None  # TIFF tag 347, shared by all tiles, or None
    predictor: int = 1  # TIFF tag 317
    plain: bool = True  # samples are unsigned and of 8 bits, and each segment is a stream of its own
    planes: tuple[TileTable, ...] = ()  # the tables of the single samples, where these are stored apart; else empty
    # (rows, columns) bool, segments whose place in the file cannot be right; None where all can
    suspect: npt.NDArray[np.bool_] | None = None
    # (rows, columns) bool, segments that are other segments as well; None where none is
    shared: npt.NDArray[np.bool_] | None = None

    @property
    def missing(self) -> int:
        """Number of segments that the file does not hold."""
        return int(self.byte_counts.size - np.count_nonzero(self.byte_counts))

    def tile_range(self, region: Region) -> tuple[range, range]:
        """Return rows and columns of the segments that ``region`` (px of this page, inside it) touches."""
        return (
            range(region.y // self.tile.height, -(-region.bottom // self.tile.height)),
            range(region.x // self.tile.width, -(-region.right // self.tile.width)),
        )

    def tile_region(self, row: int, column: int) -> Region:
        """Return the position of a segment in px of this page, without padding."""
        x, y = column * self.tile.width, row * self.tile.height
        return Region(x, y, min(self.tile.width, self.size.width - x), min(self.tile.height, self.size.height - y))

    def flagged(self, region: Region) -> list[tuple[Region, bool]]:
        """List the suspect (True) and shared (False) segments that ``region`` touches, by their region of the page."""
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
        region = region.intersection(self.size.frame)
        if region.is_empty:
            return True
        rows, columns = self.tile_range(region)
        return not self.byte_counts[rows.start : rows.stop, columns.start : columns.stop].any()


@dataclass(frozen=True, slots=True)
class TiffMetadata:
    """What the tags of a TIFF slide say, all of it of the image that is the slide."""

    tables: tuple[TileTable, ...]  # of all pages, those of the slide's levels first; planar pages are left out
    level_sizes: tuple[Size, ...]  # sizes of the slide's levels, largest first, SubIFDs included
    pages: tuple[int | None, ...]  # the levels' pages: number in the file's chain, or None of a SubIFD
    kind: PixelKind  # what its pixels are
    orientation: int  # TIFF tag 274: 1 where rows and columns lie as they are shown
    tag_mpp: tuple[float, float] | None  # µm per px from the resolution tags, whatever they say; None without tags
    ome: OmeImage | None  # what the OME-XML says of the image, or None
    description: str  # ImageDescription, "" if there is none
    icc_profile: bytes | None  # tag 34675, or None
    # for each level, how many times its resolution tags are those of level 0; None where they do not say
    tag_factors: tuple[float | None, ...] = ()
    images: tuple[ImageEntry, ...] = ()  # all images of the file; empty where the format has its own layout
    choice: Choice = NO_CHOICE  # which of them a caller wanted
    problems: tuple[str, ...] = ()  # what is doubtful, one sentence each

    @property
    def has_alpha(self) -> bool:
        return self.kind.alpha in ("straight", "premultiplied")


def is_tiff(path: Path) -> bool:
    """Whether the file starts as a TIFF or BigTIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_tiff_metadata(path: Path, choice: Choice = NO_CHOICE, *, own_layout: bool = False) -> TiffMetadata | None:
    """Read the metadata of a local file; None if it is not a TIFF or tifffile cannot follow it.

    With ``own_layout``, the pages have a meaning that belongs to the format (Aperio, Leica, …), and are not sorted.

    Raises
    ------
    OptionError
        If the file does not have the image of ``choice``.
    UnreadableSlideError
        If the image is not 8-bit RGB, or several images may be the slide.
    """
    if not is_tiff(path):
        return None
    from tifffile import TiffFile

    with quiet_tifffile():
        try:
            with TiffFile(path) as tiff:
                return tiff_facts(tiff, path.name, choice, own_layout=own_layout)[0]
        except Wsi2IhcError:
            raise
        # tifffile meets damaged headers with many kinds of exceptions; this pass is optional, the reader decides.
        except Exception as error:
            logger.debug("%s: tags not understood (%s)", path.name, error)
            return None


def has_own_layout(tiff: TiffFile) -> bool:
    """Whether the pages of a file have a meaning that belongs to its format, which tiffslide knows."""
    return bool(tiff.is_svs or tiff.is_scn or tiff.is_bif or tiff.is_ndpi)


def tiff_facts(
    tiff: TiffFile, name: str, choice: Choice = NO_CHOICE, *, own_layout: bool = False
) -> tuple[TiffMetadata, list[TiffPage]]:
    """Read the metadata of an open file, and the pages of the slide's levels.

    Raises the errors of `read_tiff_metadata`, and for a damaged file nearly any other kind.
    """
    pages = top_pages(tiff)
    tags = [tag_mpp(page) for page in pages]
    problems: tuple[str, ...] = ()
    entries: tuple[ImageEntry, ...] = ()
    if own_layout:
        longest = MAX_PHILIPS_DESCRIPTION if tiff.is_philips else MAX_DESCRIPTION
        check_description(name, pages[0].description or "", longest)
        image = _largest(name, pages, tags, choice)
    else:
        ome, problems = _ome_of(tiff, pages[0])
        images = images_of(tiff, pages, ome, tags, may_pad=bool(tiff.is_philips))
        image = choose(name, images, tiff, pages, choice)
        _check_stack(name, image, choice)
        problems = (*problems, *remarks_on_choice(images, image, ome))
        entries = tuple(one.entry(chosen=one.series == image.series) for one in images)
    if len(pages) == MAX_PAGES:
        problems = (
            *problems,
            f"The file has {MAX_PAGES} pages or more; those after the {MAX_PAGES}th are not looked at.",
        )
    base = image.levels[0]
    profile = base.tags.valueof(34675)
    seen = {page.offset for page in image.levels}
    tables = map(tile_table, (*image.levels, *(page for page in pages if page.offset not in seen)))
    facts = TiffMetadata(
        tables=tuple(table for table in tables if table is not None),
        level_sizes=tuple(map(size_of, image.levels)),
        pages=tuple(image.level_pages),
        kind=image.kind,
        orientation=_orientation(name, image.levels),
        tag_mpp=image.tag_mpp,
        ome=image.ome,
        description=base.description or "",
        icc_profile=bytes(profile) if isinstance(profile, bytes) else None,
        tag_factors=tag_factors(image.levels),
        images=entries,
        choice=choice,
        problems=(*problems, *unit_problems(base), *(() if image.ome is None else image.ome.problems)),
    )
    return facts, image.levels


def _check_stack(name: str, image: TiffImage, choice: Choice) -> None:
    """Refuse a stack of which ImageJ describes one page only."""
    count = imagej_image_count(image.levels[0].description or "")
    if count > len(image.plane_pages) and not choice:
        raise UnreadableSlideError(
            f"{name}: its description says that it holds {count} images (an ImageJ stack), of which the file "
            f"has {pluralize(len(image.plane_pages), 'page')}; export the plane that is wanted, or read the first with "
            "--page 0"
        )


def _largest(
    name: str, pages: Sequence[TiffPage], tags: Sequence[tuple[float, float] | None], choice: Choice
) -> TiffImage:
    """Return the page with the most pixels as an image; tiles go before strips, which are associated images."""
    if choice:
        raise OptionError(f"{name}: {choice}: images cannot be chosen in files of this format; leave the option out")
    number = max(
        range(len(pages)), key=lambda number: (pages[number].is_tiled, size_of(pages[number]).area_px, -number)
    )
    page = pages[number]
    kind = pixel_kind(page)
    if not kind.is_rgb:
        raise kind.refusal(name)
    return TiffImage(
        series=0, levels=[page], level_pages=[number], plane_pages=[number], kind=kind, tag_mpp=tags[number]
    )


def _ome_of(tiff: TiffFile, first: TiffPage) -> tuple[OmeXml | None, tuple[str, ...]]:
    """Read the OME-XML of a file, and describe what is wrong with it."""
    text = first.description or ""
    if not is_ome_xml(text):
        return None, ()
    try:
        ome = parse_ome_xml(text)
    except XmlError as error:
        return None, (f"Its OME-XML is not read: {error}.",)
    if not ome.companion:
        return ome, ()
    name = PurePath(ome.companion.replace("\\", "/")).name
    beside = Path(tiff.filehandle.dirname, name) if tiff.filehandle.is_file else None
    try:
        if beside is not None and stat.S_ISREG(beside.stat().st_mode) and beside.stat().st_size <= MAX_TEXT:
            return dataclasses.replace(parse_ome_xml(beside.read_text("utf-8", "replace")), uuid=ome.uuid), ()
    except (OSError, ValueError) as error:
        logger.debug("companion of OME-XML not read (%s)", error)
    return None, ("Its OME metadata lie in a companion file that cannot be read; only the TIFF tags are used.",)


def _orientation(name: str, levels: Sequence[TiffPage]) -> int:
    found = {page.tags.valueof(274, default=1) for page in levels}
    if len(found) > 1:
        raise UnreadableSlideError(
            f"{name}: its levels differ in orientation (TIFF tag 274: {', '.join(map(str, sorted(map(int, found))))}); "
            "convert it to a tiled, pyramidal TIFF"
        )
    value = int(found.pop())
    return value if 1 <= value <= 8 else 1


def tile_table(page: TiffPage) -> TileTable | None:
    """Return the table of one page; None if it has depth, or no segment for a part of its size."""
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
        # NDPI stores the JPEG header apart from the tiles, whose table is made up by tifffile.
        plain=page.bitspersample == 8 and page.sampleformat == 1 and page.fillorder == 1 and not page.jpegheader,
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


def _misplaced(
    offsets: npt.NDArray[np.int64], byte_counts: npt.NDArray[np.int64], file_bytes: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Find segments in the header, beyond the end of the file or partly over the next one, and shared segments.

    A tile of background may be stored once for all its positions, so a shared offset does not prove damage. A segment
    with bytes but without an offset is damaged; one without bytes is missing.
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


ReadAt: TypeAlias = Callable[[int, int], bytes]  # read so many bytes from an offset, fewer at the end of the file

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type (TIFF 6.0, section 2; 16 to 18 are BigTIFF's)."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """How a file stores numbers."""

    order: str  # byte order, as `struct` names it
    is_big: bool  # whether it is a BigTIFF

    @property
    def offset_bytes(self) -> int:
        """Size of an offset, and of the field of an entry that holds the value or its offset."""
        return 8 if self.is_big else 4

    def offset(self, data: bytes) -> int | None:
        """Return the offset at the start of some bytes; None if they are too few."""
        size = self.offset_bytes
        return int(struct.unpack_from(self.order + "IQ"[self.is_big], data)[0]) if len(data) >= size else None


class TiffEntry(NamedTuple):
    """A tag: its number, the type and number of its values, and the field that holds them or their offset."""

    code: int
    kind: int
    items: int
    field: bytes

    @property
    def size(self) -> int:
        return self.items * _TYPE_BYTES.get(self.kind, 1)


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """A directory."""

    stated: int  # how many entries it states
    entries: tuple[TiffEntry, ...]  # those that were read: none if there are too many
    following: int | None  # offset of the next directory, 0 after the last; None if the file ends before


def read_layout(read_at: ReadAt) -> tuple[TiffLayout, int] | None:
    """Return the layout of a file and the offset of its first directory; None if it is not a TIFF file."""
    head = read_at(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    (magic,) = struct.unpack_from(order + "H", head, 2)
    is_big = magic == 43
    if magic != 42 and not (is_big and head[4:8] == struct.pack(order + "HH", 8, 0)):
        return None
    layout = TiffLayout(order, is_big)
    first = layout.offset(head[8 if is_big else 4 :])
    return None if first is None else (layout, first)


def read_directory(layout: TiffLayout, read_at: ReadAt, start: int, most_entries: int) -> TiffDirectory:
    """Read the directory at an offset."""
    count_format = layout.order + "HQ"[layout.is_big]
    entry_format = layout.order + ("HHQ8s" if layout.is_big else "HHI4s")
    count_bytes, step = struct.calcsize(count_format), struct.calcsize(entry_format)
    head = read_at(start, count_bytes)
    count = int(struct.unpack(count_format, head)[0]) if len(head) == count_bytes else 0
    if count > most_entries:
        return TiffDirectory(count, (), None)
    data = read_at(start + count_bytes, count * step + layout.offset_bytes)
    whole = min(count, len(data) // step)
    entries = tuple(map(TiffEntry._make, struct.iter_unpack(entry_format, data[: whole * step])))
    return TiffDirectory(count, entries, layout.offset(data[count * step :]))


_TABLES = (273, 279, 288, 289, 324, 325)  # tags with the offsets and sizes of strips and tiles
_MAX_TABLE_BYTES = 2**27  # largest of these tags, of 16 million tiles; the largest slides have 3 million
_MAX_TAG_BYTES = 2**25  # largest other tag. Color profiles have up to 2 MB, descriptions of thousands of images 10 MB.
_MAX_ALL_BYTES = 2**28  # most bytes of all tags of a file

_MAX_OFFSET = 2**43
_MAX_DIRECTORIES = 4096
_MAX_ENTRIES, _MAX_ALL_ENTRIES = 4096, 2**19
"""Most entries of a directory, and of all directories; a directory has about twenty."""

_SUBIFDS = 330


def check_tags_of(path: Path) -> None:
    """Apply `check_tags` to a file; one that is not a TIFF passes."""
    with path.open("rb") as file:

        def read_at(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(count)

        check_tags(path.name, read_at)


def check_tags(name: str, read_at: ReadAt) -> None:
    """Refuse a TIFF whose tags state larger sizes than any slide has.

    Other damage passes, and is left to the libraries.
    """
    found = read_layout(read_at)
    if found is None:
        return
    total = 0
    for entry in _entries(name, *found, read_at):
        total += entry.size
        largest = _MAX_TABLE_BYTES if entry.code in _TABLES else _MAX_TAG_BYTES
        if entry.size > largest or total > _MAX_ALL_BYTES:
            raise UnreadableSlideError(
                f"{name}: its TIFF tag {entry.code} claims {entry.size:,} bytes, more than any slide has there, so the "
                "file is damaged; copy it again from its source"
            )


def _entries(name: str, layout: TiffLayout, first: int, read_at: ReadAt) -> Iterator[TiffEntry]:
    """Iterate over the entries of all directories that can be reached."""
    waiting: list[int | None] = [first]
    seen: set[int] = set()
    read = 0
    while waiting:
        start = waiting.pop()
        if start is None or start in seen or not 8 <= start <= _MAX_OFFSET:
            continue
        seen.add(start)
        if len(seen) > _MAX_DIRECTORIES or read > _MAX_ALL_ENTRIES:
            what = "tags" if read > _MAX_ALL_ENTRIES else "directories"
            raise UnreadableSlideError(
                f"{name}: it has more TIFF {what} than any slide, so it is damaged; copy it again from its source"
            )
        directory = read_directory(layout, read_at, start, _MAX_ENTRIES)
        read += len(directory.entries)
        for entry in directory.entries:
            yield entry
            if entry.code == _SUBIFDS:
                waiting += _offsets(layout, entry, read_at)
        waiting.append(directory.following)


def _offsets(layout: TiffLayout, entry: TiffEntry, read_at: ReadAt) -> list[int | None]:
    """Return the offsets that an entry holds, as far as they lie in the file."""
    size, at = layout.offset_bytes, layout.offset(entry.field)
    stored = entry.field
    if entry.items != 1:
        wanted = min(entry.items, _MAX_DIRECTORIES + 1) * size
        stored = read_at(at, wanted) if at is not None and at <= _MAX_OFFSET else b""
    return [layout.offset(stored[start : start + size]) for start in range(0, len(stored) - size + 1, size)]
