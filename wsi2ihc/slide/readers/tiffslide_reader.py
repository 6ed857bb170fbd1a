"""Read slides with tiffslide: remote files, SubIFD pyramids, and files that OpenSlide refuses."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ...errors import SlideNotFoundError, UnreadableSlideError, Wsi2IhcError
from ...geometry import RGB, WHITE, Region, RGBImage, Size
from ..image_choice import NO_CHOICE, Choice
from ..jpeg_tiles import LocalFile
from ..metadata import GivenResolution, Mpp, positive_number, resolve_mpp
from ..open import SILENT, RemoteFile, did_not_respond
from ..protocol import SlideInfo, alpha_in, not_rgb, samples_of_bits
from ..slide_xml import XmlError, parse_xml
from ..tiff_images import MAX_DESCRIPTION, MAX_PAGES, MAX_SUBIFDS, check_description, top_pages
from ..tiff_metadata import TiffMetadata, TileTable, check_tags, has_own_layout, quiet_tifffile, tiff_facts, tile_table
from ..tile_codecs import unreadable_kind
from .base import (
    SlideReader,
    both,
    changed_at,
    checked_bounds,
    checked_levels,
    checked_profile,
    identity,
    own_hash,
    remarks,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage
    from tiffslide import TiffSlide

_MAX_SPACING_CHARACTERS = 1000


def read_images_as(slide: TiffSlide, levels: Sequence[TiffPage]) -> None:
    """Make ``slide`` read these ``levels``, largest first."""
    from tifffile import TiffPageSeries

    tiff = slide.ts_tifffile
    first, *others = (TiffPageSeries([page], page.shape, page.dtype, page.axes, kind="generic") for page in levels)
    first.levels.extend(others)
    # Both are cached properties: values that are set are not computed.
    tiff.__dict__["series"] = [first]
    slide.__dict__["properties"] = _properties(tiff, levels)


def _properties(tiff: TiffFile, levels: Sequence[TiffPage]) -> dict[str, Any]:
    axes = {"YXS": "YXS", "SYX": "CYX"}.get(levels[0].axes, levels[0].axes)
    found: dict[str, Any] = {"tiffslide.series-index": 0, "tiffslide.series-axes": axes}
    if tiff.is_philips:
        found["tiffslide.vendor"] = "philips-tiff"
        mpp = _philips_mpp(tiff.pages.first.description or "")
        if mpp is not None:
            found["tiffslide.mpp-x"], found["tiffslide.mpp-y"] = mpp
    full = levels[0]
    for number, page in enumerate(levels):
        key = f"tiffslide.level[{number}]"
        found[f"{key}.width"], found[f"{key}.height"] = int(page.imagewidth), int(page.imagelength)
        found[f"{key}.tile-width"], found[f"{key}.tile-height"] = int(page.tilewidth), int(page.tilelength)
        found[f"{key}.downsample"] = (full.imagewidth / page.imagewidth + full.imagelength / page.imagelength) / 2
    return found


def check_pages(tiff: TiffFile, name: str) -> None:
    """Refuse a file with so many pages, or so long a text, that the libraries would take minutes for them."""
    pages = top_pages(tiff)
    check_description(name, pages[0].description or "", MAX_DESCRIPTION)
    if len(pages) >= MAX_PAGES or any(len(page.subifds or ()) > MAX_SUBIFDS for page in pages):
        raise UnreadableSlideError(
            f"{name}: it has more pages than any slide ({MAX_PAGES} and {MAX_SUBIFDS} of one page at most); the file "
            "is damaged: copy it again from its source"
        )


def _philips_mpp(text: str) -> Mpp | None:
    """Return µm per level-0 px along (x, y) by the XML of a Philips TIFF; None if it does not state it.

    Each level states its own resolution (DICOM_PIXEL_SPACING: mm between rows, then between columns); that of level 0
    is the finest.
    """
    values: list[str] = []
    inside = False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        inside = name == "Attribute" and attributes.get("Name") == "DICOM_PIXEL_SPACING"
        if inside:
            values.append("")

    def end(_name: str) -> None:
        nonlocal inside
        inside = False

    def characters(data: str) -> None:
        if inside and len(values[-1]) < _MAX_SPACING_CHARACTERS:
            values[-1] += data

    try:
        parse_xml(text, start, end, characters)
    except XmlError:
        return None
    pairs = [_spacing(value) for value in values]
    return min((pair for pair in pairs if pair is not None), default=None)


def _spacing(value: str) -> Mpp | None:
    sides = [positive_number(side.strip('"')) for side in value.split()]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    return sides[1] * 1000, sides[0] * 1000


_YCBCR = 6
_CONVERTS_YCBCR = (6, 7, 33003, 33005, 34712)
"""JPEG and JPEG 2000; for the rest, YCbCr samples would be taken as they are."""

_LARGEST_VERIFIED, _SPREAD_VERIFIED = 8, 16
"""Tiles that are decoded before a file that OpenSlide could not read is believed: those with most data, and others."""

_warnings_lock = threading.Lock()


class TiffSlideReader(SlideReader):
    """A slide opened with tiffslide.

    The library finds and describes the levels; the tiles are decoded by `DirectTiles`. Remote files are read one tile
    at a time.

    Raises
    ------
    OptionError
        If the file does not have the image of ``choice``.
    SlideNotFoundError
        If nothing exists at this URL.
    UnreadableSlideError
        If tiffslide cannot open or read the file, or its pixels are not 8-bit RGB.
    """

    def __init__(self, path: str | Path, given: GivenResolution | None, choice: Choice = NO_CHOICE) -> None:
        super().__init__(path, name_of(path))
        self._slide: TiffSlide | None = None
        self._file: LocalFile | RemoteFile | None = None
        try:
            with self._explained():
                self._file = LocalFile(path) if isinstance(path, Path) else RemoteFile(self._name, path)
                check_tags(self._name, self._file.read_at)
            with _quiet(), self._explained():
                self._slide = _open(path if isinstance(self._file, LocalFile) else self._file.handle, self._name)
                facts = self._select(self._slide, choice)
                self._check_pixels(facts)
                self._info = self._describe(self._slide, facts, given)
                self._tables = self._level_tables(self._slide)
            self._check_tables()
            self._set_layout(facts)
            self._direct = self._direct_tiles(self._file, self._tables, facts.kind.alpha == "premultiplied")
            if facts.kind.alpha == "unspecified":
                self._settle_fourth_sample()
            self._probe()
            if self._direct.alpha and facts.kind.samples == 4:
                self._check_visible()
        except BaseException:
            self.close()
            raise

    def _select(self, slide: TiffSlide, choice: Choice) -> TiffMetadata:
        """Find the slide among the file's images, and make tiffslide read that one."""
        tiff = slide.ts_tifffile
        own_layout = has_own_layout(tiff)
        if own_layout:
            check_pages(tiff, self._name)
        facts, levels = tiff_facts(tiff, self._name, choice, own_layout=own_layout)
        if not own_layout:
            read_images_as(slide, levels)
        return facts

    def _set_layout(self, facts: TiffMetadata) -> None:
        self.orientation = facts.orientation
        if len(facts.pages) == len(self._info.levels):
            self.tile_sizes = tuple(
                table.tile if table.tiled else Size(1, 1) for _, table in sorted(self._tables.items())
            )
            self.tag_factors = facts.tag_factors

    def _settle_fourth_sample(self) -> None:
        """Detect whether a fourth sample of unspecified meaning is alpha."""
        assert self._direct is not None
        level = len(self._info.levels) - 1
        stored = np.argwhere(self._tables[level].byte_counts > 0)
        picks = np.unique(np.linspace(0, len(stored) - 1, min(len(stored), _SPREAD_VERIFIED)).astype(int))
        samples = [self._direct.samples(level, row, column) for row, column in stored[picks].tolist()]
        self._direct.alpha = alpha_in(np.concatenate([tile.reshape(-1, 4) for tile in samples])) if samples else ""
        note = (
            "It has a fourth sample that behaves as alpha, although the file does not say so; transparent places are "
            "taken for background."
            if self._direct.alpha
            else "It has a fourth sample that the file does not declare as alpha; it is left out."
        )
        self._info = dataclasses.replace(self._info, problems=(*self._info.problems, note))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert the exceptions of fsspec, tifffile and zarr, of nearly any kind, to errors that name the slide."""
        try:
            yield
        except (Wsi2IhcError, MemoryError):
            raise
        except Exception as error:
            if did_not_respond(error):
                problem = f"{SILENT}; try again later, or copy the slide to a local disk"
            elif type(error.__cause__).__name__.startswith("ClientConnector"):  # of aiohttp: refused, or no such host
                problem = "the server cannot be reached; check the address and the network"
            elif isinstance(error, FileNotFoundError):
                raise SlideNotFoundError(f"{self._name}: there is no slide under this address") from error
            elif isinstance(error, ImportError):
                problem = (
                    f"this kind of address needs another package ({self._reason(error)}); install the extra "
                    '"remote", or copy the slide to a local disk'
                )
            else:
                problem = (
                    f"tiffslide cannot open it ({self._reason(error)}); copy it again from its source, or convert it "
                    "to a tiled, pyramidal TIFF"
                )
            raise UnreadableSlideError(f"{self._name}: {problem}") from error

    def _check_pixels(self, facts: TiffMetadata) -> None:
        table = facts.tables[0] if facts.tables and facts.tables[0].size == facts.level_sizes[0] else None
        if table is not None and table.photometric == _YCBCR and table.compression not in _CONVERTS_YCBCR:
            raise not_rgb(self._name, "are YCbCr in a compression that is not converted here")
        if facts.kind.samples < 3:
            raise not_rgb(self._name, samples_of_bits(facts.kind.samples, facts.kind.bits))

    def _check_tables(self) -> None:
        """Refuse a level whose tiles cannot be decoded here, and say why."""
        for level in range(len(self._info.levels)):
            table = self._tables.get(level)
            reason = (
                f"the table of level {level} does not have a place for each of its tiles, so the file is damaged; "
                "copy it again from its source"
                if table is None
                else unreadable_kind(table)
            )
            if reason is not None:
                raise UnreadableSlideError(f"{self._name}: {reason}")

    def prove_pixels(self) -> None:
        """Decode tiles all over level 0, the largest among them, of a file that OpenSlide refused.

        Raises `UnreadableSlideError` if one of them is damaged.
        """
        table = self._tables[0]
        stored = np.flatnonzero(table.byte_counts)
        largest = stored[np.argsort(table.byte_counts.ravel()[stored])[-_LARGEST_VERIFIED:]]
        spread = stored[np.linspace(0, len(stored) - 1, _SPREAD_VERIFIED).astype(int)]
        for index in np.unique([*largest, *spread]).tolist():
            self.read_level(0, table.tile_region(*divmod(index, table.byte_counts.shape[1])))

    def _describe(self, slide: TiffSlide, facts: TiffMetadata, given: GivenResolution | None) -> SlideInfo:
        properties = slide.properties
        levels = checked_levels(self._name, slide.level_dimensions, slide.level_downsamples)
        profile, profile_remarks = checked_profile(facts.icc_profile)
        ome = facts.ome
        vendor = str(properties.get("tiffslide.vendor") or "generic-tiff")
        own = both(*(positive_number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy"))
        if vendor == "generic-tiff" or "tiff.XResolution" in properties:  # tiffslide has it from the tags
            own = None if ome is None else ome.mpp
        magnification = positive_number(properties.get("tiffslide.objective-power"))
        if magnification is None and ome is not None:
            magnification = ome.magnification
        resolution = resolve_mpp(given, own, facts.tag_mpp, magnification)
        bounds = [properties.get(f"tiffslide.bounds-{key}") for key in ("x", "y", "width", "height")]
        assert self._file is not None
        return SlideInfo(
            name=self._name,
            reader="tiffslide",
            vendor=vendor,
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            magnification=magnification,
            bounds=checked_bounds(bounds, levels[0].size),
            background=WHITE,
            icc_profile=profile,
            quickhash=identity(own_hash(self._file.read_at, int(slide.ts_tifffile.filehandle.size)), facts),
            changed_at=changed_at(self.path),
            problems=(*resolution.problems, *profile_remarks, *remarks(levels, magnification, facts)),
            images=facts.images,
        )

    def _level_tables(self, slide: TiffSlide) -> dict[int, TileTable]:
        """Return the segments by level, for levels that have one for every part of their size."""
        if "tiffslide.series-composition" in slide.properties:
            raise UnreadableSlideError(
                f"{self._name}: it is put together from several areas, which only OpenSlide reads, and only on a "
                "local disk; copy it there"
            )
        series = slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]]
        found = {level: tile_table(page.keyframe) for level, page in enumerate(series.levels)}
        return {
            level: table
            for level, table in found.items()
            if table is not None and table.size == self._info.levels[level].size
        }

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        assert self._direct is not None
        self._direct.read(level, region, out, fill)

    def _release(self) -> None:
        slide, self._slide = self._slide, None
        if slide is not None:
            slide.close()
        if self._file is not None:
            self._file.close()


def name_of(path: str | Path) -> str:
    """Return the base name, of a URL without its query, which may hold a key."""
    if isinstance(path, Path):
        return path.name
    parts = urlsplit(path)
    return PurePosixPath(parts.path).name or parts.netloc or path


def _open(file: Any, name: str) -> TiffSlide:
    from tiffslide import TiffSlide

    if isinstance(file, Path):
        return TiffSlide(os.fspath(file))
    file.seek(0)  # tifffile takes the present position for the file's start
    return TiffSlide(file, tifffile_options={"name": name})


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the libraries; `SlideInfo.problems` has what matters.

    Python's warning filters belong to the whole process, hence the lock; reading needs no filter.
    """
    with _warnings_lock, warnings.catch_warnings(), quiet_tifffile():
        warnings.simplefilter("ignore")
        yield
