"""Read slides with OpenSlide."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import openslide
from PIL import Image

from ...errors import UnreadableSlideError
from ...geometry import RGB, Region, RGBImage, Size, floor_to
from ..jpeg_tiles import cache_bytes, damaged
from ..metadata import GivenResolution, positive_number, resolve_mpp
from ..protocol import ImageEntry, SlideInfo, composited
from ..tiff_metadata import TiffMetadata, TileTable
from .base import (
    SlideReader,
    both,
    changed_at,
    checked_bounds,
    checked_levels,
    checked_profile,
    color_from_hex,
    hash_of_file,
    identity,
    remarks,
    remarks_on_bounds,
    table_of_size,
)
from .dicom import HOLE, check_frames

_ASSOCIATED = "openslide.associated."

_PLANES = {
    "dicom.TotalPixelMatrixFocalPlanes": "focal planes",
    "dicom.NumberOfFocalPlanes": "focal planes",
    "zeiss.Information.Image.SizeZ": "focal planes",
    "zeiss.Information.Image.SizeT": "times",
    "mirax.HIERARCHICAL.HIER_2_COUNT": "focal planes",
}
"""Properties that count planes of the same area, of which OpenSlide reads one."""


def images_in(properties: Mapping[str, str], size: Size) -> tuple[ImageEntry, ...]:
    """List the slide and OpenSlide's associated images."""
    entries = [ImageEntry("", size, chosen=True)]
    for key in sorted(properties):
        name, _, side = key.removeprefix(_ASSOCIATED).rpartition(".")
        if key.startswith(_ASSOCIATED) and side == "width":
            found = [positive_number(properties.get(f"{_ASSOCIATED}{name}.{side}")) for side in ("width", "height")]
            if found[0] and found[1]:
                entries.append(ImageEntry(name[:80], Size(int(found[0]), int(found[1]))))
    return tuple(entries)


