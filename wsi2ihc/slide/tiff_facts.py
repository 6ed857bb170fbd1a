"""What the TIFF tags of a slide say: where its tiles lie, which are missing, how large its pixels are.

OpenSlide hides these. They are read once, when a slide is opened, with tifffile; nothing here decodes pixels.
"""

from __future__ import annotations

import dataclasses
import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import OptionError, UnreadableSlideError, Wsi2IhcError
from ..geometry import Region, Size
from ..text import pluralize
from .image_choice import NO_CHOICE, Choice
from .ome_xml import MAX_TEXT, OmeImage, OmeXml, XmlError, is_ome_xml, parse_ome_xml
from .pixel_kinds import PixelKind, pixel_kind
from .protocol import ImageEntry
from .tag_resolution import imagej_images, tag_factors, tag_mpp, unit_problems
from .tiff_images import (
    MAX_DESCRIPTION,
    MAX_PAGES,
    MAX_TAKEN_APART,
    TiffImage,
    check_description,
    choose,
    images_of,
    remarks_on,
    size_of,
    top_pages,
)
from .tifffile_log import quiet_tifffile

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

logger = logging.getLogger(__name__)

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_BYTES = 8


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
    """What the tags of a TIFF slide say, all of it of the image that is the slide.

    tables:        of all pages, those of the slide's levels first; planar pages are left out
    level_sizes:   sizes of the slide's levels, largest first, SubIFDs included
    pages:         the levels' pages: number in the file's chain, or None of a SubIFD
    kind:          what its pixels are
    orientation:   TIFF tag 274: 1 where rows and columns lie as they are shown
    tag_mpp:       µm per px from the resolution tags, whatever they say; None without tags
    ome:           what the OME-XML says of the image, or None
    description:   ImageDescription, "" if there is none
    icc_profile:   tag 34675, or None
    tag_factors:   for each level, how many times its resolution tags are those of level 0; None where they do not say
    images:        all images of the file; empty where the format has its own layout
    choice:        which of them a caller wanted
    problems:      what is doubtful, one sentence each
    """

    tables: tuple[TileTable, ...]
    level_sizes: tuple[Size, ...]
    pages: tuple[int | None, ...]
    kind: PixelKind
    orientation: int
    tag_mpp: tuple[float, float] | None
    ome: OmeImage | None
    description: str
    icc_profile: bytes | None
    tag_factors: tuple[float | None, ...] = ()
    images: tuple[ImageEntry, ...] = ()
    choice: Choice = NO_CHOICE
    problems: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        """Whether the slide has an alpha sample."""
        return self.kind.alpha in ("straight", "premultiplied")

    @property
    def premultiplied(self) -> bool:
        """Whether its colors are already multiplied by alpha."""
        return self.kind.alpha == "premultiplied"


def is_tiff(path: Path) -> bool:
    """Whether the file starts as a TIFF or BigTIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_tiff_facts(path: Path, choice: Choice = NO_CHOICE, *, own_layout: bool = False) -> TiffFacts | None:
    """The facts of a local file, or None where it is not a TIFF or tifffile cannot follow it.

    Parameters
    ----------
    path
        The file.
    choice
        Which of its images is wanted.
    own_layout
        The pages have a meaning that belongs to the format (Aperio, Leica, …), and are not to be sorted here.

    Raises
    ------
    OptionError
        If ``choice`` names what the file does not have.
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
) -> tuple[TiffFacts, list[TiffPage]]:
    """The facts of an open file, and the pages of the slide's levels.

    Raises
    ------
    OptionError
        If ``choice`` names what the file does not have.
    UnreadableSlideError
        If the image is not 8-bit RGB, or several images may be the slide.
    Exception
        Of nearly any kind, where the file is damaged.
    """
    pages = top_pages(tiff)
    tags = [tag_mpp(page) for page in pages]
    problems: tuple[str, ...] = ()
    entries: tuple[ImageEntry, ...] = ()
    if own_layout:
        check_description(name, pages[0].description or "", MAX_DESCRIPTION if tiff.is_philips else MAX_TAKEN_APART)
        image = _largest(name, pages, tags, choice)
    else:
        ome, problems = _ome_of(tiff, pages[0])
        images = images_of(tiff, pages, ome, tags, pads=bool(tiff.is_philips))
        image = choose(name, images, tiff, pages, choice)
        _check_stack(name, image, choice)
        problems = (*problems, *remarks_on(images, image, ome))
        entries = tuple(one.entry(chosen=one.number == image.number) for one in images)
    if len(pages) == MAX_PAGES:
        problems = (
            *problems,
            f"The file has {MAX_PAGES} pages or more; those after the {MAX_PAGES}th are not looked at.",
        )
    base = image.levels[0]
    profile = base.tags.valueof(34675)
    seen = {page.offset for page in image.levels}
    tables = map(tile_table, (*image.levels, *(page for page in pages if page.offset not in seen)))
    facts = TiffFacts(
        tables=tuple(table for table in tables if table is not None),
        level_sizes=tuple(map(size_of, image.levels)),
        pages=tuple(image.numbers),
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
    """Refuse a stack of which ImageJ describes one page only.

    Raises
    ------
    UnreadableSlideError
        If the description speaks of more images than the file has pages for.
    """
    count = imagej_images(image.levels[0].description or "")
    if count > len(image.planes) and not choice:
        raise UnreadableSlideError(
            f"{name}: its description says that it holds {count} images (an ImageJ stack), of which the file has "
            f"{pluralize(len(image.planes), 'page')}; export the plane that is wanted, or read the first with --page 0"
        )


def _largest(
    name: str, pages: Sequence[TiffPage], tags: Sequence[tuple[float, float] | None], choice: Choice
) -> TiffImage:
    """The page with the most pixels, as an image of one level; tiles go before strips, which are associated images."""
    if choice:
        raise OptionError(f"{name}: {choice}: images cannot be chosen in files of this format; leave the option out")
    number = max(
        range(len(pages)), key=lambda number: (pages[number].is_tiled, size_of(pages[number]).area_px, -number)
    )
    page = pages[number]
    kind = pixel_kind(page)
    if not kind.is_rgb:
        raise kind.refusal(name)
    return TiffImage(0, [page], [number], [number], kind, False, None, tags[number])


def _ome_of(tiff: TiffFile, first: TiffPage) -> tuple[OmeXml | None, tuple[str, ...]]:
    """The OME-XML of a file, and what is wrong with it."""
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
    """Tag 274 of all levels.

    Raises
    ------
    UnreadableSlideError
        If the levels differ.
    """
    found = {page.tags.valueof(274, default=1) for page in levels}
    if len(found) > 1:
        raise UnreadableSlideError(
            f"{name}: its levels differ in orientation (TIFF tag 274: {', '.join(map(str, sorted(map(int, found))))}); "
            "convert it to a tiled, pyramidal TIFF"
        )
    value = int(found.pop())
    return value if 1 <= value <= 8 else 1


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