def remarks_on_planes(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Describe planes that are not read, and regions that are read together."""
    notes = []
    for key, noun in _PLANES.items():
        count = positive_number(properties.get(key))
        if count is not None and count >= 2:
            notes.append(f"The slide has {count:g} {noun}; the one that OpenSlide shows is used.")
    regions = sum(key.startswith("openslide.region[") and key.endswith("].width") for key in properties)
    if regions > 1:
        notes.append(f"The slide has {regions} scanned regions; they are shown together, where they lie on the slide.")
    return tuple(dict.fromkeys(notes))


_GENERIC = "generic-tiff"

_TILED_VENDORS = frozenset({"aperio", _GENERIC, "philips-tiff", "huron"})
"""Families whose levels are TIFF pages of plain tiles. Others overlap tiles or arrange several areas."""

_MAY_PAD = frozenset({_GENERIC, "aperio", "dicom", "philips-tiff"})
"""Families whose levels may be padded to whole tiles."""

_BLOCK_PX = 2048  # largest piece asked for at once: 16 MB as OpenSlide's four bytes a px

_MAX_TILE_PX = 2**28
"""Largest tile that OpenSlide may be asked to decode: 1 GiB. NDPI without restart markers has levels in one piece."""

_GRID_PX = 512  # blocks of levels between whose pixels OpenSlide interpolates; see `OpenSlideReader._blocks`

_SIDES = ("width", "height")
_USUAL_TILE = Size(256, 256)

_EXACT_PX = 1 / 1024  # Cairo takes an offset of less than 1/512 px for none (it works in 1/256 px)


class FormatUnknownError(UnreadableSlideError):
    """OpenSlide does not know this kind of file."""


class OpenSlideReader(SlideReader):
    """A slide opened with OpenSlide.

    Memory: the caches of OpenSlide and `DirectTiles` (see `jpeg_tiles.cache_bytes`), and one block per reading thread.
    ``facts`` are the TIFF tags, if it is a TIFF. Raises `UnreadableSlideError` if OpenSlide cannot open or read it.
    """

    def __init__(self, path: Path, facts: TiffMetadata | None, given: GivenResolution | None) -> None:
        super().__init__(path, path.name)
        self._file = path
        self._lock = threading.Lock()
        self._jpeg_2000 = check_frames(path)
        self._handle: openslide.OpenSlide | None = self._open()
        try:
            self._check_tiles(self._handle)
            self._downsamples = self._handle.level_downsamples
            self._info = self._describe(self._handle, facts, given)
            self._tables = tables = _tables(self._info, facts)
            self._set_layout(self._handle, facts)
            self._cache = openslide.OpenSlideCache(cache_bytes(self._info.size, _tile_size(self._handle, 0), 4))
            self._handle.set_cache(self._cache)
            self._probe()
            if facts is not None and facts.has_alpha:
                self._check_visible()
            if facts is not None and 0 in tables:
                self._go_direct(path, tables, facts.kind.alpha == "premultiplied")
        except openslide.OpenSlideError as error:
            self.close()
            raise self._unreadable(error) from error
        except UnreadableSlideError:
            self.close()
            raise

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._file)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise FormatUnknownError(
                f"{self._name}: this is not a slide in a format that OpenSlide or tiffslide reads, or its copy is "
                "incomplete; check the file, or convert it to a tiled, pyramidal TIFF"
            ) from error
        except openslide.OpenSlideError as error:
            refusal = self._unreadable(error)
            # Nothing is wrong with such a file; OpenSlide tells it from damage in its message only.
            unknown = str(error).startswith("Unsupported TIFF compression")
            raise (FormatUnknownError(str(refusal)) if unknown else refusal) from error

    def _unreadable(self, error: Exception) -> UnreadableSlideError:
        return UnreadableSlideError(
            f"{self._name}: OpenSlide cannot read it ({self._reason(error)}); copy it again from its source, "
            "or convert it to a tiled, pyramidal TIFF"
        )

    def _check_tiles(self, handle: openslide.OpenSlide) -> None:
        """Refuse absurd tiles: where OpenSlide cannot get the memory for one, it ends the whole process."""
        for level in range(handle.level_count):
            tile = _tile_size(handle, level)
            if tile.area_px > _MAX_TILE_PX:
                raise UnreadableSlideError(
                    f"{self._name}: the header claims tiles of {tile} px, so the file is damaged, or stored in one "
                    "piece; copy it again from its source, or convert it to a tiled, pyramidal TIFF"
                )

    def _describe(
        self, handle: openslide.OpenSlide, facts: TiffMetadata | None, given: GivenResolution | None
    ) -> SlideInfo:
        # a name with bytes that are not UTF-8 is listed, and then not found: such a property is left out
        properties = {name: value for name in handle.properties if (value := handle.properties.get(name)) is not None}
        levels = checked_levels(self._name, handle.level_dimensions, self._downsamples)
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        # An empty region carries the profile too, and decodes nothing.
        profile, profile_remarks = checked_profile(handle.read_region((0, 0), 0, (0, 0)).info.get("icc_profile"))
        ome = None if facts is None else facts.ome
        own = both(*(positive_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))
        tags = None if facts is None else facts.tag_mpp
        if vendor == _GENERIC:  # OpenSlide has it from the tags
            own, tags = None if ome is None else ome.mpp, own if facts is None else tags
        magnification = positive_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        if magnification is None and ome is not None:
            magnification = ome.magnification
        resolution = resolve_mpp(given, own, tags, magnification)
        stated = [properties.get(f"openslide.bounds-{key}") for key in ("x", "y", "width", "height")]
        bounds = checked_bounds(stated, levels[0].size)
        return SlideInfo(
            name=self._name,
            reader="openslide",
            vendor=vendor,
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            magnification=magnification,
            bounds=bounds,
            background=color_from_hex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)),
            icc_profile=profile,
            quickhash=identity(properties.get(openslide.PROPERTY_NAME_QUICKHASH1) or hash_of_file(self._file), facts),
            changed_at=changed_at(self._file),
            problems=(
                *resolution.problems,
                *profile_remarks,
                *remarks(levels, magnification, facts),
                *remarks_on_planes(properties),
                *remarks_on_bounds(bounds, levels[0].size),
            ),
            images=(None if facts is None else facts.images) or images_in(properties, levels[0].size),
        )

    def _set_layout(self, handle: openslide.OpenSlide, facts: TiffMetadata | None) -> None:
        """Set how the levels are stored, if they may be padded."""
        count = len(self._info.levels)
        if count > 1 and self._info.vendor in _MAY_PAD:
            self.tile_sizes = tuple(_tile_size(handle, level, Size(1, 1)) for level in range(count))
            known = facts is not None and len(facts.tag_factors) == count
            self.tag_factors = facts.tag_factors if facts is not None and known else (None,) * count

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        self._check_holes(level, region)
        for block, part in self._blocks(level, region):
            image = self._read_block(level, block)
            rows, columns = part.slices_in(block)
            out[part.slices_in(region)] = composited(image, fill)[rows, columns]

    def _check_holes(self, level: int, region: Region) -> None:
        """Refuse JPEG 2000 frames of DICOM files that OpenSlide would decode into wrong pixels."""
        size, downsample = self._info.levels[level].size, self._info.levels[level].downsample
        for frames in self._jpeg_2000:
            if frames.size not in (size, None):
                continue
            try:
                hole = frames.hole(region)
            except OSError as error:
                raise damaged(self._name, region, downsample, self._reason(error)) from error
            if hole is not None:
                raise damaged(self._name, hole, downsample, HOLE)

    def _blocks(self, level: int, region: Region) -> Iterator[tuple[Region, Region]]:
        """Yield blocks to read, in px of the level, and the part of each that belongs to ``region``.

        OpenSlide takes level-0 coordinates and divides by the level's downsample. If that is a whole number, any px can
        be read exactly. Otherwise the result is shifted by up to half a level-0 px and interpolated; the shift must be
        a function of the position, not of the region, so blocks start on a fixed grid.
        """
        step = _BLOCK_PX if self._downsamples[level].is_integer() else _GRID_PX
        free = step == _BLOCK_PX
        first_y, first_x = (region.y, region.x) if free else (floor_to(region.y, step), floor_to(region.x, step))
        for y in range(first_y, region.bottom, step):
            for x in range(first_x, region.right, step):
                # The cell, up to where it is needed; never from where it is needed.
                block = Region(x, y, min(step, region.right - x), min(step, region.bottom - y))
                yield block, block.intersection(region)

    def _read_block(self, level: int, block: Region) -> Image.Image:
        downsample = self._downsamples[level]
        location = (round(block.x * downsample), round(block.y * downsample))
        size = (block.width, block.height)
        handle = self._handle
        if handle is None:
            raise ValueError(f"{self._name} is closed")
        try:
            return handle.read_region(location, level, size)
        except openslide.OpenSlideError:
            pass
        # A handle stays in error once it failed, for all threads: this failure may be another place's. A handle of
        # our own decides, and a fresh one goes into use. The old one is closed when its last user lets go of it.
        try:
            fresh = self._open()
            image = fresh.read_region(location, level, size)
        except openslide.OpenSlideError as error:
            self._replace(handle, self._open())
            raise damaged(self._name, block, downsample, self._reason(error)) from error
        self._replace(handle, fresh)
        return image

    def _replace(self, old: openslide.OpenSlide, new: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is old and not self._closed:
                new.set_cache(self._cache)
                self._handle = new

    def _exact(self, level: int, region: Region) -> RGBImage | None:
        downsample = self._downsamples[level]
        for start in (region.x, region.y):
            if abs(round(start * downsample) / downsample - start) > _EXACT_PX:
                return None
        # read from the corner of the region, which is exact, not through the grid
        return composited(self._read_block(level, region), (255, 255, 255))

    def _release(self) -> None:
        # Not closed: another thread may be inside it. It closes itself when its last user lets go of it.
        with self._lock:
            self._handle = None


def format_of(file: Path) -> str | None:
    """Detect the family of formats by OpenSlide; None if it is unknown."""
    try:
        return openslide.OpenSlide.detect_format(file)
    except openslide.OpenSlideError:
        return None


def _tile_size(handle: openslide.OpenSlide, level: int, default: Size = _USUAL_TILE) -> Size:
    stated = (handle.properties.get(f"openslide.level[{level}].tile-{side}") for side in _SIDES)
    width, height = map(positive_number, stated)
    return Size(int(width), int(height)) if width and height else default


def _tables(info: SlideInfo, facts: TiffMetadata | None) -> Mapping[int, TileTable]:
    """Return the tiles by level, for levels that are plain TIFF pages whose missing tiles have no pixels."""
    if facts is None or info.vendor not in _TILED_VENDORS:
        return {}
    tables: dict[int, TileTable] = {}
    missing = False
    for level, description in enumerate(info.levels):
        table = table_of_size(facts.tables, description.size)
        missing = missing or table is None or table.missing > 0
        # Below a tile that an Aperio file lacks, OpenSlide paints lower levels from other tiles than their own.
        if table is not None and (level == 0 or info.vendor == _GENERIC or not missing):
            tables[level] = table
    return tables
